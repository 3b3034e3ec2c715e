//! Page-table entries of pages that are not present but not lost.
//!
//! Forms: `_MMPTE_SOFTWARE`, `_MMPTE_TRANSITION`, `_MMPTE_PROTOTYPE` in the public symbols; what they mean: Russinovich et al., "Windows Internals", part 1,
//! "Page fault handling".

use super::ground::{Ground, Writing};
use super::spec::{Page, PageState, Region};

/// Bytes of a page-table entry.
pub fn entry_width(ground: &impl Ground) -> u64 {
    if ground.is_legacy_paging() { 4 } else { 8 }
}

/// `MM_READWRITE`, what entries say of the page's protection.
const READ_WRITE: u64 = 4;
/// What a valid prototype entry holds besides the page: present, written, accessed, dirty.
const VALID: u64 = 0x863;

/// The entry of a page in transition.
fn transition(ground: &impl Ground, page: u64) -> u64 {
    let of = "_MMPTE_TRANSITION";
    ground.field(of, "Transition", 1)
        | ground.field(of, "Protection", READ_WRITE)
        | ground.field(of, "PageFrameNumber", page >> 12)
}

/// The entry that leads to a prototype entry.
fn prototype(ground: &mut impl Ground, address: u64) -> u64 {
    let of = "_MMPTE_PROTOTYPE";
    let place = if ground.bits(of, "ProtoAddressHigh").is_some() {
        // Without PAE: relative to the start of the paged pool, in units of 4 bytes, in two parts.
        let start = ground.variable("MmPagedPoolStart", 4).map_or(0, |variable| ground.get(variable, 4));
        let relative = address - start;
        ground.field(of, "ProtoAddressLow", relative >> 2 & 0x7F) | ground.field(of, "ProtoAddressHigh", relative >> 9)
    } else {
        ground.field(of, "ProtoAddress", address)
    };
    ground.field(of, "Prototype", 1) | place
}

/// The entry that says: look at the address descriptor.
fn ask_descriptor(ground: &impl Ground) -> u64 {
    let of = "_MMPTE_SOFTWARE";
    ground.field(of, "PageFileHigh", 0xFFFF_FFFF) | ground.field(of, "Prototype", 1) | ground.field(of, "Protection", READ_WRITE)
}

fn filled_page(ground: &mut impl Ground, marker: u64) -> u64 {
    let page = ground.page();
    ground.write_physical(page, &marker.to_le_bytes());
    page
}

/// Places the pages of a region that were asked for. `prototypes` is the first prototype entry of its section, 0 for private memory.
pub fn write_pages(ground: &mut impl Ground, root: u64, region: &Region, prototypes: u64) {
    let width = entry_width(ground);
    for Page { address, state, marker } in &region.pages {
        let slot = prototypes + ((address - region.start) >> 12) * width;
        let entry = match state {
            PageState::Nothing => continue,
            PageState::Present => {
                let page = ground.user_page(root, *address, true, false);
                ground.write_physical(page, &marker.to_le_bytes());
                continue;
            }
            PageState::Transition => {
                let page = filled_page(ground, *marker);
                transition(ground, page)
            }
            PageState::PrototypeValid | PageState::VadPrototype => {
                let page = filled_page(ground, *marker);
                ground.put(slot, page | VALID, width);
                if *state == PageState::VadPrototype { ask_descriptor(ground) } else { prototype(ground, slot) }
            }
            PageState::PrototypeTransition => {
                let page = filled_page(ground, *marker);
                let entry = transition(ground, page);
                ground.put(slot, entry, width);
                prototype(ground, slot)
            }
            PageState::DemandZero => ground.field("_MMPTE_SOFTWARE", "Protection", READ_WRITE),
            PageState::PageFile { file, page } => {
                let of = "_MMPTE_SOFTWARE";
                let place = ground.field(of, "PageFileLow", u64::from(*file)) | ground.field(of, "PageFileHigh", *page);
                place | ground.field(of, "Protection", READ_WRITE)
            }
        };
        ground.set_entry(root, *address, entry);
    }
}
