//! Who has the event ring of a domain: the lock of a file, which the kernel takes back when its holder dies.
//!
//! The file says what its holder has left in the domain, so that the next one can take it away: that the ring is on, which bytes are breakpoints, and which pages are
//! watched. Its last whole text counts: a new one is written behind it, or before it where there is room, and never over it, so that a holder that is killed while it writes leaves
//! one.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use vmi_core::PhysAddr;

/// The first line of the file while a ring is on.
const RING: &str = "ring";
/// How often the lock is asked for, and how long to wait in between.
const ATTEMPTS: u32 = 20;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(50);
/// What ends a text.
const END: &str = "end\n";
/// More than the texts of any set of breakpoints take.
const LONGEST: u64 = 4 << 20;

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
    /// Where in the file the text is that counts.
    text: Range<u64>,
    /// What the last holder left.
    left: Option<Left>,
}

/// What a session has changed in a domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Left {
    /// The bytes that are breakpoints, and what was there.
    pub(crate) breakpoints: Vec<(PhysAddr, u8)>,
    /// The pages that are watched: the first frame of each range, and how many.
    pub(crate) watched: Vec<(u64, u32)>,
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
        let (text, left) = read.ok().and_then(|_| last_whole(&text)).map_or((0..0, None), |(at, left)| (at, Some(left)));
        Ok(Self { file, text, left })
    }

    /// Whether the last holder ended without giving its ring back.
    pub(crate) fn was_left_behind(&self) -> bool {
        self.left.is_some()
    }

    /// What the last holder left, if it ended without taking it away.
    pub(crate) fn left(&self) -> Option<&Left> {
        self.left.as_ref()
    }

    /// Notes that the ring is on. What was left stays noted until it is said to be gone.
    pub(crate) fn note_ring(&mut self) -> io::Result<()> {
        let left = self.left.clone().unwrap_or_default();
        self.note(&left)
    }

    /// Notes that what the last holder left is gone; the ring is on.
    pub(crate) fn forget_left(&mut self) -> io::Result<()> {
        self.left = None;
        self.note_ring()
    }

    /// Notes what is changed in the domain now. To be called before it is changed, and after it is changed back.
    pub(crate) fn note(&mut self, left: &Left) -> io::Result<()> {
        let text = text(left);
        let len = text.len() as u64;
        let start = if len <= self.text.start { 0 } else { self.text.end };
        self.file.write_all_at(text.as_bytes(), start)?;
        self.text = start..start.saturating_add(len);
        // What is behind it is the text before, or what somebody did not finish.
        self.file.set_len(self.text.end)
    }

    /// Notes that nothing is left.
    pub(crate) fn forget_ring(&mut self) {
        _ = self.file.set_len(0);
        self.text = 0..0;
    }
}

/// What a file says while a ring is on.
pub(crate) fn text(left: &Left) -> String {
    let mut text = format!("{RING}\n");
    for (at, byte) in &left.breakpoints {
        text.push_str(&format!("b {:x} {byte:x}\n", at.get()));
    }
    for (first, count) in &left.watched {
        text.push_str(&format!("w {first:x} {count:x}\n"));
    }
    text.push_str(END);
    text
}

/// The last text of a file that is whole: where it is, and what it says. In no text are the words of its beginning and its end.
pub(crate) fn last_whole(file: &str) -> Option<(Range<u64>, Left)> {
    let mut at = 0u64;
    let texts = file.split_inclusive(END).filter_map(|part| {
        let behind = at.saturating_add(part.len() as u64);
        at = behind;
        let text = part.get(part.rfind(RING)?..)?;
        parse(text).map(|left| (behind.saturating_sub(text.len() as u64)..behind, left))
    });
    texts.last()
}

/// What a file says; none if it is not whole.
pub(crate) fn parse(text: &str) -> Option<Left> {
    let body = text.strip_prefix(RING)?.strip_prefix('\n')?.strip_suffix(END)?;
    let mut left = Left::default();
    for line in body.lines() {
        let (kind, rest) = line.split_once(' ')?;
        let (at, what) = rest.split_once(' ')?;
        let at = u64::from_str_radix(at, 16).ok()?;
        match kind {
            "b" => left.breakpoints.push((PhysAddr::new(at), u8::from_str_radix(what, 16).ok()?)),
            "w" => left.watched.push((at, u32::from_str_radix(what, 16).ok()?)),
            _ => return None,
        }
    }
    Some(left)
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
        let left = Left { breakpoints: vec![(PhysAddr::new(0x1234), 0x55)], watched: vec![(0x77, 2)] };
        first.note(&left).unwrap();
        drop(first);
        let mut second = RingLock::take_at(&path).unwrap();
        assert_eq!(second.left(), Some(&left));
        second.note_ring().unwrap();
        drop(second);
        // The second one was killed before it took them away.
        let mut third = RingLock::take_at(&path).unwrap();
        assert_eq!(third.left(), Some(&left));
        third.forget_left().unwrap();
        drop(third);
        let mut fourth = RingLock::take_at(&path).unwrap();
        assert_eq!(fourth.left(), Some(&Left::default()));
        fourth.forget_ring();
        drop(fourth);
        assert!(!RingLock::take_at(&path).unwrap().was_left_behind());
        std::fs::remove_file(path).unwrap();
    }

    /// A holder that is killed at any byte of what it writes leaves what it noted before, or what it was about to note.
    #[test]
    fn what_counts_is_there_at_every_moment() {
        let path = std::env::temp_dir().join(format!("vmi-xen-test-moments-{}.lock", std::process::id()));
        let lefts: Vec<Left> = [3, 0, 1, 7, 0, 0, 2, 9]
            .map(|count| Left {
                breakpoints: (0..count).map(|at| (PhysAddr::new(0x1000 + at), at as u8)).collect(),
                watched: Vec::new(),
            })
            .into();
        let mut lock = RingLock::take_at(&path).unwrap();
        let mut before = None;
        for left in &lefts {
            let (old, at) = (std::fs::read(&path).unwrap(), lock.text.clone());
            lock.note(left).unwrap();
            let new = std::fs::read(&path).unwrap();
            assert_eq!(lock.text.end, new.len() as u64);
            let written = new.get(lock.text.start as usize..).unwrap();
            for count in 0..=written.len() {
                let mut cut = old.clone();
                cut.resize(cut.len().max(lock.text.start as usize + count), 0);
                cut[lock.text.start as usize..][..count].copy_from_slice(&written[..count]);
                let found = last_whole(std::str::from_utf8(&cut).unwrap()).map(|(_, left)| left);
                assert!(
                    found == before || found.as_ref() == Some(left),
                    "{count} bytes at {:?} beside {at:?}: {found:?}",
                    lock.text
                );
            }
            assert!(new.len() < 500, "the file does not grow");
            before = Some(left.clone());
        }
        drop(lock);
        assert_eq!(RingLock::take_at(&path).unwrap().left(), lefts.last());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_that_is_not_whole_says_nothing() {
        assert_eq!(parse("ring\nb 12 34\n"), None);
        assert_eq!(parse("ring\nb 12 345\nend\n"), None);
        assert_eq!(parse("ring\n12 34\nend\n"), None);
        assert_eq!(parse("something else\nend\n"), None);
        assert_eq!(parse("ring\nend\n"), Some(Left::default()));
    }
}
