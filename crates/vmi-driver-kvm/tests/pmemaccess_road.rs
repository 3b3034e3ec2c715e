//! A guest whose memory is reached by the `pmemaccess` socket, through the driver: a monitor that answers as a patched QEMU would, and a server.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use vmi_core::{Driver, ErrorKind, PhysAddr};
use vmi_driver_kvm::qmp::{Monitor, MonitorError};
use vmi_driver_kvm::{Options, QemuDriver, Road};

const SIZE: usize = 1 << 20;

/// RAM, a device, and a ROM.
const TREE: &str = r#"FlatView #0
 AS "memory", root: system
 Root memory region: system
  0000000000000000-00000000000fffff (prio 0, ram): pc.ram
  00000000fee00000-00000000feefffff (prio 4096, i/o): apic-msi
  00000000fffff000-00000000ffffffff (prio 0, rom): pc.bios
"#;

/// The monitor of a patched QEMU.
#[derive(Debug)]
struct Patched {
    version: Option<(u32, u32)>,
    ram: Arc<Mutex<Vec<u8>>>,
    /// Ranges that were asked of the server.
    asked: Arc<Mutex<Vec<(u64, u64)>>>,
    paths: Mutex<Vec<PathBuf>>,
}

impl Patched {
    fn new(version: Option<(u32, u32)>) -> Arc<Self> {
        let ram = (0..SIZE).map(|at| (at * 31 + at / 251) as u8).collect();
        Arc::new(Self { version, ram: Arc::new(Mutex::new(ram)), asked: Arc::default(), paths: Mutex::default() })
    }

    /// As the patch does: away with what is there.
    fn listen(&self, path: &Path) {
        let _ = fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        let (ram, asked) = (Arc::clone(&self.ram), Arc::clone(&self.asked));
        std::thread::spawn(move || serve_one(listener, &ram, &asked));
        self.paths.lock().unwrap().push(path.to_owned());
    }

    fn open(self: &Arc<Self>, options: &Options) -> Result<QemuDriver, String> {
        let monitor: Arc<dyn Monitor> = Arc::clone(self) as _;
        QemuDriver::over(monitor, Some(std::process::id()), &options.clone().road(Road::PmemAccess))
            .map_err(|error| error.to_string())
    }
}

impl Drop for Patched {
    fn drop(&mut self) {
        for path in self.paths.lock().unwrap().drain(..) {
            let _ = fs::remove_file(path);
        }
    }
}

impl Monitor for Patched {
    fn execute(&self, command: &str, arguments: Value) -> Result<Value, MonitorError> {
        let refused = || MonitorError::Refused {
            monitor: self.describe(),
            command: command.to_owned(),
            class: "CommandNotFound".to_owned(),
            description: "unknown".to_owned(),
        };
        match (command, arguments["command-line"].as_str()) {
            ("query-name", _) => Ok(json!({ "name": "patched" })),
            ("query-cpus-fast", _) => Ok(json!([{}])),
            ("query-memdev", _) => Ok(json!([{ "id": "pc.ram" }])),
            ("query-version", _) => {
                let (major, minor) = self.version.ok_or_else(refused)?;
                Ok(json!({ "qemu": { "major": major, "minor": minor, "micro": 0 }, "package": "" }))
            }
            ("pmemaccess", _) => {
                self.listen(Path::new(arguments["path"].as_str().unwrap()));
                Ok(json!({}))
            }
            (_, Some("info mtree -f")) => Ok(json!(TREE)),
            (_, Some(line)) => {
                let at = u64::from_str_radix(line.strip_prefix("gpa2hva 0x").unwrap(), 16).unwrap();
                Ok(json!(format!("Host virtual address for {at:#x} (x) is {:#x}\r\n", at + 0x7000_0000_0000)))
            }
            _ => Err(refused()),
        }
    }

    fn describe(&self) -> String {
        "patched QEMU".to_owned()
    }
}

/// As the patch does: the first connection is the last, and nobody listens any more once it is answered.
fn serve_one(listener: UnixListener, ram: &Mutex<Vec<u8>>, asked: &Mutex<Vec<(u64, u64)>>) {
    let (stream, _) = listener.accept().unwrap();
    drop(listener);
    serve(stream, ram, asked);
}

