//! What discovery hands to everything behind it.

use std::sync::Arc;

use vmi_arch_x86::PagingMode;
use vmi_core::{PhysAddr, Symbols, TypeSource, VirtAddr};

use crate::PdbIdentity;

/// A Windows kernel that was found in a machine: enough to read every object in it.
///
/// It comes from discovery, which needs nothing but memory, or is put together from files by whoever has them.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// How the kernel's addresses are translated.
    pub mode: PagingMode,
    /// Root of page tables that map the kernel: those of the process System.
    pub root: PhysAddr,
    /// First address of the kernel's image.
    pub base: VirtAddr,
    /// Bytes of the kernel's image.
    pub size: u64,
    /// The program database of the kernel, as its image names it; `None` if that part is not in memory.
    pub pdb: Option<PdbIdentity>,
    /// The build of the kernel (`NtBuildNumber`, its low 16 bits): 2600 for XP, 19041 for Windows 10 2004.
    pub build: Option<u32>,
    /// The kernel's symbols at their addresses in this guest. From a program database or symbol file they are complete. Without one they hold
    /// the exports, and those variables that were found in other ways: whichever way found `PsActiveProcessHead`, it is here by that name.
    pub symbols: Arc<Symbols>,
    /// Layouts of the kernel's structures. From a program database or symbol file they are complete; from the built-in table, or inferred by shape,
    /// they hold just the members that are known.
    pub types: Arc<dyn TypeSource>,
    /// What is remarkable about how this kernel was found, one sentence each.
    pub remarks: Vec<String>,
}
