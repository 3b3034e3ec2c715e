//! The kernel's debugger data block (KDBG): what a kernel tells its debugger about itself.
//!
//! `KDDEBUGGER_DATA64` of Microsoft's wdbgexts.h: a list entry, the tag `KDBG`, the block's size, then addresses of variables, all of them 64 bits wide
//! and those of 32-bit kernels extended by their sign. Kernels since 2003 also give offsets of some members of their structures.
//!
//! 64-bit kernels since Windows 8 keep the block encoded unless they were booted for debugging. It is decoded with two random numbers
//! (`KiWaitNever`, `KiWaitAlways`) and the address of `KdpDataBlockEncoded`, which only symbols tell. (What is done for each word was read in
//! Volatility 2, win8_kdbg.py; it was tested on synthetic blocks only.)

use vmi_arch_x86::X86Driver;
use vmi_core::{AddressSpace, Memory, Paging, Symbols, VirtAddr};

use super::image::KernelImage;
use super::lead::is_kernel_address;

/// Where the tag is.
const TAG_AT: usize = 0x10;
const TAG: &[u8; 4] = b"KDBG";
/// Where the block's size is.
const SIZE_AT: usize = 0x14;
/// Blocks have 0x208 (Windows 2000) to 0x380 bytes (Windows 10), and new members are added at the end.
const SIZES: core::ops::RangeInclusive<u32> = 0x200..=0x1000;

/// Members that are the address of a variable, by the name of the variable.
const VARIABLES: &[(usize, &str)] = &[
    (0x48, "PsLoadedModuleList"),
    (0x50, "PsActiveProcessHead"),
    (0x58, "PspCidTable"),
    (0x60, "ExpSystemResourcesList"),
    (0x78, "KeTimeIncrement"),
    (0x80, "KeBugCheckCallbackListHead"),
    (0x88, "KiBugCheckData"),
    (0x98, "ObpRootDirectoryObject"),
    (0xa0, "ObpTypeObjectType"),
    (0xc0, "MmPfnDatabase"),
    (0xe0, "MmNumberOfPagingFiles"),
    (0xe8, "MmLowestPhysicalPage"),
    (0xf0, "MmHighestPhysicalPage"),
    (0xf8, "MmNumberOfPhysicalPages"),
    (0x120, "MmPagedPoolStart"),
    (0x128, "MmPagedPoolEnd"),
    (0x1c8, "MmHighestUserAddress"),
    (0x1d0, "MmSystemRangeStart"),
    (0x1d8, "MmUserProbeAddress"),
    (0x218, "KiProcessorBlock"),
    (0x220, "MmUnloadedDrivers"),
    (0x228, "MmLastUnloadedDriver"),
    (0x268, "CmNtCSDVersion"),
    (0x270, "MmPhysicalMemoryBlock"),
];

/// Offsets of members of structures that the block gives, and sizes of structures.
const MEMBERS: &[(usize, &str, &str)] = &[
    (0x29a, "_KTHREAD", "Teb"),
    (0x29c, "_KTHREAD", "KernelStack"),
    (0x29e, "_KTHREAD", "InitialStack"),
    (0x2a0, "_KTHREAD", "ApcState.Process"),
    (0x2a2, "_KTHREAD", "State"),
    (0x2aa, "_EPROCESS", "Peb"),
    (0x2ac, "_EPROCESS", "InheritedFromUniqueProcessId"),
    (0x2ae, "_EPROCESS", "Pcb.DirectoryTableBase"),
    (0x2b4, "_KPRCB", "CurrentThread"),
    (0x2be, "_KPRCB", "Number"),
    (0x2e2, "_KPCR", "Self"),
    (0x2e4, "_KPCR", "CurrentPrcb"),
    (0x2e6, "_KPCR", "Prcb"),
];
const SIZES_OF: &[(usize, &str)] = &[(0x2a8, "_EPROCESS"), (0x2b0, "_KPRCB"), (0x2c0, "_ETHREAD"), (0x2e0, "_KPCR")];

