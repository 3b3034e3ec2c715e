//! Snapshots of Cloud Hypervisor: a directory with `config.json`, `state.json` and `memory-ranges`. Opened by the directory or by any of
//! the three.
//!
//! Layout: Cloud Hypervisor, vmm/src/migration.rs and vmm/src/memory_manager.rs. `memory-ranges` is the ranges of a table one behind the
//! other; the table is in the node of the memory manager of `state.json`, a tree of nodes whose data is JSON within JSON
//! ([`state`]). Memory that the user backs with a shared file of his own is not in the table, and not in the snapshot.
//!
//! The first versions wrote a file for each range, `memory-region-0` and so on, which the table names.

mod registers;
mod state;

use std::ffi::OsStr;
use std::path::Path;

use vmi_core::{PhysAddr, Piece, Region};

use self::state::{Node, Range};
use crate::FormatError;
use crate::image::{Image, Input, Part};
use crate::source::Source;

/// The name of the file that tells of the others.
pub(crate) const STATE: &str = "state.json";
const MEMORY: &str = "memory-ranges";
/// The first of the files of the first versions.
const FIRST_MEMORY: &str = "memory-region-0";
/// The configuration, which says nothing that is needed here.
const CONFIG: &str = "config.json";

/// About 50 KiB for each vCPU and some for each device, in JSON.
const MAX_STATE: u64 = 32 << 20;

/// JSON that names what only a state has, or only a configuration. [`directory`](crate::directory) looks no further than at names.
pub(crate) fn matches(bytes: &[u8]) -> bool {
    let has = |word: &[u8]| memchr::memmem::find(bytes, word).is_some();
    let is_state = || has(b"\"snapshots\"") && (has(b"\"snapshot_data\"") || has(b"\"memory-manager\""));
    let is_config = || has(b"\"cpus\"") && has(b"\"boot_vcpus\"") && has(b"\"memory\"");
    bytes.trim_ascii_start().starts_with(b"{") && (is_state() || is_config())
}

/// Whether this is the name of a file with memory.
pub(crate) fn is_memory(name: &OsStr) -> bool {
    name == MEMORY || name == FIRST_MEMORY
}

/// Whether `input` is the memory of a state beside it.
pub(crate) fn owns(input: Input<'_>) -> bool {
    let is_memory = input.path.and_then(Path::file_name) == Some(OsStr::new(MEMORY));
    is_memory && matches!(input.beside(STATE), Ok(Some((_, state))) if is_state(&state))
}

fn is_state(source: &Source) -> bool {
    source.head(64 << 10).is_ok_and(|head| matches(&head))
}

/// From the state, the configuration or the memory.
pub(crate) fn parse(input: Input<'_>) -> Result<Image, FormatError> {
    let missing = |name: &str| FormatError::Files(format!("{name}, which belongs to this snapshot, is not beside this file"));
    let name = input.path.and_then(Path::file_name);
    let is_other = name == Some(OsStr::new(CONFIG)) || (name != Some(OsStr::new(STATE)) && !is_state(input.source));
    let state = if is_other { input.beside(STATE)?.ok_or_else(|| missing(STATE))?.1 } else { input.source.clone() };
    let len = state.len();
    if len > MAX_STATE {
        let what = format!("{len} bytes of state, of which no machine has more than {MAX_STATE}");
        return Err(FormatError::Malformed { offset: 0, what });
    }
    let root = Node::parse(&state.get(0, len, STATE)?)?;
    let ranges = root.memory()?;
    let mut image = Image { registers: registers::of(&root), ..Image::default() };
    if ranges.iter().any(|range| range.file.is_some()) {
        for range in &ranges {
            let name = range.file.as_deref().ok_or_else(|| missing("the file of a range of memory"))?;
            let (_, source) = input.beside(name)?.ok_or_else(|| missing(name))?;
            image.parts.push(part(input, source, core::slice::from_ref(range))?);
        }
    } else {
        let own = (name == Some(OsStr::new(MEMORY))).then(|| input.source.clone());
        let source = match own {
            Some(own) => own,
            None => input.beside(MEMORY)?.ok_or_else(|| missing(MEMORY))?.1,
        };
        image.parts.push(part(input, source, &ranges)?);
    }
    Ok(image)
}

/// The memory of `source`, which is `ranges` one behind the other.
fn part(input: Input<'_>, source: Source, ranges: &[Range]) -> Result<Part, FormatError> {
    let mut pieces = Vec::new();
    let mut offset = 0u64;
    for range in ranges {
        let what = || format!("{MEMORY}, for the memory at {:#x}-{:#x}", range.gpa, range.gpa.saturating_add(range.length));
        let region = Region::new(PhysAddr::new(range.gpa), range.length);
        let impossible = || FormatError::Malformed { offset: 0, what: format!("{:#x} bytes at {:#x}", range.length, range.gpa) };
        let region = region.ok_or_else(impossible)?;
        let present = Input { source: &source, ..input }.present(offset, region.len(), what)?;
        pieces.extend(Region::new(region.start(), present).map(|region| Piece { region, offset }));
        offset = offset.saturating_add(range.length);
    }
    Ok(Part { source, pieces })
}
