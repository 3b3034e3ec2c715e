//! The guest-physical address space as QEMU's monitor prints it.
//!
//! `info mtree -f` lists "flat views": which address ranges show which memory regions, overlaps resolved (QEMU: docs/devel/memory.rst, and
//! `mtree_info_flatview` in system/memory.c; in QEMU 7.2 that file lies in softmmu/). One of them is what the processors see. The form was
//! the same in QEMU 7.2 and 10.0. A line that it does not know is an error, not left out.

use vmi_core::{PhysAddr, Region};

/// More ranges than any machine has; the text is bounded by the monitor's longest answer.
const MAX_RANGES: usize = 1 << 16;

/// What lies behind a range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemoryKind {
    /// Memory that the guest reads and writes (`ram`, `nv-ram`).
    Ram,
    /// Memory that the guest reads only (`rom`); parts of RAM below 1 MiB are shown so while the firmware shadows them.
    Rom,
    /// Flash: read as memory, written as a device (`romd`).
    RomDevice,
    /// Memory of a passed-through device (`ramd`).
    RamDevice,
    /// Registers of a device (`i/o`).
    Io,
}

/// A range of guest-physical addresses that shows a part of one memory region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlatRange {
    /// The addresses.
    pub region: Region,
    /// What lies behind them.
    pub kind: MemoryKind,
    /// The memory region's name: `pc.ram`, or the id of a memory backend.
    pub name: String,
    /// Where in the memory region the range begins, in bytes.
    pub offset: u64,
}

/// Why the text is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryTreeError {
    /// There is no flat view of system memory.
    #[error("`info mtree -f` shows no address space \"memory\"")]
    NoSystemMemory,
    /// A line of that view has an unknown form.
    #[error("`info mtree -f` has a line of an unknown form: `{line}`")]
    UnknownLine {
        /// The line.
        line: String,
    },
    /// Ranges that overlap or go down.
    #[error("`info mtree -f` lists {at} out of order")]
    OutOfOrder {
        /// The first address of the range.
        at: PhysAddr,
    },
    /// More ranges than can be.
    #[error("`info mtree -f` lists more than {MAX_RANGES} ranges")]
    TooMany,
}

/// The ranges of system memory, ascending and disjoint, out of the text of `info mtree -f`.
///
/// # Errors
/// [`MemoryTreeError`] says what is missing or not understood.
pub fn parse(text: &str) -> Result<Vec<FlatRange>, MemoryTreeError> {
    let mut ranges: Vec<FlatRange> = Vec::new();
    for line in system_memory(text).ok_or(MemoryTreeError::NoSystemMemory)? {
        let Some(range) = parse_range(line) else {
            return Err(MemoryTreeError::UnknownLine { line: crate::qmp::beginning(line) });
        };
        if ranges.last().is_some_and(|last| last.region.end() > range.region.start()) {
            return Err(MemoryTreeError::OutOfOrder { at: range.region.start() });
        }
        if ranges.len() >= MAX_RANGES {
            return Err(MemoryTreeError::TooMany);
        }
        ranges.push(range);
    }
    Ok(ranges)
}

/// The lines with the ranges of the view that serves the address space "memory".
fn system_memory(text: &str) -> Option<impl Iterator<Item = &str>> {
    let is_header = |line: &str| line.starts_with("FlatView #");
    let mut lines = text.lines().map(str::trim_end);
    loop {
        lines.by_ref().find(|line| is_header(line))?;
        let mut ours = false;
        // ` AS "memory", root: system` for each address space, then ` Root memory region: system`, then the ranges.
        let mut head = lines.clone();
        for line in head.by_ref().take_while(|line| line.starts_with(" AS ")) {
            ours |= line.starts_with(" AS \"memory\",");
        }
        if ours {
            // The line after the address spaces, which `take_while` has taken, names the root.
            return Some(head.take_while(|line| !line.is_empty()));
        }
    }
}

/// `  0000000000100000-0000000007ffffff (prio 0, ram): pc.ram @0000000000100000 KVM`
fn parse_range(line: &str) -> Option<FlatRange> {
    let (addresses, rest) = line.trim_start().split_once(" (prio ")?;
    let (first, last) = addresses.split_once('-')?;
    let (first, last) = (hex(first)?, hex(last)?);
    let region = Region::new(PhysAddr::new(first), last.checked_sub(first)?.checked_add(1)?)?;
    let (properties, name) = rest.split_once("): ")?;
    let (_, kind) = properties.split_once(", ")?;
    let kind = match kind {
        "ram" | "nv-ram" => MemoryKind::Ram,
        "rom" => MemoryKind::Rom,
        "romd" => MemoryKind::RomDevice,
        "ramd" => MemoryKind::RamDevice,
        "i/o" => MemoryKind::Io,
        _ => return None,
    };
    // The accelerator's name stands behind what it maps itself (`mtree_print_flatview`).
    let name = name.strip_suffix(" KVM").unwrap_or(name);
    let (name, offset) = match name.rsplit_once(" @").and_then(|(name, offset)| Some((name, hex(offset)?))) {
        Some((name, offset)) => (name, offset),
        None => (name, 0),
    };
    Some(FlatRange { region, kind, name: name.to_owned(), offset })
}

fn hex(digits: &str) -> Option<u64> {
    digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| u64::from_str_radix(digits, 16).ok())?
}

