//! kdump's compressed format: 64-bit headers of version 6, as makedumpfile and QEMU write them on x86-64.
//!
//! All pages that the machine's memory touches are in the file. Those of zeros share one page that is not packed, as the other writers have it: leaving them
//! out would make holes of them, which readers tell from zeros or not as they please. What of a page is no memory is zero.
//!
//! The headers and bitmaps are known before any memory is read; then descriptors and pages grow side by side. That takes a place where one can go back,
//! or the flattened form.

use core::cell::RefCell;
use std::io;

use flate2::{Compress, FlushCompress, Status};
use vmi_arch_x86::Registers;
use vmi_core::{Driver, MachineInfo, MemoryMap, Note, PAGE_SIZE, Region};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::elf;
use super::output::Output;
use super::pipeline::{Failure, Pipeline};
use crate::flattened;
use crate::format::kdump::{COUNTS_64, Counts, Descriptor, SIGNATURE, Start, Sub64, ZLIB, ZSTD};
use crate::sparse::is_zero;

const PAGE: usize = PAGE_SIZE as usize;
/// What is gathered before it is written: of descriptors, and of pages.
const GATHERED: usize = 1 << 20;

/// How the pages of a kdump file are packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PagePacking {
    /// zlib, at its fastest level: every reader of the format has it.
    #[default]
    Zlib,
    /// Zstandard, at its fastest level: three times as fast to write. crash, drgn and makedumpfile read it if they were built with it, which Debian 12's
    /// makedumpfile is not.
    Zstd,
}

/// Where a file goes whose parts are not written in their order.
pub(super) trait Target {
    /// Writes `bytes` at `offset`.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// All has been written, and the file has `len` bytes.
    fn finish(&mut self, len: u64) -> io::Result<()>;
}

/// A file, each part at its place.
struct Placed<'o, 'w>(&'o mut Output<'w>);

impl Target for Placed<'_, '_> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.go_to(offset)?;
        self.0.write(bytes)
    }

    fn finish(&mut self, len: u64) -> io::Result<()> {
        self.0.go_to(len)
    }
}

/// A pipe, through which the file goes in makedumpfile's flattened form.
struct Flattened<'o, 'w>(&'o mut Output<'w>);

impl<'o, 'w> Flattened<'o, 'w> {
    fn start(output: &'o mut Output<'w>) -> io::Result<Self> {
        output.write(&flattened::start())?;
        Ok(Self(output))
    }
}

impl Target for Flattened<'_, '_> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let header = flattened::Header::of(offset, bytes.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        self.0.write(header.as_bytes())?;
        self.0.write(bytes)
    }

    fn finish(&mut self, _: u64) -> io::Result<()> {
        self.0.write(flattened::Header::END.as_bytes())
    }
}

/// What became of a page.
#[derive(Debug)]
pub(super) struct Page {
    number: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Zero,
    /// With the flags that say how it is packed.
    Whole(Vec<u8>, u32),
    /// The bytes that are memory, and their place in the page.
    Part(usize, Vec<u8>),
}

/// Packs the pages of `region`, whose content is `bytes`. Runs on any thread.
pub(super) fn pack(region: Region, bytes: &[u8], packing: PagePacking) -> Vec<Page> {
    let start = region.start().get();
    let (mut rest, mut at) = (bytes, start);
    let mut pages = Vec::with_capacity((bytes.len() / PAGE).saturating_add(2));
    while !rest.is_empty() {
        let within = (at % PAGE_SIZE) as usize;
        let (now, behind) = rest.split_at(PAGE.saturating_sub(within).min(rest.len()));
        let content = match now.len() {
            PAGE => whole(now, packing),
            _ => Content::Part(within, now.to_vec()),
        };
        pages.push(Page { number: at / PAGE_SIZE, content });
        at = at.saturating_add(now.len() as u64);
        rest = behind;
    }
    pages
}

fn whole(page: &[u8], packing: PagePacking) -> Content {
    if is_zero(page) {
        return Content::Zero;
    }
    let packed = match packing {
        PagePacking::Zlib => deflate(page).map(|packed| (packed, ZLIB)),
        PagePacking::Zstd => zstd(page).map(|packed| (packed, ZSTD)),
    };
    // What does not become smaller stays as it is.
    let (packed, flags) = packed.filter(|(packed, _)| packed.len() < page.len()).unwrap_or_else(|| (page.to_vec(), 0));
    Content::Whole(packed, flags)
}

