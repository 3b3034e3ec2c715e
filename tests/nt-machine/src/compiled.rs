//! A kernel made from C by clang and lld-link: a real PE file and a real program database.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

use crate::build::Build;
use crate::c_source::{self, SPARE, is_here};
use crate::kernel_image::{FORWARDER, Image, Pdb};
use crate::variables::VARIABLES;

/// The files, and what the linker says about them.
#[derive(Clone, Debug)]
pub struct CompiledKernel {
    /// The PE file.
    pub pe: Vec<u8>,
    /// The program database.
    pub pdb: Vec<u8>,
    /// Where the image was linked to lie. It lies there in the machine too, so that nothing must be relocated.
    pub base: u64,
    /// Symbols relative to the image's base, from the linker's map.
    pub symbols: BTreeMap<String, u64>,
    /// Names of the exports.
    pub exports: Vec<String>,
}

impl CompiledKernel {
    /// Compiles a kernel with the structures of a build, to lie where that build's kernel usually does.
    ///
    /// # Errors
    /// As [`CompiledKernel::compile`].
    pub fn of(build: &Build) -> Result<Self, String> {
        Self::compile(build, build.kernel_base() & !0xFFFF)
    }

    /// Compiles a kernel with the structures of a build, to lie at `base` (a multiple of 64 KiB).
    ///
    /// # Errors
    /// What is missing, or what the tools say: clang and lld-link come with Debian's packages clang and lld.
    pub fn compile(build: &Build, base: u64) -> Result<Self, String> {
        let source = c_source::structures(&build.layout, build.is_64_bit) + &c_source::variables(build, &[]) + ORDINAL_ONLY;
        Self::compile_source(build, base, &source, &[])
    }

    /// As [`CompiledKernel::compile`], with all of the C given.
    pub(crate) fn compile_source(build: &Build, base: u64, source: &str, flags: &[&str]) -> Result<Self, String> {
        let directory =
            env::temp_dir().join(format!("nt-machine-{}-{:?}-{}", std::process::id(), std::thread::current().id(), build.name));
        fs::create_dir_all(&directory).map_err(|error| error.to_string())?;
        let made = Self::compile_in(&directory, build, base, source, flags);
        if env::var_os("NT_MACHINE_KEEP").is_none() {
            let _ = fs::remove_dir_all(&directory);
        }
        made
    }

    fn compile_in(directory: &Path, build: &Build, base: u64, source: &str, flags: &[&str]) -> Result<Self, String> {
        assert_eq!(base % 0x1_0000, 0, "lld-link wants a multiple of 64 KiB");
        let read = |name: &str| fs::read(directory.join(name)).map_err(|error| format!("{name}: {error}"));
        fs::write(directory.join("nt.c"), source).map_err(|error| error.to_string())?;
        let wide = build.is_64_bit;
        let mut clang = Command::new("clang");
        clang.arg(if wide { "--target=x86_64-pc-windows-msvc" } else { "--target=i686-pc-windows-msvc" });
        clang.args([
            "-O1",
            "-g",
            "-gcodeview",
            "-fstandalone-debug",
            "-ffreestanding",
            "-fno-stack-protector",
            "-mno-red-zone",
            "-mno-sse",
            "-nostdlib",
            "-w",
        ]);
        clang.args(flags).args(["-c", "nt.c", "-o", "nt.obj"]);
        run(clang.current_dir(directory))?;
        let mut exports: Vec<String> = VARIABLES
            .iter()
            .filter(|v| v.exported && is_here(build, v.name) && (v.name != "PsLoadedModuleList" || wide && build.number >= 10240))
            .map(|v| v.name.to_owned())
            .collect();
        let mut lld = Command::new("lld-link");
        lld.args([
            "/debug",
            "/nodefaultlib",
            "/driver",
            "/dll",
            "/subsystem:native",
            "/opt:noref,noicf",
            "/out:ntoskrnl.exe",
            "/map:nt.map",
            "/fixed",
        ]);
        lld.arg(if wide { "/machine:x64" } else { "/machine:x86" });
        lld.arg(if wide { "/entry:KiSystemStartup" } else { "/entry:KiSystemStartup@4" });
        if !wide {
            lld.arg("/safeseh:no");
        }
        lld.arg(format!("/base:{base:#x}"))
            .arg(format!("/pdb:{}", build.pdb_name))
            .arg(format!("/pdbaltpath:{}", build.pdb_name));
        let code = |name: &str| VARIABLES.iter().any(|v| v.name == name && crate::variables::is_code(v.section));
        lld.args(exports.iter().map(|name| format!("/export:{name}{}", if code(name) { "" } else { ",DATA" })));
        lld.arg("/export:KiExportedByOrdinal,@1,NONAME").arg(format!("/export:{FORWARDER}=HAL.HalForwarded"));
        lld.arg("nt.obj");
        run(lld.current_dir(directory))?;
        exports.push(FORWARDER.to_owned());
        exports.sort_unstable();
        let symbols = parse_map(&String::from_utf8_lossy(&read("nt.map")?), base, wide);
        Ok(Self { pe: read("ntoskrnl.exe")?, pdb: read(build.pdb_name)?, base, symbols, exports })
    }

