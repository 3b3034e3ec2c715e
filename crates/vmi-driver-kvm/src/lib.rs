//! Running QEMU/KVM guests for the vmi workspace: stock QEMU, as the distribution built it.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic))]

pub mod gdb;
pub mod human_registers;
pub mod memory_tree;
pub mod pmemaccess;
pub mod qmp;
