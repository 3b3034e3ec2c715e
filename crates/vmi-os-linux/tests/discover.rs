//! Discovery on real guests, against what they said of themselves, and on what is no guest.
//!
//! The images lie in the directory that `VMI_LAB_IMAGES` names, one directory a guest: `memory.raw`, `memory.elf`, and `truth/` with the
//! guest's own /proc.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use flate2::read::GzDecoder;
use vmi_arch_x86::{X86, X86Driver};
use vmi_core::synthetic::SyntheticDriver;
use vmi_core::{Driver, GuestMapping, MappedFile, Memory, Paging, PhysAddr, Piece, Region, Vmi};
use vmi_driver_file::ImageDriver;
use vmi_os_linux::Kernel;
use vmi_os_linux::discover::{self, DiscoverError, Options, Strategy};

/// A raw image, with the memory map that the lab wrote beside it.
fn raw(guest: &Path) -> SyntheticDriver<X86> {
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
    SyntheticDriver::over(GuestMapping::frozen(Arc::new(file), &pieces).unwrap())
}

/// The directories of the lab's guests; none if there is no lab.
fn guests() -> Vec<PathBuf> {
    let Some(lab) = std::env::var_os("VMI_LAB_IMAGES") else {
        println!("skipped: VMI_LAB_IMAGES does not name the lab's images");
        return Vec::new();
    };
    let mut guests: Vec<PathBuf> = fs::read_dir(lab).unwrap().map(|entry| entry.unwrap().path()).collect();
    guests.retain(|guest| {
        guest.extension().is_none_or(|part| part != "part")
            && guest.join("truth/kallsyms.gz").exists()
            && guest.join("memory.raw").exists()
    });
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

fn find_by<D: X86Driver>(driver: D, strategies: &[Strategy]) -> Result<Kernel, DiscoverError> {
    discover::find_with(&Vmi::new(driver), &Options { strategies: strategies.to_vec(), ..Options::default() })
}

/// Compares names, types and addresses with what the guest said; `truth` is sorted.
fn check_symbols(guest: &str, truth: &[(u64, u8, String)], kernel: &Kernel) {
    let found = found(kernel);
    let missing: Vec<_> = truth.iter().filter(|symbol| found.binary_search(symbol).is_err()).take(5).collect();
    // '?' marks what was inferred: no table names it.
    let surplus: Vec<_> = found.iter().filter(|s| s.1 != b'?' && truth.binary_search(s).is_err()).take(5).collect();
    assert!(missing.is_empty() && surplus.is_empty(), "{guest}: missing {missing:x?}, surplus {surplus:x?}");
}

/// The physical address of the kernel's first byte, from the guest's /proc/iomem.
fn kernel_code(guest: &Path) -> u64 {
    let iomem = fs::read_to_string(guest.join("truth/iomem")).unwrap();
    let line = iomem.lines().find(|line| line.ends_with(": Kernel code")).unwrap();
    u64::from_str_radix(line.trim().split('-').next().unwrap(), 16).unwrap()
}

/// The kernel's version, first two numbers.
fn version(guest: &Path) -> (u32, u32) {
    let text = fs::read_to_string(guest.join("truth/version")).unwrap();
    let mut numbers = text.split_whitespace().nth(2).unwrap().split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap())
}

fn check(guest: &Path, strategy: Strategy, truth: &[(u64, u8, String)], found: Result<Kernel, DiscoverError>) {
    let name = format!("{}, {strategy}", guest.file_name().unwrap().to_string_lossy());
    let kernel = found.unwrap_or_else(|error| panic!("{name}: {error}"));
    check_symbols(&name, truth, &kernel);
    let version = fs::read_to_string(guest.join("truth/version")).unwrap();
    // One of the two may end with the version of Ubuntu's package.
    let (ours, said) = (kernel.banner.as_str(), version.trim_end());
    let rest = ours.strip_prefix(said).or_else(|| said.strip_prefix(ours));
    assert!(rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(" (Ubuntu ")), "{name}: {ours}, in truth {said}");
    let vmi = Vmi::new(raw(guest));
    let text = kernel.mode.translate(&vmi, kernel.root, kernel.symbols.address("_text").unwrap()).unwrap();
    assert_eq!(text.at.get(), kernel_code(guest), "{name}: root {}", kernel.root);
    // The kernel's own tables, not a process's: no user half.
    assert_eq!(vmi.read::<u64>(kernel.root).unwrap(), 0, "{name}: root {}", kernel.root);
    assert!(kernel.types.find("task_struct").is_some(), "{name}: {:?}", kernel.remarks);
    println!("{name}: {:?}, {} symbols, {}, {:?}", kernel.mode, kernel.symbols.len(), kernel.types.origin(), kernel.remarks);
}

