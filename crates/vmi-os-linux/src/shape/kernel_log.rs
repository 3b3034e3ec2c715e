//! The ring buffer of the kernel's log by content (kernel: kernel/printk/printk_ringbuffer.h, since 5.10).
//!
//! Its structures have had one layout since; only `text_data_ring` lies one word further behind in newer kernels. `prb` points at the
//! buffer in use (the log of older kernels: see [`record_log`]). A ring of descriptors and one of records are numbered alike: number and state in the descriptor of the oldest
//! and the newest record must fit what the head says of them.

use vmi_arch_x86::X86Driver;
use vmi_core::{Memory, Symbols, VirtAddr};

use super::findings::Findings;
use super::image;
use super::record_log;
use super::types::Kind;
use super::view::View;

/// Descriptors, as a power of two: one for 32 bytes of text (kernel: `PRB_AVGBITS`), of 4 KiB to 2 GiB (`LOG_BUF_LEN_MAX`).
const COUNT_BITS: core::ops::RangeInclusive<u64> = 7..=26;
const AVERAGE_BITS: u64 = 5;
/// Bytes of a record (`struct printk_info`), of which its number is the first eight; the second since 7.0, which may keep more of the caller.
const INFO_SIZES: [u64; 2] = [88, 112];

/// What differs between kernels.
#[derive(Clone, Copy, Debug)]
struct Ring {
    /// Offset of `text_data_ring` in `printk_ringbuffer`.
    text: u64,
    info_size: u64,
}

/// Infers `prb` and describes what it points at.
pub(super) fn infer<D: X86Driver>(view: &View<'_, D>, init_task: u64, symbols: &Symbols, findings: &mut Findings) {
    if record_log::infer(view, symbols, findings) {
        return;
    }
    let known = symbols.find("prb").map(|symbol| symbol.address);
    let found = match known {
        Some(pointer) => view.pointer(pointer.get()).and_then(|at| ring(view, at)).map(|ring| (pointer, ring)),
        None => image::find(view, init_task, |page, bytes| {
            image::words(page, bytes, view.width()).find_map(|(at, bits)| {
                // The rest of the word is padding.
                let ring = COUNT_BITS.contains(&bits).then(|| ring(view, at)).flatten()?;
                Some((pointer_to(view, init_task, at)?, ring))
            })
        }),
    };
    match found {
        Some((pointer, ring)) => {
            if known.is_none() {
                findings.symbol("prb", pointer);
            }
            describe(view.width(), ring, findings);
        }
        None => findings.remark("the kernel's log was not found: the ring buffer that kernels have since 5.10 could not be told, and no symbols name an older log"),
    }
}

/// The one place in the kernel's data that points at `target`.
fn pointer_to<D: X86Driver>(view: &View<'_, D>, init_task: u64, target: u64) -> Option<VirtAddr> {
    image::find(view, init_task, |page, bytes| {
        image::words(page, bytes, view.width()).find(|(_, word)| *word == target).map(|(at, _)| VirtAddr::new(at))
    })
}

/// The ring buffer at `at`, if there is one.
fn ring<D: X86Driver>(view: &View<'_, D>, at: u64) -> Option<Ring> {
    let width = view.width() as u64;
    let word = |index: u64| view.pointer(at.checked_add(index.checked_mul(width)?)?);
    let number = |index: u64| view.read::<u32>(VirtAddr::new(at.checked_add(index.checked_mul(width)?)?)).ok().map(u64::from);
    let bits = number(0)?;
    let (descriptors, infos, head, tail) = (word(1)?, word(2)?, word(3)?, word(4)?);
    // `last_finalized_id` (5.18) or `last_finalized_seq` may lie between.
    let text = [5u64, 6].into_iter().find(|&index| number(index) == bits.checked_add(AVERAGE_BITS))?;
    view.pointer(word(text.checked_add(1)?)?)?;
    let mask = 1u64.checked_shl(bits as u32)?.checked_sub(1)?;
    let state_bits = width.checked_mul(8)?.checked_sub(2)?;
    let id_mask = 1u64.checked_shl(state_bits as u32)?.checked_sub(1)?;
    // The number of the record that has this id, which its descriptor must have too.
    let sequence = |id: u64, info_size: u64| {
        let index = id & mask;
        let state = view.pointer(descriptors.checked_add(index.checked_mul(width.checked_mul(3)?)?)?)?;
        let info = infos.checked_add(index.checked_mul(info_size)?)?;
        (state & id_mask == id).then(|| view.read::<u64>(VirtAddr::new(info)).ok())?
    };
    let len = head.wrapping_sub(tail) & id_mask;
    let text = text.checked_mul(width)?;
    if len == 0 || len > mask {
        return None;
    }
    INFO_SIZES.into_iter().map(|info_size| Ring { text, info_size }).find(|ring| {
        let (Some(oldest), Some(newest)) = (sequence(tail, ring.info_size), sequence(head, ring.info_size)) else { return false };
        // The very first descriptor belongs to no record, and the first record is number 0 (kernel: `DESC0_ID`).
        newest.wrapping_sub(oldest).wrapping_add(u64::from(oldest == 0)) == len
    })
}

/// The structures (kernel: kernel/printk/printk_ringbuffer.h), of which all but `text_data_ring`'s place is fixed.
fn describe(width: usize, ring: Ring, findings: &mut Findings) {
    type Members<'a> = &'a [(&'static str, usize, Kind)];
    let place = |index: usize| index.saturating_mul(width);
    let structures: [(&'static str, Members<'_>); 6] = [
        (
            "prb_desc_ring",
            &[
                ("count_bits", 0, Kind::Number(4)),
                ("descs", place(1), Kind::Pointer),
                ("infos", place(2), Kind::Pointer),
                ("head_id", place(3), Kind::Pointer),
                ("tail_id", place(4), Kind::Pointer),
            ],
        ),
        (
            "prb_data_ring",
            &[
                ("size_bits", 0, Kind::Number(4)),
                ("data", place(1), Kind::Pointer),
                ("head_lpos", place(2), Kind::Pointer),
                ("tail_lpos", place(3), Kind::Pointer),
            ],
        ),
        (
            "printk_ringbuffer",
            &[
                ("desc_ring", 0, Kind::Structure("prb_desc_ring")),
                ("text_data_ring", ring.text as usize, Kind::Structure("prb_data_ring")),
            ],
        ),
        ("prb_data_blk_lpos", &[("begin", 0, Kind::Pointer), ("next", place(1), Kind::Pointer)]),
        ("prb_desc", &[("state_var", 0, Kind::Pointer), ("text_blk_lpos", place(1), Kind::Structure("prb_data_blk_lpos"))]),
        (
            "printk_info",
            &[
                ("seq", 0, Kind::Number(8)),
                ("ts_nsec", 8, Kind::Number(8)),
                ("text_len", 16, Kind::Number(2)),
                ("facility", 18, Kind::Number(1)),
                ("flags", 19, Kind::Bits(0, 5)),
                ("level", 19, Kind::Bits(5, 3)),
                ("caller_id", 20, Kind::Number(4)),
            ],
        ),
    ];
    for (structure, members) in structures {
        for &(member, offset, kind) in members {
            findings.add(structure, member, offset, kind);
        }
    }
    findings.types.resize("printk_info", ring.info_size);
}
