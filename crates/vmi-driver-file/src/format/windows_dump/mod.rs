//! Windows crash dumps (MEMORY.DMP), 32- and 64-bit: what the kernel writes when it stops, and debuggers at any time.
//!
//! The header is that of Microsoft's documentation of the Win32 API (`DUMP_HEADER32`, `DUMP_HEADER64`). What is behind it depends on the kind of dump:
//!
//! | type | | pages |
//! |---|---|---|
//! | 1 | full | by runs in the header |
//! | 2, 5, 6, 7 | kernel, full, active, automatic | by a bitmap ([`bitmap`]) |
//! | 8, 9, 10 | of a running system, 64-bit | by a table of runs ([`live`]) |
//! | 4 | triage ("small dump"), 64-bit | none: virtual memory only ([`triage`]) |
//!
//! QEMU's `dump-guest-memory -w` writes type 1, with the header that the guest's driver hands to it. Registers are those of the processor that wrote
//! the dump; they are shown as those of the first vCPU, as nothing says which it was.

mod bitmap;
mod context;
mod header;
mod live;
mod runs;
mod tables;
mod triage;

use vmi_core::{Note, WindowsDumpKind};

use crate::FormatError;
use crate::image::{Image, Input};
use header::Header;

/// Either header's magic number.
pub(crate) fn matches(bytes: &[u8]) -> bool {
    bytes.starts_with(header::MAGIC_64) || bytes.starts_with(header::MAGIC_32)
}

/// Reads all kinds of dumps that hold memory.
pub(crate) fn parse(input: Input<'_>) -> Result<Image, FormatError> {
    let mut header = header::read(input.source)?;
    let at = if header.note.is_64_bit { 0xf98 } else { 0xf88 };
    let refuse = |what: String| Err(FormatError::Malformed { offset: at, what });
    let long = header.note.is_64_bit;
    header.note.kind = match header.dump_type {
        1 => WindowsDumpKind::Full,
        2 => WindowsDumpKind::Kernel,
        3 => return refuse("a dump of type 3 is a header without memory".to_owned()),
        4 if long => WindowsDumpKind::Triage,
        4 => return refuse("a triage dump (type 4, \"small dump\") of a 32-bit system is not read".to_owned()),
        5 => WindowsDumpKind::BitmapFull,
        6 => WindowsDumpKind::Active,
        7 => WindowsDumpKind::Automatic,
        8 if long => WindowsDumpKind::LiveKernel,
        9 if long => WindowsDumpKind::LiveKernelAndUser,
        10 if long => WindowsDumpKind::LiveFull,
        other => return refuse(format!("a dump of type {other} is not known")),
    };
    let mut image = match header.note.kind {
        WindowsDumpKind::Full => full(input, &header)?,
        WindowsDumpKind::Triage => triage::read(input, &mut header.note)?,
        WindowsDumpKind::LiveKernel | WindowsDumpKind::LiveKernelAndUser | WindowsDumpKind::LiveFull => {
            Image::of(input, live::read(input, header.len)?)
        }
        _ => bitmap::read(input, header.len)?,
    };
    image.registers.extend(header.registers);
    image.notes.push(Note::WindowsDump(Box::new(header.note)));
    Ok(image)
}

/// Runs of pages, in the order of the header.
fn full(input: Input<'_>, header: &Header) -> Result<Image, FormatError> {
    let count = usize::try_from(header.run_count).unwrap_or(usize::MAX);
    let runs = header.runs.get(..count).ok_or_else(|| FormatError::Malformed {
        offset: if header.note.is_64_bit { 0x88 } else { 0x64 },
        what: format!("{count} runs of memory, and the header has room for {}", header.runs.len()),
    })?;
    Ok(Image::of(input, runs::place(input, header.len, runs.iter().copied())?))
}
