//! Files that are recognised and refused, each with what to do about it.

/// A kind of file that is not read here.
#[derive(Debug)]
pub(crate) struct Foreign {
    /// What it is.
    pub(crate) name: &'static str,
    /// What to do.
    pub(crate) advice: &'static str,
    offset: usize,
    magic: &'static [u8],
}

const fn foreign(name: &'static str, offset: usize, magic: &'static [u8], advice: &'static str) -> Foreign {
    Foreign { name, advice, offset, magic }
}

const QEMU_STREAM: &str = "restore it and write the memory with QEMU's `dump-guest-memory` or `virsh dump --memory-only`";
const XEN_3: &str = "write the machine's memory with a newer `xl dump-core`";
const DISK: &str = "this is a disk, not memory: take a memory image of the running machine";
const UNPACK: &str = "unpack it first, or pack it with zstd, gzip, xz, lz4 or bzip2";
const CONTAINER: &str = "extract the memory image from it first";
const TWICE: &str = "unpack it once by hand";

/// Where each kind has its magic number.
static FOREIGN: &[Foreign] = &[
    foreign("makedumpfile's flattened format within itself", 0, b"makedumpfile\0", "rearrange it once with `makedumpfile -R`"),
    foreign("AVML of another version than 2", 0, b"AVML", "convert it to LiME with `avml convert`"),
    foreign("LiME of another version than 1", 0, b"EMiL", "write the image with format=lime of LiME 1.x"),
    foreign("a QEMU migration stream of another version than 3", 0, b"QEVM", QEMU_STREAM),
    foreign("an unfinished libvirt save file", 0, b"LibvirtQemudPart", "libvirt did not get to its end: save the domain again"),
    foreign("a core of Xen 3.0, before ELF", 0, &0xf00f_ebed_u32.to_le_bytes(), XEN_3),
    foreign("a core of Xen 3.0, before ELF", 0, &0xf00f_ebee_u32.to_le_bytes(), XEN_3),
    foreign("a qcow disk of another version than 2 and 3", 0, b"QFI\xfb", DISK),
    foreign("a VMDK disk", 0, b"KDMV", DISK),
    foreign("a VDI disk", 0x40, &[0x7f, 0x10, 0xda, 0xbe], DISK),
    foreign("a VHDX disk", 0, b"vhdxfile", DISK),
    foreign("an ISO 9660 disk", 0x8001, b"CD001", DISK),
    foreign("lz4 of the legacy kind", 0, &[0x02, 0x21, 0x4c, 0x18], UNPACK),
    foreign("lzop within another packing", 0, b"\x89LZO\0\r\n\x1a\n", TWICE),
    foreign("framed Snappy", 0, b"\xff\x06\0\0sNaPpY", UNPACK),
    foreign("7-Zip", 0, b"7z\xbc\xaf\x27\x1c", CONTAINER),
    foreign("ZIP", 0, b"PK\x03\x04", CONTAINER),
    foreign("a tar archive", 257, b"ustar", CONTAINER),
    foreign("zstd within another packing", 0, &[0x28, 0xb5, 0x2f, 0xfd], TWICE),
    foreign("gzip within another packing", 0, &[0x1f, 0x8b, 8], TWICE),
    foreign("xz within another packing", 0, b"\xfd7zXZ\0", TWICE),
    foreign("lz4 within another packing", 0, &[0x04, 0x22, 0x4d, 0x18], TWICE),
    foreign("bzip2 within another packing", 4, b"1AY&SY", TWICE),
];

static TEXT: Foreign = foreign("a text file", 0, b"", "give a memory image");
static TINY: Foreign = foreign("a file of less than one page (4096 bytes)", 0, b"", "give a memory image");

/// The least that memory comes in.
const PAGE: usize = 4096;

/// What `bytes` are, if they are known to be no image that can be read here.
pub(crate) fn identify(bytes: &[u8]) -> Option<&'static Foreign> {
    let known = FOREIGN.iter().find(|kind| bytes.get(kind.offset..).is_some_and(|rest| rest.starts_with(kind.magic)));
    // Control characters and zeros are in the first page of every machine, and in no text.
    let is_text = |byte: &u8| matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..=0x7e | 0x80..);
    known.or_else(|| bytes.iter().take(PAGE).all(is_text).then_some(&TEXT)).or_else(|| (bytes.len() < PAGE).then_some(&TINY))
}
