//! The kernel's clock by content: `shadow_timekeeper`, which tells when the machine booted (kernel: `struct timekeeper` in
//! include/linux/timekeeper_internal.h; a variable of its own until 6.12).
//!
//! It starts with two structures of one kind that name the same clock, `tkr_mono` and `tkr_raw`. The first has the time since boot and
//! (since 4.15) the real time; their difference is the later member `offs_real`, followed by `offs_boot`, and `offs_tai`, which is `offs_real` and
//! whole seconds. Right before `offs_real` is `wall_to_monotonic`: the same time below zero, in seconds and nanoseconds.

use vmi_arch_x86::X86Driver;
use vmi_core::{Memory, VirtAddr};

use super::findings::Findings;
use super::image;
use super::sample::{Object, only};
use super::types::Kind;
use super::view::View;

/// Bytes of the structure that are judged. Measured: `offs_real` at 0x84 (i386) and 0x90 (x86-64).
const SIZE: usize = 0x100;
/// What static structures of this size are aligned to; `tk_core`, which holds another such structure, starts with a lock.
const ALIGNMENT: u64 = 32;
/// Bits that a clock counts with at least (the ACPI timer).
const LEAST_BITS: u32 = 24;
const SECOND: i64 = 1_000_000_000;

/// Infers `shadow_timekeeper`, `offs_real` and `offs_boot`.
pub(super) fn infer<D: X86Driver>(view: &View<'_, D>, init_task: u64, findings: &mut Findings) {
    let width = view.width();
    let found = image::find(view, init_task, |page, bytes| {
        image::words(page, bytes, width).find_map(|(at, clock)| {
            // The clock is a variable, too.
            if !at.is_multiple_of(ALIGNMENT) || clock.abs_diff(init_task) >= image::REACH {
                return None;
            }
            let mut copy = Object { at, bytes: vec![0; SIZE] };
            view.read_into(VirtAddr::new(at), &mut copy.bytes).ok()?;
            Some((at, offset_of_real(&copy, width)?))
        })
    });
    match found {
        Some((at, real)) => {
            findings.symbol("shadow_timekeeper", VirtAddr::new(at));
            findings.add("timekeeper", "offs_real", real, Kind::Number(8));
            findings.add("timekeeper", "offs_boot", real.saturating_add(8), Kind::Number(8));
        }
        None => findings.remark("the time of boot was not found: the kernel's clock could not be told"),
    }
}

/// The offset of `offs_real`, if this is a timekeeper.
fn offset_of_real(copy: &Object, width: usize) -> Option<usize> {
    // kernel: `struct tk_read_base`: clock, read (until 4.12), mask, cycle_last, mult, shift, xtime_nsec, base, base_real (since 4.15).
    [(1usize, true), (1, false), (2, false)].into_iter().find_map(|(pointers, has_real)| {
        let head = width.checked_mul(pointers)?;
        let raw = head.checked_add(if has_real { 48 } else { 40 })?;
        let mask = copy.u64(head)?;
        let twins = copy.word(0, width)? == copy.word(raw, width)? && mask == copy.u64(raw.checked_add(head)?)?;
        if !twins || mask.trailing_ones() != mask.count_ones() || mask.count_ones() < LEAST_BITS {
            return None;
        }
        let base = copy.u64(head.checked_add(32)?)?;
        let real = if has_real { Some(copy.u64(head.checked_add(40)?)?.wrapping_sub(base)) } else { None };
        let found =
            only(raw.checked_mul(2)?..SIZE.saturating_sub(24), 4, |offset| is_real(copy, width, offset, real) == Some(true));
        found.ok()
    })
}

/// Whether `offs_real` is at `offset`, which is `real` if that is known.
fn is_real(copy: &Object, width: usize, offset: usize, real: Option<u64>) -> Option<bool> {
    let signed = |offset: usize| copy.u64(offset).map(|value| value as i64);
    let (here, boot, tai) = (signed(offset)?, signed(offset.checked_add(8)?)?, signed(offset.checked_add(16)?)?);
    let nanoseconds = offset.checked_sub(width)?;
    let seconds = signed(nanoseconds.checked_sub(8)?)?;
    let wall = seconds.checked_mul(SECOND)?.checked_add(i64::try_from(copy.word(nanoseconds, width)?).ok()?)?;
    let whole = tai.checked_sub(here)?.checked_rem(SECOND)? == 0;
    Some(here != 0 && real.is_none_or(|real| real as i64 == here) && wall.checked_neg()? == here && boot >= 0 && whole)
}
