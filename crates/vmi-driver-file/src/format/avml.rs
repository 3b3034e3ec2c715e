//! AVML images, version 2: ranges of physical memory, each a header as LiME has it, a framed Snappy stream, and the length of that stream.
//!
//! Layout: AVML, `src/image.rs` and `src/io/snappy.rs`; Snappy, `framing_format.txt`. AVML reads files that mix ranges of version 1 (which is LiME) with these, so that
//! is done here too. It leaves out blocks of zeros (16 MiB each, since version 0.10), which are holes then.
//!
//! As the length is behind each stream, the ranges are found from the end of the file on, without touching what is between. The chunks of a stream, at
//! most 64 KiB of memory each, are looked for when memory of their range is first read. A file that is cut short, or mixed, is walked from its start
//! instead, from chunk to chunk.

use std::io::Read;
use std::sync::OnceLock;

use snap::read::FrameDecoder;
use vmi_core::{MemoryMap, PAGE_SIZE, PhysAddr, Piece, Region};
use zerocopy::little_endian::U64;

use crate::FormatError;
use crate::claims::Claims;
use crate::format::lime::{self, Header};
use crate::image::{Image, Input, Part};
use crate::packed_memory::{Block, Blocks};
use crate::source::Source;

/// `AVML` as the first four bytes spell it.
pub(crate) const MAGIC: u32 = 0x4c4d_5641;
/// The version that is packed.
pub(crate) const VERSION: u32 = 2;

const HEADER_LEN: u64 = size_of::<Header>() as u64;
const COUNT_LEN: u64 = size_of::<U64>() as u64;

/// What a framed Snappy stream starts with.
const IDENTIFIER: &[u8] = b"\xff\x06\0\0sNaPpY";
/// The most memory in a chunk.
const CHUNK: u64 = 64 << 10;
/// The longest chunk that holds as much (Snappy's bound for what cannot be packed: 32 + n + n / 6), and its checksum.
const PACKED_CHUNK: u64 = 4 + 32 + CHUNK + CHUNK / 6;
/// Kind, length and checksum of a chunk.
const CHUNK_HEADER: u64 = 8;
/// All writers fill their chunks. So many may be of less than a page before the file is taken for hostile.
const SMALL_CHUNKS: u64 = 1024;
/// Ranges of 16 MiB each: that is 16 TiB.
const MAX_RANGES: usize = 1 << 20;

/// Magic number and version of the first header.
pub(crate) fn matches(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC.to_le_bytes()) && bytes.get(4..8) == Some(&VERSION.to_le_bytes())
}

/// Finds the ranges from the end; if that does not lead to the start, from the start.
pub(crate) fn parse(input: Input<'_>) -> Result<Image, FormatError> {
    let ranges = match backwards(input.source)? {
        Some(ranges) => ranges,
        None => forwards(input)?,
    };
    let mut claims = Claims::default();
    let mut memory = Memory { source: input.source.clone(), streams: Vec::new(), parts: Vec::new() };
    let mut pieces = Vec::new();
    for range in ranges {
        match range {
            Range::Plain(piece) => pieces.extend(claims.claim(piece.region).into_iter().map(|region| {
                let within = region.start().get().wrapping_sub(piece.region.start().get());
                Piece { region, offset: piece.offset.wrapping_add(within) }
            })),
            Range::Packed(stream) => {
                let index = memory.streams.len();
                memory.parts.extend(claims.claim(stream.region).into_iter().map(|region| (region, index)));
                memory.streams.push(stream);
            }
        }
    }
    memory.parts.sort_by_key(|(region, _)| region.start());
    Ok(Image { parts: vec![Part { source: input.source.clone(), pieces }], packed: Some(Box::new(memory)), ..Image::default() })
}

/// A range in the file.
enum Range {
    /// Of version 1: as it is.
    Plain(Piece),
    Packed(Stream),
}

