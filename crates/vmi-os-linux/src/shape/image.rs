//! The kernel's image around `init_task`, page by page.

use vmi_arch_x86::X86Driver;
use vmi_core::{Memory, PAGE_SIZE, VirtAddr};

use super::view::View;

/// How far around `init_task` the kernel's data is searched: both ways, the size of the data of a large kernel.
pub(super) const REACH: u64 = 32 << 20;

/// The first answer of `test` to a page of the kernel's data: its address and bytes. Pages near `init_task` come first, as what is sought
/// mostly is near.
pub(super) fn find<D: X86Driver, T>(
    view: &View<'_, D>,
    init_task: u64,
    mut test: impl FnMut(u64, &[u8]) -> Option<T>,
) -> Option<T> {
    let here = VirtAddr::new(init_task).page().get();
    let mut page = vec![0; PAGE_SIZE as usize];
    let steps = (0..REACH).step_by(PAGE_SIZE as usize);
    let mut pages = steps.flat_map(|step| [here.checked_sub(step), here.checked_add(step)]).flatten().skip(1);
    pages.find_map(|at| {
        view.read_into(VirtAddr::new(at), &mut page).ok()?;
        test(at, &page)
    })
}

/// The pointers in a page, with their places.
pub(super) fn words(at: u64, page: &[u8], width: usize) -> impl Iterator<Item = (u64, u64)> {
    page.chunks_exact(width).zip(0u64..).map(move |(bytes, index)| {
        let mut word = [0; 8];
        word.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        (at.wrapping_add(index.wrapping_mul(width as u64)), u64::from_le_bytes(word))
    })
}
