//! Page walks of every x86 paging mode (Intel SDM, volume 3, chapter 5).

mod entry;
mod level;
mod mappings;
mod mode;
mod walk;

pub use entry::{PageTableEntry, PageTableFlags};
pub use mappings::{Mapping, Mappings, PageRun, RepeatedTable};
pub use mode::PagingMode;
pub use walk::Walk;
