//! Linux in a running guest with a gibibyte of RAM: how long it takes to find it and to list its processes, and how long a snapshot stops it.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use vmi::kvm::{Options, QemuDriver};
use vmi::prelude::*;

use crate::{stand_still, wall};

const ROUNDS: usize = 9;

/// A guest of the lab: it ends when its script's standard input does.
struct Booted {
    script: Child,
    qmp: PathBuf,
    system: String,
}

impl Booted {
    /// Boots it, or says why it cannot be had here.
    fn start(memory: &str) -> Result<Self, String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/lab/live.py");
        let mut command = Command::new("python3");
        command.arg("-B").arg(path).args(["serve", "--shape", "big", "--memory", memory]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut script = command.spawn().map_err(|error| format!("python3: {error}"))?;
        let mut line = String::new();
        BufReader::new(script.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mut booted = Self { script, qmp: PathBuf::new(), system: String::new() };
        let Ok(said) = serde_json::from_str::<Value>(&line) else {
            let mut why = String::new();
            booted.script.stderr.take().unwrap().read_to_string(&mut why).unwrap();
            return Err(format!("the guest does not boot: {}", why.trim()));
        };
        if let Some(why) = said["skipped"].as_str() {
            return Err(why.to_owned());
        }
        let text = |name: &str| said[name].as_str().unwrap().to_owned();
        (booted.qmp, booted.system) = (text("qmp").into(), format!("Linux {}, {}", text("release"), text("qemu")));
        Ok(booted)
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        drop(self.script.stdin.take());
        let _ = self.script.wait();
    }
}

/// Times of opening, attaching, listing, and how many processes there were.
fn once(qmp: &Path) -> ([Duration; 3], usize) {
    let started = Instant::now();
    let live = Vmi::new(QemuDriver::connect(qmp, &Options::new()).unwrap());
    let opened = started.elapsed();
    let linux = vmi::attach(&live).unwrap();
    let attached = started.elapsed();
    let mut count = 0;
    for process in linux.processes() {
        process.unwrap();
        count += 1;
    }
    ([opened, attached - opened, started.elapsed() - attached], count)
}

pub fn run(memory: &str, what: &str) {
    let guest = match Booted::start(memory) {
        Ok(guest) => guest,
        Err(why) => {
            println!("\nskipped: Linux in a guest of 1 GiB, {what}: {why}");
            return;
        }
    };
    println!("\n{} in a guest of 1 GiB, {what}: median wall time of {ROUNDS} rounds, each with nothing known", guest.system);
    let (times, counts): (Vec<_>, Vec<_>) = (0..ROUNDS).map(|_| once(&guest.qmp)).unzip();
    let row = |name: &str, time: &dyn Fn(&[Duration; 3]) -> Duration| {
        let (first, median) = (time(&times[0]), wall::median(times.iter().map(time).collect()));
        println!("  {name:<76} {:>8.1} ms, the first {:.1} ms", median.as_secs_f64() * 1e3, first.as_secs_f64() * 1e3);
    };
    row("open: memory map, memory, registers", &|times| times[0]);
    row("attach: kernel, symbols, types", &|times| times[1]);
    row(&format!("list: {} processes with their command lines", counts[0]), &|times| times[2]);
    row("all three", &|times| times.iter().sum());
    let live = Vmi::new(QemuDriver::connect(&guest.qmp, &Options::new()).unwrap());
    stand_still::ours(&format!("{what}, Linux booted"), &live);
}
