//! PE images: built ones, hostile ones, and those of Wine ("real PE files", if `VMI_WINE_PE` names the directory that has them).

mod built;
mod hostile;
mod wine;

use std::ops::Range;

use object::LittleEndian as LE;
use object::pe::{ImageNtHeaders32, ImageNtHeaders64};
use object::read::pe::{ImageNtHeaders, ImageOptionalHeader};
use vmi_core::{ErrorKind, Memory, PhysAddr, Result, VirtAddr};

/// Guest memory with holes.
pub(super) struct TestMemory {
    pub(super) base: u64,
    pub(super) bytes: Vec<u8>,
    /// What is paged out: addresses.
    pub(super) holes: Vec<Range<u64>>,
}

impl TestMemory {
    pub(super) fn new(base: u64, bytes: Vec<u8>) -> Self {
        Self { base, bytes, holes: Vec::new() }
    }

    pub(super) fn at(&self) -> VirtAddr {
        VirtAddr::new(self.base)
    }
}

impl Memory for TestMemory {
    type Addr = VirtAddr;

    fn read_into(&self, at: VirtAddr, buf: &mut [u8]) -> Result<()> {
        for (done, byte) in buf.iter_mut().enumerate() {
            let here = at.get().wrapping_add(done as u64);
            let there = here.checked_sub(self.base).and_then(|index| self.bytes.get(usize::try_from(index).ok()?));
            match there.filter(|_| !self.holes.iter().any(|hole| hole.contains(&here))) {
                Some(there) => *byte = *there,
                None => return Err(vmi_core::Error::from(ErrorKind::Hole { at: PhysAddr::new(here) }).after(done)),
            }
        }
        Ok(())
    }
}

/// The file as the loader maps it: headers, then each section at its place.
pub(super) fn mapped(file: &[u8]) -> Option<Vec<u8>> {
    match object::FileKind::parse(file).ok()? {
        object::FileKind::Pe64 => map::<ImageNtHeaders64>(file),
        _ => map::<ImageNtHeaders32>(file),
    }
}

fn map<H: ImageNtHeaders>(file: &[u8]) -> Option<Vec<u8>> {
    let dos = object::pe::ImageDosHeader::parse(file).ok()?;
    let mut start = dos.nt_headers_offset().into();
    let (nt, _) = H::parse(file, &mut start).ok()?;
    let mut image = vec![0; nt.optional_header().size_of_image() as usize];
    let head = (nt.optional_header().size_of_headers() as usize).min(file.len()).min(image.len());
    image[..head].copy_from_slice(&file[..head]);
    for section in nt.sections(file, start).ok()?.iter() {
        let data = section.pe_data(file).unwrap_or_default();
        let at = section.virtual_address.get(LE) as usize;
        let len = data.len().min(image.len().saturating_sub(at));
        image[at..at + len].copy_from_slice(&data[..len]);
    }
    Some(image)
}
