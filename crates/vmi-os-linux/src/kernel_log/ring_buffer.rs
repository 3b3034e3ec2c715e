//! The log since 5.10 (kernel/printk/printk_ringbuffer.c, commit 896fbe20b4e2): a ring of descriptors, a parallel ring of records, and
//! a ring of text.
//!
//! Ids and positions count up for ever and wrap with the width of a pointer; their low bits index the ring. A descriptor's state word
//! holds its state in the two highest bits and the id it belongs to below. It is read before and after the record: only if it stayed
//! the same was the record whole.

use vmi_arch_x86::X86Driver;
use vmi_core::{Error, LogRecord, Memory, Paging, Result, VirtAddr, live};

use crate::Linux;

/// The kernel has one descriptor for 32 bytes of text and at most 2 GiB of text (LOG_BUF_LEN_MAX).
const MAX_COUNT_BITS: u32 = 26;
const MAX_TEXT_BITS: u32 = 31;

/// States of a descriptor: reserved 0, committed 1, finalized 2, reusable 3 (`enum desc_state`).
const RESERVED: u64 = 0;
const REUSABLE: u64 = 3;

pub(super) struct RingBuffer<'l, 'v, D: X86Driver> {
    linux: &'l Linux<'v, D>,
    count_bits: u32,
    descriptors: VirtAddr,
    infos: VirtAddr,
    text_bits: u32,
    text: VirtAddr,
    /// Bits in a pointer of the guest.
    width: u32,
    next: u64,
    left: u64,
}

impl<'l, 'v, D: X86Driver> RingBuffer<'l, 'v, D> {
    pub(super) fn new(linux: &'l Linux<'v, D>) -> Result<Self> {
        let layout = &linux.layout.log;
        let at = linux.space.read_pointer(linux.symbol("prb")?)?;
        let count_bits: u32 = linux.read(at, layout.count_bits)?;
        let text_bits: u32 = linux.read(at, layout.text_bits)?;
        let head = linux.pointer(at, layout.head)?.get();
        let tail = linux.pointer(at, layout.tail)?.get();
        let mut ring = Self {
            linux,
            count_bits,
            descriptors: linux.pointer(at, layout.descriptors)?,
            infos: linux.pointer(at, layout.infos)?,
            text_bits,
            text: linux.pointer(at, layout.text)?,
            width: if linux.space.mode().pointer_size() == 4 { 32 } else { 64 },
            next: tail,
            left: 0,
        };
        ring.left = ring.id(head.wrapping_sub(tail)).saturating_add(1);
        if count_bits > MAX_COUNT_BITS || text_bits > MAX_TEXT_BITS || ring.left > 1u64.wrapping_shl(count_bits) {
            let what =
                format!("a kernel log of 2^{count_bits} records and 2^{text_bits} bytes with ids from {tail:#x} to {head:#x}");
            return Err(Error::corrupt(what, at));
        }
        Ok(ring)
    }

    /// The part of a state word, or of a difference of ids, that is an id.
    fn id(&self, word: u64) -> u64 {
        word & u64::MAX.wrapping_shr(66u32.wrapping_sub(self.width))
    }

    fn state(&self, word: u64) -> u64 {
        word.wrapping_shr(self.width.wrapping_sub(2)) & 3
    }

    /// The record of this id; `None` if there is none (any more).
    fn record(&self, id: u64) -> Result<Option<LogRecord>> {
        let (linux, layout) = (self.linux, &self.linux.layout);
        let slots = 1u64.wrapping_shl(self.count_bits);
        let index = id & slots.wrapping_sub(1);
        let descriptor = self.descriptors.wrapping_add(index.wrapping_mul(layout.log_descriptor.whole.size()?));
        let state = || linux.pointer(descriptor, layout.log_descriptor.state).map(VirtAddr::get);
        let before = state()?;
        if self.id(before) != id {
            // Still that of one round before: its place has been taken, but not its descriptor.
            if self.id(before) == self.id(id.wrapping_sub(slots)) {
                return Ok(None);
            }
            // A running guest has gone round the ring meanwhile, so that this record is no more.
            let ahead = self.id(before.wrapping_sub(id));
            if live::runs(linux.vmi()) && ahead & slots.wrapping_sub(1) == 0 && ahead <= self.id(u64::MAX) / 2 {
                return Ok(None);
            }
            return Err(Error::corrupt(
                format!("record {id:#x} of the kernel log has the descriptor of {:#x}", self.id(before)),
                descriptor,
            ));
        }
        if matches!(self.state(before), RESERVED | REUSABLE) {
            return Ok(None);
        }
        let info = self.infos.wrapping_add(index.wrapping_mul(layout.log_info.whole.size()?));
        let sequence: u64 = linux.read(info, layout.log_info.sequence)?;
        let nanoseconds: u64 = linux.read(info, layout.log_info.time)?;
        let len: u16 = linux.read(info, layout.log_info.len)?;
        let level = layout.log_info.level.bits(linux.read(info, layout.log_info.level)?);
        let text = self.text(id, descriptor, len);
        if state()? != before {
            return Ok(None);
        }
        Ok(text?.map(|text| LogRecord::new(sequence, nanoseconds, level, text)))
    }

    /// The text of a record: a block of the text ring that starts with the id.
    fn text(&self, id: u64, descriptor: VirtAddr, len: u16) -> Result<Option<String>> {
        const NO_TEXT: u64 = 3;
        let (linux, layout) = (self.linux, &self.linux.layout.log_descriptor);
        let begin = linux.pointer(descriptor, layout.begin)?.get();
        let next = linux.pointer(descriptor, layout.next)?.get();
        // Odd positions: a record without text (NO_LPOS, later EMPTY_LINE_LPOS), or one whose text found no room (FAILED_LPOS).
        if begin & next & 1 == 1 {
            return Ok((begin == NO_TEXT).then(String::new));
        }
        let size = 1u64.wrapping_shl(self.text_bits);
        let offset = |position: u64| position & size.wrapping_sub(1);
        let round = |position: u64| position.wrapping_shr(self.text_bits);
        // A block never wraps: one that would starts at zero. In newer kernels it may end exactly at the end of the
        // ring; in older ones such a block starts at zero of the next round, so that the two cannot be confused.
        let (start, end) = match offset(next) {
            0 => (offset(begin), size),
            end if round(begin) == round(next) => (offset(begin), end),
            end => (0, end),
        };
        let id_size = u64::from(self.width / 8);
        let room = end.checked_sub(start).and_then(|block| block.checked_sub(id_size));
        let Some(room) = room else {
            return Err(Error::corrupt(format!("the text of record {id:#x} from {begin:#x} to {next:#x}"), descriptor));
        };
        let block = self.text.wrapping_add(start);
        if self.id(linux.space.read_pointer(block)?.get()) != id {
            return Err(Error::corrupt(format!("the text of record {id:#x} belongs to another"), block));
        }
        let text = linux.space.read_vec(block.wrapping_add(id_size), u64::from(len).min(room) as usize)?;
        Ok(Some(String::from_utf8_lossy(&text).into_owned()))
    }
}

impl<D: X86Driver> Iterator for RingBuffer<'_, '_, D> {
    type Item = Result<LogRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(left) = self.left.checked_sub(1) {
            self.left = left;
            let id = self.next;
            self.next = self.id(id.wrapping_add(1));
            if let Some(record) = self.record(id).transpose() {
                return Some(record);
            }
        }
        None
    }
}
