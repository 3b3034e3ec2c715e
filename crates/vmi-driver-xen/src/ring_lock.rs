//! Who has the event ring of a domain: the lock of a file, which the kernel takes back when its holder dies.
//!
//! The file says what its holder has left in the domain, so that the next one can take it away: that the ring is on, and which bytes are breakpoints.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use vmi_core::PhysAddr;

/// The first line of the file while a ring is on.
const RING: &str = "ring";
/// How often the lock is asked for, and how long to wait in between.
const ATTEMPTS: u32 = 20;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(50);
/// More than any set of breakpoints takes.
const LONGEST: u64 = 1 << 20;

/// Why the lock was not had.
#[derive(Debug)]
pub(crate) enum RingLockError {
    /// A program that runs has it.
    Held,
    Io(io::Error),
}

/// The lock of a domain's ring.
#[derive(Debug)]
pub(crate) struct RingLock {
    file: Flock<File>,
    /// What the last holder left.
    left: Option<Vec<(PhysAddr, u8)>>,
}

impl RingLock {
    /// Takes the lock of a domain. Waits a moment for the guardian of a holder that was killed.
    pub(crate) fn take(domain: u32) -> Result<Self, RingLockError> {
        let directory = Path::new("/run");
        let directory = if directory.is_dir() { PathBuf::from(directory) } else { std::env::temp_dir() };
        let path = directory.join(format!("vmi-xen-{domain}.lock"));
        for _ in 0..ATTEMPTS {
            match Self::take_at(&path) {
                Err(RingLockError::Held) => std::thread::sleep(PAUSE),
                other => return other,
            }
        }
        Err(RingLockError::Held)
    }

    /// The file, which is locked as long as it is open anywhere.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn take_at(path: &Path) -> Result<Self, RingLockError> {
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(path);
        let file = open.map_err(RingLockError::Io)?;
        let mut file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
            nix::errno::Errno::EWOULDBLOCK => RingLockError::Held,
            error => RingLockError::Io(error.into()),
        })?;
        let mut text = String::new();
        // What is no text of ours is nothing that was left.
        let read = (&mut *file).take(LONGEST).read_to_string(&mut text);
        let left = read.ok().and_then(|_| parse(&text));
        Ok(Self { file, left })
    }

    /// Whether the last holder ended without giving its ring back.
    pub(crate) fn was_left_behind(&self) -> bool {
        self.left.is_some()
    }

    /// The bytes that the last holder had put breakpoints over, if it ended without taking them away.
    pub(crate) fn left_breakpoints(&self) -> &[(PhysAddr, u8)] {
        self.left.as_deref().unwrap_or_default()
    }

    /// Notes that the ring is on.
    pub(crate) fn note_ring(&mut self) -> io::Result<()> {
        self.note_breakpoints(std::iter::empty())
    }

    /// Notes which bytes are breakpoints now. To be called before they are written, and after they are taken away.
    pub(crate) fn note_breakpoints(&mut self, bytes: impl Iterator<Item = (PhysAddr, u8)>) -> io::Result<()> {
        let text = text(bytes);
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(text.as_bytes())
    }

    /// Notes that nothing is left.
    pub(crate) fn forget_ring(&mut self) {
        _ = self.file.set_len(0);
        _ = self.file.seek(SeekFrom::Start(0));
    }
}

/// What a file says while a ring is on.
pub(crate) fn text(breakpoints: impl Iterator<Item = (PhysAddr, u8)>) -> String {
    let mut text = format!("{RING}\n");
    for (at, byte) in breakpoints {
        text.push_str(&format!("{:x} {byte:x}\n", at.get()));
    }
    text.push_str("end\n");
    text
}

/// What a file says; none if it is not whole.
pub(crate) fn parse(text: &str) -> Option<Vec<(PhysAddr, u8)>> {
    let body = text.strip_prefix(RING)?.strip_prefix('\n')?.strip_suffix("end\n")?;
    let line = |line: &str| {
        let (at, byte) = line.split_once(' ')?;
        Some((PhysAddr::new(u64::from_str_radix(at, 16).ok()?), u8::from_str_radix(byte, 16).ok()?))
    };
    body.lines().map(line).collect()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_is_known_to_the_next_holder() {
        let path = std::env::temp_dir().join(format!("vmi-xen-test-{}.lock", std::process::id()));
        let mut first = RingLock::take_at(&path).unwrap();
        assert!(!first.was_left_behind());
        assert!(matches!(RingLock::take_at(&path), Err(RingLockError::Held)));
        first.note_ring().unwrap();
        first.note_breakpoints([(PhysAddr::new(0x1234), 0x55)].into_iter()).unwrap();
        drop(first);
        let mut second = RingLock::take_at(&path).unwrap();
        assert!(second.was_left_behind());
        assert_eq!(second.left_breakpoints(), [(PhysAddr::new(0x1234), 0x55)]);
        second.forget_ring();
        drop(second);
        assert!(!RingLock::take_at(&path).unwrap().was_left_behind());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_that_is_not_whole_says_nothing() {
        assert_eq!(parse("ring\n12 34\n"), None);
        assert_eq!(parse("ring\n12 345\nend\n"), None);
        assert_eq!(parse("something else\nend\n"), None);
        assert_eq!(parse("ring\nend\n"), Some(vec![]));
    }
}
