//! Unpacking a page.

use core::cell::RefCell;

use flate2::{Decompress, FlushDecompress, Status};
use zstd::bulk::Decompressor;

use super::pages::Descriptor;
use crate::FormatError;
use crate::source::Source;

/// Bits of a descriptor's flags. Without any of them, the page is as it is.
pub(crate) const ZLIB: u32 = 0x01;
const LZO: u32 = 0x02;
const SNAPPY: u32 = 0x04;
pub(crate) const ZSTD: u32 = 0x20;

thread_local! {
    // Their tables cost more to make than a page to unpack.
    static INFLATE: RefCell<Decompress> = RefCell::new(Decompress::new(true));
    static UNZSTD: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Unpacks the page of `descriptor` into `out`, which has a page's length.
pub(super) fn unpack(source: &Source, descriptor: Descriptor, out: &mut [u8]) -> Result<(), FormatError> {
    let (offset, size) = (descriptor.offset.get(), u64::from(descriptor.size.get()));
    let kind = descriptor.flags.get() & (ZLIB | LZO | SNAPPY | ZSTD);
    if kind == 0 && size == out.len() as u64 {
        return source.read_at(offset, out, "a page");
    }
    let what = match kind {
        0 => "plain page",
        ZLIB => "zlib page",
        LZO => "lzo page",
        SNAPPY => "snappy page",
        ZSTD => "zstd page",
        _ => "page that is packed in several ways",
    };
    let damaged = |why: String| FormatError::Damaged { what, offset, why };
    // Writers leave a page as it is if packing does not make it smaller.
    if size > out.len() as u64 {
        return Err(damaged(format!("{size} bytes for {}", out.len())));
    }
    let packed = source.get(offset, size, "a packed page")?;
    let len = match kind {
        ZLIB => inflate(&packed, out),
        LZO => lzo::decompress_into(&packed, out).map_err(|error| error.to_string()),
        SNAPPY => snap::raw::Decoder::new().decompress(&packed, out).map_err(|error| error.to_string()),
        ZSTD => unzstd(&packed, out),
        _ => Err(format!("flags {:#x}", descriptor.flags.get())),
    };
    match len.map_err(damaged)? {
        len if len == out.len() => Ok(()),
        len => Err(damaged(format!("{len} bytes instead of {}", out.len()))),
    }
}

fn inflate(packed: &[u8], out: &mut [u8]) -> Result<usize, String> {
    INFLATE.with_borrow_mut(|inflate| {
        inflate.reset(true);
        match inflate.decompress(packed, out, FlushDecompress::Finish) {
            Ok(Status::StreamEnd) => Ok(inflate.total_out() as usize),
            Ok(_) => Err("the stream does not end with the page".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    })
}

fn unzstd(packed: &[u8], out: &mut [u8]) -> Result<usize, String> {
    UNZSTD.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            None => slot.insert(Decompressor::new().map_err(|error| error.to_string())?),
        };
        decompressor.decompress_to_buffer(packed, out).map_err(|error| error.to_string())
    })
}
