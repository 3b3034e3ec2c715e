//! The kernel's log: what dmesg prints. Its form changed in 5.10.

mod record_buffer;
mod ring_buffer;
#[cfg(test)]
mod tests;

use vmi_arch_x86::X86Driver;
use vmi_core::{LogRecord, Result, list::rows, live};

use crate::Linux;

use record_buffer::RecordBuffer;
use ring_buffer::RingBuffer;

impl<D: X86Driver> Linux<'_, D> {
    /// The kernel's log, oldest record first.
    ///
    /// A record that is being written, or that a running guest overwrote while it was read, is left out; its sequence number is
    /// missing then. One that contradicts itself is an error item.
    ///
    /// Of a running guest these are the records that there were when this was called.
    pub fn kernel_log(&self) -> impl Iterator<Item = Result<LogRecord>> {
        let ring = self.layout.log.descriptors.exists();
        let new = ring.then(|| rows(live::settled(self.vmi(), "the kernel log", || RingBuffer::new(self))));
        let old = (!ring).then(|| rows(live::settled(self.vmi(), "the kernel log", || RecordBuffer::new(self))));
        new.into_iter().flatten().chain(old.into_iter().flatten())
    }
}
