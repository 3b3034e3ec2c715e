//! Page walks of every x86 paging mode (Intel SDM, volume 3, chapter 5).

mod mode;

pub use mode::PagingMode;
