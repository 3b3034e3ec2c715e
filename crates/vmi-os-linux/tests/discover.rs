//! Discovery on real guests, against what they said of themselves.
//!
//! The images lie in the directory that `VMI_LAB_IMAGES` names, one directory a guest: `memory.raw`, and `truth/` with the guest's own
//! /proc/kallsyms.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::GzDecoder;
use vmi_arch_x86::X86;
use vmi_core::{Driver, GuestMapping, Liveness, MachineInfo, MappedFile, PhysAddr, Piece, Region, Result, Vmi};
use vmi_os_linux::Kernel;
use vmi_os_linux::discover::{self, DiscoverError, Options, Strategy};

/// A raw image, with the memory map that the lab wrote beside it.
#[derive(Debug)]
struct Raw {
    machine: MachineInfo,
    mapping: GuestMapping,
}

impl Raw {
    fn open(guest: &Path) -> Self {
        let ram: serde_json::Value = serde_json::from_slice(&fs::read(guest.join("truth/ram.json")).unwrap()).unwrap();
        let pieces: Vec<Piece> = ram
            .as_array()
            .unwrap()
            .iter()
            .map(|piece| {
                let number = |key: &str| piece[key].as_u64().unwrap();
                let region = Region::new(PhysAddr::new(number("start")), number("end") - number("start")).unwrap();
                // The raw file has holes where memory has them: its offsets are addresses.
                Piece { region, offset: number("start") }
            })
            .collect();
        let file = MappedFile::new(&File::open(guest.join("memory.raw")).unwrap()).unwrap();
        let mapping = GuestMapping::frozen(Arc::new(file), &pieces).unwrap();
        let machine = MachineInfo {
            name: guest.display().to_string(),
            memory: mapping.memory_map(),
            liveness: Liveness::Frozen,
            notes: Vec::new(),
        };
        Self { machine, mapping }
    }
}

impl Driver for Raw {
    type Arch = X86;

    fn machine(&self) -> &MachineInfo {
        &self.machine
    }

    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        self.mapping.read_into(at, buf)
    }

    fn mapping(&self) -> Option<&GuestMapping> {
        Some(&self.mapping)
    }
}

/// The directories of the lab's guests; none if there is no lab.
fn guests() -> Vec<PathBuf> {
    let Some(lab) = std::env::var_os("VMI_LAB_IMAGES") else {
        println!("skipped: VMI_LAB_IMAGES does not name the lab's images");
        return Vec::new();
    };
    let mut guests: Vec<PathBuf> = fs::read_dir(lab).unwrap().map(|entry| entry.unwrap().path()).collect();
    guests.retain(|guest| guest.extension().is_none_or(|part| part != "part") && guest.join("truth/kallsyms.gz").exists() && guest.join("memory.raw").exists());
    guests.sort();
    guests
}

/// The kernel's own lines of /proc/kallsyms, sorted: address, type, name.
fn truth(guest: &Path) -> Vec<(u64, u8, String)> {
    let lines = BufReader::new(GzDecoder::new(File::open(guest.join("truth/kallsyms.gz")).unwrap())).lines();
    let mut symbols: Vec<_> = lines
        .map(|line| line.unwrap())
        .filter(|line| !line.contains('['))
        .map(|line| {
            let mut words = line.split_whitespace();
            let address = u64::from_str_radix(words.next().unwrap(), 16).unwrap();
            (address, words.next().unwrap().as_bytes()[0], words.next().unwrap().to_owned())
        })
        .collect();
    symbols.sort();
    symbols
}

fn found(kernel: &Kernel) -> Vec<(u64, u8, String)> {
    let mut symbols: Vec<_> = kernel.symbols.iter().map(|s| (s.address.get(), s.kind, s.name.to_owned())).collect();
    symbols.sort();
    symbols
}

fn find_by(guest: &Path, strategies: &[Strategy]) -> Result<Kernel, DiscoverError> {
    let vmi = Vmi::new(Raw::open(guest));
    discover::find_with(&vmi, &Options { strategies: strategies.to_vec(), ..Options::default() })
}

fn check_symbols(guest: &Path, kernel: &Kernel) {
    let (truth, found) = (truth(guest), found(kernel));
    let missing: Vec<_> = truth.iter().filter(|symbol| found.binary_search(symbol).is_err()).take(5).collect();
    let known: HashSet<_> = truth.iter().collect();
    let surplus: Vec<_> = found.iter().filter(|symbol| !known.contains(symbol)).take(5).collect();
    assert!(missing.is_empty() && surplus.is_empty(), "{}: missing {missing:x?}, surplus {surplus:x?}", guest.display());
    assert_eq!(truth.len(), found.len());
}

#[test]
fn each_strategy_finds_all_symbols() {
    for guest in guests() {
        let name = guest.file_name().unwrap().to_string_lossy().into_owned();
        let strategies: &[Strategy] = if name.starts_with("x86") { &[Strategy::VmCoreInfo, Strategy::Kallsyms] } else { &[Strategy::Trampoline, Strategy::VmCoreInfo, Strategy::Kallsyms] };
        for &strategy in strategies {
            let start = std::time::Instant::now();
            match find_by(&guest, &[strategy]) {
                Ok(kernel) => {
                    println!("{name}: {strategy}: {} symbols, root {}, {:?}, {} {:?}", kernel.symbols.len(), kernel.root, start.elapsed(), kernel.banner, kernel.remarks);
                    check_symbols(&guest, &kernel);
                }
                Err(error) => println!("FAIL {name}: {error}"),
            }
        }
    }
}