fn serve(mut stream: UnixStream, ram: &Mutex<Vec<u8>>, asked: &Mutex<Vec<(u64, u64)>>) {
    let mut request = [0; 24];
    while stream.read_exact(&mut request).is_ok() {
        let number = |at: usize| u64::from_le_bytes(request[at..at + 8].try_into().unwrap());
        let (kind, at, len) = (request[0], number(8), number(16));
        asked.lock().unwrap().push((at, len));
        let mut ram = ram.lock().unwrap();
        let range = at as usize..(at + len) as usize;
        let answer = match kind {
            0 => return,
            1 => ram.get(range).map_or_else(|| vec![0], |bytes| [bytes, &[1]].concat()),
            2 => {
                let mut data = vec![0; len as usize];
                let count = stream.read(&mut data).unwrap();
                let there = ram.get_mut(range).filter(|_| count == data.len());
                vec![u8::from(there.map(|bytes| bytes.copy_from_slice(&data)).is_some())]
            }
            _ => vec![0],
        };
        drop(ram);
        stream.write_all(&answer).unwrap();
    }
}

#[test]
fn memory_is_read_and_written_and_nothing_else_is_asked_for() {
    let qemu = Patched::new(Some((4, 1)));
    let driver = qemu.open(&Options::new()).unwrap();
    assert_eq!(driver.road(), Road::PmemAccess);
    let mut buf = vec![0; SIZE];
    driver.read(PhysAddr::new(0), &mut buf).unwrap();
    assert!(buf == *qemu.ram.lock().unwrap());
    let write = driver.write_memory().unwrap();
    write.write(PhysAddr::new(0x1ffe), b"four").unwrap();
    assert_eq!(&qemu.ram.lock().unwrap()[0x1ffe..0x2002], b"four");
    qemu.asked.lock().unwrap().clear();
    // Devices would do something when they are read.
    for at in [SIZE as u64, 0xfee0_0000, u64::MAX] {
        let error = driver.read(PhysAddr::new(at), &mut [0; 8]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Hole { at: hole } if hole.get() == at), "{error}");
        let error = write.write(PhysAddr::new(at), &[0; 8]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Hole { .. }), "{error}");
    }
    assert!(matches!(write.write(PhysAddr::new(0xffff_f000), &[0; 8]).unwrap_err().kind(), ErrorKind::ReadOnly { .. }));
    assert_eq!(*qemu.asked.lock().unwrap(), []);
    let mut buf = [0; 16];
    let error = driver.read(PhysAddr::new(SIZE as u64 - 8), &mut buf).unwrap_err();
    assert_eq!(error.done(), 8);
    assert_eq!(buf[..8], qemu.ram.lock().unwrap()[SIZE - 8..]);
    assert_eq!(*qemu.asked.lock().unwrap(), [(SIZE as u64 - 8, 8)]);
}

#[test]
fn an_old_qemu_is_not_written_to() {
    for (version, said) in [(Some((2, 7)), "this is 2.7"), (Some((1, 6)), "this is 1.6"), (None, "not known")] {
        let qemu = Patched::new(version);
        let driver = qemu.open(&Options::new()).unwrap();
        driver.read(PhysAddr::new(8), &mut [0; 8]).unwrap();
        let error = driver.write_memory().unwrap().write(PhysAddr::new(8), &[0; 8]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Unsupported { .. }) && error.to_string().contains(said), "{error}");
    }
    let driver = Patched::new(Some((2, 8))).open(&Options::new()).unwrap();
    driver.write_memory().unwrap().write(PhysAddr::new(8), &[0; 8]).unwrap();
}

#[test]
fn no_file_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let qemu = Patched::new(Some((4, 1)));
    let open = |path: &Path| qemu.open(&Options::new().pmemaccess(path));
    let file = directory.path().join("file");
    fs::write(&file, "precious").unwrap();
    let error = open(&file).unwrap_err();
    assert!(error.contains("QEMU would remove") && error.contains("file"), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    let error = open(&directory.path().join("x".repeat(120))).unwrap_err();
    assert!(error.contains("108 bytes"), "{error}");
    assert_eq!(*qemu.paths.lock().unwrap(), Vec::<PathBuf>::new());

    // A socket that is there is used, one that nobody listens at is made again, and one that is not there is made.
    let socket = directory.path().join("socket");
    for round in 1..=3 {
        if round == 2 {
            assert!(UnixStream::connect(&socket).is_err());
        }
        open(&socket).unwrap().read(PhysAddr::new(0), &mut [0; 8]).unwrap();
        assert_eq!(qemu.paths.lock().unwrap().len(), round.min(2));
        if round == 2 {
            // As if the user had given the command.
            fs::remove_file(&socket).unwrap();
            let listener = UnixListener::bind(&socket).unwrap();
            let ram = Arc::clone(&qemu.ram);
            std::thread::spawn(move || serve_one(listener, &ram, &Mutex::default()));
        }
    }
}
