//! Both roads on the test's own process and on children of it: what they promise does not need a guest.

use std::fs::File;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use proptest::prelude::*;
use vmi_core::{ErrorKind, LivePiece, PhysAddr, ReadOp, Region, SharedRam};

use super::*;

const PAGE: usize = 4096;

fn own() -> u32 {
    std::process::id()
}

fn piece(start: u64, len: usize, host: u64) -> RamPiece {
    let region = Region::new(PhysAddr::new(start), len as u64).unwrap();
    RamPiece { region, host, read_only: false, block: "ram".to_owned() }
}

fn counting(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}

/// Memory of this process that stands for QEMU's: two pieces with a hole between, a ROM behind them.
struct OwnMemory {
    bytes: Vec<u8>,
}

impl OwnMemory {
    fn new() -> Self {
        Self { bytes: counting(0x4000) }
    }

    fn pieces(&self) -> Vec<RamPiece> {
        let host = self.bytes.as_ptr() as u64;
        let rom = RamPiece { read_only: true, block: "rom".to_owned(), ..piece(0x9000, 0x1000, host + 0x3000) };
        vec![rom, piece(0x1000, 0x1000, host), piece(0x2000, 0x800, host + 0x2000), piece(0x8000, 0x1000, host + 0x1000)]
    }

    fn roads(&self) -> [ProcessMemory; 2] {
        [ProcessMemory::open(own(), self.pieces()).unwrap(), ProcessMemory::open_file(own(), self.pieces()).unwrap()]
    }
}

#[test]
fn process_memory_reads_across_pieces_and_stops_at_holes() {
    let memory = OwnMemory::new();
    for road in memory.roads() {
        let mut buf = vec![0; 0x1000];
        road.read(PhysAddr::new(0x1800), &mut buf).unwrap();
        assert_eq!(buf[..0x800], memory.bytes[0x800..0x1000]);
        assert_eq!(buf[0x800..], memory.bytes[0x2000..0x2800]);
        let error = road.read(PhysAddr::new(0x27fe), &mut buf).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Hole { at } if at.get() == 0x2800), "{error}");
        assert_eq!((error.done(), &buf[..2]), (2, &memory.bytes[0x27fe..0x2800]));
        assert!(road.read(PhysAddr::new(u64::MAX), &mut buf).is_err());
        road.read(PhysAddr::new(u64::MAX), &mut []).unwrap();
    }
}

#[test]
fn process_memory_writes_ram_and_no_rom() {
    let memory = OwnMemory::new();
    for (round, road) in memory.roads().into_iter().enumerate() {
        let data = [0xa0 + round as u8; 4];
        road.write(PhysAddr::new(0x1ffe), &data).unwrap();
        let mut back = [0; 4];
        road.read(PhysAddr::new(0x1ffe), &mut back).unwrap();
        assert_eq!(back, data);
        let error = road.write(PhysAddr::new(0x8ffd), &data).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::ReadOnly { at } if at.get() == 0x9000), "{error}");
        assert_eq!(error.done(), 3);
        assert!(matches!(road.write(PhysAddr::new(0x3000), &data).unwrap_err().kind(), ErrorKind::Hole { .. }));
    }
}

#[test]
fn what_is_not_the_process_memory_is_refused_at_once() {
    let error = ProcessMemory::open(own(), vec![piece(0, PAGE, 0x1000)]).unwrap_err();
    assert!(matches!(&error, OpenError::Pieces { why, .. } if why.contains("0x1000")), "{error}");
    let error = ProcessMemory::open_file(own(), vec![piece(0, PAGE, 0x1000)]).unwrap_err();
    assert!(matches!(error, OpenError::Pieces { .. }), "{error}");
    for pid in [0, u32::MAX, 1 << 22] {
        assert!(matches!(ProcessMemory::open(pid, Vec::new()).unwrap_err(), OpenError::Ended { .. }));
        assert!(matches!(SharedMemory::open(pid, Vec::new()).unwrap_err(), OpenError::Ended { .. }));
    }
}

