use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};

use super::*;
use crate::synthetic::Unpaged;
use crate::{LivePiece, Memory, Note, SharedRam};

const PAGE: u64 = 4096;

/// An architecture whose registers are a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Numbered;

impl Architecture for Numbered {
    type Registers = u64;
    type Paging = Unpaged;
    type Watch = core::convert::Infallible;
    type Incident = core::convert::Infallible;
    type Injection = core::convert::Infallible;

    fn runs_on(_: &u64, _: PhysAddr) -> Option<bool> {
        None
    }

    fn springs(watch: &Self::Watch, _incident: &Self::Incident) -> bool {
        match *watch {}
    }

    fn ability(watch: &Self::Watch) -> crate::EventAbility {
        match *watch {}
    }
}

/// A machine that can be paused: RAM in a file, mapped or not.
struct Machine {
    machine: MachineInfo,
    file: File,
    mapping: GuestMapping,
    mapped: bool,
    paused: AtomicI32,
    pauses: AtomicU32,
    /// What the guest does while it runs holds this.
    runs: Mutex<()>,
    trouble: Trouble,
}

#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    None,
    /// Reads fail while the guest stands still.
    ReadsFail,
    /// Each read stops the guest.
    ReadsStop,
    RegistersFail,
    RegistersPanic,
    /// A page that the map names is not there.
    Lost(u64),
}

const RAM: u64 = 3 << 20;
/// The second piece of RAM, behind a hole, of a length that is no multiple of anything.
const HIGH: u64 = 1 << 32;
const HIGH_LEN: u64 = 5 * PAGE + 100;

impl Machine {
    fn new(mapped: bool, trouble: Trouble) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(RAM + HIGH_LEN).unwrap();
        let map = |offset, len| Arc::new(SharedRam::map(&file, offset, len, true).unwrap());
        let piece = |start, len, offset| LivePiece {
            region: Region::new(PhysAddr::new(start), len).unwrap(),
            ram: map(offset, len),
            offset: 0,
        };
        let mapping = GuestMapping::live(&[piece(0, RAM, 0), piece(HIGH, HIGH_LEN, RAM)]).unwrap();
        let machine = MachineInfo {
            name: "test machine".to_owned(),
            memory: mapping.memory_map(),
            liveness: Liveness::Live,
            notes: vec![Note::VmCoreInfo(b"note".to_vec())],
        };
        let (paused, pauses) = (AtomicI32::new(0), AtomicU32::new(0));
        Self { machine, file, mapping, mapped, paused, pauses, runs: Mutex::new(()), trouble }
    }

    fn poke(&self, at: u64, data: &[u8]) {
        self.mapping.write(PhysAddr::new(at), data).unwrap();
    }

    fn blocks(&self) -> u64 {
        std::os::unix::fs::MetadataExt::blocks(&self.file.metadata().unwrap())
    }

    fn standing(&self) -> bool {
        self.paused.load(Ordering::SeqCst) > 0
    }
}

fn trouble(what: &str) -> Error {
    ErrorKind::Driver { back_end: "test machine".to_owned(), action: what.to_owned(), source: "trouble".into() }.into()
}

impl Driver for Machine {
    type Arch = Numbered;

    fn machine(&self) -> &MachineInfo {
        &self.machine
    }

    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        match self.trouble {
            Trouble::ReadsStop if !self.standing() => Err(trouble("reading, which should have waited for the pause")),
            Trouble::ReadsFail if self.standing() => Err(trouble("reading")),
            Trouble::Lost(lost) if at.get() < lost + PAGE && at.get() + buf.len() as u64 > lost => {
                Err(Error::hole(PhysAddr::new(lost.max(at.get()))))
            }
            _ => self.mapping.read_into(at, buf),
        }
    }

    fn mapping(&self) -> Option<&GuestMapping> {
        self.mapped.then_some(&self.mapping)
    }

    fn reads_stop_the_guest(&self) -> bool {
        self.trouble == Trouble::ReadsStop
    }

    fn vcpus(&self) -> Option<&dyn Vcpus<Arch = Numbered>> {
        Some(self)
    }

    fn control(&self) -> Option<&dyn Control<Arch = Numbered>> {
        Some(self)
    }
}

