//! Why a file gives no symbols.

use std::path::PathBuf;

use vmi_core::IsfError;

/// Why a file is not a usable symbol file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SymbolFileError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is longer than any real one.
    #[error("{} has more than {limit} bytes; real symbol files have at most some tens of millions", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The bound in bytes.
        limit: u64,
    },
    /// Neither a program database nor a symbol file of Volatility.
    #[error("neither a program database nor a Volatility symbol file: {0}")]
    Isf(#[from] IsfError),
    /// A program database that contradicts itself.
    #[error("the program database is damaged: {what}")]
    Pdb {
        /// What was found, in words.
        what: String,
    },
    /// A cabinet (`.pd_`) that gives no file.
    #[error("not a usable cabinet: {what}")]
    Cabinet {
        /// What is wrong with it.
        what: String,
    },
    /// More than is believed of one file.
    #[error("the symbol file has more {what} than are believed ({limit})")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
    /// A file of the cache that is damaged, or was written by another version.
    #[error("not a usable file of the symbol cache: {what}")]
    Cache {
        /// What is wrong with it.
        what: &'static str,
    },
    /// The file is there, but it describes another image.
    #[error("{} is of {found}, not of {wanted}", path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// What it describes.
        found: String,
        /// What was looked for.
        wanted: String,
    },
}
