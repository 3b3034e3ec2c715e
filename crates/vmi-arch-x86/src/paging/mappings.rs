//! All that one set of page tables maps.

use core::fmt;
use core::iter::FusedIterator;
use core::ops::{Bound, RangeBounds};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use vmi_core::{Access, Error, ErrorKind, FaultKind, Memory, PhysAddr, Result, VirtAddr};

use super::PagingMode;
use super::level::{Level, Rights, Target};
use super::walk::{fault, unreadable};

/// Tables that are expanded at most, unless [`Mappings::limit`] says otherwise: 4 GiB of page tables, enough for 2 TiB in pages
/// of 4 KiB.
const DEFAULT_LIMIT: usize = 1 << 20;

/// A part of an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Mapped pages.
    Pages(PageRun),
    /// A table that was seen before.
    Repeated(RepeatedTable),
}

/// Pages that follow each other both in the address space and in guest-physical memory, of one size and with the same access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// First virtual address.
    pub at: VirtAddr,
    /// Where it lies in guest-physical memory.
    pub target: PhysAddr,
    /// Length in bytes, never zero.
    pub len: u64,
    /// log2 of the size of the pages: 12, 21, 22 or 30.
    pub page_shift: u8,
    /// What the page tables allow, all levels taken together.
    pub access: Access,
}

impl PageRun {
    /// The last virtual address.
    pub fn last(&self) -> VirtAddr {
        self.at.wrapping_add(self.len.wrapping_sub(1))
    }

    /// Takes `next` in if it continues this run.
    fn extend(&mut self, next: &Self) -> bool {
        let continues = (self.page_shift, self.access) == (next.page_shift, next.access)
            && self.at.checked_add(self.len) == Some(next.at)
            && self.target.checked_add(self.len) == Some(next.target);
        if continues {
            self.len = self.len.saturating_add(next.len);
        }
        continues
    }
}

/// A table that has been expanded before at the same level: behind it lies what lies behind the first occurrence, with
/// [`access`](Self::access) on top of what the entries below allow. [`PagingMode::mappings`] of the range of this one expands it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepeatedTable {
    /// First virtual address that this occurrence covers.
    pub at: VirtAddr,
    /// How many bytes it covers.
    pub len: u64,
    /// First virtual address that the first occurrence covers.
    pub first: VirtAddr,
    /// The table.
    pub table: PhysAddr,
    /// Its level.
    pub level: u8,
    /// What the levels above the table allow here.
    pub access: Access,
}

impl PagingMode {
    /// Everything that the page tables at `root` map in `range`, by ascending virtual address. Runs that reach out of the range are cut.
    ///
    /// Page tables may refer to themselves, as those of Windows do, or to one table many times, as Linux's do for the stacks
    /// of espfix64 (arch/x86/kernel/espfix_64.c: 65,536 aliases of a page); and a hostile guest can build tables whose expansion has no end in practice. So each table is expanded
    /// once for each level that it is used at. Further occurrences are reported as [`Mapping::Repeated`]. Only tables that reach
    /// out of the range, of which each level has two at most, do not count as expanded.
    ///
    /// ```
    /// # use vmi_arch_x86::{PagingMode, X86};
    /// # use vmi_core::{PhysAddr, VirtAddr, Vmi, synthetic::SyntheticDriver};
    /// use vmi_arch_x86::Mapping;
    /// # fn main() -> vmi_core::Result<()> {
    /// # let mut directory = vec![0; 4096];
    /// # directory[4..8].copy_from_slice(&0x00c0_0083u32.to_le_bytes());
    /// # let vmi = Vmi::new(SyntheticDriver::<X86>::with_arch([(PhysAddr::new(0x1000), directory)]));
    /// for mapping in PagingMode::Bits32.mappings(&vmi, PhysAddr::new(0x1000), ..) {
    ///     match mapping? {
    ///         Mapping::Pages(run) => println!("{:#x} {:#x} {} bytes {}", run.at, run.target, run.len, run.access),
    ///         Mapping::Repeated(table) => println!("{:#x} as at {:#x}", table.at, table.first),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// An item is an error where an entry sets reserved bits ([`FaultKind::ReservedBits`]), where a table, the top one included, cannot be
    /// read ([`FaultKind::NoTable`] or what the source reports), and where the limit is reached ([`Mappings::limit`]). The iterator goes on
    /// behind what the entry covers, except at the limit. Of a table that can be read in part, the readable entries are gone
    /// through; the error stands for the rest.
    pub fn mappings<M>(self, memory: &M, root: PhysAddr, range: impl RangeBounds<VirtAddr>) -> Mappings<'_, M>
    where
        M: Memory<Addr = PhysAddr> + ?Sized,
    {
        Mappings {
            mode: self,
            memory,
            root,
            range: self.canonical_bounds(&range),
            started: false,
            tables: Vec::new(),
            expanded: HashMap::new(),
            limit: DEFAULT_LIMIT,
            waiting: None,
        }
    }

