//! Running guests under stock QEMU: of each version, machine and kind of memory.
//!
//! `VMI_LAB_LIVE=1`, which `cargo xtask test` sets, lets these tests boot guests; without it nothing is tested, and that is said.
//! `cargo xtask lab` fetches what they need. A guest is booted once for its row, and then goes through all checks one after another.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod breakpoints;
mod control;
mod deaths;
mod ends;
mod harness;
mod hotplug;
mod lab;
mod libvirt;
mod lost;
mod pmemaccess;
mod ram;
mod roads;
#[path = "../examples/schema.rs"]
#[allow(dead_code, reason = "shared with the tests of the examples")]
mod schema;
mod tools;
mod traps;

use harness::{Check, Machine, Memory, Qemu, Shape, run};

/// What each guest goes through: a check fails by a panic, and leaves the guest running.
const CHECKS: &[Check] = &[
    ("shell", lab::shell),
    ("sockets", lab::sockets),
    ("processes", lab::processes),
    ("pause", lab::pause),
    ("calls", lab::calls),
    ("ordered writes", lab::ordered_writes),
    ("known page", ram::known_page),
    ("pmemsave", ram::pmemsave),
    ("inbox", ram::inbox),
    ("shared road", roads::shared),
    ("process road", roads::process),
    ("gdb road", roads::gdb),
    ("pmemaccess road", pmemaccess::road),
    ("best road", roads::best),
    ("library pause", control::pause),
    ("registers", control::registers),
    ("snapshot", control::snapshot),
    ("breakpoint", traps::breakpoint),
    ("address space", traps::address_space),
    ("watchpoint", traps::watchpoint),
    ("replies", traps::replies),
    ("company", traps::company),
    ("examples", tools::examples),
];

/// What takes long, and depends on neither machine nor memory.
const OFTEN: &[Check] = &[("many times", control::many_times), ("deaths", deaths::of_tools)];

/// A test for each row, so that rows run side by side.
macro_rules! rows {
    ($($test:ident: $qemu:ident $machine:ident $memory:ident;)*) => {$(
        #[test]
        fn $test() {
            run(&Shape { qemu: Qemu::$qemu, machine: Machine::$machine, memory: Memory::$memory }, CHECKS);
        }
    )*};
}

#[test]
fn a_thousand_times() {
    run(&Shape { qemu: Qemu::Own, machine: Machine::Smp, memory: Memory::Memfd }, OFTEN);
}

#[test]
#[ignore = "a part of a_thousand_times, which starts it in a process of its own"]
fn nothing_is_left_open() {
    control::nothing_is_left_open();
}

#[test]
fn a_thousand_times_10() {
    run(&Shape { qemu: Qemu::V10, machine: Machine::Smp, memory: Memory::Private }, OFTEN);
}

rows! {
    own_one_file: Own One File;
    own_one_private: Own One Private;
    own_smp_memfd: Own Smp Memfd;
    own_smp_private: Own Smp Private;
    own_high_file: Own High File;
    own_high_private: Own High Private;
    own_numa_memfd: Own Numa Memfd;
    own_numa_private: Own Numa Private;
    qemu10_one_memfd: V10 One Memfd;
    qemu10_one_private: V10 One Private;
    qemu10_smp_file: V10 Smp File;
    qemu10_smp_private: V10 Smp Private;
    qemu10_high_memfd: V10 High Memfd;
    qemu10_high_private: V10 High Private;
    qemu10_numa_file: V10 Numa File;
    qemu10_numa_private: V10 Numa Private;
    own_one_huge: Own One Huge;
}
