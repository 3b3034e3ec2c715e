//! `init_mm`, the kernel's own address space, and with it the root of the kernel's own page tables.
//!
//! `init_mm` lies in the kernel's data as `init_task` does (kernel: mm/init-mm.c). Its `pgd` names `swapper_pg_dir`, and where a
//! process has the range of its program, it has that of the kernel (kernel: `setup_arch` in arch/x86/kernel/setup.c).

use vmi_arch_x86::X86Driver;
use vmi_core::{Memory, PAGE_SIZE, PhysAddr, VirtAddr, Vmi};

use super::page_tables::Spaces;
use super::view::View;

/// How far from `init_task` it and the root table are searched: the size of the data of a large kernel.
const REACH: u64 = 32 << 20;
/// The size of the largest kernel image (kernel: `KERNEL_IMAGE_SIZE` in arch/x86/include/asm/page_64_types.h).
const IMAGE_SIZE: u64 = 1 << 30;

/// Where `init_mm` is, and the root table that it names. `start_code` is the offset of this member in `mm_struct`.
pub(super) fn find<D: X86Driver>(
    vmi: &Vmi<D>,
    view: &View<'_, D>,
    spaces: &Spaces,
    start_code: usize,
    init_task: u64,
) -> Option<(VirtAddr, PhysAddr)> {
    let width = view.width();
    let page_size = PAGE_SIZE as usize;
    let here = VirtAddr::new(init_task).page().get();
    let near = |at: u64| at.abs_diff(init_task) < REACH;
    let mut page = vec![0; page_size];
    // Outwards, as it is mostly near.
    for at in (0..REACH).step_by(page_size).flat_map(|step| [here.checked_sub(step), here.checked_add(step)]).flatten() {
        if view.read_into(VirtAddr::new(at), &mut page).is_err() {
            continue;
        }
        for (index, bytes) in page.chunks_exact(width).enumerate() {
            let mut word = [0; 8];
            word.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            let root = u64::from_le_bytes(word);
            if !root.is_multiple_of(PAGE_SIZE) || !near(root) {
                continue;
            }
            let member = at.wrapping_add(index.saturating_mul(width) as u64);
            let base = member.wrapping_sub(spaces.pgd as u64);
            if is_kernel(view, base.wrapping_add(start_code as u64), init_task)
                && let Some(root) = view.locate(root)
                && spaces.is_root(vmi, root)
            {
                return Some((VirtAddr::new(base), root));
            }
        }
    }
    None
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
