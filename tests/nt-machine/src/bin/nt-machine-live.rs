//! Writes what QEMU boots as a live machine, its symbol file, its program database, and where its account of itself lies.
//!
//! ```text
//! nt-machine-live --build win10_x64_19041 --out DIR [--changes N] [--ticks N] [--kva-shadow true]
//! qemu-system-x86_64 $(cat DIR/arguments)
//! ```

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use nt_machine::{Build, LiveMachine, LiveOptions};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nt-machine-live: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (mut build, mut out, mut options) = ("win10_x64_19041".to_owned(), None, LiveOptions::default());
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{argument} wants a value"))?;
        match argument.as_str() {
            "--build" => build = value,
            "--out" => out = Some(PathBuf::from(value)),
            "--kva-shadow" => options.kva_shadow = value.parse()?,
            "--changes" => options.changes_per_tick = value.parse()?,
            "--ticks" => options.ticks_per_second = value.parse()?,
            other => return Err(format!("what is {other}?").into()),
        }
    }
    let out = out.ok_or("--out says where to")?;
    let build = Build::named(&build).ok_or_else(|| format!("there is no build {build}"))?;
    let live = LiveMachine::new(build, &options)?;
    let truth = live.machine.truth();
    let symbols = out.join("symbols/windows").join(&truth.pdb.name);
    fs::create_dir_all(&symbols)?;
    let boot = out.join("boot.elf");
    live.write_boot_file(&boot)?;
    fs::write(out.join("arguments"), live.qemu_arguments(&boot).join(" "))?;
    fs::write(symbols.join(format!("{}-{}.json", truth.pdb.guid, truth.pdb.age)), serde_json::to_vec(&live.machine.isf())?)?;
    fs::write(out.join(&truth.pdb.name), &live.kernel.pdb)?;
    let (virtual_address, physical) = live.truth_address();
    let mut json = truth.to_json();
    json["account"] = serde_json::json!({"virtual": virtual_address, "physical": physical});
    fs::write(out.join("truth.json"), serde_json::to_vec_pretty(&json)?)?;
    Ok(())
}
