//! What every format is brought to.

use vmi_arch_x86::Registers;
use vmi_core::{Note, Piece, Region};

use crate::{FormatError, OpenOptions};

/// A parsed image: where in the file the machine's memory is, and what else the file tells.
#[derive(Debug, Default)]
pub(crate) struct Image {
    /// Memory whose bytes are in the file. Disjoint in the guest.
    pub(crate) pieces: Vec<Piece>,
    /// Memory that the file declares without storing it: all zero. Disjoint from the pieces.
    pub(crate) zeros: Vec<Region>,
    /// Registers of each vCPU in order; empty if the format keeps none.
    pub(crate) registers: Vec<Registers>,
    /// What else is known of the guest.
    pub(crate) notes: Vec<Note>,
}

/// How a format's bytes become an [`Image`].
pub(crate) type Parse = fn(&[u8], &OpenOptions) -> Result<Image, FormatError>;

/// What is there of the bytes `offset..offset + len` of a file of `available` bytes: all of them, or as many as exist if truncated files
/// are allowed.
pub(crate) fn present(
    options: &OpenOptions,
    available: usize,
    offset: u64,
    len: u64,
    what: impl FnOnce() -> String,
) -> Result<u64, FormatError> {
    let available = (available as u64).saturating_sub(offset);
    match len.checked_sub(available) {
        None | Some(0) => Ok(len),
        Some(missing) if options.allow_truncated => {
            tracing::warn!(what = what(), missing, "the image is cut short");
            Ok(available)
        }
        Some(missing) => Err(FormatError::Truncated { what: what(), missing }),
    }
}
