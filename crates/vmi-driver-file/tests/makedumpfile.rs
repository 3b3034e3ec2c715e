//! makedumpfile on images of the lab: it reads what is written here, and what it writes is read here.
//!
//! It is Debian's package `makedumpfile`, and another one that `VMI_MAKEDUMPFILE` names (tests/lab/makedumpfile.sh: that of trixie, which packs with Zstandard); the
//! images are in the directory that `VMI_LAB_IMAGES` names. It does not take QEMU's own cores, whose program headers are not where it looks for them
//! (makedumpfile 1.7.2, QEMU 7.2), nor guests of another machine than its own.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;
use vmi_core::synthetic::SyntheticDriver;
use vmi_core::{Memory, Note, PhysAddr, Region, Vmi};
use vmi_driver_file::{Format, ImageDriver, write};

/// Guests of different kernels, one with a hole below 4 GiB and memory above.
const GUESTS: [&str; 3] = ["x64-6.1-small", "x64-6.1-hole", "x64-6.12"];

/// Whether this is the BIOS alone, which QEMU's core has and no other image; memory above 4 GiB joins it.
fn is_bios(region: Region) -> bool {
    (region.start().get(), region.end().get()) == (0xfffc_0000, 1 << 32)
}

/// A guest's memory as it is, and a core of it that is written here.
struct Lab {
    program: PathBuf,
    directory: TempDir,
    guest: PathBuf,
    raw: Vmi<ImageDriver>,
    qemu: Vmi<ImageDriver>,
}

