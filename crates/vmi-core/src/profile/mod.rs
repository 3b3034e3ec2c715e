//! What is known of a kernel's symbols and types, wherever it came from.

mod isf;
mod kernel_field;
mod symbols;
mod types;

pub use isf::{Isf, IsfError, IsfPdb, IsfStructure, IsfSummary, IsfType, IsfWriteError, IsfWriter};
pub use kernel_field::KernelField;
pub use symbols::{Symbol, Symbols, SymbolsBuilder};
pub use types::{Field, Member, Structure, Type, TypeId, TypeSource};
