//! Memory through a stub.

use vmi_core::{PhysAddr, VcpuId, VirtAddr};

use super::client::GdbClient;
use super::error::{GdbCause, GdbError};
use super::packet::Item;
use super::reply::{StopReply, accept, expect_ok, hex_into, misunderstood, push_hex_bytes};
use crate::deadline::Deadline;

/// One of several reads of physical memory.
#[derive(Debug)]
pub struct GdbRead<'b> {
    /// First address to read.
    pub at: PhysAddr,
    /// Where the bytes go; its length is the length of the read.
    pub buf: &'b mut [u8],
    /// How it went; `Ok` before the reads are done.
    pub result: Result<(), GdbError>,
}

impl<'b> GdbRead<'b> {
    /// A read of `buf.len()` bytes at `at`, not yet done.
    pub fn new(at: PhysAddr, buf: &'b mut [u8]) -> Self {
        Self { at, buf, result: Ok(()) }
    }
}

/// What one request reads or writes.
#[derive(Clone, Copy)]
struct Piece {
    of: usize,
    offset: usize,
    at: u64,
    len: usize,
}

/// Cuts a range into requests of at most `most` bytes. With `pages`, none crosses a page: QEMU then says of each page by itself whether it
/// is there.
fn pieces(of: usize, at: u64, len: usize, most: usize, pages: bool, out: &mut Vec<Piece>) {
    let mut offset = 0_usize;
    while offset < len {
        let here = at.wrapping_add(offset as u64);
        let page = if pages { 0x1000_usize.saturating_sub((here & 0xfff) as usize) } else { usize::MAX };
        let len = len.saturating_sub(offset).min(most).min(page).max(1);
        out.push(Piece { of, offset, at: here, len });
        offset = offset.saturating_add(len);
    }
}

const READING: &str = "reading memory";
const WRITING: &str = "writing memory";

impl GdbClient {
    /// The most bytes of one request. QEMU takes half its packet size; others count the framing as well.
    fn read_limit(&self) -> usize {
        let size = self.features.packet_size;
        if self.qemu { size >> 1 } else { size.saturating_sub(4) >> 1 }
    }

    fn write_limit(&self) -> usize {
        // `$M`, 16 digits, `,`, 8 digits, `:`, `#xx` and the zero byte that QEMU puts behind.
        self.features.packet_size.saturating_sub(32) >> 1
    }

    /// Reads guest-physical memory. Where the machine has none, QEMU answers with zeros or ones and no error: ask only for what its memory map
    /// shows as RAM or ROM. A read of a device's registers does what such a read does.
    ///
    /// # Errors
    /// [`GdbCause::Unsupported`] if the stub is not QEMU's; [`GdbError::done`] bytes are good else.
    pub fn read_physical(&mut self, at: PhysAddr, buf: &mut [u8]) -> Result<(), GdbError> {
        let mut read = [GdbRead::new(at, buf)];
        self.read_physical_many(&mut read);
        let [read] = read;
        read.result
    }