fn labs() -> Vec<Lab> {
    let Some(images) = std::env::var_os("VMI_LAB_IMAGES").map(PathBuf::from) else {
        eprintln!("skipped: VMI_LAB_IMAGES is not set");
        return Vec::new();
    };
    let programs = ["makedumpfile".into(), std::env::var_os("VMI_MAKEDUMPFILE").unwrap_or_default()].map(PathBuf::from);
    let runs = |program: &Path| {
        Command::new(program).arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    let open = |path: PathBuf| Vmi::new(ImageDriver::open(path).unwrap());
    let lab = |program: &Path, guest: PathBuf| Lab {
        program: program.to_owned(),
        directory: tempfile::tempdir().unwrap(),
        raw: open(guest.join("memory.raw")),
        qemu: open(guest.join("memory.elf")),
        guest,
    };
    let mut labs = Vec::new();
    for program in programs {
        if !runs(&program) {
            eprintln!("skipped: no such program as {program:?} (VMI_MAKEDUMPFILE names the second one)");
            continue;
        }
        let guests = GUESTS.iter().map(|name| images.join(name)).filter(|guest| guest.join("memory.raw").exists());
        labs.extend(guests.map(|guest| lab(&program, guest)));
    }
    labs
}

impl Lab {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs makedumpfile; false if it was built without what the options ask for.
    fn run(&self, options: &str, files: &[&str], to: Option<&str>, from: Option<&str>) -> bool {
        let stdout = to.map_or(Stdio::piped(), |to| File::create(self.path(to)).unwrap().into());
        let stdin = from.map_or(Stdio::null(), |from| File::open(self.path(from)).unwrap().into());
        let output = Command::new(&self.program)
            .args(options.split_whitespace())
            .args(files)
            .current_dir(self.directory.path())
            .stdin(stdin)
            .stdout(stdout)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        // It goes on without packing then.
        if said.contains("option is disabled") {
            eprintln!("skipped: {:?} {options}: {}", self.program, said.lines().find(|line| line.contains("disabled")).unwrap());
            return false;
        }
        assert!(output.status.success(), "{:?} {options} {files:?} on {:?}: {said}", self.program, self.guest);
        true
    }

    /// Opens what makedumpfile wrote, and compares all of it with memory.
    fn check(&self, name: &str, format: Format) -> Vmi<ImageDriver> {
        let vmi = Vmi::new(ImageDriver::open(self.path(name)).unwrap());
        assert_eq!(vmi.driver().format(), format, "{name}");
        let mut differing = 0;
        for region in vmi.machine().memory.regions() {
            for offset in (0..region.len()).step_by(1 << 20) {
                let at = region.start().checked_add(offset).unwrap();
                let len = (region.len() - offset).min(1 << 20) as usize;
                // The BIOS below 4 GiB is in QEMU's core alone.
                let (expected, got) = (self.qemu.read_vec(at, len).unwrap(), vmi.read_vec(at, len).unwrap());
                // In a core, makedumpfile leaves pages out as zeros.
                let same = |(a, b): (&[u8], &[u8])| a == b || format == Format::Elf && b.iter().all(|byte| *byte == 0);
                differing += expected.chunks(4096).zip(got.chunks(4096)).filter(|&pair| !same(pair)).count();
            }
        }
        assert_eq!(differing, 0, "{:?} {name}: pages that differ", self.guest);
        assert_eq!(vmi.machine().notes, self.qemu.machine().notes, "{name}");
        vmi
    }

    /// Whether `vmi` has all RAM of the guest.
    fn is_whole(&self, vmi: &Vmi<ImageDriver>) -> bool {
        let ram = self.qemu.machine().memory.regions().iter().filter(|region| !is_bios(**region));
        ram.into_iter().all(|ram| vmi.machine().memory.region_at(ram.start()).is_some_and(|region| region.end() >= ram.end()))
    }
}

fn kernel(vmi: &Vmi<ImageDriver>) -> bool {
    vmi.machine().notes.iter().any(|note| matches!(note, Note::VmCoreInfo(text) if text.starts_with(b"OSRELEASE=6.")))
}

#[test]
fn what_makedumpfile_makes_of_a_written_core() {
    for lab in labs() {
        write::image(&lab.qemu, lab.path("core"), Format::Elf, |_, _| ()).unwrap();
        // Packing as the header's status says it (diskdump_mod.h, DUMP_DH_COMPRESSED_*).
        for (options, packing) in [("-d 0", 0), ("-c -d 0", 1), ("-l -d 0", 2), ("-p -d 0", 4), ("-z -d 0", 0x20)] {
            if !lab.run(options, &["core", "dump"], None, None) {
                std::fs::remove_file(lab.path("dump")).unwrap();
                continue;
            }
            let mut status = [0; 4];
            File::open(lab.path("dump")).unwrap().read_exact_at(&mut status, 424).unwrap();
            assert_eq!(u32::from_le_bytes(status), packing, "{:?} {options}", lab.program);
            let vmi = lab.check("dump", Format::Kdump);
            assert!(lab.is_whole(&vmi) && kernel(&vmi), "{options}");
            std::fs::remove_file(lab.path("dump")).unwrap();
        }
        // Excluding: less of everything, and what is there is right.
        // (`-d 1` alone excludes nothing: pages of zeros stay, and share one packed page.)
        let mut before = lab.qemu.machine().memory.total();
        for options in ["-l -d 17", "-c -d 31"] {
            assert!(lab.run(options, &["core", "dump"], None, None));
            let vmi = lab.check("dump", Format::Kdump);
            let now = vmi.machine().memory.total();
            assert!(now < before && now > 8 << 20, "{options}: {now:#x} of {before:#x}");
            before = now;
            std::fs::remove_file(lab.path("dump")).unwrap();
        }
        assert!(lab.run("-E -d 31", &["core", "dump"], None, None));
        lab.check("dump", Format::Elf);
    }
}

#[test]
fn flattened_dumps_and_back() {
    for lab in labs() {
        write::image(&lab.qemu, lab.path("core"), Format::Elf, |_, _| ()).unwrap();
        for (options, format) in [("-F -c -d 0", Format::Kdump), ("-F -l -d 31", Format::Kdump), ("-F -E -d 0", Format::Elf)] {
            assert!(lab.run(options, &["core"], Some("flat"), None));
            let flat = lab.check("flat", format);
            // As makedumpfile itself rearranges it.
            assert!(lab.run("-R", &["back"], None, Some("flat")));
            let back = lab.check("back", format);
            assert_eq!(flat.machine().memory, back.machine().memory);
            std::fs::remove_file(lab.path("back")).unwrap();
        }
    }
}

#[test]
fn split_dumps() {
    for lab in labs() {
        write::image(&lab.qemu, lab.path("core"), Format::Elf, |_, _| ()).unwrap();
        for level in ["0", "31"] {
            let names = ["part-1", "part-2", "part-3"];
            let files = ["core", "part-1", "part-2", "part-3"];
            assert!(lab.run(&format!("--split --splitblock-size 8 -c -d {level}"), &files, None, None));
            let memory = names.map(|name| lab.check(name, Format::Kdump)).map(|vmi| vmi.machine().memory.clone());
            assert!(memory.iter().all(|one| *one == memory[0]));
            assert!(lab.run("--reassemble", &["part-1", "part-2", "part-3", "whole"], None, None));
            assert_eq!(lab.check("whole", Format::Kdump).machine().memory, memory[0]);
            std::fs::remove_file(lab.path("part-2")).unwrap();
            assert!(ImageDriver::open(lab.path("part-1")).unwrap_err().to_string().contains("--reassemble"));
            for name in ["part-1", "part-3", "whole"] {
                std::fs::remove_file(lab.path(name)).unwrap();
            }
        }
    }
}

#[test]
fn what_makedumpfile_makes_of_a_written_dump() {
    for lab in labs() {
        // makedumpfile looks for the second bitmap behind as many pages as the kernel knows, not as the header says: the BIOS below 4 GiB must
        // not be the last.
        let ram = lab.qemu.machine().memory.regions().iter().filter(|region| !is_bios(**region));
        let runs: Vec<_> = ram.map(|ram| (ram.start(), lab.qemu.read_vec(ram.start(), ram.len() as usize).unwrap())).collect();
        let ram: Vmi<SyntheticDriver> = Vmi::new(SyntheticDriver::new(runs).with_notes(lab.qemu.machine().notes.clone()));
        write::image(&ram, lab.path("ours"), Format::Kdump, |_, _| ()).unwrap();
        assert!(lab.is_whole(&lab.check("ours", Format::Kdump)));
        for options in ["-c -d 0", "-l -d 31"] {
            assert!(lab.run(options, &["ours", "dump"], None, None));
            let vmi = lab.check("dump", Format::Kdump);
            assert_eq!(lab.is_whole(&vmi), options == "-c -d 0");
            std::fs::remove_file(lab.path("dump")).unwrap();
        }
        // Through a pipe, and put in order by makedumpfile: the file that is written without one.
        let mut flat = File::create(lab.path("flat")).unwrap();
        write::Options::new().packing(write::PagePacking::Zlib).stream(&ram, &mut flat, Format::Kdump, |_, _| ()).unwrap();
        assert!(lab.run("-R", &["back"], None, Some("flat")));
        assert!(std::fs::read(lab.path("back")).unwrap() == std::fs::read(lab.path("ours")).unwrap());
    }
}

/// The raw image is what QEMU's core is compared with elsewhere; here, that both tell of the same guest.
#[test]
fn the_lab_is_what_it_seems() {
    for lab in labs() {
        let at = PhysAddr::new(0x10_0000);
        assert_eq!(lab.raw.read_vec(at, 4096).unwrap(), lab.qemu.read_vec(at, 4096).unwrap());
        assert!(Path::new(&lab.guest).exists() && kernel(&lab.qemu));
    }
}
