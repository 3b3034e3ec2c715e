//! Tables of handles: `_HANDLE_TABLE`, of each process and of the kernel.

use core::fmt;

use rustc_hash::FxHashSet;
use vmi_arch_x86::{PagingMode, X86Driver};
use vmi_core::{Error, ErrorKind, PAGE_SIZE, Result, VirtAddr};

use crate::Windows;
use crate::registry::bytes::{u32_at, u64_at};

/// A handle is a number below 2^26, in steps of 4: a process has at most 16,777,216 of them.
const MAX_ENTRIES: u64 = 1 << 24;
/// The first build of Windows 8.1. The pointers of Windows 8 begin three bits higher.
const FIRST_SHORT: u32 = 9400;
/// Access rights in an entry: 25 bits of its word.
const ACCESS: u32 = 0x01ff_ffff;
/// Where entries of the older format keep `OBJ_PROTECT_CLOSE`: beside the rights, as the pointer's lowest bit is the entry's lock.
const PROTECTED: u32 = 0x0200_0000;

/// How the entries of a guest's tables hold the pointer to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryFormat {
    /// Until Windows 7, and on 32-bit kernels since: a pointer with flags in its three lowest bits, of so many bytes.
    Pointer(u8),
    /// On 64-bit kernels since Windows 8: all bits from this one on are the pointer without its four lowest bits.
    Bits(u32),
}

/// An open handle, as its entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HandleEntry {
    /// The value of the handle.
    pub handle: u64,
    /// What the entry points to: the object's header in the tables of processes, its body in the table of process and thread ids.
    pub pointer: VirtAddr,
    /// The access that was granted (`ACCESS_MASK`).
    pub granted_access: u32,
    /// Flags of the handle, as in `OBJECT_ATTRIBUTES`: 1 protected from being closed (`OBJ_PROTECT_CLOSE`), 2 inherited by new processes
    /// (`OBJ_INHERIT`), 4 audited when closed.
    pub attributes: u32,
}

impl EntryFormat {
    /// Bytes of an entry.
    pub fn entry_size(self) -> usize {
        match self {
            Self::Pointer(4) => 8,
            _ => 16,
        }
    }

    /// How many entries a page holds.
    fn entries_per_page(self) -> u64 {
        if self.entry_size() == 8 { PAGE_SIZE / 8 } else { PAGE_SIZE / 16 }
    }

    /// What the entry at the start of `bytes` says, as the handle `handle`; `None` if it is free or `bytes` are too short.
    pub fn entry(self, handle: u64, bytes: &[u8]) -> Option<HandleEntry> {
        let bytes = bytes.get(..self.entry_size())?;
        let wide = bytes.len() == 16;
        let low = if wide { u64_at(bytes, 0)? } else { u64::from(u32_at(bytes, 0)?) };
        let access = u32_at(bytes, if wide { 8 } else { 4 })?;
        let (pointer, attributes) = match self {
            Self::Pointer(_) => (low & !7, low & 6 | u64::from(access & PROTECTED != 0)),
            Self::Bits(lowest) => {
                let bits = low.cast_signed().checked_shr(lowest)?.checked_shl(4)?;
                (bits.cast_unsigned(), low.checked_shr(lowest.saturating_sub(3))? & 7)
            }
        };
        let attributes = u32::try_from(attributes).unwrap_or(0);
        let entry = HandleEntry { handle, pointer: VirtAddr::new(pointer), granted_access: access & ACCESS, attributes };
        (pointer != 0).then_some(entry)
    }
}

/// A table of handles.
pub struct HandleTable<'l, 'v, D: X86Driver> {
    windows: &'l Windows<'v, D>,
    at: VirtAddr,
    format: EntryFormat,
}

impl<D: X86Driver> Clone for HandleTable<'_, '_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: X86Driver> Copy for HandleTable<'_, '_, D> {}

impl<D: X86Driver> fmt::Debug for HandleTable<'_, '_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandleTable").field("at", &self.at).field("format", &self.format).finish_non_exhaustive()
    }
}

impl<'v, D: X86Driver> Windows<'v, D> {
    /// The table of handles whose `_HANDLE_TABLE` is at `at`.
    ///
    /// # Errors
    /// [`ErrorKind::NoType`] if the guest's types do not describe its entries.
    pub fn handle_table_at(&self, at: VirtAddr) -> Result<HandleTable<'_, 'v, D>> {
        Ok(HandleTable { windows: self, at, format: self.entry_format()? })
    }