    /// Does many reads of guest-physical memory, [`GdbOptions::depth`](super::GdbOptions::depth) requests at a time under way.
    pub fn read_physical_many(&mut self, reads: &mut [GdbRead<'_>]) {
        let ready = self.physical_mode(true);
        let mut all = Vec::new();
        for (of, read) in reads.iter_mut().enumerate() {
            read.result = ready.clone();
            pieces(of, read.at.get(), read.buf.len(), self.read_limit(), false, &mut all);
        }
        if ready.is_err() {
            return;
        }
        let address = std::sync::Arc::clone(&self.address);
        let outcome = self.pipeline(
            &all,
            |_, _| {},
            |piece, answer| {
                let Some(read) = reads.get_mut(piece.of) else { return Ok(()) };
                take(answer, piece, read.buf).map(|refused| {
                    if let (Some(cause), true) = (refused, read.result.is_ok()) {
                        read.result = Err(GdbError::new(&address, READING, cause).with_done(piece.offset));
                    }
                })
            },
        );
        if let Err(cause) = outcome {
            // If one answer is missing, it is not certain to which request the others belong.
            let error = self.error(READING, cause);
            reads.iter_mut().for_each(|read| read.result = Err(error.clone()));
        }
    }

    /// Reads memory as a vCPU sees it through its page tables, with or without permission.
    ///
    /// # Errors
    /// [`GdbCause::Refused`] with E14 (EFAULT) where nothing is mapped; [`GdbError::done`] bytes before it are good.
    pub fn read_virtual(&mut self, vcpu: VcpuId, at: VirtAddr, buf: &mut [u8]) -> Result<(), GdbError> {
        self.select(vcpu)?;
        self.physical_mode(false)?;
        let mut all = Vec::new();
        pieces(0, at.get(), buf.len(), self.read_limit(), true, &mut all);
        let mut failed: Option<(usize, GdbCause)> = None;
        let outcome = self.pipeline(
            &all,
            |_, _| {},
            |piece, answer| {
                let refused = take(answer, piece, buf)?;
                if let (Some(cause), None) = (refused, &failed) {
                    failed = Some((piece.offset, cause));
                }
                Ok(())
            },
        );
        outcome.map_err(|cause| self.error(READING, cause))?;
        failed.map_or(Ok(()), |(done, cause)| Err(self.error(READING, cause).with_done(done)))
    }

    /// Writes guest-physical memory. What is written to ROM or where nothing is has no effect, and QEMU does not say so.
    ///
    /// # Errors
    /// As [`GdbClient::read_physical`].
    pub fn write_physical(&mut self, at: PhysAddr, data: &[u8]) -> Result<(), GdbError> {
        self.physical_mode(true)?;
        self.write(at.get(), data, false)
    }

    /// Writes memory as a vCPU sees it through its page tables, with or without permission.
    ///
    /// # Errors
    /// As [`GdbClient::read_virtual`]; what lies behind [`GdbError::done`] may have been written in part.
    pub fn write_virtual(&mut self, vcpu: VcpuId, at: VirtAddr, data: &[u8]) -> Result<(), GdbError> {
        self.select(vcpu)?;
        self.physical_mode(false)?;
        self.write(at.get(), data, true)
    }

    fn write(&mut self, at: u64, data: &[u8], pages: bool) -> Result<(), GdbError> {
        let mut all = Vec::new();
        pieces(0, at, data.len(), self.write_limit(), pages, &mut all);
        let mut failed: Option<(usize, GdbCause)> = None;
        let payload = |piece: &Piece, request: &mut Vec<u8>| {
            request.push(b':');
            let end = piece.offset.saturating_add(piece.len);
            push_hex_bytes(data.get(piece.offset..end).unwrap_or_default(), request);
        };
        let outcome = self.pipeline(&all, payload, |piece, answer| {
            match expect_ok(answer) {
                Err(cause @ (GdbCause::Refused { .. } | GdbCause::Unsupported)) => {
                    failed.get_or_insert((piece.offset, cause));
                }
                other => other?,
            }
            Ok(())
        });
        outcome.map_err(|cause| self.error(WRITING, cause))?;
        failed.map_or(Ok(()), |(done, cause)| Err(self.error(WRITING, cause).with_done(done)))
    }

    /// Sends the requests for all pieces, several under way at a time, and hands on their answers in order. A request with a payload is a write.
    ///
    /// QEMU works off what it has received before it sends on, and takes the beginning of a packet as an acknowledgement of its last one.
    /// An error means that answers are missing or too many: then none of them counts.
    fn pipeline(
        &mut self,
        pieces: &[Piece],
        mut payload: impl FnMut(&Piece, &mut Vec<u8>),
        mut answer: impl FnMut(&Piece, Vec<u8>) -> Result<(), GdbCause>,
    ) -> Result<(), GdbCause> {
        // What is under way must fit into the buffers of the connection, so that neither side waits for the other to read.
        const MOST_BYTES: usize = 1 << 15;
        let depth = self.options.depth.max(1);
        let (mut sent, mut acknowledged, mut under_way) = (pieces.iter(), 0_usize, std::collections::VecDeque::new());
        let mut bytes = 0_usize;
        let mut next = sent.next();
        let mut answered = 0_usize;
        let mut request = Vec::new();
        let result = 'all: loop {
            while let Some(piece) = next {
                if under_way.len() >= depth || (bytes > MOST_BYTES && !under_way.is_empty()) {
                    break;
                }
                request.clear();
                request.extend_from_slice(format!("?{:x},{:x}", piece.at, piece.len).as_bytes());
                let head = request.len();
                payload(piece, &mut request);
                if let Some(kind) = request.first_mut() {
                    // Only a write has more than an address and a length.
                    *kind = b'm';
                }
                if request.len() > head
                    && let Some(kind) = request.first_mut()
                {
                    *kind = b'M';
                }
                self.connection.packet(&request);
                bytes = bytes.saturating_add(request.len());
                under_way.push_back((piece, request.len()));
                next = sent.next();
            }
            let Some((piece, len)) = under_way.pop_front() else { return Ok(()) };
            let deadline = Deadline::after(self.options.reply);
            let packet = loop {
                match self.connection.next(deadline) {
                    Ok(Some(Item::Ack)) => acknowledged = acknowledged.saturating_add(1),
                    Ok(Some(Item::Notification(_))) => {}
                    Ok(Some(Item::Packet(packet))) if StopReply::is(&packet) => break 'all Err(misunderstood(&packet)),
                    Ok(Some(Item::Packet(packet))) => break packet,
                    Ok(Some(Item::Nak | Item::Damaged)) => break 'all Err(GdbCause::Damaged { attempts: 1 }),
                    Ok(None) => break 'all Err(GdbCause::Timeout { after: deadline.limit }),
                    Err(cause) => break 'all Err(self.lost(cause)),
                }
            };
            bytes = bytes.saturating_sub(len);
            answered = answered.saturating_add(1);
            // Each request is acknowledged before it is answered.
            if self.connection.acks && acknowledged < answered {
                break Err(misunderstood(&packet));
            }
            if let Err(cause) = answer(piece, packet) {
                break Err(cause);
            }
        };
        self.out_of_step = true;
        result
    }
}

/// Puts an answer to `m` in its place. A refusal is the piece's own affair; an answer of another length concerns all.
fn take(answer: Vec<u8>, piece: &Piece, buf: &mut [u8]) -> Result<Option<GdbCause>, GdbCause> {
    match accept(answer) {
        Ok(answer) => {
            let end = piece.offset.saturating_add(piece.len);
            let room = buf.get_mut(piece.offset..end).unwrap_or_default();
            if hex_into(&answer, room) { Ok(None) } else { Err(misunderstood(&answer)) }
        }
        Err(cause) => Ok(Some(cause)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_range_and_keep_to_pages() {
        let mut all = Vec::new();
        pieces(3, 0xff0, 0x2020, 0x800, true, &mut all);
        let found: Vec<_> = all.iter().map(|piece| (piece.offset, piece.at, piece.len)).collect();
        let expected = [
            (0, 0xff0, 0x10),
            (0x10, 0x1000, 0x800),
            (0x810, 0x1800, 0x800),
            (0x1010, 0x2000, 0x800),
            (0x1810, 0x2800, 0x800),
            (0x2010, 0x3000, 0x10),
        ];
        assert_eq!(found, expected);
        all.clear();
        pieces(0, u64::MAX, 2, 0x800, false, &mut all);
        assert_eq!(all.len(), 1);
    }
}
