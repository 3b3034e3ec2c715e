//! The log before 5.10 (kernel/printk/printk.c, since 3.5): records of varying length in one buffer.
//!
//! A record is a `struct printk_log`, its text, a dictionary and padding. A record of length zero says that the next one is at the start of
//! the buffer.

use vmi_arch_x86::X86Driver;
use vmi_core::{Error, LogRecord, Memory, Result, VirtAddr, live};

use crate::Linux;

pub(super) struct RecordBuffer<'l, 'v, D: X86Driver> {
    linux: &'l Linux<'v, D>,
    buffer: VirtAddr,
    len: u32,
    at: u32,
    sequence: u64,
    end: u64,
}

impl<'l, 'v, D: X86Driver> RecordBuffer<'l, 'v, D> {
    pub(super) fn new(linux: &'l Linux<'v, D>) -> Result<Self> {
        let space = &linux.space;
        let buffer = space.read_pointer(linux.symbol("log_buf")?)?;
        let len: u32 = space.read(linux.symbol("log_buf_len")?)?;
        let at: u32 = space.read(linux.symbol("log_first_idx")?)?;
        let sequence: u64 = space.read(linux.symbol("log_first_seq")?)?;
        let end: u64 = space.read(linux.symbol("log_next_seq")?)?;
        let header = linux.layout.log_record.whole.size()?;
        if end.checked_sub(sequence).is_none_or(|records| records.saturating_mul(header) > u64::from(len)) {
            let what = format!("a kernel log of {len} bytes with the records {sequence} to {end}");
            return Err(Error::corrupt(what, buffer));
        }
        Ok(Self { linux, buffer, len, at, sequence, end })
    }

    /// Where the record at offset `self.at` is, and its length.
    fn place(&mut self) -> Result<(VirtAddr, u16)> {
        for _ in 0..2 {
            let record = self.buffer.wrapping_add(u64::from(self.at));
            match self.linux.read::<u16>(record, self.linux.layout.log_record.len)? {
                0 => self.at = 0,
                len => return Ok((record, len)),
            }
        }
        Err(Error::corrupt("a kernel log that starts with the mark of its end", self.buffer))
    }

    /// The next record; `None` if it was overwritten while it was read. Then the oldest one that is left comes next.
    fn record(&mut self) -> Result<Option<LogRecord>> {
        let record = self.read();
        let oldest: u64 = self.linux.space.read(self.linux.symbol("log_first_seq")?)?;
        if oldest <= self.sequence {
            let (record, end) = record?;
            self.at = end;
            self.sequence = self.sequence.saturating_add(1);
            return Ok(Some(record));
        }
        let rest = live::settled(self.linux.vmi(), "the kernel log", || Self::new(self.linux))?;
        if rest.sequence <= self.sequence {
            return Err(Error::corrupt("a kernel log whose oldest record becomes an older one", self.buffer));
        }
        // What has come since the start is not read: a guest could write for ever.
        (self.at, self.sequence) = (rest.at, rest.sequence);
        Ok(None)
    }

    /// The record at `self.at`, and where the next one starts.
    fn read(&mut self) -> Result<(LogRecord, u32)> {
        let (record, len) = self.place()?;
        let (linux, layout) = (self.linux, &self.linux.layout.log_record);
        let nanoseconds: u64 = linux.read(record, layout.time)?;
        let text_len: u16 = linux.read(record, layout.text_len)?;
        let level = layout.level.bits(linux.read(record, layout.level)?);
        let header = layout.whole.size()?;
        let end = self.at.saturating_add(u32::from(len));
        if u64::from(len) < header.saturating_add(u64::from(text_len)) || end > self.len {
            return Err(Error::corrupt(
                format!("a record of {len} bytes with {text_len} bytes of text in the kernel log"),
                record,
            ));
        }
        let text = linux.space.read_vec(record.wrapping_add(header), usize::from(text_len))?;
        Ok((LogRecord::new(self.sequence, nanoseconds, level, String::from_utf8_lossy(&text).into_owned()), end))
    }
}

impl<D: X86Driver> Iterator for RecordBuffer<'_, '_, D> {
    type Item = Result<LogRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.sequence < self.end {
            let record = self.record();
            if record.is_err() {
                // Where the next record starts is lost.
                self.sequence = self.end;
            }
            if let Some(record) = record.transpose() {
                return Some(record);
            }
        }
        None
    }
}
