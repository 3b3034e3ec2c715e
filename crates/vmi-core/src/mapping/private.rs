//! Memory of this process alone, in huge pages where the host has them: parts that were never written take no memory.

use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::PoisonError;

use memmap2::{Advice, MmapMut, UncheckedAdvice};
use nix::errno::Errno;

/// The unit in which the host sets memory aside: a huge page of x86-64. Elsewhere it is a unit as good as any.
pub(crate) const BLOCK: usize = 2 << 20;

/// Blocks that are granted after one look at the host's free memory.
const GRANT: u64 = 32;

/// What is left to the host, in bytes: without it the kernel would end the largest process, which may be the guest's.
const RESERVE: u64 = 128 << 20;

/// Zeroed memory, mapped anonymously and privately.
#[derive(Debug)]
pub(crate) struct PrivateMemory {
    map: MmapMut,
    /// Where the first whole block of `map` starts.
    skip: usize,
    len: usize,
}

impl PrivateMemory {
    /// `len` zero bytes from the start of a block. The host sets memory aside by and by: see [`Budget::populate`].
    pub(crate) fn new(len: u64) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(|_| Errno::ENOMEM)?;
        let size = len.checked_add(BLOCK).ok_or(Errno::ENOMEM)?;
        // Without the reservation a host that does not overcommit refuses what is never used.
        let map = memmap2::MmapOptions::new().len(size).no_reserve_swap().map_anon()?;
        let skip = map.as_ptr().align_offset(BLOCK);
        // Best effort: without huge pages it takes longer, and guest memory holds secrets that do not belong into a core dump.
        let _ = map.advise(Advice::HugePage);
        let _ = map.advise(Advice::DontDump);
        // A child of this process would otherwise hold the memory, and each later write here would have to copy a page first.
        map.advise(Advice::DontFork)?;
        Ok(Self { map, skip, len })
    }

    /// All bytes.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let end = self.skip.saturating_add(self.len);
        self.map.get_mut(self.skip..end).unwrap_or_default()
    }

    /// Gives the memory behind whole pages back to the host: they read as zero from now on.
    pub(crate) fn discard(&mut self, range: Range<usize>) -> io::Result<()> {
        let (start, end) = (self.skip.checked_add(range.start), self.skip.checked_add(range.end.min(self.len)));
        let whole = |at: usize| at.is_multiple_of(crate::PAGE_SIZE as usize);
        let pages = whole(range.start) && (whole(range.end) || range.end >= self.len);
        let (start, end) = start.zip(end).filter(|(start, end)| start <= end && pages).ok_or(Errno::EINVAL)?;
        // SAFETY: the range lies within the mapping and is of whole pages. The mapping is private and anonymous, and the exclusive borrow says
        // that nobody holds a slice of it: its pages may become zero.
        unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end.saturating_sub(start)) }
    }
}

impl AsRef<[u8]> for PrivateMemory {
    fn as_ref(&self) -> &[u8] {
        self.map.get(self.skip..self.skip.saturating_add(self.len)).unwrap_or_default()
    }
}

/// Sets memory of the host aside, as long as the host has enough.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// Blocks that may still be used before the host is asked again.
    granted: Mutex<u64>,
}

impl Budget {
    /// Makes the host set memory aside for `part`, at most a block, which changes no byte.
    ///
    /// # Errors
    /// `ENOMEM` if the host would have next to nothing left.
    pub(crate) fn populate(&self, part: &mut [u8]) -> io::Result<()> {
        {
            let mut granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
            if *granted == 0 {
                let needed = GRANT.saturating_mul(BLOCK as u64).saturating_add(RESERVE);
                if available().is_some_and(|available| available < needed) {
                    return Err(Errno::ENOMEM.into());
                }
                *granted = GRANT;
            }
            *granted = granted.saturating_sub(1);
        }
        // SAFETY: populating pages for writing changes no byte of them (madvise(2), MADV_POPULATE_WRITE), and the part is borrowed exclusively.
        // The kernel refuses what is not aligned to pages.
        let populated = unsafe { nix::libc::madvise(part.as_mut_ptr().cast(), part.len(), nix::libc::MADV_POPULATE_WRITE) };
        match Errno::result(populated) {
            // Kernels before 5.14 do not know it: the pages come with the first write to each.
            Ok(_) | Err(Errno::EINVAL) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// What the host can give without swapping (proc_meminfo(5), MemAvailable), in bytes; `None` if it does not say.
fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn populated_and_discarded_memory_is_zero() {
        let mut memory = PrivateMemory::new(3 * BLOCK as u64).unwrap();
        let budget = Budget::default();
        assert_eq!(memory.as_ref().as_ptr().align_offset(BLOCK), 0);
        let (_, block) = memory.bytes_mut().split_at_mut(BLOCK);
        budget.populate(&mut block[..BLOCK]).unwrap();
        assert!(block.iter().all(|&byte| byte == 0));
        block[..8192].fill(7);
        memory.discard(BLOCK..BLOCK + 4096).unwrap();
        assert!(memory.as_ref()[BLOCK..BLOCK + 4096].iter().all(|&byte| byte == 0));
        assert!(memory.as_ref()[BLOCK + 4096..BLOCK + 8192].iter().all(|&byte| byte == 7));
        assert!(memory.discard(4 * BLOCK..usize::MAX).is_err());
        assert!(memory.discard(BLOCK + 1..BLOCK + 4096).is_err() && memory.discard(BLOCK..BLOCK + 1).is_err());
        assert_eq!(memory.as_ref().len(), 3 * BLOCK);
    }

    #[test]
    fn the_host_tells_what_it_has() {
        assert!(available().is_none_or(|bytes| bytes > 1 << 20));
    }
}
