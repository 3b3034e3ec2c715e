//! `PO_MEMORY_IMAGE`: where the restore sets are. Its fields move with its length.

use vmi_core::PAGE_SIZE;
use zerocopy::little_endian::{U32, U64};

use crate::FormatError;
use crate::source::Source;

/// What the header tells.
pub(super) struct Header {
    /// Whether numbers of pages have 64 bits.
    pub(super) wide: bool,
    /// That of the boot loader and that of the kernel, in the order in which they are restored.
    pub(super) restore_sets: [RestoreSet; 2],
}

/// A chain of compression sets.
#[derive(Clone, Copy)]
pub(super) struct RestoreSet {
    /// Who reads it back.
    pub(super) whose: &'static str,
    /// Where in the file.
    pub(super) offset: u64,
    /// How many pages it has.
    pub(super) pages: u64,
}

/// Where the fields are in a header of this length.
struct Layout {
    len: u32,
    wide: bool,
    /// `FirstBootRestorePage`, `FirstKernelRestorePage`.
    restore_sets: [u64; 2],
    /// `PerfInfo.KernelPagesProcessed`.
    kernel_pages: u64,
}

const fn wide(len: u32, restore_sets: [u64; 2], kernel_pages: u64) -> Layout {
    Layout { len, wide: true, restore_sets, kernel_pages }
}

const fn narrow(len: u32, kernel_pages: u64) -> Layout {
    Layout { len, wide: false, restore_sets: [0x50, 0x54], kernel_pages }
}

/// Builds of Windows with their headers (LeechCore, device_hibr.c; the structures are in the symbols of the kernels).
static LAYOUTS: &[Layout] = &[
    // Windows 8 and 8.1: 9200, 9600.
    wide(0x360, [0x60, 0x68], 0x1c8),
    // Windows 10: 10240 and 10586, 14393, 15063 to 17134, 17763 to 19041.
    wide(0x3b0, [0x68, 0x70], 0x218),
    wide(0x3c8, [0x68, 0x70], 0x220),
    wide(0x3d8, [0x68, 0x70], 0x230),
    wide(0x3e0, [0x68, 0x70], 0x230),
    // Server 2022 and Windows 11: 20348 to 22621, 26100.
    wide(0x448, [0x68, 0x70], 0x230),
    wide(0x4d8, [0x68, 0x70], 0x238),
    // 32-bit Windows 8 and 10, in the same order.
    narrow(0x2c8, 0x1b0),
    narrow(0x310, 0x1f8),
    narrow(0x328, 0x200),
    narrow(0x338, 0x210),
    narrow(0x340, 0x210),
];

/// `LengthSelf`.
const LEN: u64 = 0xc;

/// Reads the header, whatever its length.
pub(super) fn read(source: &Source) -> Result<Header, FormatError> {
    let malformed = |offset, what: String| FormatError::Malformed { offset, what };
    let page = source.get(0, PAGE_SIZE, "the header")?;
    if page.iter().skip(8).all(|&byte| byte == 0) {
        let what =
            "the header is wiped, which Windows does when it has resumed from the file: nothing tells where memory is in it";
        return Err(malformed(0, what.to_owned()));
    }
    let len = source.read::<U32>(LEN, "the header")?.get();
    let layout = LAYOUTS.iter().find(|layout| layout.len == len).ok_or_else(|| {
        malformed(
            LEN,
            format!("a header of {len:#x} bytes is none of Windows 8 to 11; files of Windows 7 and older are not read"),
        )
    })?;
    let (page_size, loader_pages) = if layout.wide { (0x18, 0x58) } else { (0x14, 0x48) };
    let size = source.read::<U32>(page_size, "the header")?.get();
    if u64::from(size) != PAGE_SIZE {
        return Err(malformed(page_size, format!("a page has {size:#x} bytes instead of 4096")));
    }
    let restore_set = |whose, first: u64, pages: u64| -> Result<RestoreSet, FormatError> {
        let number = if layout.wide {
            source.read::<U64>(first, "the header")?.get()
        } else {
            source.read::<U32>(first, "the header")?.get().into()
        };
        let pages = source.read::<U64>(pages, "the header")?.get();
        let offset = number.checked_mul(PAGE_SIZE).filter(|&offset| pages == 0 || offset != 0);
        let offset =
            offset.ok_or_else(|| malformed(first, format!("the {whose} restore set cannot start at page {number:#x}")))?;
        Ok(RestoreSet { whose, offset, pages })
    };
    let [boot, kernel] = layout.restore_sets;
    let restore_sets = [restore_set("boot loader's", boot, loader_pages)?, restore_set("kernel's", kernel, layout.kernel_pages)?];
    Ok(Header { wide: layout.wide, restore_sets })
}
