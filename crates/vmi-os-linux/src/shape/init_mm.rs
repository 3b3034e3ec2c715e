//! `init_mm`, the kernel's own address space, and with it the root of the kernel's own page tables.
//!
//! `init_mm` lies in the kernel's data as `init_task` does (kernel: mm/init-mm.c). Its `pgd` names `swapper_pg_dir`, and where a
//! process has the range of its program, it has that of the kernel (kernel: `setup_arch` in arch/x86/kernel/setup.c).

use vmi_arch_x86::X86Driver;
use vmi_core::{PAGE_SIZE, PhysAddr, VirtAddr, Vmi};

use super::image::{self, REACH};
use super::page_tables::Spaces;
use super::view::View;

/// The size of the largest kernel image (kernel: `KERNEL_IMAGE_SIZE` in arch/x86/include/asm/page_64_types.h).
const IMAGE_SIZE: u64 = 1 << 30;

/// Where `init_mm` is, and the root table that it names.
#[derive(Clone, Copy, Debug)]
pub(super) struct InitMm {
    pub(super) at: VirtAddr,
    /// `swapper_pg_dir`.
    pub(super) table: VirtAddr,
    pub(super) root: PhysAddr,
}

/// Finds `init_mm`. `start_code` is the offset of this member in `mm_struct`.
pub(super) fn find<D: X86Driver>(
    vmi: &Vmi<D>,
    view: &View<'_, D>,
    spaces: &Spaces,
    start_code: usize,
    init_task: u64,
) -> Option<InitMm> {
    image::find(view, init_task, |page, bytes| {
        image::words(page, bytes, view.width()).find_map(|(member, table)| {
            if !table.is_multiple_of(PAGE_SIZE) || table.abs_diff(init_task) >= REACH {
                return None;
            }
            let at = member.wrapping_sub(spaces.pgd as u64);
            let root = view.locate(table)?;
            let right =
                is_kernel(view, at.wrapping_add(start_code as u64), init_task) && spaces.is_root(vmi, view.budget(), root);
            right.then_some(InitMm { at: VirtAddr::new(at), table: VirtAddr::new(table), root })
        })
    })
}

/// Whether the members from `start_code` on, at `at`, are those of the kernel: addresses of its image for code, data and `brk`, and
/// nothing for arguments and environment.
fn is_kernel<D: X86Driver>(view: &View<'_, D>, at: u64, init_task: u64) -> bool {
    let width = view.width() as u64;
    let word = |index: u64| view.pointer(at.wrapping_add(index.saturating_mul(width)));
    let (Some(start), Some(end), Some(end_data), Some(brk)) = (word(0), word(1), word(3), word(5)) else { return false };
    let image = start < end
        && end < end_data
        && end_data <= brk
        && [start, brk].into_iter().all(|at| at.abs_diff(init_task) < IMAGE_SIZE);
    image && (7..11).all(|index| word(index) == Some(0))
}
