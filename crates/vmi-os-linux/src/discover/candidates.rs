//! Page tables for a symbol table that was found in physical memory.
//!
//! Memory may hold several symbol tables: the decompressor leaves a copy of the kernel behind, and so may an earlier boot. The one in use
//! is the one that the kernel's own page tables map, and those are found through it: by name, or as pages of the kernel's data
//! that map the table.

use vmi_arch_x86::{PagingMode, X86Driver};
use vmi_core::{Memory, PAGE_SIZE, Paging, PhysAddr, Symbols, SymbolsBuilder, VirtAddr, Vmi};

use super::image::{self, KernelImage, START_KERNEL_MAP};
use super::kallsyms::{self, Encoding, Reject, Table};
use super::vmcoreinfo::PAGE_OFFSETS;

/// The kernel's image is at most this long behind its symbol table.
const IMAGE_REACH: u64 = 96 << 20;

/// Kernels are placed at multiples of this (arch/x86/Kconfig: PHYSICAL_ALIGN is at least 2 MiB on x86-64).
const ALIGN: u64 = 2 << 20;

/// Roots found by content that are kept for one symbol table.
const MAX_ROOTS: usize = 16;

/// A symbol table in physical memory.
#[derive(Debug)]
pub(super) struct Candidate {
    /// Where its digit tokens are.
    pub(super) at: PhysAddr,
    symbols: Symbols,
    encoding: Encoding,
    pointer_size: usize,
}

impl Candidate {
    /// The table whose digit tokens are at `at`.
    pub(super) fn read<D: X86Driver>(vmi: &Vmi<D>, at: PhysAddr) -> Result<Self, Reject> {
        let region = vmi.machine().memory.region_at(at).ok_or(Reject::Index)?;
        let window = |reach: u64| {
            let start = PhysAddr::new(at.get().saturating_sub(reach)).page().max(region.start());
            let end = at.get().saturating_add(reach).min(region.end().get());
            let digits = usize::try_from(at.get().wrapping_sub(start.get())).unwrap_or(usize::MAX);
            (image::bytes(vmi, start, end.saturating_sub(start.get())), start, digits)
        };
        // A copy of much memory is dear, and most digits in a row are not of a table.
        let (near, _, digits) = window(64 << 10);
        kallsyms::has_index(&near, digits)?;
        drop(near);
        let (bytes, start, digits) = window(kallsyms::MAX_REACH);
        let read = |pointer_size| {
            let table = Table::locate(&bytes, digits, start.get(), pointer_size)?;
            let mut builder = SymbolsBuilder::default();
            table.decode(&mut builder)?;
            Ok(Self { at, symbols: builder.build(), encoding: table.encoding(), pointer_size })
        };
        read(8).or_else(|_| read(4))
    }

    /// Page tables that map the symbol table to where it is, most probable first.
    pub(super) fn roots<D: X86Driver>(&self, vmi: &Vmi<D>) -> Vec<(PhysAddr, PagingMode)> {
        let modes: &[PagingMode] = match (self.encoding, self.pointer_size) {
            (Encoding::PlaceRelative, _) => &[PagingMode::Level4, PagingMode::Level5, PagingMode::Pae, PagingMode::Bits32],
            (_, 4) => &[PagingMode::Pae, PagingMode::Bits32],
            _ => &[PagingMode::Level4, PagingMode::Level5],
        };
        let by_name = modes.iter().find_map(|&mode| self.root_by_name(vmi, mode));
        by_name.map_or_else(|| modes.iter().flat_map(|&mode| self.roots_by_content(vmi, mode)).collect(), |root| vec![root])
    }