thread_local! {
    // Their tables cost more to make than a page to pack.
    static DEFLATE: RefCell<Compress> = RefCell::new(Compress::new(flate2::Compression::fast(), true));
    static ZSTD_PACK: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
}

/// `None` if the result would not be smaller.
fn deflate(page: &[u8]) -> Option<Vec<u8>> {
    DEFLATE.with_borrow_mut(|deflate| {
        deflate.reset();
        let mut packed = Vec::with_capacity(page.len());
        let status = deflate.compress_vec(page, &mut packed, FlushCompress::Finish).ok()?;
        (status == Status::StreamEnd).then(|| packed.as_slice().to_vec())
    })
}

fn zstd(page: &[u8]) -> Option<Vec<u8>> {
    ZSTD_PACK.with_borrow_mut(|slot| {
        let compressor = match slot {
            Some(compressor) => compressor,
            None => slot.insert(zstd::bulk::Compressor::new(1).ok()?),
        };
        compressor.compress(page).ok()
    })
}

/// Writes a whole machine to `output`, with notes on all that `machine` and `registers` tell.
pub(super) fn write<D: Driver>(
    memory: &mut Pipeline<'_, '_, D>,
    machine: &MachineInfo,
    registers: &[Registers],
    packing: PagePacking,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    let notes = elf::notes(machine, registers);
    let cpus = u32::try_from(registers.len()).unwrap_or(u32::MAX).max(1);
    if output.goes_back() {
        fill(memory, Dump::start(machine, &notes, cpus, packing, Placed(output))?)
    } else {
        fill(memory, Dump::start(machine, &notes, cpus, packing, Flattened::start(output)?)?)
    }
}

fn fill<D: Driver>(memory: &mut Pipeline<'_, '_, D>, mut dump: Dump<impl Target>) -> Result<(), Failure> {
    let packing = dump.packing;
    memory.run(|region, bytes| pack(region, bytes, packing), |taken| dump.add(taken.prepared))?;
    Ok(dump.finish()?)
}

/// A file that is being written.
pub(super) struct Dump<T> {
    target: T,
    packing: PagePacking,
    descriptors: Stream,
    data: Stream,
    /// That of all pages of zeros.
    zero: Descriptor,
    /// A page of which not all is memory: more of it may come.
    open: Option<(u64, Box<[u8; PAGE]>)>,
}

/// Bytes that are written one after the other from some place on.
struct Stream {
    at: u64,
    gathered: Vec<u8>,
}

impl<T: Target> Dump<T> {
    /// Writes what is before the pages. `notes` are those of an ELF core, with registers of `cpus` processors.
    ///
    /// # Errors
    /// What the target says; [`io::ErrorKind::InvalidInput`] if the machine's addresses are beyond the format.
    pub(super) fn start(machine: &MachineInfo, notes: &[u8], cpus: u32, packing: PagePacking, target: T) -> io::Result<Self> {
        let plan = Plan::of(machine, notes).ok_or(io::ErrorKind::InvalidInput)?;
        let zero_at = plan.pages.checked_mul(size_of::<Descriptor>() as u64).and_then(|len| plan.descriptors.checked_add(len));
        let zero_at = zero_at.ok_or(io::ErrorKind::InvalidInput)?;
        let zero = Descriptor { offset: U64::new(zero_at), size: U32::new(PAGE as u32), ..Descriptor::default() };
        let mut dump = Self {
            target,
            packing,
            descriptors: Stream { at: plan.descriptors, gathered: Vec::new() },
            data: Stream { at: zero_at, gathered: vec![0; PAGE] },
            zero,
            open: None,
        };
        dump.write(0, &plan.headers(machine, notes, cpus, packing))?;
        for (number, block) in bitmap_blocks(&machine.memory) {
            for bitmap in [plan.bitmaps, plan.bitmaps.saturating_add(plan.bitmap_len)] {
                dump.write(number.saturating_mul(PAGE_SIZE).saturating_add(bitmap), &*block)?;
            }
        }
        Ok(dump)
    }