impl Vcpus for Machine {
    fn vcpu_count(&self) -> u32 {
        2
    }

    fn registers(&self, vcpu: VcpuId) -> Result<u64> {
        match self.trouble {
            Trouble::RegistersFail => Err(trouble("registers")),
            Trouble::RegistersPanic => panic!("a defect of the back end"),
            _ => Ok(100 + u64::from(vcpu.0) + if self.standing() { 0 } else { 1000 }),
        }
    }
}

impl Control for Machine {
    fn pause(&self) -> Result<()> {
        let _runs = self.runs.lock().unwrap();
        self.paused.fetch_add(1, Ordering::SeqCst);
        self.pauses.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn resume(&self) -> Result<()> {
        self.paused.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn a_snapshot_is_the_machine_at_one_moment() {
    for (mapped, trouble) in [(true, Trouble::None), (false, Trouble::None), (false, Trouble::ReadsStop)] {
        let machine = Machine::new(mapped, trouble);
        machine.poke(0x1ffe, b"across");
        machine.poke(HIGH + 5 * PAGE + 94, b"at end");
        let vmi = Vmi::new(machine);
        let snapshot = vmi.snapshot().unwrap();
        vmi.driver().poke(0x1ffe, b"SINCE!");
        assert_eq!(snapshot.slice(PhysAddr::new(0x1ffe), 6), Some(&b"across"[..]));
        assert_eq!(snapshot.read_vec(PhysAddr::new(HIGH + 5 * PAGE + 94), 6).unwrap(), b"at end");
        assert!(snapshot.read::<u8>(PhysAddr::new(HIGH + HIGH_LEN)).is_err());
        assert!(snapshot.read::<u8>(PhysAddr::new(RAM)).is_err());
        assert_eq!(snapshot.slice(PhysAddr::ZERO, RAM as usize).unwrap().iter().filter(|&&byte| byte != 0).count(), 6);
        let info = snapshot.machine();
        assert_eq!((info.name.as_str(), info.liveness), ("snapshot of test machine", Liveness::Frozen));
        assert_eq!((&info.memory, &info.notes), (&vmi.machine().memory, &vmi.machine().notes));
        assert_eq!(snapshot.registers(VcpuId(1)).unwrap(), 101, "of the paused machine");
        assert!(matches!(snapshot.registers(VcpuId(2)).unwrap_err().kind(), ErrorKind::NoObject { .. }));
        let report = snapshot.driver().report();
        assert_eq!((report.resident, report.missing.len()), (3 * PAGE, 0), "zeros take nothing");
        assert_eq!((vmi.driver().paused.load(Ordering::SeqCst), vmi.driver().pauses.load(Ordering::SeqCst)), (0, 1));
    }
}

/// Two words far apart that the running machine always changes together must agree in every snapshot.
#[test]
fn what_changes_together_is_copied_together() {
    let vmi = Vmi::new(Machine::new(true, Trouble::None));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut count = 0u64;
            while !stop.load(Ordering::Relaxed) {
                let machine = vmi.driver();
                let _runs = machine.runs.lock().unwrap();
                if !machine.standing() {
                    count += 1;
                    machine.poke(0x800, &count.to_ne_bytes());
                    machine.poke(RAM - 8, &count.to_ne_bytes());
                    machine.poke((count % 700) * PAGE + 8, &count.to_ne_bytes());
                }
            }
        });
        let mut last = vmi.snapshot().unwrap();
        for round in 0..40 {
            let words = [0x800, RAM - 8].map(|at| last.read::<u64>(PhysAddr::new(at)).unwrap());
            assert_eq!(words[0], words[1], "round {round}");
            last = if round % 2 == 0 { vmi.snapshot_again(last).unwrap() } else { vmi.snapshot().unwrap() };
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_second_snapshot_uses_the_memory_of_the_first() {
    let vmi = Vmi::new(Machine::new(true, Trouble::None));
    vmi.driver().poke(0x5000, &[7; 3 * PAGE as usize]);
    let first = vmi.snapshot().unwrap();
    assert_eq!(first.driver().report().resident, 3 * PAGE);
    vmi.driver().poke(0x6000, &[0; PAGE as usize]);
    vmi.driver().poke(0x5008, b"new");
    vmi.driver().poke(HIGH, b"more");
    let second = vmi.snapshot_again(first).unwrap();
    assert_eq!(second.read_vec(PhysAddr::new(0x5006), 6).unwrap(), b"\x07\x07new\x07");
    assert_eq!(second.read::<u64>(PhysAddr::new(0x6000)).unwrap(), 0);
    assert_eq!(second.read_vec(PhysAddr::new(HIGH), 4).unwrap(), b"more");
    assert_eq!(second.driver().report().resident, 3 * PAGE, "the page that became zero was given back");
    assert_eq!(second.read::<u64>(PhysAddr::new(0x7000)).unwrap(), 0x0707_0707_0707_0707);

    // Memory that somebody still holds is not changed under them.
    let held = second.driver().mapping().unwrap().clone();
    vmi.driver().poke(0x5008, b"NEW");
    let third = vmi.snapshot_again(second).unwrap();
    assert_eq!(held.slice(PhysAddr::new(0x5008), 3), Some(&b"new"[..]));
    assert_eq!(third.slice(PhysAddr::new(0x5008), 3), Some(&b"NEW"[..]));
}

#[test]
fn the_guest_runs_on_whatever_goes_wrong() {
    for (trouble, mapped) in [(Trouble::ReadsFail, false), (Trouble::RegistersFail, true), (Trouble::RegistersPanic, true)] {
        let vmi = Vmi::new(Machine::new(mapped, trouble));
        vmi.driver().poke(0, b"x");
        let outcome = catch_unwind(AssertUnwindSafe(|| vmi.snapshot().map(drop)));
        assert!(!matches!(outcome, Ok(Ok(()))));
        assert_eq!(vmi.driver().paused.load(Ordering::SeqCst), 0);
        assert_eq!(vmi.driver().pauses.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn memory_that_is_not_there_is_a_hole_and_told() {
    let lost = 0x8_3000;
    let vmi = Vmi::new(Machine::new(false, Trouble::Lost(lost)));
    vmi.driver().poke(lost - 4, b"before");
    vmi.driver().poke(lost + PAGE, b"behind");
    let snapshot = vmi.snapshot().unwrap();
    let hole = Region::new(PhysAddr::new(lost), PAGE).unwrap();
    assert_eq!(snapshot.driver().report().missing, [hole]);
    assert_eq!(snapshot.machine().memory.region_at(PhysAddr::new(lost)), None);
    let error = snapshot.read::<u64>(PhysAddr::new(lost - 4)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Hole { at } if at.get() == lost));
    assert_eq!(error.done(), 4);
    assert_eq!(snapshot.read_vec(PhysAddr::new(lost + PAGE), 6).unwrap(), b"behind");
}

/// A guest that never touched its memory does not get it by being looked at.
#[test]
fn untouched_memory_stays_untouched() {
    let vmi = Vmi::new(Machine::new(true, Trouble::None));
    vmi.driver().poke(0x10_0000, b"x");
    let before = vmi.driver().blocks();
    let probe = || vmi.driver().mapping.is_untouched(PhysAddr::ZERO, 0x1_0000);
    if !probe() {
        println!("skipped: the file system of the temporary directory does not tell holes");
        return;
    }
    vmi.snapshot().unwrap();
    assert!(probe() && vmi.driver().blocks() < before + (1 << 20) / 512);
    assert!(!vmi.driver().mapping.is_untouched(PhysAddr::new(0xf_f000), 0x2000));
    assert!(!vmi.driver().mapping.is_untouched(PhysAddr::new(RAM - PAGE), 2 * PAGE), "beyond the piece");
}

#[test]
fn a_machine_of_impossible_size_is_an_error() {
    let machine = Machine::new(false, Trouble::None);
    let memory = MemoryMap::new(Region::new(PhysAddr::ZERO, 1 << 60));
    let vmi = Vmi::new(Machine { machine: MachineInfo { memory, ..machine.machine.clone() }, ..machine });
    let error = vmi.snapshot().unwrap_err();
    assert!(error.to_string().contains("making room"), "{error}");
    assert_eq!(vmi.driver().pauses.load(Ordering::SeqCst), 0);
}