    /// The first and the last canonical address in `range`; the last comes before the first if it holds none.
    fn canonical_bounds(self, range: &impl RangeBounds<VirtAddr>) -> Span {
        const EMPTY: Span = Span { first: 1, last: 0 };
        let first = match range.start_bound() {
            Bound::Included(at) => Some(at.get()),
            Bound::Excluded(at) => at.get().checked_add(1),
            Bound::Unbounded => Some(0),
        };
        let last = match range.end_bound() {
            Bound::Included(at) => Some(at.get()),
            Bound::Excluded(at) => at.get().checked_sub(1),
            Bound::Unbounded => Some(u64::MAX),
        };
        let (Some(first), Some(last)) = (first, last) else { return EMPTY };
        let all = self.top().span_mask();
        if !self.is_long() {
            return Span { first, last: last.min(all) };
        }
        // The lower half ends at `low`, the upper half starts at its complement.
        let low = all >> 1;
        Span { first: if first <= low { first } else { first.max(!low) }, last: if last >= !low { last } else { last.min(low) } }
    }
}

/// A range of virtual addresses, both ends included.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Span {
    first: u64,
    last: u64,
}

impl Span {
    /// What both ranges have in common: nothing if the first address lies behind the last.
    fn clip(self, other: Self) -> Self {
        Self { first: self.first.max(other.first), last: self.last.min(other.last) }
    }

    fn is_empty(self) -> bool {
        self.first > self.last
    }

    /// Length in bytes of a range that is shorter than the whole 64-bit range.
    fn len(self) -> u64 {
        self.last.wrapping_sub(self.first).wrapping_add(1)
    }
}

/// A table that is being gone through.
struct Table {
    level: &'static Level,
    at: PhysAddr,
    /// First virtual address that it covers.
    base: u64,
    /// What the levels above allow.
    rights: Rights,
    /// Indices of the next entry and of the last one in range.
    next: u64,
    last: u64,
    /// What of it could be read, and why no more.
    bytes: Vec<u8>,
    error: Option<Error>,
}

impl Table {
    /// The value of an entry; `None` if it could not be read.
    fn entry(&self, index: u64) -> Option<u64> {
        let size = self.level.entry_size();
        let bytes = self.bytes.get(usize::try_from(index).ok()?.checked_mul(size)?..)?;
        match size {
            4 => bytes.first_chunk().map(|entry| u64::from(u32::from_le_bytes(*entry))),
            _ => bytes.first_chunk().map(|entry| u64::from_le_bytes(*entry)),
        }
    }
}

/// The mappings of an address space, from [`PagingMode::mappings`].
pub struct Mappings<'m, M: ?Sized> {
    mode: PagingMode,
    memory: &'m M,
    root: PhysAddr,
    range: Span,
    started: bool,
    /// The tables on the way to the next entry.
    tables: Vec<Table>,
    /// The tables that were expanded in full, each at one level, and the first virtual address that they covered then.
    expanded: HashMap<(PhysAddr, u8), VirtAddr>,
    limit: usize,
    /// What ended the last run.
    waiting: Option<Result<Mapping>>,
}

