//! From an image of a kernel in physical memory up to page tables that map it: for memory in which no page tables tell themselves.
//!
//! An entry that leads to a page has the page's frame in it, so the tables that map a page are found by looking for its frame, and the tables
//! above them in the same way: one pass over memory for each level.

use rayon::prelude::*;
use rustc_hash::FxHashMap;
use vmi_arch_x86::{PagingMode, X86Driver};
use vmi_core::{PAGE_SIZE, PhysAddr, VirtAddr, Vmi};

use super::lead::Lead;
use super::locate;
use super::scan::{self, Part};

const PRESENT: u64 = 1;
const USER: u64 = 4;
const LARGE: u64 = 1 << 7;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
const LARGE_FRAME: u64 = 0x000f_ffff_ffe0_0000;
/// Tables of one level that are followed up.
const MAX_TABLES: usize = 1024;
/// Tops that are handed on.
const MAX_LEADS: usize = 64;

/// A table on the way, and the part of the address that the levels below give.
type Targets = FxHashMap<u64, u64>;

/// Page tables of long mode or PAE that map the page at `image`, and the address at which they do.
pub(super) fn leads<D: X86Driver>(vmi: &Vmi<D>, image: PhysAddr, mode: PagingMode) -> Vec<Lead> {
    // Bits of an address that the tables below a level translate.
    let shifts: &[u32] = match mode {
        PagingMode::Level4 => &[12, 21, 30, 39],
        PagingMode::Pae => &[12, 21, 30],
        _ => return Vec::new(),
    };
    let mut targets: Targets = FxHashMap::from_iter([(image.get() & FRAME, 0)]);
    for (level, &shift) in shifts.iter().enumerate() {
        let is_top = level.saturating_add(1) == shifts.len();
        let large = (shift == 21).then_some(image.get() & LARGE_FRAME);
        let found = referring(vmi, &targets, large, image.get() & !LARGE_FRAME & FRAME);
        let mut next = Targets::default();
        for (entry_at, below) in found {
            // The top table of PAE has four entries and is not aligned to its page.
            let (table, index) = match (mode, is_top) {
                (PagingMode::Pae, true) => (entry_at & !31, entry_at >> 3 & 3),
                _ => (entry_at & FRAME, entry_at >> 3 & 0x1ff),
            };
            next.entry(table).or_insert(below | index.wrapping_shl(shift));
            if next.len() >= MAX_TABLES {
                break;
            }
        }
        targets = next;
    }
    let mut leads: Vec<Lead> = targets
        .into_iter()
        .filter_map(|(root, below)| {
            let at = VirtAddr::new(if mode.is_long() && below >> 47 != 0 { below | 0xffff_0000_0000_0000 } else { below });
            let mut lead = Lead::new(PhysAddr::new(root), mode);
            lead.bases.push(at);
            locate::can_be_base(mode, at).then_some(lead)
        })
        .collect();
    leads.sort_unstable_by_key(|lead| lead.root);
    leads.truncate(MAX_LEADS);
    leads
}

/// Where entries are that lead to one of `targets`, and the part of the address that is known of it; at the level of large pages, also
/// entries that map `large`, with the offset in the large page.
fn referring<D: X86Driver>(vmi: &Vmi<D>, targets: &Targets, large: Option<u64>, offset: u64) -> Vec<(u64, u64)> {
    let mut found: Vec<(u64, u64)> = scan::chunks(vmi, Part { from: 0, to: u64::MAX })
        .into_par_iter()
        .flat_map_iter(|(at, len)| {
            let bytes = scan::bytes(vmi, at, len);
            let mut found = Vec::new();
            for (index, entry) in bytes.as_chunks::<8>().0.iter().enumerate() {
                let entry = u64::from_le_bytes(*entry);
                if entry & (PRESENT | USER) != PRESENT {
                    continue;
                }
                let here = at.get().wrapping_add((index as u64).wrapping_mul(8));
                if let Some(&below) = targets.get(&(entry & FRAME)) {
                    found.push((here, below));
                } else if entry & LARGE != 0 && large == Some(entry & LARGE_FRAME) {
                    found.push((here, offset));
                }
                if found.len() >= MAX_TABLES {
                    break;
                }
            }
            found
        })
        .collect();
    found.sort_unstable_by_key(|&(at, _)| at / PAGE_SIZE);
    found.truncate(MAX_TABLES);
    found
}
