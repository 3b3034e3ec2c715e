//! Each way to a guest's memory shows what the guest says of itself, and what QEMU saves.

use std::collections::BTreeSet;

use vmi::kvm::{Options, QemuDriver, Road};
use vmi::linux::Linux;
use vmi::x86::X86;
use vmi::{Driver, ErrorKind, Memory, PhysAddr, Region, Vmi};

use crate::harness::{Inside, LiveGuest};

/// Opens the guest by its QMP socket.
pub(crate) fn open(guest: &LiveGuest, options: &Options) -> Vmi<QemuDriver> {
    Vmi::new(QemuDriver::connect(guest.qmp_path(), options).unwrap_or_else(|error| panic!("{error}")))
}

fn by_road(guest: &LiveGuest, road: Road) -> Vmi<QemuDriver> {
    let vmi = open(guest, &Options::new().road(road));
    assert_eq!((vmi.driver().road(), vmi.driver().pid()), (road, Some(guest.pid())));
    vmi
}

/// Id, parent and name of each process; of kernel workers, which come and go, only those that are there before and after.
pub(crate) fn same_processes(guest: &Inside, list: impl Fn() -> BTreeSet<(u32, u32, String)>) {
    let of_guest = || -> BTreeSet<(u32, u32, String)> {
        // The shell lists itself while it runs; it sleeps in the list, with the same id. Names in /proc have what workers work on.
        // Those of kernel threads may be longer there than in the task.
        let name = |name: &str| -> String {
            let name = name.split_once('-').filter(|_| name.starts_with("kworker/")).map_or(name, |(name, _)| name);
            name.chars().take(15).collect()
        };
        guest.processes().into_iter().map(|process| (process.pid, process.parent, name(&process.name))).collect()
    };
    let (before, listed, after) = (of_guest(), list(), of_guest());
    let must: BTreeSet<_> = before.intersection(&after).cloned().collect();
    let may: BTreeSet<_> = before.union(&after).cloned().collect();
    assert!(must.len() > 20, "{must:?}");
    // A kernel worker may live for less than the time between the lists of the guest.
    let unknown: Vec<_> =
        listed.difference(&may).filter(|(_, parent, name)| !(*parent == 2 && name.starts_with("kworker/"))).collect();
    let missing: Vec<_> = must.difference(&listed).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "missing {missing:?}, unknown {unknown:?}");
}

/// What the library lists. A process that ended while it was read is none.
pub(crate) fn list<D: Driver<Arch = X86>>(vmi: &Vmi<D>) -> BTreeSet<(u32, u32, String)> {
    let linux = Linux::attach(vmi).unwrap_or_else(|error| panic!("{error}"));
    let _held = vmi.hold_for_reading().unwrap();
    let task = |task: vmi::Result<vmi::linux::Task<'_, '_, D>>| {
        let task = task?;
        Ok::<_, vmi::Error>((task.pid()?, task.parent_pid()?, task.name()?))
    };
    let rows = linux
        .processes()
        .map(task)
        .filter(|row| !row.as_ref().is_err_and(|error| matches!(error.kind(), vmi::ErrorKind::Gone { .. })));
    rows.map(|row| row.unwrap_or_else(|error| panic!("{error}"))).collect()
}

/// All of RAM of the paused guest, compared with what QEMU saves of it.
pub(crate) fn same_memory(guest: &LiveGuest, vmi: &Vmi<QemuDriver>) {
    const PART: usize = 8 << 20;
    let paused = vmi.pause().unwrap();
    assert!(!guest.qmp2().is_running());
    let ranges = guest.qmp2().ram();
    let told: u64 = vmi.machine().memory.total();
    assert_eq!(told, ranges.iter().map(|range| range.length).sum::<u64>(), "{:?}", vmi.machine().memory);
    for range in ranges {
        let saved = guest.qmp2().pmemsave(range.start, range.length);
        let mut at = PhysAddr::new(range.start);
        for part in saved.chunks(PART) {
            let mut read = vec![0; part.len()];
            vmi.read_into(at, &mut read).unwrap_or_else(|error| panic!("{error}"));
            assert!(read == part, "{at}, {} bytes, of {range:x?}", part.len());
            at = PhysAddr::new(at.get() + part.len() as u64);
        }
        let behind = PhysAddr::new(range.start + range.length);
        if vmi.machine().memory.region_at(behind).is_none() {
            // What is behind RAM is a hole, or a device: no zeros that nobody wrote.
            let _ = vmi.read::<u64>(behind);
        }
    }
    drop(paused);
    assert!(guest.qmp2().is_running());
}

