//! What the headers of an image say.

use object::LittleEndian as LE;
use object::pe::{
    IMAGE_DOS_SIGNATURE, IMAGE_NT_OPTIONAL_HDR32_MAGIC, IMAGE_NT_OPTIONAL_HDR64_MAGIC, IMAGE_NT_SIGNATURE,
    IMAGE_NUMBEROF_DIRECTORY_ENTRIES, ImageDataDirectory, ImageDosHeader, ImageFileHeader, ImageNtHeaders32, ImageNtHeaders64,
    ImageOptionalHeader32, ImageOptionalHeader64, ImageSectionHeader,
};
use vmi_core::{Memory, Result, VirtAddr};

use super::{corrupt, read};

/// The PE header starts within this many bytes. Real ones start within the first page; the loader itself (`RtlImageNtHeaderEx`) allows 256 MiB.
const MAX_PE_OFFSET: u32 = 0x1000;

/// Sections of an image. The loader took 96 at most up to XP; Windows 10 kernels have 33, images of other compilers some hundred.
const MAX_SECTIONS: u16 = 1024;

/// What the headers of a PE image say.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeHeaders {
    /// The processor: 0x8664 for x64, 0x14c for 32-bit x86.
    pub machine: u16,
    /// PE32+, with 64-bit addresses; otherwise PE32.
    pub is_64_bit: bool,
    /// When the image was linked, in seconds since 1970, or a hash of its content. With the size it names the image in a symbol store.
    pub time_date_stamp: u32,
    /// Bytes of the image in memory.
    pub size_of_image: u32,
    /// Bytes of headers before the first section.
    pub size_of_headers: u32,
    /// The address it was linked for. The loader writes the real one here when it moves the image.
    pub image_base: VirtAddr,
    /// Offset of its entry point; 0 if it has none.
    pub entry_point: u32,
    /// Who runs it: 1 native, 2 windows, 3 console.
    pub subsystem: u16,
    /// The checksum of the file.
    pub check_sum: u32,
    /// Flags of the file header: 0x2000 marks a DLL.
    pub characteristics: u16,
    /// Where its tables are, by their number; as many as it says that it has.
    pub directories: Vec<DataDirectory>,
    /// Its sections in the order of the file.
    pub sections: Vec<Section>,
}

/// Where a table of an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataDirectory {
    /// Offset from the start of the image.
    pub offset: u32,
    /// Length in bytes.
    pub size: u32,
}

/// A section of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its name: up to 8 bytes, without the zeros behind it.
    pub name: Vec<u8>,
    /// Offset from the start of the image.
    pub offset: u32,
    /// Bytes in memory.
    pub size: u32,
    /// Flags: 0x20000000 can be executed, 0x02000000 is discarded after initialisation.
    pub characteristics: u32,
}