/// Memory that goes away under the road: pages behind the end of a file that was cut.
#[test]
fn a_batch_tells_each_read_where_it_stopped() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8 * PAGE as u64).unwrap();
    let ram = SharedRam::map(&file, 0, 8 * PAGE as u64, true).unwrap();
    let host = ram.address() as u64;
    for open in [ProcessMemory::open, ProcessMemory::open_file] {
        file.set_len(8 * PAGE as u64).unwrap();
        let road: ProcessMemory = open(own(), vec![piece(0, 8 * PAGE, host)]).unwrap();
        road.write(PhysAddr::ZERO, &vec![7; 8 * PAGE]).unwrap();
        file.set_len(2 * PAGE as u64).unwrap();
        let mut buffers = vec![vec![0u8; 3 * PAGE]; 5];
        let at = [0u64, PAGE as u64 / 2, 5 * PAGE as u64, 8 * PAGE as u64 - 4, 64];
        let len = [64usize, 3 * PAGE, 16, 8, 2 * PAGE - 64];
        let mut ops: Vec<_> =
            buffers.iter_mut().zip(at).zip(len).map(|((buf, at), len)| ReadOp::new(PhysAddr::new(at), &mut buf[..len])).collect();
        road.read_batch(&mut ops);
        let failures: Vec<_> = ops.iter().map(|op| op.result.as_ref().err().map(|error| error.done())).collect();
        assert_eq!(failures, [None, Some(3 * PAGE / 2), Some(0), Some(0), None]);
        assert!(ops[1].buf[..3 * PAGE / 2].iter().all(|&byte| byte == 7));
        let text = ops[2].result.as_ref().unwrap_err().to_string();
        assert!(text.contains("block `ram`") && text.contains("memory map again"), "{text}");
        assert!(ops[4].buf.iter().all(|&byte| byte == 7), "reads behind a failed one are done");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Batches, longer than a system call takes too, give what a copy out of the bytes gives.
    #[test]
    fn batches_agree_with_a_naive_oracle(
        reads in proptest::collection::vec((0x0f00u64..0xa100, 0usize..0x900), 0..40),
        repeat in prop_oneof![Just(1usize), Just(60)],
    ) {
        let memory = OwnMemory::new();
        let pieces = memory.pieces();
        let byte = |at: u64| {
            let piece = pieces.iter().find(|piece| piece.region.contains(PhysAddr::new(at)))?;
            memory.bytes.get((piece.host - memory.bytes.as_ptr() as u64 + at - piece.region.start().get()) as usize).copied()
        };
        let reads: Vec<_> = reads.iter().cycle().take(reads.len() * repeat).copied().collect();
        for road in memory.roads() {
            let mut buffers: Vec<_> = reads.iter().map(|&(_, len)| vec![0u8; len]).collect();
            let mut ops: Vec<_> =
                buffers.iter_mut().zip(&reads).map(|(buf, &(at, _))| ReadOp::new(PhysAddr::new(at), buf)).collect();
            road.read_batch(&mut ops);
            for (op, &(at, len)) in ops.iter().zip(&reads) {
                let good: Vec<u8> = (at..at + len as u64).map_while(byte).collect();
                prop_assert_eq!(&op.buf[..good.len()], &good[..]);
                match &op.result {
                    Ok(()) => prop_assert_eq!(good.len(), len),
                    Err(error) => prop_assert_eq!(error.done(), good.len()),
                }
            }
        }
    }
}

/// A child that does nothing, ended and reaped with the value.
struct Idle(Child);

impl Idle {
    fn start() -> Self {
        let child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        // Its stack is there once the new program is: until then the child is a copy of this process.
        while !procfs::process::Process::new(child.id() as i32).unwrap().exe().unwrap_or_default().ends_with("sleep") {
            std::thread::yield_now();
        }
        Self(child)
    }

    fn stack(&self) -> RamPiece {
        let maps = procfs::process::Process::new(self.0.id() as i32).unwrap().maps().unwrap();
        let stack = maps.0.iter().find(|map| map.pathname == procfs::process::MMapPath::Stack).unwrap();
        piece(0, PAGE, stack.address.1 - PAGE as u64)
    }

    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        self.end();
    }
}

