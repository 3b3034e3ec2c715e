//! The registry: hives in the kernel's memory and in files, their keys and values.
//!
//! A hive is a heap of cells, addressed by a 32-bit index; keys, values and lists are cells that name each other by index. The cells are the
//! same in a file and in memory, where a map of the kernel tells where each 4 KiB of them lie. One parser therefore serves both: it is
//! written over [`Cells`], which finds the bytes of a cell.
//!
//! The formats follow M. Suhanov, "Windows registry file format specification", and the structures `_CM_KEY_NODE`, `_CM_KEY_VALUE`,
//! `_CM_BIG_DATA` and `_HBASE_BLOCK` in the kernel's symbols, with which it agrees.

pub(crate) mod bytes;
mod cells;
mod hive_file;
mod key;
mod key_path;
mod memory_hive;
mod tree;
mod value;

pub use cells::{Cells, RegistryError};
pub use hive_file::HiveFile;
pub use key::{Hive, Key};
pub use key_path::FoundKey;
pub use memory_hive::MemoryHive;
pub use tree::{Tree, TreeKey};
pub use value::{Data, Value, ValueType};

#[cfg(test)]
mod test_hive;
#[cfg(test)]
mod tests;
