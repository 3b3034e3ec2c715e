//! The memory of a process as Windows knows it, which is more than the processor finds: pages that were taken away from a process stay in memory for a while,
//! pages that are shared are found by way of entries that all share, and pages that were never touched are zero.
//!
//! What an entry of a page table means whose lowest bit is clear is Windows's own affair: `_MMPTE_SOFTWARE`, `_MMPTE_TRANSITION`, `_MMPTE_PROTOTYPE` and
//! `_MMPTE_SUBSECTION` in the kernel's public symbols. "Windows Internals" (Russinovich and others, chapter "Memory management") and "Windows NT pagefile.sys
//! Virtual Memory Analysis" (Gruhn, 2015) describe them:
//!
//! - bit 10 (prototype): the entry leads to a prototype entry, or, with all address bits set, the descriptor of the area does;
//! - bit 11 (transition): the page is still in memory, in the frame of bits 12 and up;
//! - neither, with an offset: the page is in a page file; with a protection only: a page of zeros will be made at the first access;
//! - zero: the descriptor of the area tells.
//!
//! Kernels since 2018 keep the address bits of such entries out of reach of speculation (the L1 terminal fault): an entry whose bit 4 (`SwizzleBit`) is clear has the
//! bits of a mask set, which is in the state of the memory manager (`InvalidPteMask`).

use core::fmt;

use vmi_arch_x86::{PagingMode, X86Driver};
use vmi_core::{
    Access, Address, AddressSpace, Error, ErrorKind, Fault, FaultKind, KernelField, Memory, PAGE_SIZE, PhysAddr, Result,
    Translation, VirtAddr,
};

use crate::unicode_string::Width;
use crate::{PageProtection, Process, Windows};

const VALID: u64 = 1;
const LARGE: u64 = 1 << 7;
const SWIZZLE: u64 = 1 << 4;
const PROTOTYPE: u64 = 1 << 10;
const TRANSITION: u64 = 1 << 11;
/// The protection of a page that was given back: MM_DECOMMIT.
const DECOMMITTED: u8 = 0x10;
/// The frame of an entry that is present.
const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// A prototype entry is in the kernel's pool, which may be paged itself; its entry is not.
const MAX_NESTING: u8 = 3;
/// Parts of a section: one for each part of a file that was extended, or each section of a program.
const MAX_SUBSECTIONS: usize = 1 << 16;

/// Where a page of virtual memory is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Page {
    /// The processor finds it.
    Present(Translation),
    /// The processor does not find it, but it is in memory: on its way to the disk or back, or shared and not yet in this process's page tables.
    Resident(Translation),
    /// It will be made of zeros at the first access.
    DemandZero,
    /// In a page file.
    PageFile {
        /// The number of the page file; `None` if the types of the kernel do not tell where it is in the entry.
        file: Option<u8>,
        /// The offset in the page file, in bytes; `None` if it is masked in this entry and the mask is not known.
        offset: Option<u64>,
    },
    /// In a mapped file, from where it is read at the first access.
    File {
        /// The path of the file within its volume, if it could be read.
        name: Option<String>,
    },
}

impl Page {
    /// Where it is in physical memory; else the error that says where its contents are.
    fn translation(self, at: VirtAddr) -> Result<Translation> {
        let why = match self {
            Self::Present(translation) | Self::Resident(translation) => return Ok(translation),
            other => other.to_string(),
        };
        Err(ErrorKind::PagedOut { at, why }.into())
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present(_) => f.write_str("present"),
            Self::Resident(_) => f.write_str("in memory, but not in the page tables"),
            Self::DemandZero => f.write_str("demand zero: it will be made at the first access"),
            Self::PageFile { file, offset } => {
                f.write_str("paged out to ")?;
                match file {
                    Some(file) => write!(f, "page file {file}")?,
                    None => f.write_str("a page file")?,
                }
                match offset {
                    Some(offset) => write!(f, " at offset {offset:#x}"),
                    None => f.write_str(" at an offset that is masked; symbols of the kernel would tell the mask"),
                }
            }
            Self::File { name: Some(name) } => write!(f, "it is to be read from the file {name}"),
            Self::File { name: None } => f.write_str("it is to be read from a mapped file"),
        }
    }
}

/// The memory of a process: what the processor finds, and what Windows would give it at the first access.
///
/// Pages that are still in memory are read there, pages that were never touched are zero. What is in a page file or to be read from a mapped file is an error that says
/// so ([`ErrorKind::PagedOut`]).
pub struct ProcessMemory<'w, 'v, D: X86Driver> {
    process: Process<'w, 'v, D>,
    space: AddressSpace<'v, D>,
}