    /// Takes what [`pack`] made of the next memory.
    pub(super) fn add(&mut self, pages: Vec<Page>) -> io::Result<()> {
        for Page { number, content } in pages {
            if self.open.as_ref().is_some_and(|(open, _)| *open != number) {
                self.close_page()?;
            }
            match content {
                Content::Zero => self.descriptors.gathered.extend(self.zero.as_bytes()),
                Content::Whole(packed, flags) => self.add_packed(&packed, flags),
                Content::Part(within, bytes) => {
                    let (_, page) = self.open.get_or_insert_with(|| (number, Box::new([0; PAGE])));
                    page.iter_mut().skip(within).zip(bytes).for_each(|(to, from)| *to = from);
                }
            }
            self.flush(GATHERED)?;
        }
        Ok(())
    }

    fn add_packed(&mut self, packed: &[u8], flags: u32) {
        let descriptor = Descriptor {
            offset: U64::new(self.data.at.saturating_add(self.data.gathered.len() as u64)),
            size: U32::new(packed.len() as u32),
            flags: U32::new(flags),
            page_flags: U64::ZERO,
        };
        self.descriptors.gathered.extend(descriptor.as_bytes());
        self.data.gathered.extend(packed);
    }

    fn close_page(&mut self) -> io::Result<()> {
        match self.open.take().map(|(_, page)| whole(&*page, self.packing)) {
            Some(Content::Whole(packed, flags)) => self.add_packed(&packed, flags),
            Some(_) => self.descriptors.gathered.extend(self.zero.as_bytes()),
            None => {}
        }
        self.flush(GATHERED)
    }

    /// Writes what has been gathered if it is at least `len` bytes.
    fn flush(&mut self, len: usize) -> io::Result<()> {
        for stream in [&mut self.descriptors, &mut self.data] {
            if stream.gathered.len() >= len.max(1) {
                self.target.write_at(stream.at, &stream.gathered)?;
                let written = stream.gathered.len() as u64;
                stream.at = stream.at.saturating_add(written);
                stream.gathered.clear();
            }
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.target.write_at(offset, bytes)
    }

    /// Writes the rest.
    fn finish(mut self) -> io::Result<()> {
        self.close_page()?;
        self.flush(0)?;
        self.target.finish(self.data.at)
    }
}

/// Where what is.
struct Plan {
    /// How many pages the memory touches, and one more than the highest one's number.
    pages: u64,
    max_page: u64,
    sub_header_blocks: u64,
    bitmaps: u64,
    /// Of one of them, in bytes.
    bitmap_len: u64,
    descriptors: u64,
}

/// Where the notes are.
const NOTES: u64 = PAGE_SIZE + (size_of::<Sub64>() as u64).next_multiple_of(8);

impl Plan {
    fn of(machine: &MachineInfo, notes: &[u8]) -> Option<Self> {
        let (mut pages, mut max_page) = (0u64, 0u64);
        for region in machine.memory.regions() {
            let (first, end) = page_range(*region);
            // Two regions may have parts of one page.
            pages = pages.checked_add(end.checked_sub(first.max(max_page))?)?;
            max_page = end;
        }
        let sub_header_blocks = NOTES.checked_add(notes.len() as u64)?.checked_sub(PAGE_SIZE)?.div_ceil(PAGE_SIZE);
        let bitmap_len = max_page.div_ceil(8).max(1).checked_next_multiple_of(PAGE_SIZE)?;
        let bitmaps = sub_header_blocks.checked_add(1)?.checked_mul(PAGE_SIZE)?;
        let descriptors = bitmap_len.checked_mul(2)?.checked_add(bitmaps)?;
        u32::try_from(bitmap_len.checked_mul(2)? / PAGE_SIZE).ok()?;
        Some(Self { pages, max_page, sub_header_blocks, bitmaps, bitmap_len, descriptors })
    }

