//! QEMU's migration stream ("QEVM", version 3): what `migrate "exec:cat > file"`, `migrate file:...`, `savevm` and `virsh dump` write.
//!
//! Layout: QEMU, docs/devel/migration/main.rst, "Stream structure"; migration/savevm.c (sections) and migration/ram.c (memory). Numbers are
//! big-endian. The memory of all devices comes first, in records of a page each, one behind the other; or, with the capability
//! `mapped-ram` (QEMU 9.0), each block of memory at a fixed place with a bitmap of its pages, which is mapped as it is. Then follows the state
//! of the devices, and last of all a text in JSON that tells its fields and their sizes: from these come the registers.
//!
//! The stream knows memory by the names of QEMU's blocks, not by guest-physical addresses: `layout.rs` tells how these are found.

mod cpu;
mod cursor;
mod devices;
mod layout;
mod mapped_ram;
mod page_runs;
mod pages;
mod ram;
mod srat;
mod stream;

use crate::FormatError;
use crate::image::{Image, Input};

/// Magic number and version, from which on the layout is this.
const MAGIC: &[u8] = b"QEVM\0\0\0\x03";

/// Whether `bytes` start with the stream's header.
pub(crate) fn matches(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Reads a file that is a stream.
pub(crate) fn parse(input: Input<'_>) -> Result<Image, FormatError> {
    parse_at(input, 0)
}

/// Reads the stream that starts at `offset` of a file.
pub(crate) fn parse_at(input: Input<'_>, offset: u64) -> Result<Image, FormatError> {
    let stream = stream::read(input, offset)?;
    let devices = devices::Devices::read(input.source, stream.devices_at);
    let places = layout::places(&stream, &devices, input)?;
    let mut image = Image { registers: cpu::registers(&devices), ..Image::default() };
    if stream.mapped_ram {
        mapped_ram::fill(&mut image, input, &stream.ram.blocks, &places)?;
    } else {
        image.packed = Some(Box::new(pages::Pages::new(input.source.clone(), stream.ram.blocks, &places, stream.whole)));
    }
    Ok(image)
}