impl<'w, 'v, D: X86Driver> Process<'w, 'v, D> {
    /// Its memory, pages included that the processor does not find.
    ///
    /// # Errors
    /// As [`Process::address_space`].
    pub fn memory(&self) -> Result<ProcessMemory<'w, 'v, D>> {
        Ok(ProcessMemory { process: self.unproven(), space: self.address_space()? })
    }
}

impl<'v, D: X86Driver> ProcessMemory<'_, 'v, D> {
    /// What the processor sees of it.
    pub fn address_space(&self) -> &AddressSpace<'v, D> {
        &self.space
    }

    fn pages(&self) -> Pages<'_, 'v, D> {
        Pages { windows: self.process.windows, space: &self.space, process: Some(self.process), nesting: 0 }
    }

    /// Where the page of `at` is.
    ///
    /// # Errors
    /// [`ErrorKind::Fault`] if there is no page at all; as reading memory.
    pub fn page(&self, at: VirtAddr) -> Result<Page> {
        self.pages().find(at)
    }

    /// Where `at` lies in guest-physical memory.
    ///
    /// # Errors
    /// [`ErrorKind::PagedOut`] for a page that is not in memory, [`ErrorKind::Fault`] if there is no page at all.
    pub fn translate(&self, at: VirtAddr) -> Result<Translation> {
        self.page(at)?.translation(at)
    }
}

impl<D: X86Driver> Memory for ProcessMemory<'_, '_, D> {
    type Addr = VirtAddr;

    fn read_into(&self, at: VirtAddr, buf: &mut [u8]) -> Result<()> {
        match self.space.read_into(at, buf) {
            Err(error) if error.is_absent() => self.pages().read_on(at, buf, error),
            other => other,
        }
    }

    fn slice(&self, at: VirtAddr, len: usize) -> Option<&[u8]> {
        self.space.slice(at, len)
    }
}

impl<D: X86Driver> fmt::Debug for ProcessMemory<'_, '_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessMemory").field("process", &self.process.address()).field("space", &self.space).finish()
    }
}

/// Finds pages that the processor does not.
pub(crate) struct Pages<'a, 'v, D: X86Driver> {
    windows: &'a Windows<'v, D>,
    space: &'a AddressSpace<'v, D>,
    /// Whose memory it is; `None` for the kernel's.
    process: Option<Process<'a, 'v, D>>,
    /// How many readings of the kernel's memory led here.
    nesting: u8,
}

impl<'a, 'v, D: X86Driver> Pages<'a, 'v, D> {
    /// The kernel's memory.
    pub(crate) fn of_kernel(windows: &'a Windows<'v, D>) -> Self {
        Self { windows, space: &windows.space, process: None, nesting: 0 }
    }