/// Why bytes are not a debugger data block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KdbgError {
    /// Fewer bytes than the block has.
    #[error("the debugger data block is cut off after {len:#x} bytes")]
    CutOff {
        /// How many there are.
        len: usize,
    },
    /// The tag is missing: something else, or the block is encoded.
    #[error("no tag `KDBG`: something else, or an encoded block")]
    NoTag,
    /// The size is none that such a block has.
    #[error("{size:#x} is not the size of a debugger data block")]
    Size {
        /// What it says.
        size: u32,
    },
}

/// A debugger data block in the clear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DebuggerData {
    bytes: Vec<u8>,
}

impl DebuggerData {
    /// Parses a block in the clear. Bytes behind its end are left aside.
    ///
    /// # Errors
    /// [`KdbgError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, KdbgError> {
        let cut_off = KdbgError::CutOff { len: bytes.len() };
        let tag = bytes.get(TAG_AT..SIZE_AT).ok_or(cut_off)?;
        if tag != TAG {
            return Err(KdbgError::NoTag);
        }
        let size =
            bytes.get(SIZE_AT..).and_then(|rest| rest.first_chunk()).map(|size| u32::from_le_bytes(*size)).ok_or(cut_off)?;
        if !SIZES.contains(&size) {
            return Err(KdbgError::Size { size });
        }
        Ok(Self { bytes: bytes.get(..size as usize).ok_or(cut_off)?.to_vec() })
    }

    /// Decodes a block that 64-bit kernels since Windows 8 keep encoded, and parses it. `wait_never` and `wait_always` are the values of the
    /// variables `KiWaitNever` and `KiWaitAlways`, `encoded_at` is the address of the variable `KdpDataBlockEncoded`. The size is not known
    /// before it is decoded, so all of `bytes` is decoded.
    ///
    /// # Errors
    /// [`KdbgError`]: the numbers do not belong to these bytes, or the block is not encoded.
    pub fn decode(bytes: &[u8], encoded_at: VirtAddr, wait_never: u64, wait_always: u64) -> Result<Self, KdbgError> {
        let decode =
            |word: [u8; 8]| decode_word(u64::from_le_bytes(word), encoded_at.get(), wait_never, wait_always).to_le_bytes();
        let decoded: Vec<u8> = bytes.as_chunks().0.iter().copied().flat_map(decode).collect();
        Self::parse(&decoded)
    }

    /// How many bytes the block has: 0x340 in Windows 7, 0x380 in Windows 10 2004.
    pub fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Where the kernel's image begins.
    pub fn kernel_base(&self) -> Option<VirtAddr> {
        self.address(0x18)
    }

    /// The variables that the block tells of, with their addresses.
    pub fn variables(&self) -> impl Iterator<Item = (&'static str, VirtAddr)> {
        VARIABLES.iter().filter_map(|&(at, name)| Some((name, self.address(at)?)))
    }

    /// The address of the variable `name`, if the block tells it.
    pub fn variable(&self, name: &str) -> Option<VirtAddr> {
        self.variables().find(|variable| variable.0 == name).map(|variable| variable.1)
    }

    /// Members of structures and their offsets: `("_EPROCESS", "Peb", 0x550)`. Kernels before 2003 tell none.
    pub fn members(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        MEMBERS.iter().filter_map(|&(at, structure, member)| Some((structure, member, self.number(at)?)))
    }

    /// The offset of a member, if the block tells it.
    pub fn member(&self, structure: &str, member: &str) -> Option<u64> {
        // Offset 0 in the members that are listed means that the kernel does not tell.
        self.members().find(|found| (found.0, found.1) == (structure, member)).map(|found| found.2).filter(|&offset| offset != 0)
    }

    /// Sizes of structures: `("_EPROCESS", 0xa40)`.
    pub fn sizes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        SIZES_OF.iter().filter_map(|&(at, structure)| Some((structure, self.number(at)?))).filter(|(_, size)| *size != 0)
    }

    /// Where the text is that names the build: the variable `NtBuildLab`, or in new releases `NtBuildLabEx`. It begins with the build's number.
    pub fn build_lab(&self) -> Option<VirtAddr> {
        self.address(0x208)
    }

    fn address(&self, at: usize) -> Option<VirtAddr> {
        let address = self.bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))?;
        (address != 0).then(|| VirtAddr::new(address))
    }

    fn number(&self, at: usize) -> Option<u64> {
        self.bytes.get(at..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes).into())
    }
}

