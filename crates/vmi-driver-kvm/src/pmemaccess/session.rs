//! The protocol, over any stream of bytes.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, IoSliceMut, Read, Write};
use std::time::Duration;

use vmi_core::PhysAddr;

use super::{Operation, PmemError};

/// Bytes of one read request at most; longer reads are split.
pub const READ_LIMIT: usize = 256 << 10;

/// Bytes of one write request at most; longer writes are split. Request and data must lie in the socket as a whole before the server
/// fetches them, and Linux keeps up to 32 KiB of one call together (net/unix/af_unix.c, `unix_stream_sendmsg`).
pub const WRITE_LIMIT: usize = 16 << 10;

/// The grain in which a refused read is searched for its first bad page.
const PAGE: u64 = 4096;

const QUIT: u64 = 0;
const READ: u64 = 1;
const WRITE: u64 = 2;
/// A request that no version knows. All answer it by the byte 0.
const UNKNOWN: u64 = 0xff;

const REQUEST: usize = 24;
/// Requests of a fence.
const FENCE: usize = 64;
/// Requests of a fence that are unknown to the server. One of 2^32 patterns, and only eight lines in QEMU's log.
const FENCE_ZEROS: usize = 8;

/// How long one byte may stay alone before a fence asks whether it is the whole answer.
const GRACE: Duration = Duration::from_millis(2);

/// A stream of bytes that keeps a time limit.
pub trait Stream: Read + Write {
    /// Begins an operation: from now on, reads and writes fail with [`io::ErrorKind::TimedOut`] once `limit` has passed.
    fn begin(&mut self, limit: Duration);

    /// Whether there is something to read (or the end of the stream) within `wait`, and within the time limit.
    ///
    /// # Errors
    /// What the stream reports.
    fn readable(&mut self, wait: Duration) -> io::Result<bool>;
}

/// The client's side of the protocol over a stream. [`PmemAccess`](super::PmemAccess) is this over a unix socket, for many threads.
#[derive(Debug)]
pub struct Session<S: Stream> {
    stream: S,
    limit: Duration,
    /// Why the stream cannot be used any more.
    dead: Option<String>,
    random: RandomState,
    fences: u64,
    /// Request and data of a write.
    outgoing: Vec<u8>,
}

/// What came of a request.
enum Answer {
    Granted,
    Refused,
}

/// How a request failed for good.
enum Failure {
    Io(io::Error),
    OutOfStep(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl<S: Stream> Session<S> {
    /// Speaks over `stream`. Each request must be answered within `limit`.
    pub fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, dead: None, random: RandomState::new(), fences: 0, outgoing: Vec::new() }
    }

    /// As [`PmemAccess::read`](super::PmemAccess::read).
    ///
    /// # Errors
    /// As there.
    pub fn read(&mut self, at: PhysAddr, buf: &mut [u8]) -> Result<(), PmemError> {
        check_range(at, buf.len())?;
        let mut done = 0;
        for chunk in buf.chunks_mut(READ_LIMIT) {
            let start = advance(at, done);
            match self.read_request(start, chunk).map_err(|error| error.after(done))? {
                Answer::Granted => {}
                // The server grants all or nothing, and nothing of a range that it has in two pieces.
                Answer::Refused => self.read_pages(start, chunk).map_err(|error| error.after(done))?,
            }
            done = done.saturating_add(chunk.len());
        }
        Ok(())
    }

