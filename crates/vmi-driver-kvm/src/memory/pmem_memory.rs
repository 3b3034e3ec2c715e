//! Guest memory through the `pmemaccess` socket of a patched QEMU.

use vmi_core::{Capability, Error, PhysAddr, ReadOp, Result};

use super::pieces::Pieces;
use super::{OpenError, PhysicalMemory, RamPiece};
use crate::pmemaccess::PmemAccess;

/// The socket as a road: only what is memory is asked for, as the patched QEMU reads a device where there is one; its errors become those of core.
#[derive(Debug)]
pub(crate) struct PmemMemory {
    socket: PmemAccess,
    machine: String,
    pieces: Pieces,
    /// Why nothing may be written, if so.
    refuses_writes: Option<String>,
}

impl PmemMemory {
    /// `refuses_writes` says why nothing may be written, if so.
    pub(crate) fn new(
        socket: PmemAccess,
        machine: String,
        pieces: Vec<RamPiece>,
        refuses_writes: Option<String>,
    ) -> Result<Self, OpenError> {
        Ok(Self { socket, machine, pieces: Pieces::new(0, pieces)?, refuses_writes })
    }
}

impl PhysicalMemory for PmemMemory {
    fn name(&self) -> &str {
        "pmemaccess socket"
    }

    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        let there = self.pieces.present(at, buf.len());
        let missing = there < buf.len();
        let part = buf.get_mut(..there).unwrap_or_default();
        if !part.is_empty() {
            self.socket.read(at, part).map_err(|error| error.into_core(&self.machine))?;
        }
        if missing { Err(Error::hole(at.wrapping_add(there as u64)).after(there)) } else { Ok(()) }
    }

    fn read_batch(&self, ops: &mut [ReadOp<'_, PhysAddr>]) {
        for op in ops {
            op.result = self.read(op.at, op.buf);
        }
    }

    fn write(&self, at: PhysAddr, data: &[u8]) -> Result<()> {
        if let Some(why) = &self.refuses_writes {
            return Err(Error::unsupported(Capability::WriteMemory, format!("{} by its pmemaccess socket: {why}", self.machine)));
        }
        let machine = &self.machine;
        self.pieces.write(at, data, |here, part| self.socket.write(here, part).map_err(|error| error.into_core(machine)))
    }
}
