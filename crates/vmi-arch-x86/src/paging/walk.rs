//! The page walk, bare or with every entry on the way.

use core::fmt;

use vmi_core::{Error, ErrorKind, Fault, FaultKind, Memory, PhysAddr, Result, Translation, VirtAddr};
use zerocopy::{FromBytes, IntoBytes};

use super::PageTableEntry;
use super::PagingMode;
use super::level::{Level, Rights, Target};

/// Walks the tables at `root` to `at`. `visit` sees the level, place and value of each entry that could be read, before it is
/// judged.
#[inline(always)]
pub(super) fn walk<M>(
    mode: PagingMode,
    memory: &M,
    root: PhysAddr,
    at: VirtAddr,
    visit: impl FnMut(&'static Level, PhysAddr, u64),
) -> Result<Translation>
where
    M: Memory<Addr = PhysAddr> + ?Sized,
{
    match mode {
        PagingMode::Bits32 => walk_entries::<M, u32>(mode, memory, root, at, visit),
        _ => walk_entries::<M, u64>(mode, memory, root, at, visit),
    }
}

/// The walk over entries that are an `E` each.
#[inline(always)]
fn walk_entries<M, E>(
    mode: PagingMode,
    memory: &M,
    root: PhysAddr,
    at: VirtAddr,
    mut visit: impl FnMut(&'static Level, PhysAddr, u64),
) -> Result<Translation>
where
    M: Memory<Addr = PhysAddr> + ?Sized,
    E: FromBytes + IntoBytes + Into<u64>,
{
    let mut level = mode.top();
    let mut table = mode.top_table(root);
    let mut rights = Rights::ALL;
    if !mode.is_canonical(at) {
        return Err(fault(root, at, level, table, 0, FaultKind::NotCanonical));
    }
    loop {
        let entry_at = level.entry_at(table, at.get());
        let mut entry = E::new_zeroed();
        if let Err(error) = memory.read_into(entry_at, entry.as_mut_bytes()) {
            return Err(unreadable(error, root, at, level, entry_at));
        }
        let entry = entry.into();
        visit(level, entry_at, entry);
        rights = rights.through(level, entry);
        match level.decode(entry) {
            Ok(Target::Table(next, below)) => (table, level) = (memory.resolve_frame(next), below),
            Ok(Target::Page(page)) => {
                let page = memory.resolve_frame(page);
                let at = PhysAddr::new(page.get() | at.get() & level.offset_mask());
                return Ok(Translation { at, page_shift: level.shift, access: rights.access() });
            }
            Err(kind) => return Err(fault(root, at, level, entry_at, entry, kind)),
        }
    }
}

#[cold]
pub(super) fn fault(root: PhysAddr, at: VirtAddr, level: &Level, entry_at: PhysAddr, entry: u64, kind: FaultKind) -> Error {
    Fault { at, root, level: level.number, entry_at, entry, kind }.into()
}

/// What it means that an entry cannot be read. Where there is no memory there is no table; a source that fails for another reason
/// says nothing about the page tables.
#[cold]
pub(super) fn unreadable(error: Error, root: PhysAddr, at: VirtAddr, level: &Level, entry_at: PhysAddr) -> Error {
    if error.is_absent() { fault(root, at, level, entry_at, 0, FaultKind::NoTable) } else { error }
}

/// Entries on the longest way to a page: 5-level paging.
const MAX_ENTRIES: usize = 5;

/// A page walk with all entries that it used, from [`PagingMode::walk`].
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    entries: [Option<PageTableEntry>; MAX_ENTRIES],
    outcome: Result<Translation, Fault>,
}

impl Walk {
    /// The entries that were read, from the top down. The last one ended the walk, unless the next could not be read
    /// ([`FaultKind::NoTable`]). None were read for an address that is not canonical.
    pub fn entries(&self) -> impl Iterator<Item = PageTableEntry> + '_ {
        self.entries.iter().flatten().copied()
    }

    /// The entry that maps the page; `None` if the walk ended in a fault.
    pub fn leaf(&self) -> Option<PageTableEntry> {
        self.outcome.ok().and_then(|_| self.entries().last())
    }

    /// Where the address lies, or why nowhere.
    ///
    /// # Errors
    /// The fault that ended the walk.
    pub fn translation(&self) -> Result<Translation, Fault> {
        self.outcome
    }
}

/// A line for each entry, then the outcome.
impl fmt::Display for Walk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for entry in self.entries() {
            writeln!(f, "{entry}")?;
        }
        match self.outcome {
            Ok(to) => write!(f, "{} in a page of {} bytes, {}", to.at, to.page_size(), to.access),
            Err(fault) => write!(f, "{fault}"),
        }
    }
}

impl PagingMode {
    /// Translates `at` as [`Paging::translate`](vmi_core::Paging::translate) does and keeps every entry on the way. That an address
    /// is not mapped is an answer here, not an error: see [`Walk::translation`].
    ///
    /// ```
    /// use vmi_arch_x86::{PagingMode, X86};
    /// use vmi_core::{PhysAddr, VirtAddr, Vmi, synthetic::SyntheticDriver};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // A page directory at 0x1000, whose entry 1 maps 4 MiB at 0xc00000: large, writable and present.
    /// let mut directory = vec![0; 4096];
    /// directory[4..8].copy_from_slice(&0x00c0_0083u32.to_le_bytes());
    /// let vmi = Vmi::new(SyntheticDriver::<X86>::with_arch([(PhysAddr::new(0x1000), directory)]));
    ///
    /// let walk = PagingMode::Bits32.walk(&vmi, PhysAddr::new(0x1000), VirtAddr::new(0x0040_1234))?;
    /// assert_eq!(walk.translation()?.at, PhysAddr::new(0x00c0_1234));
    /// assert_eq!(walk.leaf().map(|entry| (entry.level, entry.value)), Some((2, 0x00c0_0083)));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Failures of the source of the memory, except that it has no memory where a table should be.
    pub fn walk<M>(self, memory: &M, root: PhysAddr, at: VirtAddr) -> Result<Walk>
    where
        M: Memory<Addr = PhysAddr> + ?Sized,
    {
        let mut entries = [None; MAX_ENTRIES];
        let mut free = entries.iter_mut();
        let end = walk(self, memory, root, at, |level, at, value| {
            if let Some(slot) = free.next() {
                *slot = Some(PageTableEntry { mode: self, level: level.number, at, value });
            }
        });
        let outcome = match end {
            Ok(translation) => Ok(translation),
            Err(error) => match error.kind() {
                ErrorKind::Fault(fault) => Err(*fault),
                _ => return Err(error),
            },
        };
        Ok(Walk { entries, outcome })
    }
}