impl PeHeaders {
    pub(super) fn read(memory: &(impl Memory<Addr = VirtAddr> + ?Sized), base: VirtAddr) -> Result<Self> {
        let dos: ImageDosHeader = read(memory, base)?;
        if dos.e_magic.get(LE) != IMAGE_DOS_SIGNATURE {
            return Err(corrupt(base, "there is no PE image: it does not start with MZ"));
        }
        let start = dos.e_lfanew.get(LE);
        if start > MAX_PE_OFFSET {
            return Err(corrupt(
                base,
                format!("the PE header is said to be at {start:#x}, beyond the first {MAX_PE_OFFSET:#x} bytes"),
            ));
        }
        let nt = offset(base, u64::from(start))?;
        let file_header = offset(nt, 4)?;
        let mut signature = [0; 4];
        memory.read_into(nt, &mut signature)?;
        if u32::from_le_bytes(signature) != IMAGE_NT_SIGNATURE {
            return Err(corrupt(nt, "there is no PE image: MZ is not followed by a header that starts with PE"));
        }
        let file: ImageFileHeader = read(memory, file_header)?;
        let mut magic = [0; 2];
        memory.read_into(offset(file_header, size_of::<ImageFileHeader>() as u64)?, &mut magic)?;
        let (mut headers, directories_at, directories) = match u16::from_le_bytes(magic) {
            IMAGE_NT_OPTIONAL_HDR64_MAGIC => {
                let all: ImageNtHeaders64 = read(memory, nt)?;
                (wide(&all.optional_header), size_of::<ImageNtHeaders64>(), all.optional_header.number_of_rva_and_sizes.get(LE))
            }
            IMAGE_NT_OPTIONAL_HDR32_MAGIC => {
                let all: ImageNtHeaders32 = read(memory, nt)?;
                (narrow(&all.optional_header), size_of::<ImageNtHeaders32>(), all.optional_header.number_of_rva_and_sizes.get(LE))
            }
            other => {
                return Err(corrupt(
                    nt,
                    format!("the optional header is neither PE32 nor PE32+ but has the magic number {other:#x}"),
                ));
            }
        };
        headers.machine = file.machine.get(LE).0;
        headers.time_date_stamp = file.time_date_stamp.get(LE);
        headers.characteristics = file.characteristics.get(LE).0;
        // The loader reads 16 of them, whatever the number says.
        for index in 0..directories.min(IMAGE_NUMBEROF_DIRECTORY_ENTRIES as u32) {
            let at = offset(nt, (directories_at as u64).saturating_add(u64::from(index).saturating_mul(8)))?;
            let directory: ImageDataDirectory = read(memory, at)?;
            headers.directories.push(DataDirectory { offset: directory.virtual_address.get(LE), size: directory.size.get(LE) });
        }
        let count = file.number_of_sections.get(LE);
        if count > MAX_SECTIONS {
            return Err(corrupt(
                nt,
                format!("the image is said to have {count} sections, more than the {MAX_SECTIONS} that are believed"),
            ));
        }
        let optional = u64::from(file.size_of_optional_header.get(LE));
        let first = offset(file_header, (size_of::<ImageFileHeader>() as u64).saturating_add(optional))?;
        for index in 0..u64::from(count) {
            let section: ImageSectionHeader =
                read(memory, offset(first, index.saturating_mul(size_of::<ImageSectionHeader>() as u64))?)?;
            headers.sections.push(Section::new(&section));
        }
        Ok(headers)
    }

    /// The table of this number, if there is one: 0 exports, 2 resources, 6 debug information.
    pub fn directory(&self, number: usize) -> Option<DataDirectory> {
        self.directories.get(number).copied().filter(|directory| directory.offset != 0 && directory.size != 0)
    }

    /// The first section of this name: `.text`, `POOLCODE`.
    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name.as_bytes())
    }

    /// The key of the image in a symbol store: the time stamp in 8 digits and the size in hexadecimal.
    pub fn store_key(&self) -> String {
        format!("{:08X}{:x}", self.time_date_stamp, self.size_of_image)
    }
}

impl Section {
    fn new(header: &ImageSectionHeader) -> Self {
        let len = header.name.iter().rposition(|&byte| byte != 0).map_or(0, |last| last.saturating_add(1));
        Self {
            name: header.name.get(..len).unwrap_or_default().to_vec(),
            offset: header.virtual_address.get(LE),
            size: header.virtual_size.get(LE),
            characteristics: header.characteristics.get(LE).0,
        }
    }
}

fn offset(base: VirtAddr, by: u64) -> Result<VirtAddr> {
    base.checked_add(by).ok_or_else(|| corrupt(base, "the headers leave the address range"))
}

/// The headers but for what both widths have in the file header.
macro_rules! optional_header {
    ($function:ident, $header:ident, $is_64_bit:literal) => {
        fn $function(header: &$header) -> PeHeaders {
            PeHeaders {
                machine: 0,
                is_64_bit: $is_64_bit,
                time_date_stamp: 0,
                size_of_image: header.size_of_image.get(LE),
                size_of_headers: header.size_of_headers.get(LE),
                image_base: VirtAddr::new(header.image_base.get(LE).into()),
                entry_point: header.address_of_entry_point.get(LE),
                subsystem: header.subsystem.get(LE).0,
                check_sum: header.check_sum.get(LE),
                characteristics: 0,
                directories: Vec::new(),
                sections: Vec::new(),
            }
        }
    };
}

optional_header!(wide, ImageOptionalHeader64, true);
optional_header!(narrow, ImageOptionalHeader32, false);
