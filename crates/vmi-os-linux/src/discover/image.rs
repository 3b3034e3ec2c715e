//! The kernel's image as its page tables map it.

use std::borrow::Cow;

use vmi_arch_x86::{PagingMode, X86Driver};
use vmi_core::{Access, ErrorKind, Memory, Paging, PhysAddr, VirtAddr, Vmi};

use super::Failure;

/// Where x86-64 kernels are linked and mapped: `__START_KERNEL_map`, for at most `KERNEL_IMAGE_SIZE` (kernel:
/// Documentation/arch/x86/x86_64/mm.rst; 1 GiB with KASLR, 512 MiB without).
pub(super) const START_KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
const KERNEL_IMAGE_SIZE: u64 = 1 << 30;

/// Lowest `PAGE_OFFSET` that 32-bit kernels can be built for (arch/x86/Kconfig: VMSPLIT_1G).
const LOWEST_PAGE_OFFSET: u64 = 0x4000_0000;

/// Pages that do not belong to the image's run, after which the image is over: modules, or tables made to keep us busy.
const MAX_FOREIGN: usize = 4096;

/// A kernel's image has at least this many bytes.
const MIN_IMAGE: u64 = 1 << 20;

/// More bytes than this in one range of equal permissions are no kernel.
const MAX_RANGE: u64 = 512 << 20;

/// A run of the image: contiguous in both address spaces, with equal permissions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) start: VirtAddr,
    pub(super) at: PhysAddr,
    pub(super) len: u64,
    pub(super) write: bool,
    pub(super) execute: bool,
}

/// The kernel's image: what one set of page tables maps where a kernel lies. All of it is one run of physical memory
/// (arch/x86/kernel/head_64.S maps it so), possibly with holes where the kernel freed what only its start needed.
#[derive(Clone, Debug)]
pub(super) struct KernelImage {
    pub(super) root: PhysAddr,
    pub(super) mode: PagingMode,
    pub(super) ranges: Vec<Range>,
}

impl KernelImage {
    /// What the page tables at `root` map. A 64-bit kernel begins at the first page at or after `__START_KERNEL_map`; a 32-bit one lies
    /// somewhere in the linear mapping of low memory, which the first supervisor page begins.
    pub(super) fn map<D: X86Driver>(vmi: &Vmi<D>, root: PhysAddr, mode: PagingMode) -> Result<Self, Failure> {
        let (first, last) = match mode.pointer_size() {
            4 => (LOWEST_PAGE_OFFSET, u64::from(u32::MAX)),
            _ => (START_KERNEL_MAP, START_KERNEL_MAP.wrapping_add(KERNEL_IMAGE_SIZE).wrapping_sub(1)),
        };
        let mut ranges: Vec<Range> = Vec::new();
        let mut distance = None;
        let mut foreign = 0usize;
        let mut at = first;
        while at <= last && foreign < MAX_FOREIGN {
            let (size, page) = match mode.translate(vmi, root, VirtAddr::new(at)) {
                Ok(page) => (page.page_size(), may_be_kernel(vmi, page.access).then_some(page)),
                Err(error) => match error.kind() {
                    ErrorKind::Fault(fault) => (entry_size(mode, fault.level), None),
                    _ => (vmi_core::PAGE_SIZE, None),
                },
            };
            if let Some(page) = page {
                let here = at.wrapping_sub(page.at.get());
                if here == *distance.get_or_insert(here) {
                    extend(&mut ranges, at, page.at, size, page.access);
                } else {
                    foreign = foreign.saturating_add(1);
                }
            }
            // To the end of the page, or of what the absent entry covers.
            let Some(next) = (at | size.wrapping_sub(1)).checked_add(1) else { break };
            at = next;
        }
        let len = ranges.iter().fold(0u64, |sum, range| sum.saturating_add(range.len));
        if len < MIN_IMAGE { Err(Failure::NothingMapped { root, mode }) } else { Ok(Self { root, mode, ranges }) }
    }