    /// The table of the process whose `_EPROCESS` is at `process`; `None` if it has none: it has ended, or is being made.
    ///
    /// # Errors
    /// As [`Windows::handle_table_at`] and [`Memory::read_into`](vmi_core::Memory::read_into).
    pub fn handle_table_of(&self, process: VirtAddr) -> Result<Option<HandleTable<'_, 'v, D>>> {
        let table = self.pointer_or_null(process, self.layout.process.handles)?;
        table.map(|table| self.handle_table_at(table)).transpose()
    }

    /// The table of all processes and threads, whose handles are their ids: `PspCidTable`. Its entries point to bodies of objects.
    ///
    /// # Errors
    /// As [`Windows::handle_table_at`] and [`Memory::read_into`](vmi_core::Memory::read_into); [`ErrorKind::NoSymbol`] if the guest's profile does not have `PspCidTable`.
    pub fn id_table(&self) -> Result<HandleTable<'_, 'v, D>> {
        let at = self.pointer_at(self.symbol("PspCidTable")?)?;
        self.handle_table_at(at)
    }

    /// How many pointers a page holds.
    fn pointers_per_page(&self) -> u64 {
        if self.pointer_size() == 4 { PAGE_SIZE / 4 } else { PAGE_SIZE / 8 }
    }

    /// How this guest's tables hold pointers.
    ///
    /// # Errors
    /// [`ErrorKind::NoType`] if the guest's types do not tell.
    pub fn entry_format(&self) -> Result<EntryFormat> {
        let entry = &self.objects.layout.handle_entry;
        if self.pointer_size() == 4 {
            return Ok(EntryFormat::Pointer(4));
        }
        if entry.object.exists() && !entry.low.exists() {
            return Ok(EntryFormat::Pointer(8));
        }
        // Without either member this is the error.
        entry.low.offset()?;
        let described = self.types().field("_HANDLE_TABLE_ENTRY", "ObjectPointerBits").ok();
        // A bit field is described from the byte on that holds its lowest bit.
        let described = described.and_then(|field| u32::try_from(field.offset.checked_mul(8)?).ok()?.checked_add(field.bits?.0));
        Ok(EntryFormat::Bits(match described {
            Some(lowest) => lowest,
            None if self.space.mode() == PagingMode::Level5 => 11,
            None if self.build().is_some_and(|build| build < FIRST_SHORT) => 23,
            None => 20,
        }))
    }
}

impl<'l, 'v, D: X86Driver> HandleTable<'l, 'v, D> {
    /// Where its `_HANDLE_TABLE` is.
    pub fn address(&self) -> VirtAddr {
        self.at
    }

    /// How its entries are to be read.
    pub fn format(&self) -> EntryFormat {
        self.format
    }

    /// The open handles, in ascending order.
    ///
    /// A part of the table that is not in memory (tables are paged) is an error among the other handles; so is one that is found twice.
    pub fn entries(&self) -> HandleEntries<'l, 'v, D> {
        let mut entries =
            HandleEntries { table: *self, todo: Vec::new(), seen: FxHashSet::default(), page: Vec::new(), next: 0, base: 0 };
        let windows = self.windows;
        let code = windows.pointer(self.at, windows.objects.layout.handle_table.code);
        entries.todo.push(match code {
            // The low bits are the number of levels above the entries.
            Ok(code) => match code.get() & 7 {
                level @ 0..=2 => Todo { level, base: 0, at: Ok(VirtAddr::new(code.get() & !7)) },
                level => {
                    Todo { level: 0, base: 0, at: Err(Error::corrupt(format!("a handle table of {level} levels"), self.at)) }
                }
            },
            Err(error) => Todo { level: 0, base: 0, at: Err(error) },
        });
        entries
    }

