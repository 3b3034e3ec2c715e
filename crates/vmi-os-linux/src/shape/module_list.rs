//! The list of loaded modules by content.
//!
//! A `struct module` starts with `state` (0: live), its node in the list of modules, and its name in an array padded with zeros (kernel:
//! include/linux/module.h). It lies in memory that the kernel maps page by page behind (i386) or above (x86-64) its image. The list's head
//! `modules` lies in the image.

use vmi_arch_x86::{PagingMode, X86Driver};
use vmi_core::{ErrorKind, Fault, Memory, PAGE_SIZE, VirtAddr};

use super::sample::Object;
use super::view::View;

/// Where x86-64 maps modules: `MODULES_VADDR` without address-space randomisation, to `MODULES_END` (kernel:
/// arch/x86/include/asm/pgtable_64_types.h).
const WIDE: (u64, u64) = (0xffff_ffff_a000_0000, 0xffff_ffff_ff00_0000);
/// The end of what i386 maps so: the fixed mappings are above (kernel: arch/x86/include/asm/pgtable_32_areas.h).
const NARROW_END: u64 = 0xffff_f000;
/// Modules that a list may have.
const MAX_MODULES: usize = 65_536;
/// Places that look like a module's name and are followed up.
const MAX_STARTS: usize = 65_536;
/// `MODULE_NAME_LEN` and the pointer behind it have 64 bytes together.
const NAME_ROOM: usize = 64;
/// Bytes of each `struct module` that are judged. Measured: up to 0x500 (x86-64, 7.2).
const MODULE_SIZE: usize = 0x600;

/// The list of modules.
#[derive(Debug)]
pub(super) struct ModuleList {
    /// Address of the list's head.
    pub(super) head: u64,
    /// Copies of all modules, as far as they can be read.
    pub(super) modules: Vec<Object>,
}

/// Bytes that a module's name may have, the terminator included.
pub(super) fn name_len(width: usize) -> usize {
    NAME_ROOM.saturating_sub(width)
}

/// Finds the list; `known` is its head if a symbol names it.
pub(super) fn find<D: X86Driver>(space: &View<'_, D>, init_task: u64, known: Option<VirtAddr>) -> Option<ModuleList> {
    if let Some(head) = known {
        let first = space.pointer(head.get())?;
        return walk(space, first).filter(|list| list.head == head.get());
    }
    let width = space.width();
    let (first, last) = if width == 4 { (init_task, NARROW_END) } else { WIDE };
    let mode = space.mode()?;
    let mut starts = MAX_STARTS;
    let mut at = first & !PAGE_SIZE.wrapping_sub(1);
    let mut page = vec![0; PAGE_SIZE as usize];
    while at < last {
        let size = match space.translate(at) {
            Ok(translation) if translation.page_size() == PAGE_SIZE => {
                if translation.access.write && space.read_into(VirtAddr::new(at), &mut page).is_ok() {
                    for offset in starts_in(&page, width) {
                        starts = starts.checked_sub(1)?;
                        if let Some(list) = walk(space, at.wrapping_add(offset as u64)) {
                            return Some(list);
                        }
                    }
                }
                PAGE_SIZE
            }
            // The image and the direct map.
            Ok(translation) => translation.page_size(),
            Err(error) => match error.kind() {
                ErrorKind::Fault(fault) => covered(mode, fault),
                _ => PAGE_SIZE,
            },
        };
        at = (at | size.wrapping_sub(1)).checked_add(1)?;
    }
    None
}

/// Bytes that the table entry covers that ended a page walk.
fn covered(mode: PagingMode, fault: &Fault) -> u64 {
    let bits = if mode == PagingMode::Bits32 { 10 } else { 9 };
    1u64.checked_shl(u32::from(fault.level.saturating_sub(1)).saturating_mul(bits).saturating_add(12)).unwrap_or(PAGE_SIZE)
}

/// Offsets of what could be the list nodes of live modules in a page: a zero before, a name behind.
fn starts_in(page: &[u8], width: usize) -> impl Iterator<Item = usize> {
    (0..page.len())
        .step_by(width)
        .filter(move |&state| {
            let name = state.saturating_add(width.saturating_mul(3));
            page.get(state..state.saturating_add(4)) == Some(&[0; 4])
                && page.get(name..name.saturating_add(name_len(width))).is_some_and(is_name)
        })
        .map(move |state| state.saturating_add(width))
}

/// A name of letters, digits and underscores, padded with zeros to the end of its array.
fn is_name(bytes: &[u8]) -> bool {
    let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(0);
    let (name, rest) = bytes.split_at(len);
    len > 1 && name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_') && rest.iter().all(|byte| *byte == 0)
}

/// The closed list that the node at `start` is in, if all of its nodes but one, the head, are in modules.
fn walk<D: X86Driver>(space: &View<'_, D>, start: u64) -> Option<ModuleList> {
    let width = space.width();
    let pointer = |at: u64| space.pointer(at);
    let mut head = None;
    let mut nodes = Vec::new();
    let mut node = start;
    loop {
        let next = pointer(node)?;
        // Each is known to the next, so the list ends where it began.
        if pointer(next.checked_add(width as u64)?)? != node || nodes.len() > MAX_MODULES {
            return None;
        }
        let name = space.bytes(node.checked_add(width.saturating_mul(2) as u64)?, name_len(width));
        match (name.is_some_and(|name| is_name(&name)), head) {
            (true, _) => nodes.push(node),
            (false, None) => head = Some(node),
            (false, Some(_)) => return None,
        }
        node = next;
        if node == start {
            break;
        }
    }
    let head = head?;
    // From the head on, as the kernel has them.
    let first = nodes.iter().position(|&node| pointer(head) == Some(node))?;
    nodes.rotate_left(first);
    let modules = nodes.iter().filter_map(|node| {
        let at = node.checked_sub(width as u64)?;
        Some(Object { at, bytes: readable(space, at) })
    });
    Some(ModuleList { head, modules: modules.collect() })
}

/// The start of the structure at `at`, as far as it can be read.
fn readable<D: X86Driver>(space: &View<'_, D>, at: u64) -> Vec<u8> {
    let mut bytes = vec![0; MODULE_SIZE];
    if let Err(error) = space.read_into(VirtAddr::new(at), &mut bytes) {
        bytes.truncate(error.done());
    }
    bytes
}
