//! The memory areas of the user processes: a list from `mm_struct` before 6.1, a tree since.

use vmi_arch_x86::X86Driver;

use super::findings::Findings;
use super::maple_tree;
use super::page_tables::Spaces;
use super::sample::{Doubt, Object, only};
use super::types::Kind;
use super::user_ranges::Ranges;
use super::view::View;

/// Areas that are judged at most, of all processes together, and entries that are looked at for one process.
const MAX_AREAS: usize = 4096;
const MAX_ENTRIES: usize = 65_536;
/// Bytes of each area that are judged. Measured: `vm_file` at 0x4c (i386) to 0xa0 (5.10 on x86-64), `vm_private_data` up to two words behind.
const AREA_SIZE: usize = 0xc0;

/// What the kernel says an area is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It holds the end of the program's code. (Its start, until 5.5, is that of whatever is loaded lowest.)
    Code,
    Heap,
    Stack,
    Other,
}

/// A copy of a `vm_area_struct`.
#[derive(Debug)]
pub(super) struct Area {
    pub(super) object: Object,
    /// Its process's `mm_struct`.
    pub(super) mm: u64,
    pub(super) purpose: Purpose,
}

/// Finds the areas, and records how they are found: `mm_mt`, or `mmap` with `vm_next`.
pub(super) fn find<D: X86Driver>(view: &View<'_, D>, spaces: &Spaces, ranges: &Ranges, findings: &mut Findings) -> Vec<Area> {
    let width = view.width();
    let found = match maple_tree::infer(view, spaces, findings) {
        Ok(root) => in_trees(view, spaces, ranges, root).ok_or("mm_mt"),
        Err(_) => match only(0..spaces.pgd, width, |first| in_lists(view, spaces, ranges, first).is_some()) {
            Ok(first) => {
                findings.add("mm_struct", "mmap", first, Kind::Pointer);
                findings.add("vm_area_struct", "vm_next", width.saturating_mul(2), Kind::Pointer);
                findings.add("vm_area_struct", "vm_prev", width.saturating_mul(3), Kind::Pointer);
                in_lists(view, spaces, ranges, first).ok_or("mmap")
            }
            Err(_) => Err("mm_mt or mmap"),
        },
    };
    match found {
        Ok(areas) => {
            findings.add("vm_area_struct", "vm_start", 0, Kind::Pointer);
            findings.add("vm_area_struct", "vm_end", width, Kind::Pointer);
            areas
        }
        Err(member) => {
            findings.missing("mm_struct", member, Doubt::None);
            Vec::new()
        }
    }
}

/// The areas in the trees below the roots at `root` of every `mm_struct`: each starts with the bounds that the tree has for it.
fn in_trees<D: X86Driver>(view: &View<'_, D>, spaces: &Spaces, ranges: &Ranges, root: usize) -> Option<Vec<Area>> {
    let mut areas = Vec::new();
    for mm in &spaces.sample.objects {
        for entry in maple_tree::entries(view, mm.word(root, view.width())?, MAX_ENTRIES)? {
            let area = read(view, mm, ranges, entry.entry)?;
            let (start, end) = bounds(&area, view.width())?;
            if start != entry.first || end.checked_sub(1)? != entry.last {
                return None;
            }
            areas.push(area);
        }
        if areas.len() >= MAX_AREAS {
            break;
        }
    }
    Some(areas)
}

/// The areas in the lists that start at `first` of every `mm_struct` (kernel before 6.1: `mmap`, `vm_next`, `vm_prev`): ascending, each
/// knows the one before it, and the last has no next.
fn in_lists<D: X86Driver>(view: &View<'_, D>, spaces: &Spaces, ranges: &Ranges, first: usize) -> Option<Vec<Area>> {
    let width = view.width();
    let mut areas = Vec::new();
    for mm in &spaces.sample.objects {
        let mut at = mm.word(first, width)?;
        let (mut before, mut floor) = (0, 0);
        // `floor` only grows, so this ends; the bound makes it end soon.
        for _ in 0..MAX_ENTRIES {
            if at == 0 {
                break;
            }
            let area = read(view, mm, ranges, at)?;
            let (start, end) = bounds(&area, width)?;
            if start < floor || end <= start || area.object.word(width.checked_mul(3)?, width)? != before {
                return None;
            }
            (before, floor) = (at, end);
            at = area.object.word(width.checked_mul(2)?, width)?;
            areas.push(area);
        }
        if at != 0 || before == 0 {
            return None;
        }
        if areas.len() >= MAX_AREAS {
            break;
        }
    }
    Some(areas)
}

fn read<D: X86Driver>(view: &View<'_, D>, mm: &Object, ranges: &Ranges, at: u64) -> Option<Area> {
    let object = Object { at, bytes: view.bytes(at, AREA_SIZE)? };
    let width = view.width();
    let inside = object.word(0, width)?..object.word(width, width)?;
    let said = ranges.of(mm)?;
    let purpose = match () {
        () if said.end_code.checked_sub(1).is_some_and(|last| inside.contains(&last)) => Purpose::Code,
        () if inside.contains(&said.start_stack) => Purpose::Stack,
        () if said.start_brk < said.brk && inside.start == said.start_brk => Purpose::Heap,
        () => Purpose::Other,
    };
    Some(Area { object, mm: mm.at, purpose })
}

/// `vm_start` and `vm_end`, which begin the structure.
pub(super) fn bounds(area: &Area, width: usize) -> Option<(u64, u64)> {
    Some((area.object.word(0, width)?, area.object.word(width, width)?))
}
