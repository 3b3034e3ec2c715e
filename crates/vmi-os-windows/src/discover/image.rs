//! The image of a kernel, and how one is told: by its structure, never by a version.
//!
//! Microsoft, "PE Format".

use vmi_arch_x86::{PagingMode, X86Driver};
use vmi_core::{AddressSpace, Memory, PAGE_SIZE, Paging, PhysAddr, VirtAddr};

use crate::PdbIdentity;

/// The header must lie within the first page: real ones begin below 0x200.
const MAX_HEADER_OFFSET: usize = 0x800;
/// Sections that an image may have here. Kernels have up to 40.
const MAX_SECTIONS: usize = 96;
/// Kernels have 2 to 20 MiB.
const IMAGE_SIZES: core::ops::RangeInclusive<u64> = 0x8000..=128 << 20;
/// Entries of the debug directory that are looked at.
const MAX_DEBUG_ENTRIES: u64 = 16;
/// The longest name of a program database that is read.
const MAX_NAME: usize = 260;
/// How the databases of kernels are called: for one processor or several, without and with PAE.
pub(super) const DATABASES: [&str; 4] = ["ntkrnlmp.pdb", "ntoskrnl.pdb", "ntkrnlpa.pdb", "ntkrpamp.pdb"];
/// The name that the export directory of each of them gives.
const EXPORT_NAME: &[u8] = b"ntoskrnl.exe";
/// A section that only kernels have: the pool's code.
const POOL_CODE: &[u8; 8] = b"POOLCODE";

/// A section of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) name: [u8; 8],
    /// Offset of its first byte in the image, and its bytes there.
    pub(super) start: u32,
    pub(super) len: u32,
    /// Whether it holds variables: it is neither code nor discarded after the start.
    pub(super) is_data: bool,
}

/// What the first page of an image says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) machine: u16,
    pub(super) timestamp: u32,
    pub(super) size: u64,
    pub(super) sections: Vec<Section>,
    /// Offset and length of the export and the debug directory.
    pub(super) exports: Option<(u32, u32)>,
    debug: Option<(u32, u32)>,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

impl Header {
    /// Parses the first page of an image; `None` if it is not that of a 32-bit or 64-bit x86 program that can be a kernel.
    pub(super) fn parse(page: &[u8]) -> Option<Self> {
        if !page.starts_with(b"MZ") {
            return None;
        }
        let pe = usize::try_from(u32_at(page, 0x3c)?).ok().filter(|&at| at <= MAX_HEADER_OFFSET)?;
        let pe = page.get(pe..)?;
        if !pe.starts_with(b"PE\0\0") {
            return None;
        }
        let machine = u16_at(pe, 4)?;
        let count = usize::from(u16_at(pe, 6)?);
        let optional_len = usize::from(u16_at(pe, 20)?);
        let optional = pe.get(24..)?;
        // The machine and the magic number of the optional header say the same; directories follow at an offset that depends on them.
        let directories = match (machine, u16_at(optional, 0)?) {
            (0x8664, 0x20b) => 112usize,
            (0x14c, 0x10b) => 96,
            _ => return None,
        };
        let size = u64::from(u32_at(optional, 56)?);
        if !IMAGE_SIZES.contains(&size) || count == 0 || count > MAX_SECTIONS {
            return None;
        }
        let directory_count = u32_at(optional, directories.wrapping_sub(4))?;
        let directory = |index: usize| {
            let at = directories.checked_add(index.checked_mul(8)?)?;
            let (start, len) = (u32_at(optional, at)?, u32_at(optional, at.checked_add(4)?)?);
            let within = u64::from(start).checked_add(len.into()).is_some_and(|end| end <= size);
            (index < directory_count as usize && start != 0 && len != 0 && within).then_some((start, len))
        };
        let table = optional.get(optional_len..)?;
        let section = |entry: &[u8]| {
            let flags = u32_at(entry, 36)?;
            Some(Section {
                name: *entry.first_chunk()?,
                start: u32_at(entry, 12)?,
                len: u32_at(entry, 8)?,
                // IMAGE_SCN_MEM_EXECUTE, IMAGE_SCN_MEM_DISCARDABLE.
                is_data: flags & 0x2200_0000 == 0,
            })
        };
        let sections: Vec<_> = table.chunks_exact(40).take(count).filter_map(section).collect();
        let timestamp = u32_at(pe, 8)?;
        Some(Self { machine, timestamp, size, sections, exports: directory(0), debug: directory(6) })
    }

    /// Whether the header names a section that only kernels have.
    pub(super) fn has_pool_code(&self) -> bool {
        self.sections.iter().any(|section| &section.name == POOL_CODE)
    }

    /// Bytes in a pointer of the program.
    fn pointer_size(&self) -> usize {
        if self.machine == 0x8664 { 8 } else { 4 }
    }
}

