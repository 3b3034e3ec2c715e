//! A DIMM that is plugged into a running guest.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{LiveGuest, Machine, Memory, Qemu, Shape, Skip};

const MIB: u64 = 1 << 20;

/// Plugs in 128 MiB, and waits until the guest uses them.
fn plug(guest: &LiveGuest) {
    let total = || guest.sh("grep MemTotal /proc/meminfo").split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
    let (before, ram) = (total(), guest.qmp2().ram());
    let backend = json!({ "qom-type": "memory-backend-memfd", "id": "plugged", "size": 128 * MIB, "share": true });
    guest.qmp2().execute("object-add", backend).unwrap();
    guest.qmp2().execute("device_add", json!({ "driver": "pc-dimm", "id": "dimm", "memdev": "plugged" })).unwrap();
    let began = Instant::now();
    while total() < before + 100 * 1024 {
        assert!(began.elapsed() < Duration::from_secs(30), "{} kB after {before}", total());
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut more = guest.qmp2().ram();
    more.retain(|range| !ram.contains(range));
    assert_eq!(more.len(), 1, "{more:x?}");
    assert_eq!((more[0].backend.as_str(), more[0].length, more[0].offset), ("plugged", 128 * MIB, 0));
}

fn boot_and_plug(qemu: Qemu, memory: Memory) -> Result<(), Skip> {
    LiveGuest::boot(&Shape { qemu, machine: Machine::Dimm, memory }).map(|guest| plug(&guest))
}

#[test]
fn a_guest_gets_a_dimm() {
    for (qemu, memory) in [(Qemu::Own, Memory::File), (Qemu::V10, Memory::Private)] {
        boot_and_plug(qemu, memory).unwrap_or_else(|skip| println!("{skip}"));
    }
}
