//! Real images: those of the lab, if `VMI_LAB_IMAGES` names the directory that has them, one directory a guest.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

use std::ops::Range;
use std::path::{Path, PathBuf};

use vmi_arch_x86::Registers;
use vmi_core::{Driver, Memory, Note, PhysAddr, VcpuId, Vcpus, Vmi};
use vmi_driver_file::{Format, ImageDriver};

fn guests() -> Vec<PathBuf> {
    let Some(directory) = std::env::var_os("VMI_LAB_IMAGES") else {
        eprintln!("skipped: VMI_LAB_IMAGES is not set");
        return Vec::new();
    };
    let entries = Path::new(&directory).read_dir().unwrap().map(|entry| entry.unwrap().path());
    // A name with a dot is an image that is still being taken.
    let whole =
        |guest: &PathBuf| !guest.file_name().unwrap().to_string_lossy().starts_with('.') && guest.join("memory.raw").exists();
    let mut guests: Vec<_> = entries.filter(whole).collect();
    guests.sort();
    assert!(!guests.is_empty(), "no guest in {directory:?}");
    guests
}

fn open(guest: &Path, name: &str, format: Format) -> Vmi<ImageDriver> {
    let vmi = Vmi::new(ImageDriver::open(guest.join(name)).unwrap());
    assert_eq!(vmi.driver().format(), format);
    vmi
}

/// Where QEMU keeps the BIOS: no RAM, so not in raw and LiME images, or zero there.
const BIOS: Range<u64> = 0xfffc_0000..1 << 32;

/// Compares all memory that both have, but the BIOS. Returns how much that was.
fn compare(raw: &Vmi<ImageDriver>, vmi: &Vmi<ImageDriver>) -> u64 {
    let mut compared = 0;
    for region in vmi.machine().memory.regions() {
        let mut at = region.start();
        while at < region.end() && raw.machine().memory.region_at(at).is_some() {
            let len = (region.end().get() - at.get()).min(1 << 18) as usize;
            if BIOS.contains(&at.get()) {
                at = PhysAddr::new(BIOS.end);
                continue;
            }
            let (expected, got) = (raw.read_vec(at, len).unwrap(), vmi.read_vec(at, len).unwrap());
            assert!(expected == got, "{} differs in the {len} bytes at {at}", vmi.machine().name);
            compared += len as u64;
            at = at.checked_add(len as u64).unwrap();
        }
    }
    compared
}

#[test]
fn raw_lime_and_elf_agree_on_all_memory() {
    for guest in guests() {
        let raw = open(&guest, "memory.raw", Format::Raw);
        let lime = open(&guest, "memory.lime", Format::Lime);
        let elf = open(&guest, "memory.elf", Format::Elf);
        // What the guest itself calls RAM is a little less than all: firmware keeps some.
        let (of_lime, of_elf) = (compare(&raw, &lime), compare(&raw, &elf));
        assert_eq!(of_lime, lime.machine().memory.total());
        assert!(of_elf >= of_lime && of_elf >= 96 << 20, "{guest:?}: {of_elf:#x} of {of_lime:#x}");
        // The ELF has the BIOS too, which ends below 4 GiB, where x86 starts (the reset vector's jump is there).
        assert_eq!(elf.read::<u8>(PhysAddr::new(0xffff_fff0)).unwrap(), 0xea, "{guest:?}");
        assert!(lime.driver().vcpus().is_none() && lime.registers(VcpuId(0)).is_err());
    }
}

#[test]
fn registers_are_those_that_qemu_printed() {
    for guest in guests() {
        let elf = open(&guest, "memory.elf", Format::Elf);
        let truth = std::fs::read_to_string(guest.join("truth/registers")).unwrap();
        let cpus: Vec<&str> = truth.split("CPU#").skip(1).collect();
        assert_eq!(elf.driver().vcpu_count() as usize, cpus.len());
        assert!(elf.registers(VcpuId(cpus.len() as u32)).is_err());
        for (index, cpu) in (0..).zip(cpus) {
            check(&elf.registers(VcpuId(index)).unwrap(), cpu, &guest);
        }
    }
}

