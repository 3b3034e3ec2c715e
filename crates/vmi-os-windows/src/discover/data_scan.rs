//! The kernel's variables by content: for kernels whose exports are paged out and of which no symbols are at hand.
//!
//! The heads of the lists of processes and of modules are told by what is in the lists: the first process is System, the first module is the
//! kernel itself.

use vmi_arch_x86::X86Driver;
use vmi_core::{AddressSpace, Memory, Paging, VirtAddr};

use super::image::KernelImage;
use super::kdbg;
use super::lead::is_kernel_address;
use super::system::{ID, NAME, OBJECT_TYPE, PROCESS_OBJECT};

/// Bytes of all data sections that are looked at: kernels have up to 4 MiB.
const MAX_DATA: u64 = 32 << 20;
/// The name of a process lies at most this far behind its links: 0x160 bytes in most 64-bit releases.
const NAME_REACH: usize = 0x400;
/// And the links at most this far behind the start of the process.
const LINKS_REACH: u64 = 0x1000;

/// What the data sections hold.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The debugger data block, if it is in the clear.
    pub(super) debugger_data: Option<kdbg::Found>,
    /// The head of the list of modules.
    pub(super) loaded_modules: Option<VirtAddr>,
    /// The head of the list of processes, and its first node: that of System.
    pub(super) processes: Option<(VirtAddr, VirtAddr)>,
    /// A pointer to the process System.
    pub(super) system_pointer: Option<VirtAddr>,
}

/// Looks through the image's data.
pub(super) fn search<D: X86Driver>(space: &AddressSpace<'_, D>, image: &KernelImage) -> Seen {
    let mut seen = Seen::default();
    let mut left = MAX_DATA;
    let mut sections = Vec::new();
    for section in image.header.sections.iter().filter(|section| section.is_data) {
        let start = image.base.wrapping_add(section.start.into());
        let len = u64::from(section.len).min(image.header.size.saturating_sub(section.start.into())).min(left);
        left = left.saturating_sub(len);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        if space.read_lossy(start, &mut bytes).is_ok() {
            sections.push((start, bytes));
        }
    }
    for (start, bytes) in &sections {
        if seen.debugger_data.is_none() {
            seen.debugger_data = kdbg::search(bytes, *start, image);
        }
        heads(space, image, *start, bytes, &mut seen);
    }
    if let Some((_, node)) = seen.processes {
        let system = sections.iter().find_map(|(start, bytes)| system_pointer(space, *start, bytes, node));
        seen.system_pointer = system;
    }
    seen
}

/// The words of `bytes`, which begin at `start`.
fn words(width: usize, start: VirtAddr, bytes: &[u8]) -> impl Iterator<Item = (VirtAddr, VirtAddr)> {
    bytes.chunks_exact(width).enumerate().map(move |(index, word)| {
        let value = word.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
        (start.wrapping_add((index as u64).wrapping_mul(width as u64)), VirtAddr::new(value))
    })
}

/// The heads of lists among the words.
fn heads<D: X86Driver>(space: &AddressSpace<'_, D>, image: &KernelImage, start: VirtAddr, bytes: &[u8], seen: &mut Seen) {
    let mode = image.mode;
    let width = mode.pointer_size();
    let outside = |at: VirtAddr| is_kernel_address(mode, at) && !image.contains(at) && at.is_aligned(width as u64);
    let next = words(width, start, bytes).skip(1);
    for ((head, first), (_, last)) in words(width, start, bytes).zip(next) {
        if !outside(first) || !outside(last) {
            continue;
        }
        let back = |at: VirtAddr| space.read_pointer(at).is_ok_and(|to| to == head);
        if !back(first.wrapping_add(width as u64)) || !back(last) {
            continue;
        }
        // KLDR_DATA_TABLE_ENTRY.DllBase is behind three lists of links in all releases.
        let base = first.wrapping_add((width as u64).wrapping_mul(6));
        if seen.loaded_modules.is_none() && space.read_pointer(base).is_ok_and(|base| base == image.base) {
            seen.loaded_modules = Some(head);
        }
        // EPROCESS.UniqueProcessId is before ActiveProcessLinks in all releases.
        let id = first.wrapping_sub(width as u64);
        if seen.processes.is_none() && space.read_pointer(id).is_ok_and(|id| id.get() == ID) {
            let mut behind = [0; NAME_REACH];
            let named = space.read_lossy(first, &mut behind).is_ok() && memchr::memmem::find(&behind, NAME).is_some();
            seen.processes = named.then_some((head, first));
        }
    }
}

/// The variable among the words that points to the process object which holds `node`.
fn system_pointer<D: X86Driver>(space: &AddressSpace<'_, D>, start: VirtAddr, bytes: &[u8], node: VirtAddr) -> Option<VirtAddr> {
    let near = |to: VirtAddr| node.offset_from(to).is_some_and(|offset| (1..LINKS_REACH).contains(&offset)) && to.is_aligned(8);
    let is_process = |to: VirtAddr| space.read::<u8>(to).is_ok_and(|kind| kind & OBJECT_TYPE == PROCESS_OBJECT);
    let mut found = words(space.mode().pointer_size(), start, bytes).filter(|&(_, to)| near(to) && is_process(to));
    found.next().map(|(at, _)| at)
}