fn road(guest: &LiveGuest, road: Road) {
    let vmi = by_road(guest, road);
    same_processes(guest, || list(&vmi));
    same_memory(guest, &vmi);
    let actor = guest.actor();
    let value = guest.report().inbox.wrapping_mul(3) ^ 0x1122_3344_5566_7788;
    vmi.write(PhysAddr::new(actor.physical + 8), &value.to_le_bytes()).unwrap();
    guest.wait_for_report(|report| report.inbox == value);
    assert!(vmi.read::<u8>(PhysAddr::new(1 << 45)).unwrap_err().is_absent());
    stays_mapped(guest, vmi, road);
}

/// A page that is mapped by itself shows what the guest writes, also when the handle is gone; a road without a mapping says so.
fn stays_mapped(guest: &LiveGuest, vmi: Vmi<QemuDriver>, road: Road) {
    let at = |offset| PhysAddr::new(guest.actor().physical + offset);
    let page = vmi.map_range(Region::new(at(0), 4096).unwrap());
    if road != Road::Shared {
        let error = page.unwrap_err();
        return assert!(matches!(error.kind(), ErrorKind::Unsupported { .. }), "{error}");
    }
    let page = page.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(page.read_vec(at(24), 4072).unwrap(), vmi.read_vec(at(24), 4072).unwrap());
    drop(vmi);
    let ticks: u64 = page.read(at(0)).unwrap();
    guest.wait_for_report(|report| report.ticks > ticks);
    assert!(page.read::<u64>(at(0)).unwrap() > ticks);
    assert!(page.read::<u64>(at(4096)).unwrap_err().is_absent());
}

/// Shared RAM, mapped; where the guest's is private, the error says so.
pub(crate) fn shared(guest: &LiveGuest) {
    if guest.backends().iter().any(|backend| backend.shared) {
        assert!(vmi::Driver::mapping(by_road(guest, Road::Shared).driver()).is_some());
        road(guest, Road::Shared);
    } else {
        let error = QemuDriver::connect(guest.qmp_path(), &Options::new().road(Road::Shared)).unwrap_err().to_string();
        assert!(error.contains("shared") && error.contains("share=on"), "{error}");
    }
}

/// The memory of QEMU's process.
pub(crate) fn process(guest: &LiveGuest) {
    road(guest, Road::Process);
}

/// The gdb stub that QEMU was started with, found through its monitor.
pub(crate) fn gdb(guest: &LiveGuest) {
    road(guest, Road::Gdb);
}

/// Without a wish the best way is taken, by socket and by process; a stub alone is enough, too.
pub(crate) fn best(guest: &LiveGuest) {
    let expected = if guest.backends().iter().any(|backend| backend.shared) { Road::Shared } else { Road::Process };
    let vmi = open(guest, &Options::new());
    assert_eq!(vmi.driver().road(), expected);
    drop(vmi);
    let vmi = vmi::open(format!("qemu:{}", guest.pid()).as_str()).unwrap_or_else(|error| panic!("{error}"));
    assert!(vmi::attach(&vmi).unwrap().version().contains(guest.release()));
    drop(vmi);
    let address = guest.gdb_path().to_str().unwrap().parse().unwrap();
    let vmi = Vmi::new(QemuDriver::gdb(address, &Options::new()).unwrap_or_else(|error| panic!("{error}")));
    assert_eq!((vmi.driver().road(), vmi.driver().pid()), (expected, Some(guest.pid())));
    assert!(guest.qmp2().is_running());
    same_processes(guest, || list(&vmi));
    let paused = vmi.pause().unwrap();
    assert!(!guest.qmp2().is_running());
    drop(paused);
    assert!(guest.qmp2().is_running());
}