/// Looks each register up in what `info registers` of QEMU's monitor printed.
fn check(registers: &Registers, cpu: &str, guest: &Path) {
    let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let value = |name: &str| {
        let (_, rest) = cpu.split_once(&format!("{name}=")).or_else(|| cpu.split_once(&format!("{name} =")))?;
        rest.split_whitespace().next().map(hex)
    };
    let general = [
        ("AX", registers.rax),
        ("BX", registers.rbx),
        ("CX", registers.rcx),
        ("DX", registers.rdx),
        ("SI", registers.rsi),
        ("DI", registers.rdi),
        ("BP", registers.rbp),
        ("SP", registers.rsp),
        ("IP", registers.rip),
    ];
    for (name, got) in general {
        let expected = value(&format!("R{name}")).or_else(|| value(&format!("E{name}"))).unwrap();
        assert_eq!(got, expected, "{guest:?} {name}");
    }
    for (name, got) in [("R8", registers.r8), ("R9", registers.r9), ("R12", registers.r12), ("R15", registers.r15)] {
        assert_eq!(got, value(name).unwrap_or(0), "{guest:?} {name}");
    }
    for (name, got) in [("CR0", registers.cr0), ("CR2", registers.cr2), ("CR3", registers.cr3), ("CR4", registers.cr4)] {
        assert_eq!(got, value(name), "{guest:?} {name}");
    }
    let segments = registers.segments;
    for (name, got) in [("CS", segments.cs), ("FS", segments.fs), ("GS", segments.gs), ("SS", segments.ss), ("TR", segments.tr)] {
        let (_, rest) = cpu.split_once(&format!("\n{name} =")).unwrap();
        let mut numbers: Vec<u64> = rest.split_whitespace().take(4).map(hex).collect();
        // The upper half of a descriptor: without its limit and base, these bits are left.
        numbers[3] = numbers[3] >> 8 & 0xf0ff;
        let got = got.unwrap();
        let all = [u64::from(got.selector), got.base, u64::from(got.limit), u64::from(got.attributes.unwrap().bits())];
        assert_eq!(all, numbers[..], "{guest:?} {name}");
    }
    for (name, got) in [("GDT", registers.gdtr), ("IDT", registers.idtr)] {
        let (_, rest) = cpu.split_once(&format!("\n{name}=")).unwrap();
        let numbers: Vec<u64> = rest.split_whitespace().take(2).map(hex).collect();
        let got = got.unwrap();
        assert_eq!([got.base.get(), u64::from(got.limit)], numbers[..], "{guest:?} {name}");
    }
    assert_eq!(registers.rflags, hex(cpu.split_once("FL=").unwrap().1.split_whitespace().next().unwrap()));
    assert!(registers.efer.is_none() && registers.kernel_gs_base.is_some());
    // EFER is not in the note; its bit 10 is long mode.
    assert_eq!(registers.long_mode(), Some(value("EFER").unwrap() & 1 << 10 != 0), "{guest:?}");
}

#[test]
fn the_elf_core_brings_vmcoreinfo() {
    for guest in guests() {
        let elf = open(&guest, "memory.elf", Format::Elf);
        let truth = std::fs::read_to_string(guest.join("truth/version")).unwrap();
        let release = truth.split_whitespace().nth(2).unwrap();
        let Some(Note::VmCoreInfo(text)) = elf.machine().notes.first() else {
            // A guest that never loaded qemu_fw_cfg: then the name is not among the headers either.
            let head = std::fs::read(guest.join("memory.elf")).unwrap();
            assert!(!head[..0x1000].windows(10).any(|name| name == b"VMCOREINFO"), "{guest:?}");
            continue;
        };
        let text = String::from_utf8_lossy(text);
        assert!(text.starts_with(&format!("OSRELEASE={release}\n")), "{guest:?}: {text:.40}");
    }
}
