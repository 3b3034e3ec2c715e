//! What discovery hands to everything behind it.

use std::sync::Arc;

use vmi_arch_x86::PagingMode;
use vmi_core::{PhysAddr, Symbols, TypeSource};

/// A Linux kernel that was found in a machine: enough to read every object in it.
///
/// It comes from [`discover`](crate::discover), which needs nothing but memory, or is put together from files by whoever has them.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// How the kernel's addresses are translated.
    pub mode: PagingMode,
    /// Root of the kernel's own page tables (`init_top_pgt`, `swapper_pg_dir`).
    pub root: PhysAddr,
    /// The kernel's symbols at their addresses in this guest (address-space randomisation included).
    pub symbols: Arc<Symbols>,
    /// Layouts of the kernel's structures. From BTF, DWARF or a symbol file they are complete; inferred by shape, they hold just the
    /// members that could be found out.
    pub types: Arc<dyn TypeSource>,
    /// The banner: `Linux version 6.1.0-50-cloud-amd64 (...) ...`, without the line end.
    pub banner: String,
    /// What is remarkable about how this kernel was found, one sentence each.
    pub remarks: Vec<String>,
}
