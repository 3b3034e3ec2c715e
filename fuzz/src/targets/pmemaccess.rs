//! What stands behind a `pmemaccess` socket.

use std::io::{self, Read, Write};
use std::time::Duration;

use vmi_core::PhysAddr;
use vmi_driver_kvm::pmemaccess::{PmemError, Session, Stream};

use super::head;

/// A server that says what the input says, whatever it is asked.
struct Server<'a> {
    says: &'a [u8],
    /// Bytes that it says at a time.
    piece: usize,
    /// Whether it falls silent at the end, or closes.
    silent: bool,
    /// Whether it pauses between the pieces.
    slow: bool,
}

impl Stream for Server<'_> {
    fn begin(&mut self, _: Duration) {}

    fn readable(&mut self, wait: Duration) -> io::Result<bool> {
        Ok(!wait.is_zero() && !self.slow && !self.says.is_empty())
    }
}

impl Read for Server<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.says.is_empty() && self.silent {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let count = buf.len().min(self.piece).min(self.says.len());
        let (now, later) = self.says.split_at(count);
        buf[..count].copy_from_slice(now);
        self.says = later;
        Ok(count)
    }
}

impl Write for Server<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A read, a write and a read. Accepted if the first read is. Input: address, length, piece, flags, and what the server says.
pub fn pmemaccess(data: &[u8]) -> bool {
    let Some((at, rest)) = head::<8>(data) else { return false };
    let Some((len, rest)) = head::<3>(rest) else { return false };
    let Some(([piece, flags], says)) = head::<2>(rest) else { return false };
    let at = PhysAddr::new(u64::from_le_bytes(at));
    let len = usize::from(len[0]) | usize::from(len[1]) << 8 | usize::from(len[2] & 0xf) << 16;
    let server = Server { says, piece: usize::from(piece).max(1), silent: flags & 1 != 0, slow: flags & 2 != 0 };
    let mut session = Session::new(server, Duration::from_secs(1));
    let mut buf = vec![0; len];
    let first = session.read(at, &mut buf);
    match &first {
        // Nobody can foretell the fence, so what is granted stands in the answer as it is: pieces of a request each, with a status.
        Ok(()) => {
            let mut answer = says;
            for part in buf.chunks(vmi_driver_kvm::pmemaccess::READ_LIMIT) {
                // A request that was refused in the long form and then granted page by page stands there otherwise.
                if !answer.starts_with(part) || answer.get(part.len()) != Some(&1) {
                    assert!(says.contains(&0), "data from nowhere");
                    break;
                }
                answer = &answer[part.len() + 1..];
            }
        }
        Err(error) => {
            assert!(error.done() <= len);
            assert_eq!(error.is_dead(), session.check().is_err());
        }
    }
    let dead = session.check().is_err();
    for result in [session.write(at, &vec![0; len / 2]), session.read(at, &mut buf)] {
        if dead && let Err(error) = result {
            assert!(matches!(error, PmemError::Dead { .. } | PmemError::OutOfRange { .. }), "a dead connection says so");
        } else {
            assert!(!dead || len < 2, "a dead connection serves nobody");
        }
    }
    first.is_ok()
}
