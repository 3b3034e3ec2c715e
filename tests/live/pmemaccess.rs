//! Memory through a `pmemaccess` socket: a server that keeps to its protocol stands before a stock QEMU.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vmi::kvm::{Options, QemuDriver, Road};
use vmi::{Memory, PhysAddr};

use crate::harness::{LiveGuest, Range};
use crate::roads::{list, open, same_memory, same_processes};

/// What a patched QEMU would serve: its own memory, by the guest's addresses.
struct Ram {
    process: File,
    /// Each with its address in the process.
    ranges: Vec<(Range, u64)>,
}

impl Ram {
    fn of(guest: &LiveGuest) -> Self {
        let mut qmp = guest.qmp2();
        let ranges = qmp.ram().into_iter().map(|range| (qmp.host_address(range.start), range)).map(|(host, range)| (range, host));
        let ranges = ranges.collect();
        let process = File::options().read(true).write(true).open(format!("/proc/{}/mem", guest.pid())).unwrap();
        Self { process, ranges }
    }

    /// Where all of it is, if it is within one range.
    fn host(&self, at: u64, len: u64) -> Option<u64> {
        let within = |range: &Range| at.checked_sub(range.start).filter(|offset| offset.saturating_add(len) <= range.length);
        self.ranges.iter().find_map(|(range, host)| Some(host + within(range)?))
    }

    /// Serves one client until it says that it leaves, or until `die` is set: then with half an answer.
    fn serve(&self, mut stream: UnixStream, die: &AtomicBool) {
        let mut request = [0; 24];
        while stream.read_exact(&mut request).is_ok() {
            let number = |at: usize| u64::from_le_bytes(request[at..at + 8].try_into().unwrap());
            let (kind, at, len) = (request[0], number(8), number(16));
            let mut data = vec![0; len as usize];
            let answer = match (kind, self.host(at, len)) {
                (0, _) => return,
                (1, Some(host)) => {
                    self.process.read_exact_at(&mut data, host).unwrap();
                    data.push(1);
                    data
                }
                // All of the data lies there at once; the patch fetches it by one call.
                (2, Some(host)) => {
                    let whole = stream.read(&mut data).unwrap() == data.len();
                    self.process.write_all_at(&data, host).unwrap();
                    vec![u8::from(whole)]
                }
                _ => vec![0],
            };
            let dies = die.load(Ordering::Acquire);
            let said = if dies { &answer[..answer.len() / 2] } else { &answer };
            stream.write_all(said).unwrap();
            if dies {
                return;
            }
        }
    }
}

/// Processes and memory are as by the other roads; a write arrives; a server that dies is told.
pub(crate) fn road(guest: &LiveGuest) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pmem");
    let (listener, ram, die) = (UnixListener::bind(&path).unwrap(), Ram::of(guest), Arc::new(AtomicBool::new(false)));
    let dies = Arc::clone(&die);
    let server = thread::spawn(move || ram.serve(listener.accept().unwrap().0, &dies));
    let vmi = open(guest, &Options::new().road(Road::PmemAccess).pmemaccess(&path));
    assert_eq!(vmi.driver().road(), Road::PmemAccess);
    same_processes(guest, || list(&vmi));
    same_memory(guest, &vmi);
    let (actor, value) = (guest.actor(), guest.report().inbox ^ 0x0f0f_1234_5678_9abc);
    vmi.write(PhysAddr::new(actor.physical + 8), &value.to_le_bytes()).unwrap();
    guest.wait_for_report(|report| report.inbox == value);
    assert!(vmi.read::<u8>(PhysAddr::new(1 << 45)).unwrap_err().is_absent());

    die.store(true, Ordering::Release);
    let began = Instant::now();
    let error = vmi.read::<u64>(PhysAddr::new(actor.physical)).unwrap_err().to_string();
    assert!(error.contains("closed") && error.contains("pmemaccess"), "{error}");
    let again = vmi.read::<u64>(PhysAddr::new(actor.physical)).unwrap_err().to_string();
    assert!(again.contains("dead"), "{again}");
    assert!(began.elapsed() < Duration::from_secs(5));
    server.join().unwrap();
    drop(vmi);

    // A stock QEMU has no such command, and no file is touched before that is known.
    let file = directory.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let error = QemuDriver::connect(guest.qmp_path(), &Options::new().road(Road::PmemAccess).pmemaccess(&file)).unwrap_err();
    assert!(error.to_string().contains("QEMU would remove"), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}
