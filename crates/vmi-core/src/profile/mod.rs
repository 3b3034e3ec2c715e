//! What is known of a kernel's symbols and types, wherever it came from.

mod isf;
mod symbols;
mod types;

pub use isf::{Isf, IsfError, IsfPdb};
pub use symbols::{Symbol, Symbols, SymbolsBuilder};
pub use types::{Field, Member, Structure, Type, TypeId, TypeSource};
