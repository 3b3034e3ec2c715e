//! Guest memory through the `pmemaccess` socket of a patched QEMU.

use vmi_core::{PhysAddr, ReadOp, Result};

use super::PhysicalMemory;
use crate::pmemaccess::PmemAccess;

/// The socket as a road: its errors become those of core.
#[derive(Debug)]
pub(crate) struct PmemMemory {
    pub(crate) socket: PmemAccess,
    pub(crate) machine: String,
}

impl PhysicalMemory for PmemMemory {
    fn name(&self) -> &str {
        "pmemaccess socket"
    }

    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        self.socket.read(at, buf).map_err(|error| error.into_core(&self.machine))
    }

    fn read_batch(&self, ops: &mut [ReadOp<'_, PhysAddr>]) {
        self.socket.read_batch(&self.machine, ops);
    }

    fn write(&self, at: PhysAddr, data: &[u8]) -> Result<()> {
        self.socket.write(at, data).map_err(|error| error.into_core(&self.machine))
    }
}