impl<M> Mappings<'_, M>
where
    M: Memory<Addr = PhysAddr> + ?Sized,
{
    /// Expands at most `tables` tables, then ends with [`ErrorKind::Limit`]. A table that is used at several levels counts for each;
    /// those that reach out of the range do not count. The default is 1,048,576: what maps 2 TiB in pages of 4 KiB.
    #[must_use]
    pub fn limit(mut self, tables: usize) -> Self {
        self.limit = tables;
        self
    }

    /// Goes on with the entries of a table that covers `covers`, or returns what is to be said instead.
    fn expand(&mut self, level: &'static Level, at: PhysAddr, covers: Span, rights: Rights) -> Option<Result<Mapping>> {
        let wanted = covers.clip(self.range);
        if wanted.is_empty() {
            return None;
        }
        if wanted == covers {
            let count = self.expanded.len();
            match self.expanded.entry((at, level.number)) {
                Entry::Occupied(seen) => {
                    return Some(Ok(Mapping::Repeated(RepeatedTable {
                        at: VirtAddr::new(covers.first),
                        len: covers.len(),
                        first: *seen.get(),
                        table: at,
                        level: level.number,
                        access: rights.access(),
                    })));
                }
                Entry::Vacant(_) if count >= self.limit => {
                    self.tables.clear();
                    let what = format!("the set of page tables at {}", self.root);
                    return Some(Err(ErrorKind::Limit { what, limit: self.limit }.into()));
                }
                Entry::Vacant(new) => _ = new.insert(VirtAddr::new(covers.first)),
            }
        }
        let mut bytes = vec![0; level.table_size()];
        let error = self.memory.read_into(at, &mut bytes).err();
        if let Some(error) = &error {
            bytes.truncate(error.done());
        }
        let (next, last) = (level.index(wanted.first), level.index(wanted.last));
        self.tables.push(Table { level, at, base: covers.first, rights, next, last, bytes, error });
        None
    }

    /// The next page, repeated table or error.
    fn step(&mut self) -> Option<Result<Mapping>> {
        if !self.started {
            self.started = true;
            let all = Span { first: 0, last: u64::MAX };
            if let Some(item) = self.expand(self.mode.top(), self.mode.top_table(self.root), all, Rights::ALL) {
                return Some(item);
            }
        }
        loop {
            let table = self.tables.last_mut()?;
            let (level, index) = (table.level, table.next);
            if index > table.last {
                self.tables.pop();
                continue;
            }
            table.next = index.saturating_add(1);
            let first = self.mode.canonical(table.base | index.wrapping_shl(u32::from(level.shift)));
            let at = VirtAddr::new(first);
            let entry_at = level.entry_at(table.at, first);
            let Some(entry) = table.entry(index) else {
                let error = table.error.take().unwrap_or_else(|| Error::hole(entry_at));
                self.tables.pop();
                return Some(Err(unreadable(error, self.root, at, level, entry_at)));
            };
            let rights = table.rights.through(level, entry);
            let covers = Span { first, last: first | level.offset_mask() };
            match level.decode(entry) {
                Err(FaultKind::NotPresent) => {}
                Err(kind) => return Some(Err(fault(self.root, at, level, entry_at, entry, kind))),
                Ok(Target::Page(target)) => {
                    let target = self.memory.resolve_frame(target);
                    let part = covers.clip(self.range);
                    return Some(Ok(Mapping::Pages(PageRun {
                        at: VirtAddr::new(part.first),
                        target: target.wrapping_add(part.first.wrapping_sub(first)),
                        len: part.len(),
                        page_shift: level.shift,
                        access: rights.access(),
                    })));
                }
                Ok(Target::Table(next, below)) => {
                    let next = self.memory.resolve_frame(next);
                    if let Some(item) = self.expand(below, next, covers, rights) {
                        return Some(item);
                    }
                }
            }
        }
    }
}

impl<M> Iterator for Mappings<'_, M>
where
    M: Memory<Addr = PhysAddr> + ?Sized,
{
    type Item = Result<Mapping>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut run = match self.waiting.take().or_else(|| self.step())? {
            Ok(Mapping::Pages(run)) => run,
            other => return Some(other),
        };
        while let Some(item) = self.step() {
            match item {
                Ok(Mapping::Pages(next)) if run.extend(&next) => {}
                other => {
                    self.waiting = Some(other);
                    break;
                }
            }
        }
        Some(Ok(Mapping::Pages(run)))
    }
}

impl<M> FusedIterator for Mappings<'_, M> where M: Memory<Addr = PhysAddr> + ?Sized {}

impl<M: ?Sized> fmt::Debug for Mappings<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mappings").field("mode", &self.mode).field("root", &self.root).finish_non_exhaustive()
    }
}