/// The host's virtual address out of the answer to `gpa2hva`; the name of the memory region beside it. `None` if there is no memory.
pub fn parse_host_address(text: &str) -> Option<(&str, u64)> {
    // Host virtual address for 0x100000 (pc.ram) is 0x7f09f7f00000
    let (said, address) = text.trim_end().rsplit_once(") is 0x")?;
    let (_, name) = said.strip_prefix("Host virtual address for ")?.split_once(" (")?;
    Some((name, hex(address)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What QEMU 7.2 printed of `-machine pc,max-ram-below-4g=128M -m 192M`, shortened; one line as KVM marks it.
    const PC: &str = r#"FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #1
 AS "i440FX", root: bus master container
 Root memory region: (none)
  No rendered FlatView

FlatView #2
 AS "cpu-memory-0", root: system
 AS "memory", root: system
 Root memory region: system
  0000000000000000-00000000000c2fff (prio 0, ram): pc.ram KVM
  00000000000c3000-00000000000e7fff (prio 0, rom): pc.ram @00000000000c3000 KVM
  00000000000e8000-0000000007ffffff (prio 0, ram): pc.ram @00000000000e8000
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram
  00000000febf0400-00000000febf041f (prio 0, i/o): vga ioports remapped
  00000000fee00000-00000000feefffff (prio 4096, i/o): apic-msi
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios
  0000000100000000-0000000103ffffff (prio 0, nv-ram): pc.ram @0000000008000000

"#;

    fn range(first: u64, last: u64, kind: MemoryKind, name: &str, offset: u64) -> FlatRange {
        let region = Region::new(PhysAddr::new(first), last - first + 1).unwrap();
        FlatRange { region, kind, name: name.to_owned(), offset }
    }

    #[test]
    fn what_the_processors_see_is_found() {
        use MemoryKind::{Io, Ram, Rom};
        let expected = [
            range(0, 0xc2fff, Ram, "pc.ram", 0),
            range(0xc3000, 0xe7fff, Rom, "pc.ram", 0xc3000),
            range(0xe8000, 0x7ffffff, Ram, "pc.ram", 0xe8000),
            range(0xfd000000, 0xfdffffff, Ram, "vga.vram", 0),
            range(0xfebf0400, 0xfebf041f, Io, "vga ioports remapped", 0),
            range(0xfee00000, 0xfeefffff, Io, "apic-msi", 0),
            range(0xfffc0000, 0xffffffff, Rom, "pc.bios", 0),
            range(0x100000000, 0x103ffffff, Ram, "pc.ram", 0x8000000),
        ];
        assert_eq!(parse(PC).unwrap(), expected);
        assert_eq!(parse(&PC.replace('\n', "\r\n")).unwrap(), expected);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        assert_eq!(parse("").unwrap_err(), MemoryTreeError::NoSystemMemory);
        assert_eq!(parse(&PC.replace("\"memory\"", "\"other\"")).unwrap_err(), MemoryTreeError::NoSystemMemory);
        for (from, to) in [("nv-ram", "xram"), ("00fd000000-", "00fd000000 "), ("pc.bios", "pc.bios\nmore")] {
            assert!(matches!(parse(&PC.replace(from, to)).unwrap_err(), MemoryTreeError::UnknownLine { .. }), "{to}");
        }
        let twisted = PC.replace("00000000fd000000-00000000fdffffff", "0000000000000000-0000000000000fff");
        assert_eq!(parse(&twisted).unwrap_err(), MemoryTreeError::OutOfOrder { at: PhysAddr::ZERO });
    }

    #[test]
    fn host_addresses() {
        let answer = "Host virtual address for 0x100000 (pc.ram) is 0x7f09f7f00000\r\n";
        assert_eq!(parse_host_address(answer), Some(("pc.ram", 0x7f09_f7f0_0000)));
        let answer = "Host virtual address for 0x0 (a (b) is 0x1) is 0x2";
        assert_eq!(parse_host_address(answer), Some(("a (b) is 0x1", 2)));
        for none in ["No memory is mapped at address 0x8000000\r\n", "Memory at address 0xfee00000 is not RAM\r\n", ""] {
            assert_eq!(parse_host_address(none), None);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused(text in "(FlatView #0\n)?( AS \"memory\", root: s\n)?( Root\n)?([ -~\n]{0,200})") {
            let _ = parse(&text);
            let _ = parse_host_address(&text);
        }

        #[test]
        fn printed_ranges_are_read_again(
            cuts in proptest::collection::btree_set(1u64..1 << 40, 2..20),
            name in "[a-z./@ ]{1,12}",
            offset in proptest::option::of(any::<u64>()),
        ) {
            prop_assume!(!name.contains(" @") && !name.ends_with(' ') && !name.starts_with(' '));
            let cuts: Vec<u64> = cuts.into_iter().collect();
            let mut text = "FlatView #0\n AS \"memory\", root: system\n Root memory region: system\n".to_owned();
            let mut expected = Vec::new();
            for pair in cuts.chunks_exact(2) {
                let at = offset.map(|offset| format!(" @{offset:016x}")).unwrap_or_default();
                text += &format!("  {:016x}-{:016x} (prio -1, ram): {name}{at}\n", pair[0], pair[1]);
                expected.push(range(pair[0], pair[1], MemoryKind::Ram, &name, offset.unwrap_or(0)));
            }
            prop_assert_eq!(parse(&text).unwrap(), expected);
        }
    }
}