    /// The entry of the handle `handle`; `None` if it is not open.
    ///
    /// # Errors
    /// As [`Memory::read_into`](vmi_core::Memory::read_into).
    pub fn entry(&self, handle: u64) -> Result<Option<HandleEntry>> {
        let windows = self.windows;
        let code = windows.pointer(self.at, windows.objects.layout.handle_table.code)?.get();
        let (per_page, pointers) = (self.format.entries_per_page(), windows.pointers_per_page());
        let (mut at, mut index) = (VirtAddr::new(code & !7), handle / 4);
        let mut levels = code & 7;
        if levels > 2 {
            return Err(Error::corrupt(format!("a handle table of {levels} levels"), self.at));
        }
        while levels > 0 {
            let below = if levels == 2 { per_page.wrapping_mul(pointers) } else { per_page };
            let slot = index.checked_div(below).filter(|slot| *slot < pointers);
            let Some(slot) = slot else { return Ok(None) };
            at = windows.pointer_at(at.wrapping_add(slot.wrapping_mul(windows.pointer_size())))?;
            if at.is_null() {
                return Ok(None);
            }
            index = index.checked_rem(below).unwrap_or(0);
            levels = levels.wrapping_sub(1);
        }
        if index >= per_page {
            return Ok(None);
        }
        let size = self.format.entry_size();
        let bytes = windows.bytes_at(at.wrapping_add(index.wrapping_mul(size as u64)), size)?;
        Ok(self.format.entry(handle, &bytes))
    }
}

/// A page of a table: of entries (level 0), or of pointers to pages of the level below.
#[derive(Debug)]
struct Todo {
    level: u64,
    /// The number of its first entry.
    base: u64,
    at: Result<VirtAddr>,
}

/// The open handles of a table; see [`HandleTable::entries`].
#[derive(Debug)]
pub struct HandleEntries<'l, 'v, D: X86Driver> {
    table: HandleTable<'l, 'v, D>,
    /// Pages to come, the next one last.
    todo: Vec<Todo>,
    seen: FxHashSet<VirtAddr>,
    /// The present page, its next entry, and the number of its first one.
    page: Vec<u8>,
    next: usize,
    base: u64,
}

impl<D: X86Driver> HandleEntries<'_, '_, D> {
    /// Reads a page: of entries it becomes the present one, of pointers they become the next to come.
    fn enter(&mut self, todo: Todo) -> Result<()> {
        let windows = self.table.windows;
        let at = todo.at?;
        if todo.base >= MAX_ENTRIES {
            self.todo.clear();
            return Err(ErrorKind::Limit {
                what: "a handle table".to_owned(),
                limit: usize::try_from(MAX_ENTRIES).unwrap_or(usize::MAX),
            }
            .into());
        }
        if !self.seen.insert(at) {
            return Err(Error::corrupt("a page of a handle table is found twice", at));
        }
        let size = usize::try_from(PAGE_SIZE).unwrap_or(0);
        let bytes = windows.bytes_at(at, size)?;
        if todo.level == 0 {
            (self.page, self.next, self.base) = (bytes, 0, todo.base);
            return Ok(());
        }
        let pointer = usize::try_from(windows.pointer_size()).unwrap_or(8);
        let per_page = self.table.format.entries_per_page();
        let below = if todo.level == 2 { per_page.wrapping_mul(windows.pointers_per_page()) } else { per_page };
        let pages = bytes.chunks_exact(pointer).enumerate().map(|(slot, pointer)| {
            let at = u64_at(pointer, 0).or_else(|| u32_at(pointer, 0).map(u64::from)).unwrap_or(0);
            (VirtAddr::new(at), todo.base.saturating_add(below.wrapping_mul(slot as u64)))
        });
        let level = todo.level.wrapping_sub(1);
        self.todo.extend(pages.filter(|(at, _)| !at.is_null()).rev().map(|(at, base)| Todo { level, base, at: Ok(at) }));
        Ok(())
    }
}

impl<D: X86Driver> Iterator for HandleEntries<'_, '_, D> {
    type Item = Result<HandleEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        let size = self.table.format.entry_size();
        loop {
            while let Some(bytes) = self.page.get(self.next.saturating_mul(size)..).filter(|rest| rest.len() >= size) {
                let handle = self.base.saturating_add(self.next as u64).saturating_mul(4);
                let entry = self.table.format.entry(handle, bytes);
                self.next = self.next.saturating_add(1);
                if let Some(entry) = entry {
                    return Some(Ok(entry));
                }
            }
            let todo = self.todo.pop()?;
            if let Err(error) = self.enter(todo) {
                return Some(Err(error));
            }
        }
    }
}