/// The ranges, from the last one to the first; `None` if they do not lead to the start of the file.
fn backwards(source: &Source) -> Result<Option<Vec<Range>>, FormatError> {
    let mut ranges = Vec::new();
    let mut end = source.len();
    while end > 0 {
        let Some(count_at) = end.checked_sub(COUNT_LEN) else { return Ok(None) };
        let count: U64 = source.read(count_at, "the length of a stream")?;
        let Some(data) = count_at.checked_sub(count.get()) else { return Ok(None) };
        let Some(header_at) = data.checked_sub(HEADER_LEN) else { return Ok(None) };
        let header: Header = source.read(header_at, "a header")?;
        let Some(region) = header.region(header_at).ok().filter(|_| header.is_packed()) else { return Ok(None) };
        // The shortest chunk is its header and one byte.
        if region.len().div_ceil(CHUNK) > count.get().div_ceil(CHUNK_HEADER) {
            let what = format!("a range of {} bytes in a stream of {count}, which cannot hold them", region.len());
            return Err(FormatError::Malformed { offset: header_at, what });
        }
        ranges.push(Range::Packed(Stream { region, data, end: count_at, chunks: OnceLock::new() }));
        within_limit(&ranges, header_at)?;
        end = header_at;
    }
    ranges.reverse();
    Ok(Some(ranges))
}

/// The ranges, from the first one to where the file ends or is damaged.
fn forwards(input: Input<'_>) -> Result<Vec<Range>, FormatError> {
    let (source, mut ranges, mut offset) = (input.source, Vec::new(), 0u64);
    while offset < source.len() && !lime::is_padding(input, offset)? {
        within_limit(&ranges, offset)?;
        let name =
            |region: Region| format!("range {} ({}-{:#x})", ranges.len(), region.start(), region.end().get().wrapping_sub(1));
        if input.present(offset, HEADER_LEN, || format!("the header of range {}", ranges.len()))? < HEADER_LEN {
            break;
        }
        let header: Header = source.read(offset, "the header")?;
        let data = offset.saturating_add(HEADER_LEN);
        if header.is_plain() {
            let region = header.region_of_plain(input, offset)?;
            let len = input.present(data, region.len(), || name(region))?;
            offset = data.saturating_add(len);
            ranges.extend(Region::new(region.start(), len).map(|region| Range::Plain(Piece { region, offset: data })));
            continue;
        }
        if !header.is_packed() {
            let what = format!("no header of AVML (version {VERSION}) or LiME where range {} should start", ranges.len());
            return Err(FormatError::Malformed { offset, what });
        }
        let region = header.region(offset)?;
        let walk = Chunks::walk(source, data, source.len(), region.len());
        let count = match walk.stopped {
            None => input.present(walk.end, COUNT_LEN, || format!("the length of {}", name(region)))?,
            Some(FormatError::Truncated { missing, .. }) => {
                // Nothing of what is missing is there.
                let _ = input.present(source.len(), missing, || name(region))?;
                0
            }
            Some(error) => return Err(error),
        };
        if count == COUNT_LEN {
            let count: U64 = source.read(walk.end, "the length of a stream")?;
            let len = walk.end.saturating_sub(data);
            if count.get() != len {
                let what = format!("{} is packed into {len} bytes, not into {count}", name(region));
                return Err(FormatError::Malformed { offset: walk.end, what });
            }
        }
        offset = if count == COUNT_LEN { walk.end.saturating_add(COUNT_LEN) } else { source.len() };
        if let Some(region) = Region::new(region.start(), walk.chunks.len) {
            ranges.push(Range::Packed(Stream { region, data, end: walk.end, chunks: OnceLock::from(Ok(walk.chunks)) }));
        }
    }
    Ok(ranges)
}

fn within_limit(ranges: &[Range], offset: u64) -> Result<(), FormatError> {
    if ranges.len() < MAX_RANGES {
        return Ok(());
    }
    Err(FormatError::Malformed { offset, what: format!("more than {MAX_RANGES} ranges, of which no writer has so many") })
}

