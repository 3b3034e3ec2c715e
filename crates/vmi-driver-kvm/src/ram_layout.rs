//! Which guest-physical addresses have RAM or ROM, and where QEMU's process has it: asked of the monitor.

use serde::Deserialize;
use vmi_core::{MemoryMap, PhysAddr};

use crate::memory::RamPiece;
use crate::memory_tree::{self, FlatRange, MemoryKind, MemoryTreeError};
use crate::qmp::{Monitor, MonitorError, beginning, query};

/// The guest's memory as QEMU lays it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RamLayout {
    /// Everything that can be read: main memory, ROMs, the memory of graphics cards and other devices. Ascending, disjoint;
    /// RAM is in several pieces where firmware shadows parts of it.
    pub(crate) pieces: Vec<RamPiece>,
    /// Main memory alone: what the memory backends hold, the parts that firmware shadows as ROM included.
    pub(crate) main: MemoryMap,
}

/// Why the guest's memory could not be found out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// The monitor fails.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// The memory tree is not understood.
    #[error(transparent)]
    Tree(#[from] MemoryTreeError),
    /// QEMU does not tell where it has a piece.
    #[error("`gpa2hva {at:#x}`: {answer}; the guest's memory changed meanwhile, or this version of QEMU answers in another form")]
    NoHostAddress {
        /// The piece's first address.
        at: PhysAddr,
        /// What QEMU answered.
        answer: String,
    },
    /// There is no main memory.
    #[error(
        "QEMU shows no main memory in `info mtree -f`: the machine was not made yet (`-preconfig`), or its RAM has a name that is not known"
    )]
    NoMemory,
}

#[derive(Deserialize)]
struct MemoryBackend {
    /// Missing in a backend that has no name.
    id: Option<String>,
}

impl RamLayout {
    /// Asks `monitor`.
    ///
    /// # Errors
    /// [`LayoutError`] says what is missing.
    pub(crate) fn ask(monitor: &dyn Monitor) -> Result<Self, LayoutError> {
        let ranges = memory_tree::parse(&monitor.human("info mtree -f")?)?;
        let backends: Vec<MemoryBackend> = query(monitor, "query-memdev").or_else(|error| match error {
            // Behind a gdb stub there is a human monitor alone.
            MonitorError::Refused { .. } => Ok(Vec::new()),
            other => Err(other),
        })?;
        let backends: Vec<String> = backends.into_iter().filter_map(|backend| backend.id).collect();
        let mut pieces: Vec<RamPiece> = Vec::new();
        let mut main = Vec::new();
        for range in ranges.iter().filter(|range| range.kind != MemoryKind::Io && range.kind != MemoryKind::RamDevice) {
            let at = range.region.start();
            let answer = monitor.human(&format!("gpa2hva {:#x}", at.get()))?;
            let Some((_, host)) = memory_tree::parse_host_address(&answer) else {
                return Err(LayoutError::NoHostAddress { at, answer: beginning(answer.trim()) });
            };
            let is_main = is_main_memory(range, &backends);
            if is_main {
                main.push(range.region);
            }
            // The firmware makes parts of main memory ROM for the guest; for QEMU they are RAM.
            let read_only = range.kind != MemoryKind::Ram && !is_main;
            pieces.push(RamPiece { region: range.region, host, read_only, block: range.name.clone() });
        }
        if main.is_empty() {
            return Err(LayoutError::NoMemory);
        }
        Ok(Self { pieces, main: MemoryMap::new(main) })
    }
}

/// Asks a monitor whose answers may be anything, for tests. Gives the number of pieces.
///
/// # Errors
/// [`LayoutError`] says what is missing.
#[doc(hidden)]
pub fn exercise(monitor: &dyn Monitor) -> Result<usize, LayoutError> {
    let layout = RamLayout::ask(monitor)?;
    assert!(layout.pieces.is_sorted_by(|low, high| low.region.end() <= high.region.start()));
    Ok(layout.pieces.len())
}

/// Whether a range shows the machine's RAM rather than a device's.
fn is_main_memory(range: &FlatRange, backends: &[String]) -> bool {
    // A backend's region is named by its id, on some machine types by its path in the object tree.
    let name = range.name.strip_prefix("/objects/").unwrap_or(&range.name);
    let known = backends.iter().any(|id| id == name);
    // Machines without a memory backend (QEMU before 5.0), and stubs that cannot be asked for them.
    let default = matches!(name, "pc.ram" | "microvm.ram") || backends.is_empty() && is_plain_ram(range);
    matches!(range.kind, MemoryKind::Ram | MemoryKind::Rom) && (known || default)
}

