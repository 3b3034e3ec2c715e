//! How fast a real stub is: `cargo test --release -p vmi-driver-kvm --test gdb_speed -- --ignored --nocapture`.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::expect_used,
    missing_docs
)]

mod gdb_machine;

use std::time::{Duration, Instant};

use gdb_machine::{Machine, emulators};
use vmi_core::{PhysAddr, VcpuId};
use vmi_driver_kvm::gdb::{GdbClient, GdbOptions};

#[test]
#[ignore = "a measurement"]
fn speed() {
    const LEN: usize = 8 << 20;
    const STEPS: u32 = 2000;
    for emulator in emulators() {
        let machine = Machine::start(&emulator);
        println!("{}", emulator.display());
        // In turn, so that what else the host does meets all of them.
        let depths = [1, 2, 4, 8, 16, 32, 64, 128];
        let mut best = [Duration::MAX; 8];
        let mut buf = vec![0; LEN];
        for _ in 0..10 {
            for (depth, best) in depths.into_iter().zip(&mut best) {
                let mut gdb = GdbClient::connect(&machine.address(), &GdbOptions::default().depth(depth)).unwrap();
                let begun = Instant::now();
                gdb.read_physical(PhysAddr::new(0), &mut buf).unwrap();
                *best = begun.elapsed().min(*best);
                gdb.detach().unwrap();
            }
        }
        for (depth, best) in depths.into_iter().zip(best) {
            println!("  depth {depth:3}: {:6.1} MiB/s of physical memory", (LEN >> 20) as f64 / best.as_secs_f64());
        }
        let mut gdb = machine.attach();
        let mut steps = |registers: bool| {
            let begun = Instant::now();
            for _ in 0..STEPS {
                gdb.step(VcpuId(0)).unwrap();
                gdb.wait(Duration::from_secs(10)).unwrap().unwrap();
                if registers {
                    gdb.registers(VcpuId(0)).unwrap();
                }
            }
            begun.elapsed() / STEPS
        };
        println!("  a step: {:?}, with its registers: {:?}", steps(false), steps(true));
        let begun = Instant::now();
        for _ in 0..STEPS {
            gdb.registers(VcpuId(0)).unwrap();
        }
        println!("  registers: {:?}", begun.elapsed() / STEPS);
        gdb.detach().unwrap();
        let begun = Instant::now();
        for _ in 0..100 {
            machine.attach().detach().unwrap();
        }
        println!("  attach and detach: {:?}", begun.elapsed() / 100);
    }
}