    /// Goes on with a read that stopped at `error`, past what the page tables do not map.
    #[cold]
    pub(crate) fn read_on(&self, at: VirtAddr, buf: &mut [u8], error: Error) -> Result<()> {
        let len = buf.len();
        let mut done = error.done();
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let here = at.checked_add(done as u64).ok_or_else(|| at.out_of_range(len).after(done))?;
            let page = self.find(here).map_err(|error| error.after(done))?;
            let in_page = match &page {
                Page::Present(translation) | Page::Resident(translation) => translation.rest_of_page(),
                _ => PAGE_SIZE.wrapping_sub(here.page_offset()),
            };
            let piece = usize::try_from(in_page).unwrap_or(usize::MAX).min(rest.len());
            let (part, _) = rest.split_at_mut(piece);
            match page {
                Page::DemandZero => part.fill(0),
                other => {
                    let translation = other.translation(here).map_err(|error| error.after(done))?;
                    self.windows.vmi().read_into(translation.at, part).map_err(|error| error.after(done))?;
                }
            }
            done = done.saturating_add(piece);
        }
        Ok(())
    }

    /// Where the page of `at` is.
    pub(crate) fn find(&self, at: VirtAddr) -> Result<Page> {
        match self.space.translate(at) {
            Ok(translation) => Ok(Page::Present(translation)),
            Err(error) => match error.kind() {
                ErrorKind::Fault(fault) if fault.kind == FaultKind::NotPresent => self.absent(at, *fault),
                _ => Err(error),
            },
        }
    }

    fn absent(&self, at: VirtAddr, fault: Fault) -> Result<Page> {
        let (mut level, mut entry) = (fault.level, fault.entry);
        // Page tables are paged themselves: one that is on its way out is still in memory.
        while level > 1 {
            let table = match () {
                () if entry & VALID != 0 && entry & LARGE != 0 && level < 4 => return Ok(self.large(at, level, entry)),
                () if entry & VALID != 0 => PhysAddr::new(entry & FRAME),
                () if entry == 0 => return self.by_descriptor(at, fault),
                () => match self.decode(entry) {
                    Entry::Transition(frame) => frame,
                    Entry::PageFile { file, offset } => {
                        let why = format!("its page table is {}", Page::PageFile { file, offset });
                        return Err(ErrorKind::PagedOut { at, why }.into());
                    }
                    _ => return self.by_descriptor(at, fault),
                },
            };
            level = level.wrapping_sub(1);
            entry = self.table_entry(table, level, at)?;
        }
        self.leaf(at, entry, fault)
    }

    /// The entry of the table of this level that `at` belongs to.
    fn table_entry(&self, table: PhysAddr, level: u8, at: VirtAddr) -> Result<u64> {
        let below = u32::from(level.wrapping_sub(1));
        let vmi = self.windows.vmi();
        if self.space.mode() == PagingMode::Bits32 {
            let index = at.get() >> below.wrapping_mul(10).wrapping_add(12) & 0x3ff;
            return Ok(u64::from(vmi.read::<u32>(table.wrapping_add(index.wrapping_mul(4)))?));
        }
        let index = at.get() >> below.wrapping_mul(9).wrapping_add(12) & 0x1ff;
        vmi.read(table.wrapping_add(index.wrapping_mul(8)))
    }

    /// A large page in a table that is not in use at the moment.
    fn large(&self, at: VirtAddr, level: u8, entry: u64) -> Page {
        let bits = if self.space.mode() == PagingMode::Bits32 { 10u8 } else { 9 };
        let page_shift = bits.wrapping_mul(level.wrapping_sub(1)).wrapping_add(12);
        let offset = 1u64.wrapping_shl(u32::from(page_shift)).wrapping_sub(1);
        let frame = PhysAddr::new(entry & FRAME & !offset | at.get() & offset);
        Page::Resident(Translation { at: frame, page_shift, access: Access::default() })
    }

    /// What an entry of the last level means.
    fn leaf(&self, at: VirtAddr, entry: u64, fault: Fault) -> Result<Page> {
        let protection = PageProtection((entry >> 5) as u8 & 0x1f);
        match self.decode(entry) {
            Entry::Valid(frame) | Entry::Transition(frame) => Ok(resident(frame, at, protection)),
            Entry::None => self.by_descriptor(at, fault),
            Entry::ByDescriptor => self.by_descriptor(at, fault),
            Entry::Prototype(Some(prototype)) => self.by_prototype(at, prototype, protection, fault),
            Entry::Prototype(None) => {
                let why = "its entry leads to a prototype entry, whose address the types of the kernel do not tell".to_owned();
                Err(ErrorKind::PagedOut { at, why }.into())
            }
            Entry::Software if protection.0 == DECOMMITTED => Err(fault.into()),
            Entry::Software => Ok(Page::DemandZero),
            Entry::PageFile { file, offset } => Ok(Page::PageFile { file, offset }),
        }
    }

    /// What the entry means that all who share a page have in common.
    fn by_prototype(&self, at: VirtAddr, prototype: VirtAddr, protection: PageProtection, fault: Fault) -> Result<Page> {
        let entry = self.kernel_entry(prototype)?;
        match self.decode(entry) {
            Entry::Valid(frame) | Entry::Transition(frame) => Ok(resident(frame, at, protection)),
            // In a prototype entry this bit means that the page is in a mapped file.
            Entry::Prototype(_) | Entry::ByDescriptor => Ok(Page::File { name: self.file_of(entry) }),
            Entry::None => Err(fault.into()),
            Entry::Software if (entry >> 5) as u8 & 0x1f == DECOMMITTED => Err(fault.into()),
            Entry::Software => Ok(Page::DemandZero),
            Entry::PageFile { file, offset } => Ok(Page::PageFile { file, offset }),
        }
    }

    /// What the descriptor of the area says of a page whose entry says nothing.
    fn by_descriptor(&self, at: VirtAddr, fault: Fault) -> Result<Page> {
        let Some(process) = self.process.filter(|_| !self.windows.is_kernel_address(at)) else { return Err(fault.into()) };
        // Where the types do not describe the tree, the page tables have the last word.
        let vad = match process.vad_at(at) {
            Err(error) if matches!(error.kind(), ErrorKind::NoType { .. }) => None,
            other => other?,
        };
        let Some(vad) = vad else { return Err(fault.into()) };
        let Some(first) = vad.first_prototype()? else {
            return if vad.is_committed()? { Ok(Page::DemandZero) } else { Err(fault.into()) };
        };
        let page = at.get().wrapping_sub(vad.start().get()) / PAGE_SIZE;
        let prototype = self.prototype(vad.subsection()?, first, page)?;
        self.by_prototype(at, prototype.ok_or(fault)?, vad.protection()?, fault)
    }

    /// The prototype entry of the page of this number of an area, whose first one is at `first`; `None` behind the end of the section.
    ///
    /// A section's prototype entries are in one array for each of its parts.
    fn prototype(&self, subsection: Option<VirtAddr>, first: VirtAddr, page: u64) -> Result<Option<VirtAddr>> {
        let (windows, layout) = (self.windows, &self.windows.layout.subsection);
        let size = self.entry_size();
        let at = |base: VirtAddr, index: u64| Some(base.wrapping_add(index.wrapping_mul(size)));
        let (Some(mut part), true) = (subsection, layout.pages.exists() && layout.base.exists()) else {
            return Ok(at(first, page));
        };
        let base = windows.pointer(part, layout.base)?;
        let Some(skipped) = first.offset_from(base).map(|bytes| bytes / size) else { return Ok(at(first, page)) };
        let mut index = page.saturating_add(skipped);
        for _ in 0..MAX_SUBSECTIONS {
            let pages = u64::from(windows.read::<u32>(part, layout.pages)?);
            if index < pages {
                return Ok(at(windows.pointer(part, layout.base)?, index));
            }
            index = index.wrapping_sub(pages);
            match windows.pointer_or_null(part, layout.next)? {
                Some(next) => part = next,
                None => return Ok(None),
            }
        }
        Err(ErrorKind::Limit { what: "the parts of a section".to_owned(), limit: MAX_SUBSECTIONS }.into())
    }

    /// Bytes of an entry.
    fn entry_size(&self) -> u64 {
        if self.space.mode() == PagingMode::Bits32 { 4 } else { 8 }
    }

    /// Reads an entry in the kernel's memory.
    fn kernel_entry(&self, at: VirtAddr) -> Result<u64> {
        let mut bytes = [0; 8];
        let (part, _) = bytes.split_at_mut(self.entry_size() as usize);
        self.windows.space.read_into(at, part).or_else(|error| {
            let nesting = self.nesting.saturating_add(1);
            if !error.is_absent() || nesting > MAX_NESTING {
                return Err(error);
            }
            Pages { nesting, ..Pages::of_kernel(self.windows) }.read_on(at, part, error)
        })?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The file that a prototype entry leads to.
    fn file_of(&self, entry: u64) -> Option<String> {
        let member = self.windows.layout.subsection_entry.address;
        let subsection = self.address(self.unmasked(entry).0, member)?;
        let area = self.windows.pointer(subsection, self.windows.layout.subsection.control_area).ok()?;
        self.windows.file_of_control_area(area).ok().flatten()
    }

    /// An address in an entry: with 48 bits in the upper end of it, or with 32 bits in the upper half.
    fn address(&self, entry: u64, member: KernelField) -> Option<VirtAddr> {
        let usual = match self.space.mode() {
            PagingMode::Bits32 => None,
            PagingMode::Pae => Some(entry >> 32),
            PagingMode::Level4 | PagingMode::Level5 => Some(entry >> 16),
        };
        let address = bits(member, entry).or(usual)?;
        Some(VirtAddr::new(match self.windows.width() {
            Width::Bits32 => address & 0xffff_ffff,
            Width::Bits64 => ((address << 16) as i64 >> 16) as u64,
        }))
    }

    /// The entry without the mask, and whether that is certain.
    fn unmasked(&self, entry: u64) -> (u64, bool) {
        let is_masked = entry & SWIZZLE == 0;
        match self.windows.invalid_entry_mask() {
            Some(mask) if is_masked => (entry & !mask, true),
            Some(_) => (entry, true),
            None => (entry, !is_masked),
        }
    }

    fn decode(&self, raw: u64) -> Entry {
        if raw & VALID != 0 {
            return Entry::Valid(PhysAddr::new(raw & FRAME));
        }
        if raw == 0 {
            return Entry::None;
        }
        let (mode, layout) = (self.space.mode(), &self.windows.layout);
        let (entry, certain) = if mode == PagingMode::Bits32 { (raw, true) } else { self.unmasked(raw) };
        let all_ones = match mode {
            PagingMode::Bits32 => entry >> 12 == 0xf_ffff,
            _ => entry >> 32 == 0xffff_ffff,
        };
        if entry & PROTOTYPE != 0 {
            return if all_ones { Entry::ByDescriptor } else { Entry::Prototype(self.prototype_address(entry)) };
        }
        if entry & TRANSITION != 0 {
            let usual = match mode {
                PagingMode::Bits32 => entry >> 12 & 0xf_ffff,
                PagingMode::Pae => entry >> 12 & 0x3ff_ffff,
                PagingMode::Level4 | PagingMode::Level5 => entry >> 12 & 0xf_ffff_ffff,
            };
            let frame = bits(layout.transition_entry.frame, entry).unwrap_or(usual);
            return Entry::Transition(PhysAddr::new(frame.wrapping_mul(PAGE_SIZE)));
        }
        let usual = if mode == PagingMode::Bits32 { entry >> 12 } else { entry >> 32 };
        let offset = bits(layout.software_entry.offset, entry).unwrap_or(usual);
        if offset == 0 {
            return Entry::Software;
        }
        let file = bits(layout.software_entry.file, entry).map(|file| file as u8);
        Entry::PageFile { file, offset: certain.then_some(offset.wrapping_mul(PAGE_SIZE)) }
    }

    fn prototype_address(&self, entry: u64) -> Option<VirtAddr> {
        let layout = &self.windows.layout.prototype_entry;
        if self.space.mode() != PagingMode::Bits32 {
            return self.address(entry, layout.address);
        }
        // Without PAE the address has two parts: 30 bits of it count from the start of the paged pool, 31 bits from the start of the kernel's half.
        let (low, high) = (bits(layout.low, entry)?, bits(layout.high, entry)?);
        let low_width = layout.low.number(u64::MAX).ok()?.count_ones();
        let offset = high.wrapping_shl(low_width.wrapping_add(2)) | low.wrapping_shl(2);
        let base = if low_width >= 8 {
            0x8000_0000
        } else {
            self.windows.space.read_pointer(self.windows.symbol("MmPagedPoolStart").ok()?).ok()?.get()
        };
        Some(VirtAddr::new(base.wrapping_add(offset) & 0xffff_ffff))
    }
}