/// RAM that is no device's, as far as its name tells: devices' regions have a dot, a slash or a space in theirs.
fn is_plain_ram(range: &FlatRange) -> bool {
    range.kind == MemoryKind::Ram && !range.name.contains(['.', '/', ' '])
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use vmi_core::Region;

    use super::*;

    /// A monitor that answers as QEMU 7.2 did.
    #[derive(Debug)]
    struct Scripted {
        tree: &'static str,
        backends: Value,
        host: fn(u64) -> Option<u64>,
    }

    impl Monitor for Scripted {
        fn execute(&self, command: &str, arguments: Value) -> Result<Value, MonitorError> {
            match (command, arguments["command-line"].as_str()) {
                ("query-memdev", _) => Ok(self.backends.clone()),
                (_, Some("info mtree -f")) => Ok(json!(self.tree)),
                (_, Some(line)) => {
                    let at = u64::from_str_radix(line.strip_prefix("gpa2hva 0x").unwrap(), 16).unwrap();
                    Ok(match (self.host)(at) {
                        Some(host) => json!(format!("Host virtual address for {at:#x} (x) is {host:#x}\r\n")),
                        None => json!(format!("No memory is mapped at address {at:#x}\r\n")),
                    })
                }
                _ => unreachable!(),
            }
        }

        fn describe(&self) -> String {
            "script".to_owned()
        }
    }

    const TREE: &str = r#"FlatView #0
 AS "memory", root: system
 Root memory region: system
  0000000000000000-00000000000c2fff (prio 0, ram): pc.ram
  00000000000c3000-00000000000e7fff (prio 0, rom): pc.ram @00000000000c3000
  00000000000e8000-0000000007ffffff (prio 0, ram): pc.ram @00000000000e8000
  0000000008000000-000000000fffffff (prio 0, ram): /objects/second
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram
  00000000fee00000-00000000feefffff (prio 4096, i/o): apic-msi
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios
  0000000100000000-0000000103ffffff (prio 0, ram): pc.ram @0000000008000000
"#;

    fn piece(start: u64, end: u64, host: u64, read_only: bool, block: &str) -> RamPiece {
        let region = Region::new(PhysAddr::new(start), end - start).unwrap();
        RamPiece { region, host, read_only, block: block.to_owned() }
    }

    #[test]
    fn main_memory_is_told_from_devices() {
        let monitor = Scripted {
            tree: TREE,
            backends: json!([{"id": "pc.ram"}, {"id": "second"}, {}]),
            host: |at| Some(at + 0x7000_0000_0000),
        };
        let layout = RamLayout::ask(&monitor).unwrap();
        let host = 0x7000_0000_0000;
        let expected = [
            piece(0, 0xc3000, host, false, "pc.ram"),
            piece(0xc3000, 0xe8000, host + 0xc3000, false, "pc.ram"),
            piece(0xe8000, 0x800_0000, host + 0xe8000, false, "pc.ram"),
            piece(0x800_0000, 0x1000_0000, host + 0x800_0000, false, "/objects/second"),
            piece(0xfd00_0000, 0xfe00_0000, host + 0xfd00_0000, false, "vga.vram"),
            piece(0xfffc_0000, 0x1_0000_0000, host + 0xfffc_0000, true, "pc.bios"),
            piece(0x1_0000_0000, 0x1_0400_0000, host + 0x1_0000_0000, false, "pc.ram"),
        ];
        assert_eq!(layout.pieces, expected);
        let main = [(0, 0x1000_0000), (0x1_0000_0000, 0x400_0000)].map(|(at, len)| Region::new(PhysAddr::new(at), len).unwrap());
        assert_eq!(layout.main, MemoryMap::new(main));
    }

    #[test]
    fn what_qemu_does_not_tell_is_an_error() {
        let error = RamLayout::ask(&Scripted { tree: TREE, backends: json!([]), host: |_| None }).unwrap_err();
        assert!(error.to_string().starts_with("`gpa2hva 0x0`: No memory is mapped"), "{error}");
        let empty = "FlatView #0\n AS \"memory\", root: system\n Root memory region: system\n";
        let error = RamLayout::ask(&Scripted { tree: empty, backends: json!([]), host: |_| None }).unwrap_err();
        assert!(matches!(error, LayoutError::NoMemory));
    }
}
