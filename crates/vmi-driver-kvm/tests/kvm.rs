//! Guests under KVM, which run no more than their firmware here: where virtualisation is nested, a system may not come up.
//!
//! Without `/dev/kvm`, or without the right to use it, nothing of this can run.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod firmware;
mod gdb_machine;

use std::fs::OpenOptions;

use firmware::{Host, Qemu, compare, compare_all};
use gdb_machine::emulators;
use serde_json::json;
use vmi_core::{MemoryMap, PhysAddr, Region, VcpuId};
use vmi_driver_kvm::Road;

/// 128 MiB below 4 GiB, as the board is told, and 64 MiB above.
const SHARED: &[&str] = &[
    "-m",
    "192",
    "-smp",
    "2",
    "-object",
    "memory-backend-memfd,id=ram,size=192M,share=on",
    "-machine",
    "pc,max-ram-below-4g=128M,memory-backend=ram",
];
const PRIVATE: &[&str] = &["-m", "64", "-machine", "q35"];

/// Calls `test` with each QEMU under KVM.
fn under_kvm(test: impl Fn(Host<'_>)) {
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        println!("skipped: /dev/kvm: {error}");
        return;
    }
    for program in emulators() {
        test(Host { program: &program, accelerator: "kvm" });
    }
}

#[test]
fn a_guest_with_private_ram_is_what_qemu_says() {
    under_kvm(|host| compare(host, PRIVATE, Road::Process));
}

#[test]
fn a_guest_with_shared_ram_is_what_qemu_says() {
    under_kvm(|host| {
        let Some(mut qemu) = Qemu::start(host, SHARED) else { return };
        assert_eq!(qemu.execute("query-kvm", json!({}))["enabled"], true);
        memory_map(&mut qemu);
        registers(&mut qemu);
        compare_all(qemu, Road::Shared);
    });
}

/// QEMU marks memory that KVM knows in its list: the mark must not become a part of a name, nor a region be missed for it.
fn memory_map(qemu: &mut Qemu) {
    let tree = qemu.human("info mtree -f");
    let system = tree.split("FlatView #").find(|view| view.contains("AS \"memory\"")).unwrap();
    // `  0000000000100000-0000000003ffffff (prio 0, ram): pc.ram @0000000000100000 KVM`
    let mut main: Vec<Region> = Vec::new();
    for line in system.lines().map(str::trim).filter(|line| line.ends_with(" KVM")) {
        let (addresses, rest) = line.split_once(' ').unwrap();
        if ["): ram ", "): pc.ram "].iter().any(|name| rest.contains(name)) {
            let ends = addresses.split('-').map(|end| u64::from_str_radix(end, 16).unwrap()).collect::<Vec<_>>();
            main.push(Region::new(PhysAddr::new(ends[0]), ends[1] - ends[0] + 1).unwrap());
        }
    }
    assert!(main.len() >= 2, "{tree}");
    assert_eq!(qemu.open(Road::Process).machine().memory, MemoryMap::new(main), "{tree}");
}

fn registers(qemu: &mut Qemu) {
    let vmi = qemu.open(Road::Process);
    vmi.registers(VcpuId(0)).unwrap(); // the guest runs
    let paused = vmi.pause().unwrap();
    assert_eq!(qemu.execute("query-status", json!({}))["running"], false);
    let text = qemu.human("info registers -a");
    let theirs: Vec<&str> = text.split("CPU#").skip(1).collect();
    assert_eq!(theirs.len(), 2, "{text}");
    for (vcpu, theirs) in theirs.into_iter().enumerate() {
        let ours = vmi.registers(VcpuId(vcpu as u32)).unwrap();
        // The firmware is 16-bit and 32-bit code.
        for (name, value) in [("EIP", ours.rip), ("ESP", ours.rsp), ("EAX", ours.rax), ("ECX", ours.rcx), ("EFL", ours.rflags)] {
            assert!(theirs.contains(&format!("{name}={value:08x}")), "{name} {value:#x}: {theirs}");
        }
        for (name, value) in [("CR0", ours.cr0), ("CR3", ours.cr3), ("CR4", ours.cr4)] {
            assert!(theirs.contains(&format!("{name}={:08x}", value.unwrap())), "{name}: {theirs}");
        }
        let (cs, gdtr) = (ours.segments.cs.unwrap(), ours.gdtr.unwrap());
        assert!(theirs.contains(&format!("CS ={:04x} {:08x} {:08x}", cs.selector, cs.base, cs.limit)), "{theirs}");
        assert!(theirs.contains(&format!("GDT=     {:08x} {:08x}", gdtr.base.get(), gdtr.limit)), "{theirs}");
        assert_eq!((ours.efer, ours.lstar), (Some(0), None), "{theirs}");
    }
    drop(paused);
    assert_eq!(qemu.execute("query-status", json!({}))["running"], true);
}
