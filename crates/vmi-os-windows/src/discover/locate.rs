//! From page tables to the kernel's image in what they map.

use vmi_arch_x86::{Mapping, PagingMode, X86Driver};
use vmi_core::{AddressSpace, ErrorKind, Memory, PAGE_SIZE, VirtAddr, Vmi};

use super::Failure;
use super::image::{KernelImage, Reject};
use super::lead::{Lead, is_kernel_address};

/// A hint lies at most this far behind the start of the image: those of Windows 10 have more than 16 MiB.
const SCAN_BACK: u64 = 32 << 20;
/// Hints that are followed, each to pages that none before it has seen.
const MAX_HINTS: usize = 16;
/// Where 64-bit kernels are mapped: Windows randomises the base within these 32 GiB since Vista, and never left them.
const KERNEL_RANGE: (u64, u64) = (0xffff_f800_0000_0000, 0xffff_f807_ffff_ffff);
/// Where 32-bit kernels may be: from 2 GiB, or 3 GiB, to the end.
const KERNEL_RANGE_32: (u64, u64) = (0x8000_0000, 0xffff_ffff);
/// Tables and pages of one root that are looked at: 64 MiB of tables, 16 GiB mapped.
const MAX_TABLES: usize = 1 << 14;
const MAX_PAGES: u64 = 1 << 22;
/// Images that are looked into; more are a trap.
const MAX_IMAGES: usize = 2048;
/// The user-mode tables of a KVA shadow map fewer pages of the kernel than this: a few for entering it, and some for each processor.
const MAX_SHADOW_PAGES: u64 = 2048;
/// Names of other images that a failure tells.
const MAX_OTHERS: usize = 6;

/// The search in one set of page tables.
struct Search<'s, 'v, D: X86Driver> {
    space: &'s AddressSpace<'v, D>,
    looked_into: usize,
    others: Vec<String>,
}

/// The kernel's image in what the page tables of `lead` map.
pub(super) fn image<D: X86Driver>(vmi: &Vmi<D>, lead: &Lead) -> Result<KernelImage, Failure> {
    let space = vmi.address_space(lead.root, lead.mode);
    let mut search = Search { space: &space, looked_into: 0, others: Vec::new() };
    let said = lead.bases.iter().filter(|&&base| can_be_base(lead.mode, base)).find_map(|&base| search.look(base));
    if let Some(image) = said.or_else(|| search.scan_back(&lead.hints)) {
        return Ok(image);
    }
    let mut pages = 0;
    if let Some(image) = search.walk(&mut pages) {
        return Ok(image);
    }
    if let Some(&entry) = lead.entries.iter().find(|&&entry| pages <= MAX_SHADOW_PAGES && space.translate(entry).is_ok()) {
        return Err(Failure::UserTables { root: lead.root, entry });
    }
    let why = match (pages, search.others.as_slice()) {
        (0, _) => "nothing is mapped where a kernel lies".to_owned(),
        (_, []) => format!("none of {pages} pages where a kernel lies begins one"),
        (_, others) => format!("of {pages} pages where a kernel lies none begins one, but there are {}", others.join(", ")),
    };
    Err(Failure::NoImage { root: lead.root, mode: lead.mode, why })
}

impl<D: X86Driver> Search<'_, '_, D> {
    /// The kernel that begins at `at`, if one does.
    fn look(&mut self, at: VirtAddr) -> Option<KernelImage> {
        if self.space.read::<[u8; 2]>(at).ok()? != *b"MZ" || self.looked_into >= MAX_IMAGES {
            return None;
        }
        self.looked_into = self.looked_into.saturating_add(1);
        match KernelImage::read(self.space, at) {
            Ok(image) => Some(image),
            Err(Reject::Other(name)) => {
                if self.others.len() < MAX_OTHERS && !self.others.contains(&name) {
                    self.others.push(name);
                }
                None
            }
            Err(Reject::NoImage) => None,
        }
    }

    /// The kernel that begins before one of `hints`, the nearest first. Pages that are not mapped are passed over: the header may stand alone
    /// (virtualisation-based security), and code that only the start needs is discarded.
    fn scan_back(&mut self, hints: &[VirtAddr]) -> Option<KernelImage> {
        let mut seen: Vec<(u64, u64)> = Vec::new();
        let mut hints: Vec<_> = hints.iter().filter(|&&hint| is_kernel_address(self.space.mode(), hint)).collect();
        hints.dedup();
        for hint in hints.into_iter().take(MAX_HINTS) {
            let last = hint.page().get();
            let first = last.saturating_sub(SCAN_BACK);
            let mut at = last;
            while at >= first {
                if let Some(&(start, _)) = seen.iter().find(|(start, end)| (*start..=*end).contains(&at)) {
                    at = start;
                } else {
                    if let Some(image) = self.look(VirtAddr::new(at)) {
                        return Some(image);
                    }
                    // An absent entry of a higher level covers many pages.
                    let start = match self.space.translate(VirtAddr::new(at)) {
                        Err(error) => match error.kind() {
                            ErrorKind::Fault(fault) => at & !entry_span(self.space.mode(), fault.level).wrapping_sub(1),
                            _ => at,
                        },
                        Ok(_) => at,
                    };
                    at = start;
                }
                let Some(next) = at.checked_sub(PAGE_SIZE) else { break };
                at = next;
            }
            seen.push((first, last));
        }
        None
    }

    /// The kernel that begins at any page that is mapped where kernels lie.
    fn walk(&mut self, pages: &mut u64) -> Option<KernelImage> {
        let (first, last) = if self.space.mode().is_long() { KERNEL_RANGE } else { KERNEL_RANGE_32 };
        let mode = self.space.mode();
        let mappings = mode.mappings(self.space.vmi(), self.space.root(), VirtAddr::new(first)..=VirtAddr::new(last));
        for mapping in mappings.limit(MAX_TABLES) {
            let Ok(Mapping::Pages(run)) = mapping else { continue };
            if run.access.user {
                continue;
            }
            for offset in (0..run.len).step_by(PAGE_SIZE as usize) {
                *pages = pages.saturating_add(1);
                if *pages > MAX_PAGES {
                    return None;
                }
                let here = run.target.wrapping_add(offset);
                if self.space.vmi().read::<[u8; 2]>(here).is_ok_and(|start| start == *b"MZ")
                    && let Some(image) = self.look(run.at.wrapping_add(offset))
                {
                    return Some(image);
                }
            }
        }
        None
    }
}

/// Whether a kernel's image can begin at `at`. Elsewhere lie other views of the same memory, such as that of the page tables on themselves.
pub(super) fn can_be_base(mode: PagingMode, at: VirtAddr) -> bool {
    let (first, last) = if mode.is_long() { KERNEL_RANGE } else { KERNEL_RANGE_32 };
    (first..=last).contains(&at.get()) && at.is_aligned(PAGE_SIZE)
}

/// Bytes that one entry of a table of `level` covers.
fn entry_span(mode: PagingMode, level: u8) -> u64 {
    let bits = if mode == PagingMode::Bits32 { 10u32 } else { 9 };
    1u64.wrapping_shl(12u32.saturating_add(u32::from(level.saturating_sub(1)).saturating_mul(bits)).min(48))
}
