//! Formats that hold memory as it is, at places that are known before anything is written.

use std::io;

use vmi_core::Driver;

use super::layout::Layout;
use super::output::Output;
use super::pipeline::{Failure, Pipeline};
use crate::sparse;

/// Writes headers and memory where `layout` has them.
pub(super) fn write<D: Driver>(
    memory: &mut Pipeline<'_, '_, D>,
    layout: &Layout,
    output: &mut Output<'_>,
) -> Result<(), Failure> {
    output.announce(layout.len)?;
    let mut headers = layout.headers.iter().peekable();
    let mut headers_before = |offset: u64, output: &mut Output<'_>| -> io::Result<()> {
        while let Some((at, bytes)) = headers.next_if(|(at, _)| *at < offset) {
            output.go_to(*at)?;
            output.write(bytes)?;
        }
        Ok(())
    };
    let mut places = layout.pieces.iter().peekable();
    memory.run(
        |_, bytes| sparse::runs(bytes),
        |taken| {
            let here = taken.region.start();
            while places.next_if(|place| place.region.end() <= here).is_some() {}
            let place = places.peek().ok_or(io::ErrorKind::InvalidInput)?;
            let offset = place.offset.wrapping_add(here.get().wrapping_sub(place.region.start().get()));
            headers_before(offset, output)?;
            output.go_to(offset)?;
            output.write_runs(&taken.bytes, &taken.prepared)
        },
    )?;
    headers_before(u64::MAX, output)?;
    Ok(())
}
