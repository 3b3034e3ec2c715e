//! Both roads to memory on a real QEMU with nothing but its firmware, compared with what QEMU itself says of the guest's memory.
//!
//! `VMI_QEMU` names another QEMU than the one in the path.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod firmware;

use std::path::PathBuf;

use firmware::Host;
use vmi_driver_kvm::Road;

/// Under TCG, which every host has.
fn compare(arguments: &[&str], road: Road) {
    let program: PathBuf = std::env::var_os("VMI_QEMU").unwrap_or_else(|| "qemu-system-x86_64".into()).into();
    firmware::compare(Host { program: &program, accelerator: "tcg" }, arguments, road);
}

const SHARED: &str = "memory-backend-memfd,id=ram,size=64M,share=on";

#[test]
fn shared_ram_is_what_qemu_says() {
    for machine in ["pc,memory-backend=ram", "q35,memory-backend=ram"] {
        compare(&["-m", "64", "-object", SHARED, "-machine", machine], Road::Shared);
    }
}

#[test]
fn shared_ram_read_as_process_memory_is_what_qemu_says() {
    compare(&["-m", "64", "-object", SHARED, "-machine", "q35,memory-backend=ram"], Road::Process);
}

#[test]
fn private_ram_is_what_qemu_says() {
    for machine in ["pc", "q35"] {
        compare(&["-m", "64", "-machine", machine], Road::Process);
    }
}

#[test]
fn ram_above_4_gib_is_what_qemu_says() {
    // 128 MiB below, as the board is told, and 64 MiB above.
    let machine = "pc,max-ram-below-4g=128M,memory-backend=ram";
    let object = "memory-backend-memfd,id=ram,size=192M,share=on";
    compare(&["-m", "192", "-object", object, "-machine", machine], Road::Shared);
    compare(&["-m", "192", "-machine", "pc,max-ram-below-4g=128M"], Road::Process);
}

#[test]
fn two_memory_backends_are_one_guest() {
    let nodes = |second: &str| {
        let share = "size=48M,share=on";
        let mut arguments = vec!["-m".to_owned(), "96".to_owned(), "-machine".to_owned(), "q35".to_owned()];
        for object in [format!("memory-backend-memfd,id=a,{share}"), format!("{second},id=b,size=48M")] {
            arguments.extend(["-object".to_owned(), object]);
        }
        for node in ["node,memdev=a", "node,memdev=b"] {
            arguments.extend(["-numa".to_owned(), node.to_owned()]);
        }
        arguments
    };
    for second in ["memory-backend-memfd,share=on", "memory-backend-ram"] {
        let arguments = nodes(second);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        compare(&arguments, Road::Shared);
        compare(&arguments, Road::Process);
    }
}

#[test]
fn huge_pages_are_what_qemu_says() {
    let object = "memory-backend-memfd,id=ram,size=64M,share=on,hugetlb=on,hugetlbsize=2M";
    compare(&["-m", "64", "-object", object, "-machine", "q35,memory-backend=ram"], Road::Shared);
}
