//! Why an image does not open.

use std::io;
use std::path::PathBuf;

use vmi_core::PieceError;

use crate::{Compression, Format};

/// A file that cannot be opened as a memory image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The operating system refuses.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// A pipe, a socket or a device: images are mapped, which takes a regular file.
    #[error("{}: is {what}, not a regular file; copy the image into a file first", path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A directory in which no image, or no single one, is recognised.
    #[error("{}: {why}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What was looked for, or found too often.
        why: String,
    },
    /// The file has no bytes.
    #[error("{}: the file is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file was recognised, but is not a memory image or of a kind that this version does not read.
    #[error("{}: {format} is not supported; {advice}", path.display())]
    NotSupported {
        /// The file.
        path: PathBuf,
        /// What the file is.
        format: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// The file is of a known format, but cut short or contradicting itself.
    #[error("{}: {format} image: {source}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: Format,
        /// What is wrong.
        source: FormatError,
    },
    /// The file is of makedumpfile's flattened form, but cut short or contradicting itself.
    #[error("{}: makedumpfile's flattened form: {source}", path.display())]
    Flattened {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: FormatError,
    },
    /// The packed file cannot be unpacked: damaged, cut short, or no room for it.
    #[error("{}: cannot unpack {compression}: {source}", path.display())]
    Unpack {
        /// The file.
        path: PathBuf,
        /// How it is packed.
        compression: Compression,
        /// The cause.
        source: io::Error,
    },
    /// The packed file unpacks to more than allowed.
    #[error(
        "{}: unpacks to more than {limit} bytes, which is {reason}; unpack it elsewhere, or choose another directory for temporary \
         files or a higher limit",
        path.display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound in bytes.
        limit: u64,
        /// Where the bound comes from.
        reason: &'static str,
    },
}

/// What is wrong inside a file of a known format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The file ends too early.
    #[error("cut short: {missing} bytes of {what} are missing (what is there can be opened by allowing truncated images)")]
    Truncated {
        /// The part that is not whole.
        what: String,
        /// How many bytes of it are missing.
        missing: u64,
    },
    /// The file contradicts itself or its format.
    #[error("{what} (at file offset {offset:#x})")]
    Malformed {
        /// Where in the file.
        offset: u64,
        /// What was found, in words.
        what: String,
    },
    /// Bytes that are packed in the file and damaged.
    #[error("damaged {what} at file offset {offset:#x}: {why}")]
    Damaged {
        /// How they are packed.
        what: &'static str,
        /// Where in the file.
        offset: u64,
        /// What the unpacking found.
        why: String,
    },
    /// Another file that belongs to the image.
    #[error("{}: {why}", path.display())]
    Beside {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Which files belong to the image cannot be told, or one is missing.
    #[error("{0}")]
    Files(String),
    /// The disk has no snapshot of a running machine, or none that is called as was asked for.
    #[error("{0}")]
    NoSnapshot(String),
    /// What lies below the image does not open.
    #[error("the base: {0}")]
    Base(String),
    /// Parts of memory that overlap each other or lie beyond the file.
    #[error(transparent)]
    Pieces(#[from] PieceError),
    /// There is no memory in the file.
    #[error("holds no memory")]
    NoMemory,
}