    /// As [`PmemAccess::write`](super::PmemAccess::write).
    ///
    /// # Errors
    /// As there.
    pub fn write(&mut self, at: PhysAddr, data: &[u8]) -> Result<(), PmemError> {
        check_range(at, data.len())?;
        let mut done = 0_usize;
        // Pieces end with a page of the guest, so that one refusal never hides what another page would have taken.
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let start = advance(at, done);
            let piece = rest.get(..WRITE_LIMIT.min(to_page_end(start))).unwrap_or(rest);
            match self.write_request(start, piece).map_err(|error| error.after(done))? {
                Answer::Granted => done = done.saturating_add(piece.len()),
                Answer::Refused => {
                    return Err(PmemError::Refused { operation: Operation::Write, at: start, len: piece.len(), done });
                }
            }
        }
        Ok(())
    }

    /// Whether the connection can still be used.
    ///
    /// # Errors
    /// [`PmemError::Dead`] if not.
    pub fn check(&self) -> Result<(), PmemError> {
        match &self.dead {
            Some(reason) => Err(PmemError::Dead { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// Reads page by page, up to the first that is refused.
    fn read_pages(&mut self, at: PhysAddr, buf: &mut [u8]) -> Result<(), PmemError> {
        let mut done = 0_usize;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let start = advance(at, done);
            let len = rest.len().min(to_page_end(start));
            let page = rest.get_mut(..len).unwrap_or_default();
            match self.read_request(start, page).map_err(|error| error.after(done))? {
                Answer::Granted => done = done.saturating_add(len),
                Answer::Refused => return Err(PmemError::Refused { operation: Operation::Read, at: start, len, done }),
            }
        }
        Ok(())
    }

    fn read_request(&mut self, at: PhysAddr, buf: &mut [u8]) -> Result<Answer, PmemError> {
        let mut received = 0;
        let expected = buf.len().saturating_add(1);
        self.request(Operation::Read, at, expected, |session, received| session.exchange_read(at, buf, received), &mut received)
    }

    fn write_request(&mut self, at: PhysAddr, data: &[u8]) -> Result<Answer, PmemError> {
        let mut received = 0;
        self.request(Operation::Write, at, 1, |session, received| session.exchange_write(at, data, received), &mut received)
    }

    /// Runs one request, and declares the stream dead unless it ended in step.
    fn request(
        &mut self,
        operation: Operation,
        at: PhysAddr,
        expected: usize,
        exchange: impl FnOnce(&mut Self, &mut usize) -> Result<Answer, Failure>,
        received: &mut usize,
    ) -> Result<Answer, PmemError> {
        self.check()?;
        // Stands if this thread panics in between.
        self.dead = Some("a request was broken off".to_owned());
        self.stream.begin(self.limit);
        let (received, failure) = match exchange(self, received) {
            Ok(answer) => {
                self.dead = None;
                return Ok(answer);
            }
            Err(failure) => (*received, failure),
        };
        let error = match failure {
            Failure::OutOfStep(what) => PmemError::OutOfStep { operation, at, what, done: 0 },
            Failure::Io(source) => match source.kind() {
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                    PmemError::TimedOut { operation, at, received, expected, limit: self.limit, done: 0 }
                }
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::NotConnected => PmemError::Closed { operation, at, received, expected, done: 0 },
                _ => PmemError::Stream { operation, at, source, done: 0 },
            },
        };
        self.dead = Some(error.to_string());
        Err(error)
    }

    fn exchange_read(&mut self, at: PhysAddr, buf: &mut [u8], received: &mut usize) -> Result<Answer, Failure> {
        self.expect_silence()?;
        self.stream.write_all(&request(READ, at, buf.len()))?;
        let mut status = [0];
        let whole = buf.len().saturating_add(1);
        while *received < whole {
            // One byte alone: a refusal in the short form, or the start of a slow answer.
            if *received == 1 && !self.stream.readable(GRACE)? {
                return self.exchange_fence(buf, received);
            }
            self.receive(buf, &mut status, received)?;
        }
        verdict(status)
    }

    /// Has the rest of an answer of which one byte has come, and finds out by a fence where it ends.
    fn exchange_fence(&mut self, buf: &mut [u8], received: &mut usize) -> Result<Answer, Failure> {
        let pattern = self.pattern();
        let fence: Vec<u8> =
            pattern.iter().flat_map(|answer| request(if *answer == 0 { UNKNOWN } else { READ }, PhysAddr::new(0), 0)).collect();
        self.stream.write_all(&fence)?;
        let mut tail = [0; 1 + FENCE];
        let whole = buf.len().saturating_add(tail.len());
        while *received < whole {
            self.receive(buf, &mut tail, received)?;
            if *received == tail.len() && buf.iter().chain(&tail).skip(1).take(FENCE).eq(&pattern) {
                return Ok(Answer::Refused);
            }
        }
        let [status, answers @ ..] = tail;
        if answers != pattern {
            return Err(Failure::OutOfStep("requests that have known answers got others".to_owned()));
        }
        verdict([status])
    }

    fn exchange_write(&mut self, at: PhysAddr, data: &[u8], received: &mut usize) -> Result<Answer, Failure> {
        self.expect_silence()?;
        self.outgoing.clear();
        self.outgoing.extend_from_slice(&request(WRITE, at, data.len()));
        self.outgoing.extend_from_slice(data);
        self.stream.write_all(&self.outgoing)?;
        let mut status = [0];
        self.receive(&mut [], &mut status, received)?;
        verdict(status)
    }

    /// Bytes that come unasked would be taken for the answer to the next request.
    fn expect_silence(&mut self) -> Result<(), Failure> {
        if !self.stream.readable(Duration::ZERO)? {
            return Ok(());
        }
        match self.stream.read(&mut [0])? {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            _ => Err(Failure::OutOfStep("bytes came that were not asked for".to_owned())),
        }
    }

    /// Receives some bytes behind the `received` ones, into `buf` and then `tail`.
    fn receive(&mut self, buf: &mut [u8], tail: &mut [u8], received: &mut usize) -> io::Result<()> {
        let in_tail = received.saturating_sub(buf.len());
        let buf = buf.get_mut(*received..).unwrap_or_default();
        let tail = tail.get_mut(in_tail..).unwrap_or_default();
        let room = buf.len().saturating_add(tail.len());
        let count = loop {
            let result = match buf.is_empty() {
                true => self.stream.read(tail),
                false => self.stream.read_vectored(&mut [IoSliceMut::new(buf), IoSliceMut::new(tail)]),
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        *received = received.saturating_add(count.min(room));
        Ok(())
    }

    /// The answers that a fence must get. Guest memory must not be able to foretell them.
    fn pattern(&mut self) -> [u8; FENCE] {
        let mut pattern = [1; FENCE];
        while pattern.iter().filter(|answer| **answer == 0).count() < FENCE_ZEROS {
            self.fences = self.fences.wrapping_add(1);
            let bits = self.random.hash_one(self.fences);
            // Each byte of the hash names a place.
            for byte in bits.to_le_bytes() {
                let zeros = pattern.iter().filter(|answer| **answer == 0).count();
                if let Some(answer) = pattern.get_mut(usize::from(byte) % FENCE).filter(|_| zeros < FENCE_ZEROS) {
                    *answer = 0;
                }
            }
        }
        pattern
    }
}

impl<S: Stream> Drop for Session<S> {
    /// Tells the server to end. Nothing can be done if it does not listen.
    fn drop(&mut self) {
        self.stream.begin(Duration::ZERO);
        let _ = self.stream.write(&request(QUIT, PhysAddr::new(0), 0));
    }
}

fn verdict([status]: [u8; 1]) -> Result<Answer, Failure> {
    match status {
        1 => Ok(Answer::Granted),
        0 => Ok(Answer::Refused),
        other => Err(Failure::OutOfStep(format!("the status byte is {other:#04x}, neither 0 nor 1"))),
    }
}

fn request(kind: u64, at: PhysAddr, len: usize) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    let numbers = [kind, at.get(), len as u64];
    for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

fn check_range(at: PhysAddr, len: usize) -> Result<(), PmemError> {
    let last = (len as u64).saturating_sub(1);
    at.get().checked_add(last).map(|_| ()).ok_or(PmemError::OutOfRange { at, len })
}

/// `check_range` has proved that this stays in range.
fn advance(at: PhysAddr, bytes: usize) -> PhysAddr {
    PhysAddr::new(at.get().wrapping_add(bytes as u64))
}

/// Bytes from `at` to the end of its page.
fn to_page_end(at: PhysAddr) -> usize {
    let within = at.get() % PAGE;
    usize::try_from(PAGE.saturating_sub(within)).unwrap_or(usize::MAX)
}