/// A packed range.
#[derive(Debug)]
struct Stream {
    region: Region,
    /// Where the stream is in the file.
    data: u64,
    end: u64,
    /// Found when they are first needed.
    chunks: OnceLock<Result<Chunks, FormatError>>,
}

/// The chunks of a stream that hold memory.
#[derive(Debug, Default)]
struct Chunks {
    /// Where the memory of each starts, counted from the start of the range, and where it is in the file. Ascending.
    starts: Vec<(u64, u64)>,
    /// How much memory they hold together.
    len: u64,
}

/// How far the search for chunks came.
struct Walk {
    chunks: Chunks,
    /// Behind the last whole chunk.
    end: u64,
    /// Why it ended before there was enough memory.
    stopped: Option<FormatError>,
}

impl Chunks {
    /// Goes from chunk to chunk of the stream in `at..end` until they hold `wanted` bytes.
    fn walk(source: &Source, at: u64, end: u64, wanted: u64) -> Walk {
        let mut walk = Walk { chunks: Self::default(), end: at, stopped: None };
        while walk.chunks.len < wanted {
            if let Err(error) = walk.step(source, end, wanted) {
                walk.stopped = Some(error);
                break;
            }
        }
        walk
    }

    /// The chunk that holds the byte `within` the range: where its memory starts and ends, and where it is in the file.
    fn find(&self, within: u64) -> Option<(u64, u64, u64)> {
        let behind = self.starts.partition_point(|&(start, _)| start <= within);
        let &(start, at) = self.starts.get(behind.checked_sub(1)?)?;
        let end = self.starts.get(behind).map_or(self.len, |&(next, _)| next);
        (within < end).then_some((start, end, at))
    }
}

impl Walk {
    fn step(&mut self, source: &Source, end: u64, wanted: u64) -> Result<(), FormatError> {
        let at = self.end;
        let malformed = |what: String| FormatError::Malformed { offset: at, what };
        let room = |len: u64| match at.saturating_add(len).checked_sub(end) {
            None | Some(0) => Ok(()),
            Some(missing) => Err(FormatError::Truncated { what: "a stream".to_owned(), missing }),
        };
        room(4)?;
        let header = source.get(at, 4, "a chunk")?;
        let Some(&[kind, low, middle, high]) = header.first_chunk() else { return Err(malformed("no chunk".to_owned())) };
        let len = u64::from(u32::from_le_bytes([low, middle, high, 0]));
        room(len.saturating_add(4))?;
        let body = at.saturating_add(4);
        let memory = match kind {
            0 | 1 if !(4..=PACKED_CHUNK).contains(&len) => return Err(malformed(format!("a chunk of {len} bytes"))),
            0 => {
                // Behind the checksum, the packed bytes start with the number of unpacked ones.
                let prefix = source.get(body.saturating_add(4), (len.saturating_sub(4)).min(5), "a chunk")?;
                snap::raw::decompress_len(&prefix).map_err(|error| malformed(error.to_string()))? as u64
            }
            1 => len.saturating_sub(4),
            0x80..=0xfe => 0,
            0xff if *source.get(at, len.saturating_add(4).min(10), "a chunk")? == *IDENTIFIER && len == 6 => 0,
            _ => return Err(malformed(format!("a chunk of kind {kind:#x}, which is not known"))),
        };
        let start = self.chunks.len;
        if memory > CHUNK || start.saturating_add(memory) > wanted {
            return Err(malformed(format!(
                "a chunk holds {memory} bytes where at most {} are left",
                CHUNK.min(wanted.saturating_sub(start))
            )));
        }
        if memory > 0 {
            self.chunks.starts.push((start, at));
            if self.chunks.starts.len() as u64 > SMALL_CHUNKS.saturating_add(start / PAGE_SIZE) {
                return Err(malformed("the chunks are too small for any writer".to_owned()));
            }
        }
        self.chunks.len = start.saturating_add(memory);
        self.end = body.saturating_add(len);
        Ok(())
    }
}