#[test]
fn a_process_that_has_ended_is_told_as_such() {
    let mut child = Idle::start();
    let roads = [ProcessMemory::open, ProcessMemory::open_file].map(|open| open(child.0.id(), vec![child.stack()]).unwrap());
    let mut buf = [0; 256];
    for road in &roads {
        road.read(PhysAddr::new(0xf00), &mut buf).unwrap();
        assert!(buf.windows(4).any(|text| text == b"slee"), "the stack ends with the name of the program");
    }
    child.end();
    for road in &roads {
        let mut others = [[0; 8]; 2];
        let [a, b] = &mut others;
        let mut ops = [ReadOp::new(PhysAddr::ZERO, a), ReadOp::new(PhysAddr::new(8), b)];
        road.read_batch(&mut ops);
        let [a, b] = ops.map(|op| op.result.unwrap_err());
        for error in [road.read(PhysAddr::ZERO, &mut buf).unwrap_err(), road.write(PhysAddr::ZERO, &buf).unwrap_err(), a, b] {
            assert!(matches!(error.kind(), ErrorKind::Ended { why, .. } if why.contains("has ended")), "{error}");
        }
        // Later the number may be another process': that is found out before anything is read.
        std::thread::sleep(std::time::Duration::from_millis(80));
        let error = road.read(PhysAddr::ZERO, &mut buf).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Ended { why, .. } if why.contains("whether it runs")), "{error:?}");
    }
    assert!(matches!(ProcessMemory::open(child.0.id(), vec![]), Err(OpenError::Ended { .. })));
}

/// RAM of a stand-in for QEMU: this process, with a file mapped shared.
struct Stand {
    /// Keeps the mapping.
    ram: SharedRam,
    private: Vec<u8>,
}

impl Stand {
    fn new(file: &File, len: usize) -> Self {
        Self { ram: SharedRam::map(file, 0, len as u64, true).unwrap(), private: counting(2 * PAGE) }
    }

    /// RAM in two pieces with a private ROM between.
    fn pieces(&self) -> Vec<RamPiece> {
        let host = self.ram.address() as u64;
        let half = self.ram.len() as usize / 2;
        let rom = RamPiece { read_only: true, block: "rom".to_owned(), ..piece(half as u64, PAGE, self.private.as_ptr() as u64) };
        vec![piece(0, half, host), rom, piece((half + PAGE) as u64, half, host + half as u64)]
    }

    /// Compares the road with the file's bytes, both ways, over the borders of the ROM.
    fn check(&self, road: &SharedMemory) {
        let half = self.ram.len() / 2;
        assert_eq!(road.mapping().unwrap().memory_map().total(), 2 * half);
        assert!(road.refused().is_none());
        road.write(PhysAddr::new(half - 4), b"low!").unwrap();
        road.write(PhysAddr::new(half + PAGE as u64), b"high").unwrap();
        let mut buf = vec![0; PAGE + 8];
        road.read(PhysAddr::new(half - 4), &mut buf).unwrap();
        assert_eq!((&buf[..4], &buf[4..4 + PAGE], &buf[4 + PAGE..]), (&b"low!"[..], &self.private[..PAGE], &b"high"[..]));
        let whole = Region::new(PhysAddr::ZERO, self.ram.len()).unwrap();
        let mut bytes = [0; 8];
        let theirs = SharedRamView(&self.ram).read(whole, half - 4, &mut bytes);
        assert_eq!(theirs, b"low!high");
        let error = road.write(PhysAddr::new(half - 2), b"into the ROM").unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::ReadOnly { at } if at.get() == half), "{error}");
        assert_eq!(error.done(), 2);
        let end = 2 * half + PAGE as u64;
        let error = road.read(PhysAddr::new(end - 3), &mut buf).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Hole { at } if at.get() == end) && error.done() == 3, "{error}");
    }
}

/// Reads the stand-in's own view: its process memory.
struct SharedRamView<'r>(&'r SharedRam);

impl SharedRamView<'_> {
    fn read<'b>(&self, whole: Region, at: u64, buf: &'b mut [u8]) -> &'b [u8] {
        let piece = RamPiece { region: whole, host: self.0.address() as u64, read_only: false, block: "ram".to_owned() };
        ProcessMemory::open(own(), vec![piece]).unwrap().read(PhysAddr::new(at), buf).unwrap();
        buf
    }
}

fn memfd(flags: MFdFlags, len: usize) -> Option<File> {
    let file = File::from(memfd_create("ram", flags | MFdFlags::MFD_CLOEXEC).ok()?);
    file.set_len(len as u64).ok()?;
    Some(file)
}

#[test]
fn shared_memory_of_a_memfd_is_mapped_by_its_descriptor() {
    let file = memfd(MFdFlags::empty(), 16 * PAGE).unwrap();
    let stand = Stand::new(&file, 16 * PAGE);
    stand.check(&SharedMemory::open(own(), stand.pieces()).unwrap());
}