/// A page in memory that the processor does not find.
fn resident(frame: PhysAddr, at: VirtAddr, protection: PageProtection) -> Page {
    let access = Access { write: protection.is_writable(), execute: protection.is_executable(), user: protection.is_readable() };
    Page::Resident(Translation { at: frame.wrapping_add(at.page_offset()), page_shift: 12, access })
}

/// What an entry means.
enum Entry {
    None,
    Valid(PhysAddr),
    Transition(PhysAddr),
    /// Where the prototype entry is, if it could be told.
    Prototype(Option<VirtAddr>),
    ByDescriptor,
    /// Nothing but a protection.
    Software,
    PageFile {
        file: Option<u8>,
        offset: Option<u64>,
    },
}

/// The value of a bitfield of an entry.
fn bits(member: KernelField, entry: u64) -> Option<u64> {
    let shift = u32::try_from(member.offset().ok()?.checked_mul(8)?).ok()?;
    member.number(entry.checked_shr(shift)?).ok()
}

impl<D: X86Driver> Windows<'_, D> {
    /// The mask that entries are kept with which are not present; zero if this kernel has none, `None` if it could not be found out.
    pub(crate) fn invalid_entry_mask(&self) -> Option<u64> {
        *self.invalid_mask.get_or_init(|| {
            let state = &self.layout.memory_state;
            let entry = &self.layout.software_entry;
            if entry.whole.exists() && !entry.swizzle.exists() {
                return Some(0);
            }
            let variable = || self.space.read::<u64>(self.symbol("MiInvalidPteMask").ok()?).ok();
            let in_state = || self.space.read::<u64>(state.invalid_mask.of(self.symbol("MiState").ok()?).ok()?).ok();
            variable().or_else(in_state)
        })
    }
}
