//! Memory through QEMU's gdb stub: one request after the other, and with several under way.

use std::time::{Duration, Instant};

use vmi::kvm::gdb::GdbOptions;
use vmi::prelude::*;

use crate::guest::{FREE, Guest};
use crate::wall;

const LEN: usize = 8 << 20;

pub fn run(guest: &Guest) {
    // The stub serves one connection at a time, so each round opens its own; that is not counted.
    let round = |requests: GdbOptions| -> Duration {
        let live = guest.open_gdb(requests);
        let mut buffer = vec![0u8; LEN];
        let started = Instant::now();
        live.read_into(PhysAddr::new(FREE.start), &mut buffer).unwrap();
        let time = started.elapsed();
        assert!(buffer.iter().any(|&byte| byte != 0));
        time
    };
    let ours = GdbOptions::default();
    wall::rates(
        "8 MiB through the gdb stub",
        25,
        LEN as u64,
        &mut [
            ("one request after the other", &mut || round(ours.depth(1))),
            (&format!("ours: {} requests under way", ours.depth), &mut || round(ours)),
        ],
    );
}