#[test]
fn each_strategy_alone_finds_the_kernel_and_all_its_symbols() {
    for guest in guests() {
        let truth = truth(&guest);
        let is_64_bit = truth.last().unwrap().0 > u64::from(u32::MAX);
        for strategy in [Strategy::Trampoline, Strategy::VmCoreInfo, Strategy::Kallsyms] {
            // The start-up page table is a thing of 64-bit kernels.
            if strategy == Strategy::Trampoline && !is_64_bit {
                continue;
            }
            let found = find_by(raw(&guest), &[strategy]);
            // Until 4.10 it does not say where the kernel lies.
            if let (Strategy::VmCoreInfo, Err(error)) = (strategy, &found)
                && error.to_string().contains("NUMBER(phys_base)")
                && version(&guest) < (4, 10)
            {
                println!("skipped: {}: {strategy}: {error}", guest.display());
                continue;
            }
            check(&guest, strategy, &truth, found);
        }
        let elf = guest.join("memory.elf");
        if elf.exists() {
            check(&guest, Strategy::Registers, &truth, find_by(ImageDriver::open(&elf).unwrap(), &[Strategy::Registers]));
            let image = ImageDriver::open(&elf).unwrap();
            if image.machine().notes.is_empty() {
                println!("skipped: {} has no VMCOREINFO note", elf.display());
            } else {
                check(&guest, Strategy::Note, &truth, find_by(image, &[Strategy::Note]));
            }
        }
    }
}

#[test]
fn the_list_of_tasks_leads_to_a_kernel_without_symbols() {
    for guest in guests() {
        let name = guest.file_name().unwrap().to_string_lossy().into_owned();
        let kernel = find_by(raw(&guest), &[Strategy::Tasks]).unwrap_or_else(|error| panic!("{name}: {error}"));
        let init_task = kernel.symbols.address("init_task").unwrap();
        // The tables of 32-bit kernels name code only.
        if let Some(truth) = truth(&guest).iter().find(|symbol| symbol.2 == "init_task") {
            assert_eq!(init_task.get(), truth.0, "{name}");
        }
        assert!(kernel.types.find("task_struct").is_some(), "{name}: {:?}", kernel.remarks);
        let vmi = Vmi::new(raw(&guest));
        let text = vmi.address_space(kernel.root, kernel.mode);
        assert!(text.translate(init_task).is_ok(), "{name}: root {}", kernel.root);
        println!("{name}: {:?}, {}, {:?}", kernel.mode, kernel.types.origin(), kernel.remarks);
    }
}

/// A machine of one run of memory.
fn machine(bytes: Vec<u8>) -> SyntheticDriver<X86> {
    SyntheticDriver::with_arch([(PhysAddr::ZERO, bytes)])
}

#[test]
fn what_is_not_linux_is_an_error_that_says_what_was_missing() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let random = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let random: Vec<u8> = random.take(2 << 20).flatten().collect();
    let mut digits = vec![0; 8 << 20];
    digits.chunks_mut(64).for_each(|line| line[..20].copy_from_slice(b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\0"));
    let mut notes = vec![0; 1 << 20];
    notes.chunks_mut(64).for_each(|line| line[..22].copy_from_slice(b"VMCOREINFO\0\0OSRELEASE="));
    let ones = vec![0xff; 4 << 20];
    // Every entry of every table points at the table itself.
    let circles = (0..1024u64).flat_map(|page| [(page << 12) | 0x63; 512]).flat_map(u64::to_le_bytes).collect();
    // No page-table root was given, so that is no strategy.
    let tried: Vec<Strategy> = Strategy::ALL.into_iter().filter(|&strategy| strategy != Strategy::GivenRoot).collect();
    for (name, bytes) in [
        ("nothing", Vec::new()),
        ("zeros", vec![0; 16 << 20]),
        ("random", random),
        ("digits", digits),
        ("notes", notes),
        ("ones", ones),
        ("circles", circles),
    ] {
        let start = Instant::now();
        let error = discover::find(&Vmi::new(machine(bytes))).unwrap_err();
        println!("{name}, {:?}: {error}", start.elapsed());
        let attempted: Vec<Strategy> = error.attempts.iter().map(|(strategy, _)| *strategy).collect();
        assert_eq!(attempted, tried, "{name}");
        assert!(error.to_string().lines().count() > tried.len(), "{name}");
    }
}