/// The packed memory of an image.
#[derive(Debug)]
struct Memory {
    source: Source,
    streams: Vec<Stream>,
    /// Which stream speaks for which memory. Ascending and disjoint.
    parts: Vec<(Region, usize)>,
}

impl Memory {
    fn chunks<'s>(&self, stream: &'s Stream) -> Result<&'s Chunks, FormatError> {
        let find = || {
            let walk = Chunks::walk(&self.source, stream.data, stream.end, stream.region.len());
            match walk.stopped {
                None => Ok(walk.chunks),
                Some(FormatError::Truncated { .. }) => Err(FormatError::Malformed {
                    offset: stream.data,
                    what: format!("a stream of {} bytes where {} were promised", walk.chunks.len, stream.region.len()),
                }),
                Some(error) => Err(error),
            }
        };
        stream.chunks.get_or_init(find).as_ref().map_err(Clone::clone)
    }
}

impl Blocks for Memory {
    fn memory(&self) -> MemoryMap {
        MemoryMap::new(self.parts.iter().map(|&(region, _)| region))
    }

    fn block_at(&self, at: PhysAddr) -> Option<Block> {
        let index = self.parts.partition_point(|(region, _)| region.end() <= at);
        let &(part, index) = self.parts.get(index).filter(|(region, _)| region.contains(at))?;
        let stream = self.streams.get(index)?;
        let base = stream.region.start().get();
        let within = at.get().checked_sub(base)?;
        let chunk = self.chunks(stream).ok().and_then(|chunks| chunks.find(within));
        // Damage is told when the block is unpacked, so it needs no more than some length.
        let (start, end, _) = chunk.unwrap_or((within, within.saturating_add(1), 0));
        let start = base.checked_add(start)?.max(part.start().get());
        let end = base.saturating_add(end).min(part.end().get());
        let region = Region::new(PhysAddr::new(start), end.checked_sub(start)?)?;
        Some(Block { region, id: index as u64 })
    }

    fn unpack(&self, block: Block, out: &mut [u8]) -> Result<(), FormatError> {
        let stream = usize::try_from(block.id).ok().and_then(|index| self.streams.get(index)).ok_or(FormatError::NoMemory)?;
        let within = block.region.start().get().wrapping_sub(stream.region.start().get());
        let (start, end, at) = self.chunks(stream)?.find(within).ok_or(FormatError::NoMemory)?;
        let len = end.saturating_sub(start);
        if len == out.len() as u64 {
            return self.unpack_chunk(at, out);
        }
        // Another stream speaks for the rest of the chunk.
        let mut whole = vec![0; usize::try_from(len.min(CHUNK)).unwrap_or_default()];
        self.unpack_chunk(at, &mut whole)?;
        let skipped = usize::try_from(within.saturating_sub(start)).unwrap_or(usize::MAX);
        let bytes = whole.get(skipped..).and_then(|rest| rest.get(..out.len())).ok_or(FormatError::NoMemory)?;
        out.copy_from_slice(bytes);
        Ok(())
    }
}

impl Memory {
    /// Unpacks the chunk at `at` of the file, and checks its checksum.
    fn unpack_chunk(&self, at: u64, out: &mut [u8]) -> Result<(), FormatError> {
        let damaged = |error: std::io::Error| FormatError::Damaged { what: "Snappy", offset: at, why: error.to_string() };
        let header = self.source.get(at, 4, "a chunk")?;
        let len = header.iter().skip(1).rev().fold(0u64, |len, &byte| len << 8 | u64::from(byte));
        let chunk = self.source.get(at, len.saturating_add(4).min(PACKED_CHUNK.saturating_add(4)), "a chunk")?;
        FrameDecoder::new(IDENTIFIER.chain(&*chunk)).read_exact(out).map_err(damaged)
    }
}