    /// First address of the image; for a 32-bit kernel, of low memory (`PAGE_OFFSET`).
    pub(super) fn start(&self) -> VirtAddr {
        self.ranges.first().map_or(VirtAddr::ZERO, |range| range.start)
    }

    /// The ranges, those first where constants lie: neither written nor executed.
    pub(super) fn constants_first(&self) -> Vec<Range> {
        let mut ranges = self.ranges.clone();
        ranges.sort_by_key(|range| (range.write, range.execute));
        ranges
    }

    /// Whether the image holds physical address `at`.
    pub(super) fn holds(&self, at: PhysAddr) -> bool {
        self.ranges.iter().any(|range| at.offset_from(range.at).is_some_and(|offset| offset < range.len))
    }

    /// Where `at` lies, and whether the image holds it.
    pub(super) fn locate(&self, at: VirtAddr) -> Option<PhysAddr> {
        let range = self.ranges.iter().find(|range| at.offset_from(range.start).is_some_and(|offset| offset < range.len))?;
        range.at.checked_add(at.offset_from(range.start)?)
    }
}

/// Whether a page with these rights may be the kernel's. The kernel of a domain that Xen runs without hardware support is in ring 3, as its programs are, and Xen
/// makes all of its pages those of user mode (Xen, xen/arch/x86/pv/mm.h, `adjust_guest_l1e`). Such are the guests whose page tables name machine frames.
pub(super) fn may_be_kernel<D: X86Driver>(vmi: &Vmi<D>, access: Access) -> bool {
    !access.user || vmi.driver().page_tables_name_others()
}

impl Range {
    /// The bytes of the range: lent where memory is frozen and mapped, else copied, with zeros for what is absent.
    pub(super) fn bytes<'v, D: X86Driver>(&self, vmi: &'v Vmi<D>) -> Cow<'v, [u8]> {
        bytes(vmi, self.at, self.len.min(MAX_RANGE))
    }
}

/// `len` bytes at `at`, fewer where memory ends: lent where memory is frozen and mapped, else copied, with zeros for what is absent.
/// The caller bounds `len`.
pub(super) fn bytes<D: X86Driver>(vmi: &Vmi<D>, at: PhysAddr, len: u64) -> Cow<'_, [u8]> {
    if let Some(slice) = usize::try_from(len).ok().and_then(|len| vmi.slice(at, len)) {
        return Cow::Borrowed(slice);
    }
    // Hostile page tables reach far beyond the memory there is. What a mapped source does not map reads as zeros.
    let end = vmi.driver().mapping().map_or_else(|| vmi.machine().memory.end(), |mapping| mapping.memory_map().end());
    let len = usize::try_from(len.min(end.get().saturating_sub(at.get()))).unwrap_or_default();
    let mut copy = vec![0; len];
    if let Err(error) = vmi.read_lossy(at, &mut copy) {
        tracing::warn!(%error, %at, len, "guest memory could not be read");
    }
    Cow::Owned(copy)
}

fn extend(ranges: &mut Vec<Range>, start: u64, at: PhysAddr, len: u64, access: Access) {
    match ranges.last_mut() {
        Some(last)
            if last.start.get().wrapping_add(last.len) == start
                && (last.write, last.execute) == (access.write, access.execute) =>
        {
            last.len = last.len.saturating_add(len);
        }
        _ => ranges.push(Range { start: VirtAddr::new(start), at, len, write: access.write, execute: access.execute }),
    }
}

/// Bytes that one entry of a table of `level` covers.
fn entry_size(mode: PagingMode, level: u8) -> u64 {
    let bits = match mode {
        PagingMode::Bits32 => 10,
        _ => 9,
    };
    1u64.wrapping_shl(12u32.saturating_add(u32::from(level.saturating_sub(1)).saturating_mul(bits)).min(48))
}
