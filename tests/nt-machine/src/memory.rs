//! Physical memory of the machine: sparse, with holes, with an allocator that scatters its pages.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// Physical memory: only pages that hold something take space.
#[derive(Clone, Debug)]
pub struct PhysicalMemory {
    ram: Vec<Range<u64>>,
    pages: BTreeMap<u64, Box<[u8; PAGE as usize]>>,
    taken: BTreeSet<u64>,
    /// One cursor for each run of RAM: how many of its pages the allocator has looked at.
    cursors: Vec<u64>,
    turn: usize,
}

impl PhysicalMemory {
    /// Memory with RAM in these ranges, in ascending order.
    pub fn new(ram: Vec<Range<u64>>) -> Self {
        assert!(ram.iter().all(|run| run.start % PAGE == 0 && run.end % PAGE == 0 && run.start < run.end));
        assert!(ram.windows(2).all(|pair| pair[0].end <= pair[1].start));
        let cursors = vec![0; ram.len()];
        Self { ram, pages: BTreeMap::new(), taken: BTreeSet::new(), cursors, turn: 0 }
    }

    /// Where RAM is.
    pub fn ram(&self) -> &[Range<u64>] {
        &self.ram
    }

    /// The first address behind all RAM.
    pub fn end(&self) -> u64 {
        self.ram.last().map_or(0, |run| run.end)
    }

    /// Whether all of the range is RAM.
    pub fn is_ram(&self, range: Range<u64>) -> bool {
        self.ram.iter().any(|run| run.start <= range.start && range.end <= run.end)
    }

    /// Writes at a physical address, which must be RAM.
    pub fn write(&mut self, mut at: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (frame, offset) = (at / PAGE, (at % PAGE) as usize);
            assert!(self.is_ram(frame * PAGE..(frame + 1) * PAGE), "no RAM at {at:#x}");
            let part = bytes.len().min(PAGE as usize - offset);
            let page = self.pages.entry(frame).or_insert_with(|| Box::new([0; PAGE as usize]));
            page[offset..offset + part].copy_from_slice(&bytes[..part]);
            bytes = &bytes[part..];
            at += part as u64;
        }
    }

    /// Reads at a physical address, which must be RAM.
    pub fn read(&self, mut at: u64, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let (frame, offset) = (at / PAGE, (at % PAGE) as usize);
            assert!(self.is_ram(frame * PAGE..(frame + 1) * PAGE), "no RAM at {at:#x}");
            let part = (len - bytes.len()).min(PAGE as usize - offset);
            match self.pages.get(&frame) {
                Some(page) => bytes.extend_from_slice(&page[offset..offset + part]),
                None => bytes.resize(bytes.len() + part, 0),
            }
            at += part as u64;
        }
        bytes
    }

    /// A little-endian number of `width` bytes (up to 8).
    pub fn read_number(&self, at: u64, width: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(&self.read(at, width));
        u64::from_le_bytes(bytes)
    }

    /// Writes a little-endian number of `width` bytes (up to 8).
    pub fn write_number(&mut self, at: u64, value: u64, width: usize) {
        self.write(at, &value.to_le_bytes()[..width]);
    }

    /// Keeps the allocator away from a range.
    pub fn reserve(&mut self, range: Range<u64>) {
        self.taken.extend(range.start / PAGE..range.end.div_ceil(PAGE));
    }

    /// A free page. Pages come from all runs of RAM in turn, and in an order that is not ascending, as in a machine that has run for a while:
    /// what is contiguous in virtual memory is not so in physical memory.
    pub fn alloc_page(&mut self) -> u64 {
        for _ in 0..self.ram.len() {
            let index = self.turn % self.ram.len();
            self.turn += 1;
            let run = self.ram[index].clone();
            while self.cursors[index] < (run.end - run.start) / PAGE {
                let nth = self.cursors[index];
                self.cursors[index] += 1;
                let scattered = (nth & !15) | ((nth & 15) * 5 + 3) & 15;
                let frame = run.start / PAGE + scattered;
                if frame * PAGE >= ALLOCATOR_FLOOR && frame * PAGE < run.end && self.taken.insert(frame) {
                    return frame * PAGE;
                }
            }
        }
        panic!("the machine's memory is full: give it more");
    }

    /// Free pages side by side, the first at an address that is `phase` more than a multiple of `align`.
    pub fn alloc_contiguous(&mut self, bytes: u64, align: u64, phase: u64) -> u64 {
        let pages = bytes.div_ceil(PAGE);
        for run in self.ram.clone() {
            let mut at = run.start.max(ALLOCATOR_FLOOR).next_multiple_of(align) + phase;
            while at + pages * PAGE <= run.end {
                let range = at / PAGE..at / PAGE + pages;
                if self.taken.range(range.clone()).next().is_none() {
                    self.taken.extend(range);
                    return at;
                }
                at += align;
            }
        }
        panic!("no {bytes:#x} bytes of memory side by side: give the machine more");
    }

    /// The runs of RAM with all their bytes. As large as the machine: for a big one use [`PhysicalMemory::pages`].
    pub fn runs(&self) -> Vec<(u64, Vec<u8>)> {
        self.ram.iter().map(|run| (run.start, self.read(run.start, (run.end - run.start) as usize))).collect()
    }

    /// The pages that hold something, by physical address in ascending order. All others are zero.
    pub fn pages(&self) -> impl Iterator<Item = (u64, &[u8; PAGE as usize])> {
        self.pages.iter().map(|(frame, page)| (frame * PAGE, &**page))
    }

    /// Writes a raw image: the byte at offset N of the file is the byte at physical address N. Sparse: pages without content are holes of the file.
    ///
    /// # Errors
    /// Those of the file.
    pub fn write_raw(&self, path: &Path) -> io::Result<()> {
        let file = File::create(path)?;
        file.set_len(self.end())?;
        for (at, page) in self.pages() {
            file.write_all_at(page, at)?;
        }
        Ok(())
    }
}

/// The allocator leaves the first megabytes alone: the low stub and the loader's page tables live there, at places that are chosen.
const ALLOCATOR_FLOOR: u64 = 3 << 20;