/// One word of an encoded block.
fn decode_word(word: u64, encoded_at: u64, never: u64, always: u64) -> u64 {
    let turned = (word ^ never).rotate_left((never & 0xff) as u32);
    (turned ^ (encoded_at | 0xffff_0000_0000_0000)).swap_bytes() ^ always
}

/// A block that was found, and where.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) at: VirtAddr,
    pub(super) data: DebuggerData,
    pub(super) was_encoded: bool,
}

/// Bytes that are read of a block.
const MAX_LEN: usize = 0x400;

/// The block at `at`, in the clear or decoded by what `symbols` name; it must be that of `image`.
pub(super) fn at<D: X86Driver>(
    space: &AddressSpace<'_, D>,
    image: &KernelImage,
    symbols: Option<&Symbols>,
    at: VirtAddr,
) -> Option<Found> {
    let mut bytes = vec![0; MAX_LEN];
    let padded = space.read_lossy(at, &mut bytes).ok()?;
    // What was padded at the end cuts the block off; what was padded before it is no block.
    bytes.truncate(padded.first().map_or(MAX_LEN, |gap| gap.start));
    let clear = DebuggerData::parse(&bytes).ok().map(|data| Found { at, data, was_encoded: false });
    let found = clear.or_else(|| {
        let symbols = symbols.filter(|_| image.mode.is_long())?;
        let number = |name| space.read::<u64>(symbols.address(name).ok()?).ok();
        let encoded_at = symbols.address("KdpDataBlockEncoded").ok()?;
        let data = DebuggerData::decode(&bytes, encoded_at, number("KiWaitNever")?, number("KiWaitAlways")?).ok()?;
        Some(Found { at, data, was_encoded: true })
    })?;
    belongs_to(&found.data, image).then_some(found)
}

/// Whether the block tells of this image: its base, and list heads inside.
fn belongs_to(data: &DebuggerData, image: &KernelImage) -> bool {
    let narrow = |at: VirtAddr| if image.mode.is_long() { at } else { VirtAddr::new(at.get() & 0xffff_ffff) };
    let inside = |name| data.variable(name).is_some_and(|at| image.contains(narrow(at)));
    data.kernel_base().map(narrow) == Some(image.base) && inside("PsLoadedModuleList") && inside("PsActiveProcessHead")
}

/// The addresses of the block's variables as pointers of the kernel, those that can be.
pub(super) fn variables(found: &Found, image: &KernelImage) -> Vec<(&'static str, VirtAddr)> {
    let narrow = |at: VirtAddr| if image.mode.is_long() { at } else { VirtAddr::new(at.get() & 0xffff_ffff) };
    let all = found.data.variables().map(|(name, at)| (name, narrow(at)));
    all.filter(|&(_, at)| image.contains(at) && is_kernel_address(image.mode, at)).collect()
}

/// The block in the clear within `bytes`, which lie at `start` in the image: the tag with sane neighbours.
pub(super) fn search(bytes: &[u8], start: VirtAddr, image: &KernelImage) -> Option<Found> {
    let pointer_size = image.mode.pointer_size();
    memchr::memmem::find_iter(bytes, TAG).find_map(|tag| {
        let block = tag.checked_sub(TAG_AT)?;
        let at = start.checked_add(block as u64)?;
        if !at.is_aligned(pointer_size as u64) {
            return None;
        }
        let data = DebuggerData::parse(bytes.get(block..)?).ok()?;
        belongs_to(&data, image).then_some(Found { at, data, was_encoded: false })
    })
}
