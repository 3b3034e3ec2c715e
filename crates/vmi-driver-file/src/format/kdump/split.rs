//! The other parts of a dump that was split.

use core::ops::Range;

use vmi_core::PAGE_SIZE;

use super::header::Header;
use super::{malformed, matches};
use crate::FormatError;
use crate::image::Input;
use crate::source::Source;

/// Parts are looked for under the numbers below this.
const MAX_PARTS: u64 = 1000;

/// All parts of the dump that `input` is a part of, and the pages in each: files beside it whose names differ by the last number.
pub(super) fn gather(input: Input<'_>, header: &Header) -> Result<Vec<(Source, Range<u64>)>, FormatError> {
    let mut parts: Vec<_> = header.range.iter().map(|range| (input.source.clone(), range.clone())).collect();
    for name in siblings(input) {
        if first_missing(&parts, header.pages).is_none() {
            break;
        }
        let Some((path, source)) = input.beside(&name)? else { continue };
        if !matches(&source.head(8)?) {
            continue;
        }
        let beside = |error: FormatError| FormatError::Beside { path: path.clone(), why: error.to_string() };
        let other = Header::read(Input { source: &source, ..input }).map_err(beside)?;
        let same_dump = Header { range: None, ..other.clone() } == Header { range: None, ..header.clone() };
        let Some(range) = other.range.filter(|_| same_dump) else { continue };
        let apart = |(_, taken): &(Source, Range<u64>)| range.end <= taken.start || taken.end <= range.start;
        if parts.iter().all(apart) {
            tracing::debug!(name, "another part of the dump");
            parts.push((source, range));
        }
    }
    match first_missing(&parts, header.pages) {
        Some(page) if !input.options.allow_truncated => Err(malformed(
            PAGE_SIZE,
            format!(
                "a part of a split dump; the part with page {page:#x} is not beside it under a name that differs by its last number: \
                 put it there, or join the parts with `makedumpfile --reassemble`"
            ),
        )),
        missing => {
            if let Some(page) = missing {
                tracing::warn!(page, "a part of the split dump is missing");
            }
            parts.sort_by_key(|(_, range)| range.start);
            Ok(parts)
        }
    }
}

/// The first of `pages` pages that no part has.
fn first_missing(parts: &[(Source, Range<u64>)], pages: u64) -> Option<u64> {
    let mut ranges: Vec<_> = parts.iter().map(|(_, range)| range).collect();
    ranges.sort_by_key(|range| range.start);
    let reached = ranges.iter().fold(0, |reached, range| if range.start <= reached { range.end.max(reached) } else { reached });
    (reached < pages).then_some(reached)
}

/// Names like that of `input` with other numbers for the last one in it, with and without leading zeros.
fn siblings(input: Input<'_>) -> Vec<String> {
    let Some(name) = input.path.and_then(|path| path.file_name()?.to_str()) else { return Vec::new() };
    let Some(end) = name.rfind(|c: char| c.is_ascii_digit()) else { return Vec::new() };
    let (front, back) = name.split_at(end.saturating_add(1));
    let stem = front.trim_end_matches(|c: char| c.is_ascii_digit());
    let width = front.len().saturating_sub(stem.len());
    let own = name;
    let names = |number: u64| {
        let (padded, bare) = (format!("{stem}{number:0width$}{back}"), format!("{stem}{number}{back}"));
        let bare = Some(bare).filter(|bare| *bare != padded);
        [Some(padded), bare].into_iter().flatten().filter(|other| *other != own)
    };
    (0..MAX_PARTS).flat_map(names).collect()
}
