//! AVML, version 2: blocks of at most 16 MiB, each a header, a framed Snappy stream and the stream's length. Blocks of zeros are left out, as AVML
//! itself does.

use std::io::{self, Write};

use snap::write::FrameEncoder;
use vmi_core::{Driver, PhysAddr, Region};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::output::Output;
use super::pipeline::{Failure, Pipeline};
use crate::format::avml;
use crate::format::lime::Header;
use crate::sparse::is_zero;

/// The most that AVML itself puts into a block.
const BLOCK: u64 = 16 << 20;
/// What a framed stream starts with: the chunk that says what it is. It may stand between chunks too, but need not.
const IDENTIFIER: &[u8] = b"\xff\x06\0\0sNaPpY";

/// A block that is being written.
struct Open {
    region: Region,
    /// Zeros at its start that are not yet written, as nothing else may follow.
    zeros: Vec<u64>,
    /// Where the stream starts, once there is anything but zeros.
    stream: Option<u64>,
}

/// Writes the blocks of all regions.
pub(super) fn write<D: Driver>(memory: &mut Pipeline<'_, '_, D>, output: &mut Output<'_>) -> Result<(), Failure> {
    let regions = memory.machine().memory.clone();
    let mut open: Option<Open> = None;
    memory.run(
        |_, bytes| if is_zero(bytes) { Ok(None) } else { chunks(bytes).map(Some) },
        |taken| {
            let here = taken.region.start();
            if open.as_ref().is_none_or(|block| !block.region.contains(here)) {
                open.take().map_or(Ok(()), |block| block.close(output))?;
            }
            let block = match &mut open {
                Some(block) => block,
                none => none.insert(Open::at(&regions, here).ok_or(io::ErrorKind::InvalidInput)?),
            };
            match taken.prepared? {
                Some(chunks) => block.write(&chunks, output),
                None if block.stream.is_some() => block.write(&chunks(&taken.bytes)?, output),
                None => {
                    block.zeros.push(taken.region.len());
                    Ok(())
                }
            }
        },
    )?;
    if let Some(mut block) = open {
        if output.at() == 0 {
            // Nothing but zeros, but an image must hold something.
            block.write(&[], output)?;
        }
        block.close(output)?;
    }
    Ok(())
}

/// The chunks of a framed stream that holds `bytes`.
fn chunks(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = FrameEncoder::new(Vec::new());
    encoder.write_all(bytes)?;
    let mut stream = encoder.into_inner().map_err(|error| error.into_error())?;
    if stream.starts_with(IDENTIFIER) {
        stream.drain(..IDENTIFIER.len());
    }
    Ok(stream)
}

impl Open {
    /// The block that starts at `at`, up to a multiple of its greatest length or to the end of the region.
    fn at(regions: &vmi_core::MemoryMap, at: PhysAddr) -> Option<Self> {
        let left = regions.region_at(at)?.end().get().checked_sub(at.get())?;
        let region = Region::new(at, left.min(BLOCK.wrapping_sub(at.get() % BLOCK)))?;
        Some(Self { region, zeros: Vec::new(), stream: None })
    }

    fn write(&mut self, chunks: &[u8], output: &mut Output<'_>) -> io::Result<()> {
        if self.stream.is_none() {
            let header = Header {
                magic: U32::new(avml::MAGIC),
                version: U32::new(avml::VERSION),
                start: U64::new(self.region.start().get()),
                last: U64::new(self.region.end().get().wrapping_sub(1)),
                reserved: U64::ZERO,
            };
            output.write(header.as_bytes())?;
            self.stream = Some(output.at());
            output.write(IDENTIFIER)?;
            for len in self.zeros.drain(..) {
                output.write(&self::chunks(&vec![0; usize::try_from(len).unwrap_or_default()])?)?;
            }
        }
        output.write(chunks)
    }

    fn close(self, output: &mut Output<'_>) -> io::Result<()> {
        let Some(stream) = self.stream else { return Ok(()) };
        output.write(&output.at().saturating_sub(stream).to_le_bytes())
    }
}