#[test]
fn shared_memory_of_a_file_is_mapped_by_its_path() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(16 * PAGE as u64).unwrap();
    let stand = Stand::new(file.as_file(), 16 * PAGE);
    let path = file.into_temp_path();
    stand.check(&SharedMemory::open(own(), stand.pieces()).unwrap());
    // Another file in the place of the right one is not taken for it.
    std::fs::remove_file(&path).unwrap();
    File::create(&path).unwrap().write_all(&[0xee; 16 * PAGE]).unwrap();
    match SharedMemory::open(own(), stand.pieces()) {
        Ok(road) => stand.check(&road),
        Err(error) => assert!(matches!(error, OpenError::Refused { .. }), "{error}"),
    }
}

#[test]
fn shared_memory_without_path_and_descriptor_needs_a_capability() {
    let file = memfd(MFdFlags::empty(), 16 * PAGE).unwrap();
    let stand = Stand::new(&file, 16 * PAGE);
    drop(file);
    match SharedMemory::open(own(), stand.pieces()) {
        Ok(road) => stand.check(&road),
        Err(error) => {
            assert!(matches!(error, OpenError::Refused { .. }), "{error}");
            println!("skipped: /proc/PID/map_files is out of reach here: {error}");
        }
    }
}

#[test]
fn shared_memory_of_huge_pages() {
    const HUGE: usize = 2 << 20;
    let mapped = memfd(MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB, 4 * HUGE)
        .and_then(|file| Some((SharedRam::map(&file, 0, 4 * HUGE as u64, true).ok()?, file)));
    let Some((ram, file)) = mapped else {
        println!("skipped: no huge pages are set aside here (vm.nr_hugepages)");
        return;
    };
    let stand = Stand { ram, private: counting(2 * PAGE) };
    stand.check(&SharedMemory::open(own(), stand.pieces()).unwrap());
    // Parts that start and end within huge pages; dropping them must unmap them, or the huge pages never come back.
    let address = {
        let part = SharedRam::map(&file, HUGE as u64 - 0x1000, 0x3000, false).unwrap();
        let live = [LivePiece { region: Region::new(PhysAddr::ZERO, 0x2000).unwrap(), ram: Arc::new(part), offset: 0x1000 }];
        let guest = GuestMapping::live(&live).unwrap();
        stand.ram_write(HUGE as u64, b"huge");
        let mut buf = [0; 4];
        guest.read_into(PhysAddr::ZERO, &mut buf).unwrap();
        assert_eq!(&buf, b"huge");
        live[0].ram.address() as u64
    };
    let maps = procfs::process::Process::myself().unwrap().maps().unwrap();
    assert!(!maps.0.iter().any(|map| map.address.0 <= address && address < map.address.1), "still mapped");
}

impl Stand {
    fn ram_write(&self, offset: u64, data: &[u8]) {
        let whole = piece(0, self.ram.len() as usize, self.ram.address() as u64);
        ProcessMemory::open(own(), vec![whole]).unwrap().write(PhysAddr::new(offset), data).unwrap();
    }
}

#[test]
fn private_memory_is_no_shared_memory() {
    let memory = OwnMemory::new();
    let error = SharedMemory::open(own(), memory.pieces()).unwrap_err();
    assert!(matches!(&error, OpenError::NotShared { why, .. } if why.contains("private")), "{error}");
    assert!(error.to_string().contains("share=on"));
}

/// The test starts its own program again as another user, who tries to get at the memory of the first.
#[test]
fn another_user_is_refused_with_advice() {
    use std::os::unix::process::CommandExt;
    const HOST: &str = "VMI_TEST_HOST";
    if let Some(host) = std::env::var(HOST).ok().and_then(|host| host.parse().ok()) {
        let pid = nix::unistd::getppid().as_raw().cast_unsigned();
        for error in [
            ProcessMemory::open(pid, vec![piece(0, PAGE, host)]).unwrap_err(),
            ProcessMemory::open_file(pid, vec![piece(0, PAGE, host)]).unwrap_err(),
            SharedMemory::open(pid, vec![piece(0, PAGE, host)]).unwrap_err(),
        ] {
            assert!(matches!(&error, OpenError::Refused { advice, .. } if advice.contains("belongs to user 0")), "{error}");
        }
        println!("refused as it should be");
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let memory = OwnMemory::new();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "memory::tests::another_user_is_refused_with_advice", "--nocapture"])
        .env(HOST, (memory.bytes.as_ptr() as u64).to_string())
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .output();
    match child {
        Err(error) => println!("skipped: another user cannot run this test's program: {error}"),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains("refused as it should be"), "{text}");
        }
    }
}