    /// The root table that the symbols name.
    fn root_by_name<D: X86Driver>(&self, vmi: &Vmi<D>, mode: PagingMode) -> Option<(PhysAddr, PagingMode)> {
        let named = self.symbols.find("init_top_pgt").or_else(|| self.symbols.find("swapper_pg_dir"))?.address.get();
        let maps = |root: &PhysAddr, tables: &[VirtAddr]| maps(vmi, *root, mode, self.at, tables);
        let root = match self.encoding {
            // The table was read at its physical address, so that is what came out.
            Encoding::PlaceRelative => Some(PhysAddr::new(named)).filter(|root| maps(root, &self.addresses(mode))),
            // The image is one run in both address spaces.
            _ => self.addresses(mode).into_iter().find_map(|table| {
                let root = named.checked_sub(table.get().wrapping_sub(self.at.get()))?;
                Some(PhysAddr::new(root)).filter(|root| maps(root, &[table]))
            }),
        };
        root.map(|root| (root, mode))
    }

    /// The virtual addresses that the digit tokens may have; none if nothing limits them.
    fn addresses(&self, mode: PagingMode) -> Vec<VirtAddr> {
        let at = self.at.get();
        if mode.pointer_size() == 4 {
            // Low memory is mapped linearly.
            return PAGE_OFFSETS.iter().filter_map(|&offset| at.checked_add(offset)).map(VirtAddr::new).collect();
        }
        if self.encoding == Encoding::PlaceRelative {
            return Vec::new();
        }
        let mut kernel = self.symbols.iter().map(|symbol| symbol.address.get()).filter(|&address| address >= START_KERNEL_MAP);
        let first = kernel.next().unwrap_or(START_KERNEL_MAP);
        // A table that names code only need not name anything behind itself.
        let last = kernel.last().unwrap_or(first).saturating_add(IMAGE_REACH);
        let above = at.wrapping_sub(first) & ALIGN.wrapping_sub(1);
        (first.saturating_add(above)..=last).step_by(ALIGN as usize).map(VirtAddr::new).collect()
    }

    fn roots_by_content<D: X86Driver>(&self, vmi: &Vmi<D>, mode: PagingMode) -> Vec<(PhysAddr, PagingMode)> {
        roots_by_content(vmi, mode, self.at, &self.addresses(mode)).into_iter().map(|root| (root, mode)).collect()
    }
}

/// Pages behind the symbol table at `table` that are roots of page tables which map it at one of `addresses`, most probable first:
/// the kernel keeps its own root in its data, which follow its constants (kernel: arch/x86/kernel/vmlinux.lds.S).
pub(super) fn roots_by_content<D: X86Driver>(
    vmi: &Vmi<D>,
    mode: PagingMode,
    table: PhysAddr,
    addresses: &[VirtAddr],
) -> Vec<PhysAddr> {
    let first = table.page().get();
    let pages = (first..first.saturating_add(IMAGE_REACH)).step_by(PAGE_SIZE as usize).map(PhysAddr::new);
    // A 64-bit kernel is under the last entry.
    let last_entry = |root: PhysAddr| vmi.read::<u64>(root.wrapping_add(PAGE_SIZE.wrapping_sub(8))).unwrap_or_default();
    let mut roots: Vec<PhysAddr> = pages
        .filter(|&root| mode.pointer_size() == 4 || last_entry(root) & 1 != 0)
        .filter(|&root| maps(vmi, root, mode, table, addresses))
        .collect();
    // The kernel's own table maps no user memory. The sort is stable: those in the image stay before those behind it.
    roots.sort_by_key(|&root| vmi.read::<u64>(root).map_or(true, |first| first != 0));
    roots.truncate(MAX_ROOTS);
    roots
}

/// Whether the page tables at `root` map `table` at one of these addresses, or, if there are none, anywhere in a kernel.
fn maps<D: X86Driver>(vmi: &Vmi<D>, root: PhysAddr, mode: PagingMode, table: PhysAddr, addresses: &[VirtAddr]) -> bool {
    if addresses.is_empty() {
        return KernelImage::map(vmi, root, mode).is_ok_and(|image| image.holds(table));
    }
    addresses.iter().any(|&address| {
        mode.translate(vmi, root, address).is_ok_and(|page| page.at == table && image::may_be_kernel(vmi, page.access))
    })
}