    /// Header, sub-header and notes.
    fn headers(&self, machine: &MachineInfo, notes: &[u8], cpus: u32, packing: PagePacking) -> Vec<u8> {
        let text = machine.notes.iter().find_map(|note| match note {
            Note::VmCoreInfo(text) => Some(text.as_slice()),
            _ => None,
        });
        let line = |key: &str| {
            let mut lines = text.unwrap_or_default().split(|byte| *byte == b'\n');
            lines.find_map(|line| line.strip_prefix(key.as_bytes()))
        };
        let mut system = [[0; 65]; 6];
        let release = line("OSRELEASE=").unwrap_or_default();
        // libkdumpfile takes the names for good, and the machine with them, only if none of release, version and machine is empty.
        let (kind, version): (&[u8], &[u8]) = if text.is_some() { (b"Linux", b"unknown") } else { (b"", b"") };
        let names: [&[u8]; 6] = [kind, b"", release, version, b"x86_64", b""];
        for (field, name) in system.iter_mut().zip(names) {
            field.iter_mut().take(64).zip(name).for_each(|(to, from)| *to = *from);
        }
        let start = Start { signature: *SIGNATURE, version: U32::new(6), system };
        let counts = Counts {
            status: U32::new(match packing {
                PagePacking::Zlib => ZLIB,
                PagePacking::Zstd => ZSTD,
            }),
            block_size: U32::new(PAGE as u32),
            sub_header: U32::new(self.sub_header_blocks as u32),
            bitmaps: U32::new((self.bitmap_len.saturating_mul(2) / PAGE_SIZE) as u32),
            max_page: U32::new(u32::try_from(self.max_page).unwrap_or(u32::MAX)),
            ram_blocks: U32::ZERO,
            device_blocks: U32::ZERO,
            written_blocks: U32::ZERO,
            current_cpu: U32::ZERO,
            cpus: U32::new(cpus.max(1)),
        };
        let pair = |offset: u64, len: usize| [U64::new(if len == 0 { 0 } else { offset }), U64::new(len as u64)];
        let place = |text: &[u8]| notes.windows(text.len().max(1)).position(|window| window == text);
        let vmcoreinfo = text.and_then(|text| Some(pair(NOTES.saturating_add(place(text)? as u64), text.len())));
        // Where the kernel lies, as a decimal number that may be negative (Linux, arch/x86/kernel/machine_kexec_64.c).
        let phys_base = line("NUMBER(phys_base)=").and_then(|number| str::from_utf8(number).ok()?.parse::<i64>().ok());
        let sub = Sub64 {
            phys_base: U64::new(phys_base.unwrap_or_default().cast_unsigned()),
            vmcoreinfo: vmcoreinfo.unwrap_or_default(),
            notes: pair(NOTES, notes.len()),
            max_page_64: U64::new(self.max_page),
            ..Sub64::default()
        };
        let mut bytes = start.as_bytes().to_vec();
        bytes.resize(COUNTS_64 as usize, 0);
        bytes.extend(counts.as_bytes());
        bytes.resize(PAGE, 0);
        bytes.extend(sub.as_bytes());
        bytes.resize(NOTES as usize, 0);
        bytes.extend(notes);
        // To the end of the sub-header, so that a file without any bit set has its bitmaps behind it.
        bytes.resize(self.bitmaps as usize, 0);
        bytes
    }
}

/// The pages that `region` touches: the first, and one more than the last.
fn page_range(region: Region) -> (u64, u64) {
    (region.start().get() / PAGE_SIZE, region.end().get().div_ceil(PAGE_SIZE))
}

/// The blocks of the bitmap in which any bit is set, with their numbers, ascending.
fn bitmap_blocks(memory: &MemoryMap) -> impl Iterator<Item = (u64, Box<[u8; PAGE]>)> {
    const BITS: u64 = PAGE_SIZE * 8;
    let mut regions = memory.regions().iter().map(|region| page_range(*region)).peekable();
    let mut from = 0u64;
    core::iter::from_fn(move || {
        let number = regions.peek()?.0.max(from) / BITS;
        let (start, end) = (number.saturating_mul(BITS), number.saturating_add(1).saturating_mul(BITS));
        let mut block = Box::new([0u8; PAGE]);
        while let Some((first, last)) = regions.peek().copied().filter(|(first, _)| *first < end) {
            for page in first.max(start)..last.min(end) {
                let bit = page.saturating_sub(start);
                if let Some(byte) = block.get_mut((bit / 8) as usize) {
                    *byte |= 1 << (bit % 8);
                }
            }
            if last > end {
                break;
            }
            regions.next();
        }
        from = end;
        Some((number, block))
    })
}