/// A kernel's image as page tables map it.
#[derive(Clone, Debug)]
pub(super) struct KernelImage {
    pub(super) root: PhysAddr,
    pub(super) mode: PagingMode,
    pub(super) base: VirtAddr,
    pub(super) header: Header,
    pub(super) pdb: Option<PdbIdentity>,
}

/// Why there is no kernel at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reject {
    /// No image at all.
    NoImage,
    /// An image of something else.
    Other(String),
}

impl KernelImage {
    /// The kernel whose image begins at `base`, which is checked by its header, the name in its export directory, its CodeView record and its
    /// sections. A part that is not in memory does not count; what is there must not contradict, and one must speak for it.
    pub(super) fn read<D: X86Driver>(space: &AddressSpace<'_, D>, base: VirtAddr) -> Result<Self, Reject> {
        let mut page = [0; PAGE_SIZE as usize];
        space.read_lossy(base, &mut page).map_err(|_| Reject::NoImage)?;
        let header = Header::parse(&page).ok_or(Reject::NoImage)?;
        if header.pointer_size() != space.mode().pointer_size() {
            return Err(Reject::Other("an image of another width".to_owned()));
        }
        let pdb = code_view(space, base, &header);
        let exports = export_name(space, base, &header);
        let is_named = match &exports {
            Some(name) if name.eq_ignore_ascii_case(EXPORT_NAME) => true,
            Some(name) => return Err(Reject::Other(String::from_utf8_lossy(name).into_owned())),
            None => false,
        };
        let is_database = match &pdb {
            Some(pdb) if DATABASES.iter().any(|name| pdb.name.eq_ignore_ascii_case(name)) => true,
            // A kernel that was built by its user may name its database otherwise; the export directory decides.
            Some(pdb) if !is_named => return Err(Reject::Other(pdb.name.clone())),
            _ => false,
        };
        if !(is_named || is_database || header.has_pool_code()) {
            return Err(Reject::Other("an image without a name".to_owned()));
        }
        Ok(Self { root: space.root(), mode: space.mode(), base, header, pdb })
    }

    /// Whether the image holds `at`.
    pub(super) fn contains(&self, at: VirtAddr) -> bool {
        at.offset_from(self.base).is_some_and(|offset| offset < self.header.size)
    }
}

/// The name that the export directory gives: its fourth word is where the name is.
fn export_name<D: X86Driver>(space: &AddressSpace<'_, D>, base: VirtAddr, header: &Header) -> Option<Vec<u8>> {
    let (start, _) = header.exports?;
    let name: u32 = space.read(base.checked_add(start.into())?.checked_add(12)?).ok()?;
    if u64::from(name) >= header.size {
        return None;
    }
    space.read_c_string(base.checked_add(name.into())?, MAX_NAME).ok().filter(|name| !name.is_empty())
}

/// The CodeView record (`RSDS`) that the debug directory names.
fn code_view<D: X86Driver>(space: &AddressSpace<'_, D>, base: VirtAddr, header: &Header) -> Option<PdbIdentity> {
    const ENTRY: u64 = 28;
    const CODE_VIEW: u32 = 2;
    let (start, len) = header.debug?;
    (0..(u64::from(len) / ENTRY).min(MAX_DEBUG_ENTRIES)).find_map(|index| {
        let entry = base.checked_add(start.into())?.checked_add(index.checked_mul(ENTRY)?)?;
        let kind: u32 = space.read(entry.checked_add(12)?).ok()?;
        let at: u32 = space.read(entry.checked_add(20)?).ok()?;
        if kind != CODE_VIEW || u64::from(at) >= header.size {
            return None;
        }
        let mut bytes = [0; 24 + MAX_NAME];
        let _ = space.read_lossy(base.checked_add(at.into())?, &mut bytes).ok()?;
        parse_code_view(&bytes)
    })
}

/// A CodeView record: `RSDS`, the GUID as its structure lies in memory, the age, the name.
pub(super) fn parse_code_view(bytes: &[u8]) -> Option<PdbIdentity> {
    let rest = bytes.strip_prefix(b"RSDS")?;
    let first: [u8; 4] = *rest.first_chunk()?;
    let second: [u8; 2] = *rest.get(4..)?.first_chunk()?;
    let third: [u8; 2] = *rest.get(6..)?.first_chunk()?;
    let last: [u8; 8] = *rest.get(8..)?.first_chunk()?;
    let high = u64::from(u32::from_le_bytes(first)) << 32
        | u64::from(u16::from_le_bytes(second)) << 16
        | u64::from(u16::from_le_bytes(third));
    let guid = u128::from(high) << 64 | u128::from(u64::from_be_bytes(last));
    let age = u32_at(rest, 16)?;
    let name = rest.get(20..)?;
    let end = memchr::memchr(0, name)?;
    let path = core::str::from_utf8(name.get(..end)?).ok()?;
    // Linkers may write a whole path.
    let name = path.rsplit(['\\', '/']).next().filter(|name| !name.is_empty())?;
    Some(PdbIdentity { name: name.to_owned(), guid, age })
}
