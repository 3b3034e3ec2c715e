//! Images that real producers write of real guests: QEMU of two versions, libvirt, VirtualBox, Xen, and a kernel that crashed. All of their memory is compared with what QEMU saves of the
//! paused guest byte by byte, registers with those that QEMU prints, and processes with what the guest itself says.
//!
//! `VMI_LAB_LIVE=1`, which `cargo xtask test` sets, lets these tests boot guests; without it nothing is tested, and that is said.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

#[path = "../live/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the tests of running guests")]
mod harness;
mod libvirt;
mod places;
mod qemu;
mod truth;
mod virtualbox;
mod vmcore;
mod xen;