    /// The image as a loader puts it into memory.
    pub(crate) fn image(&self) -> Image {
        let pe = &self.pe;
        let u16_at = |at: usize| u16::from_le_bytes([pe[at], pe[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes([pe[at], pe[at + 1], pe[at + 2], pe[at + 3]]);
        let header = u32_at(0x3C) as usize;
        let optional = header + 24;
        let wide = u16_at(optional) == 0x20B;
        let directories = optional + if wide { 112 } else { 96 };
        let sections = optional + usize::from(u16_at(header + 20));
        let mut parts = vec![(0, pe[..u32_at(optional + 60) as usize].to_vec())];
        let mut file_offset = Vec::new();
        for section in 0..usize::from(u16_at(header + 6)) {
            let at = sections + section * 40;
            let (virtual_size, rva, raw_size, raw) = (u32_at(at + 8), u32_at(at + 12), u32_at(at + 16), u32_at(at + 20));
            let bytes = &pe[raw as usize..(raw + raw_size.min(virtual_size)) as usize];
            parts.push((u64::from(rva), bytes.to_vec()));
            file_offset.push((rva..rva + virtual_size.max(raw_size), raw));
        }
        let to_file = |rva: u32| {
            let (range, raw) = file_offset.iter().find(|(range, _)| range.contains(&rva)).expect("in a section");
            (rva - range.start + raw) as usize
        };
        let debug = to_file(u32_at(directories + 6 * 8));
        let entries = u32_at(directories + 6 * 8 + 4) as usize / 28;
        let codeview =
            (0..entries).map(|nth| debug + nth * 28).find(|at| u32_at(at + 12) == 2).expect("lld-link writes a CodeView record");
        let record = u32_at(codeview + 24) as usize;
        assert_eq!(&pe[record..record + 4], b"RSDS");
        let guid = format!("{:08X}{:04X}{:04X}", u32_at(record + 4), u16_at(record + 8), u16_at(record + 10));
        let guid = pe[record + 12..record + 20].iter().fold(guid, |guid, byte| guid + &format!("{byte:02X}"));
        let name = pe[record + 24..].iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect();
        let spare = self.symbols["KiSpareData"];
        Image {
            size: u64::from(u32_at(optional + 56)),
            parts,
            symbols: self.symbols.clone(),
            exports: self.exports.clone(),
            pdb: Some(Pdb { name, guid, age: u32_at(record + 20) }),
            export_directory: u64::from(u32_at(directories)),
            codeview: u64::from(u32_at(codeview + 20)),
            spare: spare..spare + SPARE,
        }
    }
}

/// The one export without a name.
pub(crate) const ORDINAL_ONLY: &str =
    "__attribute__((noinline, used)) void KiExportedByOrdinal(void) { __asm__ volatile(\".fill 16, 1, 0xCC\"); }\n";

pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{name}: {}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout)))
}

/// The lines ` 0001:00000000  name  fffff80470001000  nt.obj` of a map. On 32-bit machines names have an underscore before them, and `@` and the size of the
/// parameters behind them.
fn parse_map(map: &str, base: u64, is_64_bit: bool) -> BTreeMap<String, u64> {
    let mut symbols = BTreeMap::new();
    for line in map.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [place, name, address, ..] = words[..] else { continue };
        let Ok(address) = u64::from_str_radix(address, 16) else { continue };
        if place.len() == 13 && place.as_bytes()[4] == b':' && address >= base {
            let bare = if is_64_bit { name } else { name.strip_prefix('_').unwrap_or(name) };
            symbols.insert(bare.split('@').next().unwrap_or(bare).to_owned(), address - base);
        }
    }
    symbols
}
