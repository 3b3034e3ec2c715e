//! Writes a machine to a directory: `memory.raw`, its symbol file, and `truth.json`.
//!
//! ```text
//! nt-machine --build win10_x64_19041 --out DIR [--memory MIB] [--isf REAL.json] [--full-size] [--small-pages] [--processes N] [--typical]
//!            [--noise PAGES] [--random SEED] [--compiled]
//! nt-machine --list
//! ```
//!
//! `--compiled`: the kernel is made by clang and lld-link, and its program database lies in a symbol store, `store`. `--random` chooses page tables, places and more.
//!
//! With `--typical` the machine has all objects that the builder knows, and `truth.json` has them as `system`.
//!
//! The symbol file lies where Volatility 3 looks for it below the directory it is given by `-s`: `symbols/windows/NTKRNLMP.PDB/GUID-AGE.json`.

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use nt_machine::{Build, CompiledKernel, KernelImage, NtMachine, Options, ProcessSpec};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nt-machine: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (mut build, mut out, mut options, mut isf, mut processes) = (None, None, Options::default(), None, 0_u64);
    let (mut typical, mut compiled, mut noise, mut random) = (false, false, 0_u64, None);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} wants a value"));
        match argument.as_str() {
            "--build" => build = Some(value()?),
            "--out" => out = Some(PathBuf::from(value()?)),
            "--isf" => isf = Some(PathBuf::from(value()?)),
            "--memory" => options = options.with_memory(value()?.parse::<u64>()? << 20),
            "--processes" => processes = value()?.parse()?,
            "--full-size" => options.kernel_full_size = true,
            "--typical" => typical = true,
            "--compiled" => compiled = true,
            "--noise" => noise = value()?.parse()?,
            "--random" => random = Some(value()?.parse()?),
            "--small-pages" => options.kernel_large_pages = false,
            "--list" => {
                Build::all().iter().for_each(|build| println!("{}", build.name));
                return Ok(());
            }
            other => return Err(format!("what is {other}?").into()),
        }
    }
    let build = build.ok_or("--build says which; --list tells them")?;
    let out = out.ok_or("--out says where to")?;
    let mut build = Build::named(&build).ok_or_else(|| format!("there is no build {build}"))?;
    if let Some(path) = isf {
        build = build.with_isf(serde_json::from_slice(&fs::read(path)?)?);
    }
    if let Some(seed) = random {
        options = Options::random(&build, seed);
    }
    if compiled {
        options.kernel = KernelImage::Compiled(Box::new(CompiledKernel::of(&build)?));
    }
    let kernel = options.kernel.clone();
    let mut system = None;
    let mut machine = if typical {
        let (machine, objects) = NtMachine::typical_with(build, options);
        system = Some(objects);
        machine
    } else {
        let mut machine = NtMachine::new(build, options);
        machine.populate();
        machine
    };
    for nth in 0..processes {
        let id = machine.add_process(ProcessSpec::new(&format!("worker{nth}.exe"), 8000 + nth * 8, 620));
        machine.add_thread(id, 8004 + nth * 8);
    }
    machine.add_noise(noise);
    let truth = machine.truth();
    let mut json = truth.to_json();
    if let Some(system) = &system {
        json["system"] = system.to_json();
    }
    let symbols = out.join("symbols/windows").join(&truth.pdb.name);
    fs::create_dir_all(&symbols)?;
    if let KernelImage::Compiled(kernel) = kernel {
        // As a symbol store has it: name, key, name.
        let store = out.join("store").join(&truth.pdb.name).join(format!("{}{:X}", truth.pdb.guid, truth.pdb.age));
        fs::create_dir_all(&store)?;
        fs::write(store.join(&truth.pdb.name), &kernel.pdb)?;
        fs::write(out.join("ntoskrnl.exe"), &kernel.pe)?;
    }
    machine.write_raw(&out.join("memory.raw"))?;
    fs::write(symbols.join(format!("{}-{}.json", truth.pdb.guid, truth.pdb.age)), serde_json::to_vec(&machine.isf())?)?;
    fs::write(out.join("truth.json"), serde_json::to_vec_pretty(&json)?)?;
    Ok(())
}
