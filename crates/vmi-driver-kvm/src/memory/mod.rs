//! Roads to the memory of a guest that runs in another process of this host.
//!
//! Both roads take the list of [`RamPiece`]s that QEMU tells and serve guest-physical addresses:
//!
//! - [`SharedMemory`] maps guest RAM that QEMU itself has mapped shared (`memory-backend-memfd`, `memory-backend-file` with `share=on`).
//! - [`ProcessMemory`] reads and writes the memory of the QEMU process. It works with every guest, at the price of a system call.
//!
//! Neither asks QEMU anything, stops the guest or takes a lock of it: a running guest changes what is read while it is read.
//!
//! Writes go into RAM behind QEMU's back. Two things do not see them: code that TCG has translated already (QEMU finds out about changed
//! code by its own stores alone, so an instruction written here may take effect late or never; under KVM the processor sees it),
//! and the dirty log of a migration that is under way, which may miss the page.

mod gdb_memory;
mod permission;
mod pieces;
mod pmem_memory;
mod process_memory;
mod shared_ram;

use core::fmt;
use std::io;

use vmi_core::{GuestMapping, PhysAddr, ReadOp, Region, Result};

pub(crate) use gdb_memory::GdbMemory;
pub(crate) use pmem_memory::PmemMemory;
pub use process_memory::ProcessMemory;
pub use shared_ram::SharedMemory;

/// A run of guest RAM or ROM, and where QEMU's process has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamPiece {
    /// Where the memory is in the guest.
    pub region: Region,
    /// The virtual address of its first byte in the QEMU process.
    pub host: u64,
    /// Whether the guest cannot write it: it is not written here either.
    pub read_only: bool,
    /// The name of QEMU's RAM block, for messages: `pc.ram`.
    pub block: String,
}

/// A road to guest-physical memory.
pub trait PhysicalMemory: fmt::Debug + Send + Sync {
    /// What this road is, for messages: `process memory of QEMU (pid 12)`.
    fn name(&self) -> &str;

    /// Fills `buf` with the guest-physical memory at `at`.
    ///
    /// # Errors
    /// [`ErrorKind::Hole`](vmi_core::ErrorKind::Hole) at the first address outside all pieces,
    /// [`ErrorKind::Driver`](vmi_core::ErrorKind::Driver) if the process refuses, [`ErrorKind::Ended`](vmi_core::ErrorKind::Ended) if it has ended. The bytes before it are good.
    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()>;

    /// Does many reads in as few system calls as possible; each gets its own result.
    fn read_batch(&self, ops: &mut [ReadOp<'_, PhysAddr>]) {
        for op in ops {
            op.result = self.read(op.at, op.buf);
        }
    }

    /// Writes `data` to the guest-physical memory at `at`.
    ///
    /// # Errors
    /// As [`PhysicalMemory::read`], and [`ErrorKind::ReadOnly`](vmi_core::ErrorKind::ReadOnly) for a ROM.
    fn write(&self, at: PhysAddr, data: &[u8]) -> Result<()>;

    /// What of the memory is mapped into this process.
    fn mapping(&self) -> Option<&GuestMapping> {
        None
    }
}

/// Why a road to a guest's memory could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no such process.
    #[error("no process {pid}: QEMU has ended, or the process id is of another process namespace")]
    Ended {
        /// The process id.
        pid: u32,
    },
    /// The kernel does not let this process near the other one.
    #[error("process {pid}: {action}: {source}; {advice}")]
    Refused {
        /// The process id.
        pid: u32,
        /// What was tried.
        action: String,
        /// Which permission is missing, and what to do.
        advice: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// No RAM of the guest lies in a shared file.
    #[error(
        "process {pid}: no guest RAM lies in a shared file mapping ({why}). Read it as process memory, or start QEMU with \
         `-object memory-backend-memfd,id=ram,size=SIZE,share=on -machine memory-backend=ram`"
    )]
    NotShared {
        /// The process id.
        pid: u32,
        /// What was found instead.
        why: String,
    },
    /// The pieces contradict themselves or the process.
    #[error("process {pid}: {why}. The guest's memory map has changed, or is not of this process: ask QEMU for it again")]
    Pieces {
        /// The process id.
        pid: u32,
        /// What is wrong.
        why: String,
    },
    /// Another failure of the system.
    #[error("process {pid}: {action}: {source}")]
    System {
        /// The process id.
        pid: u32,
        /// What was tried.
        action: String,
        /// What the kernel answered.
        source: io::Error,
    },
}

impl OpenError {
    /// Sorts what the kernel answered.
    fn new(pid: u32, action: impl Into<String>, source: io::Error) -> Self {
        use nix::errno::Errno;
        let action = action.into();
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ESRCH) => Self::Ended { pid },
            Some(Errno::ENOENT) if !std::path::Path::new(&format!("/proc/{pid}")).exists() => Self::Ended { pid },
            _ if source.kind() == io::ErrorKind::PermissionDenied => {
                Self::Refused { pid, action, advice: permission::advice(pid), source }
            }
            _ => Self::System { pid, action, source },
        }
    }
}

#[cfg(test)]
mod tests;
