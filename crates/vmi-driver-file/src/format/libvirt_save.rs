//! libvirt's saved domains (`virsh save`, `managedsave`, snapshots with memory): a header, the domain's XML, and QEMU's migration stream, plain or
//! packed as `save_image_format` in qemu.conf says.
//!
//! Layout: libvirt, src/qemu/qemu_saveimage.h (`virQEMUSaveHeader`), version 2. Numbers are in the byte order of the host.

use vmi_core::MappedFile;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::format::qemu;
use crate::image::{Image, Input};
use crate::source::Source;
use crate::{Compression, FormatError, OpenError, OpenOptions, unpack};

const MAGIC: &[u8; 16] = b"LibvirtQemudSave";
/// Stands in the file as long as it is written.
pub(crate) const UNFINISHED: &[u8; 16] = b"LibvirtQemudPart";
const VERSION: u32 = 2;

#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 16],
    version: U32,
    /// Of the XML, and of a cookie behind it if there is one.
    data_len: U32,
    was_running: U32,
    /// How the stream is packed: the index in [`PACKINGS`].
    packing: U32,
    cookie_offset: U32,
    unused: [U32; 14],
}

/// What the header's number stands for; `sparse` is QEMU's `mapped-ram`. The content decides, as it does for other files.
const PACKINGS: [&str; 7] = ["raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse"];

/// Whether `bytes` start with the header of a finished file.
pub(crate) fn matches(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Finds the stream behind the XML and reads it.
pub(crate) fn parse(input: Input<'_>) -> Result<Image, FormatError> {
    const HEADER: u64 = size_of::<Header>() as u64;
    let header: Header = input.source.read(0, "the header")?;
    let malformed = |what: String| FormatError::Malformed { offset: 0, what };
    if header.magic == *UNFINISHED {
        return Err(malformed("libvirt had not finished this file".to_owned()));
    }
    let version = header.version.get();
    if version != VERSION {
        return Err(malformed(format!("a saved domain of version {version}, where {VERSION} is known")));
    }
    let offset = HEADER.saturating_add(u64::from(header.data_len.get()));
    let len = input.source.len().saturating_sub(offset);
    let start = input.source.get(offset, len.min(16), "the domain's XML, and the stream behind it")?;
    if qemu::matches(&start) {
        return qemu::parse_at(input, offset);
    }
    let number = header.packing.get();
    let packing = PACKINGS.get(number as usize).copied().unwrap_or("unknown");
    let Some(compression) = Compression::of(&start) else {
        let what = format!("no migration stream behind the domain's XML, but something packed as {number} ({packing})");
        return Err(FormatError::Malformed { offset, what });
    };
    let stream = Source::mapped(unpacked(input, offset, len, compression)?);
    if !qemu::matches(&stream.head(16)?) {
        return Err(FormatError::Malformed { offset, what: format!("no migration stream in what is packed with {compression}") });
    }
    qemu::parse(Input { source: &stream, ..input })
}

/// The stream, in a temporary file that has no name.
fn unpacked(input: Input<'_>, offset: u64, len: u64, compression: Compression) -> Result<MappedFile, FormatError> {
    let packed = input.source.get(offset, len, "the stream")?;
    // The progress that the user may have asked for is that of the whole file, and spoken for by whoever unpacks that.
    let mut options = OpenOptions {
        temp_dir: input.options.temp_dir.clone(),
        max_unpacked: input.options.max_unpacked,
        ..OpenOptions::default()
    };
    unpack::unpack(input.path.unwrap_or_else(|| "the stream".as_ref()), &packed, compression, &mut options).map_err(|error| {
        let why = match error {
            OpenError::Unpack { source, .. } => source.to_string(),
            other => other.to_string(),
        };
        FormatError::Damaged { what: "migration stream", offset, why }
    })
}
