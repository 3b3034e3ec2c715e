//! The shell of a guest's process 1, on a serial line.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Process 1 obeys line by line.
#[derive(Debug)]
pub(crate) struct Shell {
    stream: UnixStream,
    nonces: AtomicU64,
}

impl Shell {
    pub(crate) fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { stream, nonces: AtomicU64::new(u64::from(std::process::id()) << 32) }
    }

    /// What the line prints on both outputs, without the last line feed. Process 1 forks only where the line makes it.
    ///
    /// # Errors
    /// `TimedOut` if the guest has not run the line after so long, as when it is paused; what it answers later is passed over.
    pub(crate) fn run(&mut self, line: &str, patience: Duration) -> io::Result<String> {
        let nonce = self.nonces.fetch_add(1, Ordering::Relaxed);
        let (start, end) = (format!("@@begin {nonce:x}\n"), format!("\n@@end {nonce:x}\n"));
        self.stream.set_write_timeout(Some(patience))?;
        self.stream.write_all(format!("echo '{}'\n{line}\necho; echo '{}'\n", start.trim(), end.trim()).as_bytes())?;
        let deadline = Instant::now() + patience;
        let mut got = Vec::new();
        while !got.ends_with(end.as_bytes()) {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut block = [0; 1 << 12];
            self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match self.stream.read(&mut block) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => got.extend(&block[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && left.is_zero() => {
                    let got = String::from_utf8_lossy(&got).into_owned();
                    return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{line}: no end after {patience:?}: {got}")));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        let got = String::from_utf8_lossy(&got).into_owned();
        let (_, output) = got.split_once(&start).ok_or(io::ErrorKind::InvalidData)?;
        Ok(output.strip_suffix(&end).unwrap_or_default().trim_end_matches('\n').to_owned())
    }
}
