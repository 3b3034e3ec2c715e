//! Guest memory through the gdb stub: the road where QEMU's process is out of reach.

use std::sync::Arc;

use vmi_core::{Error, ErrorKind, PhysAddr, ReadOp, Result};

use super::pieces::Pieces;
use super::{OpenError, PhysicalMemory, RamPiece};
use crate::execution::Execution;
use crate::gdb::GdbRead;

/// Reads and writes through the gdb stub. A running guest stands still for each call; so read many ranges in one batch, or pause the guest.
#[derive(Debug)]
pub(crate) struct GdbMemory {
    execution: Arc<Execution>,
    pieces: Pieces,
}

impl GdbMemory {
    pub(crate) fn new(execution: Arc<Execution>, pieces: Vec<RamPiece>) -> Result<Self, OpenError> {
        Ok(Self { execution, pieces: Pieces::new(0, pieces)? })
    }
}

impl PhysicalMemory for GdbMemory {
    fn name(&self) -> &str {
        "gdb stub"
    }

    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        let mut ops = [ReadOp::new(at, buf)];
        self.read_batch(&mut ops);
        let [op] = ops;
        op.result
    }

    fn read_batch(&self, ops: &mut [ReadOp<'_, PhysAddr>]) {
        // The stub reads zeros where there is nothing, and says nothing of it.
        let there: Vec<usize> = ops.iter().map(|op| self.pieces.present(op.at, op.buf.len())).collect();
        let read = self.execution.while_stopped("reading memory", |client| {
            let parts = ops.iter_mut().zip(&there);
            let mut reads: Vec<GdbRead<'_>> =
                parts.map(|(op, &len)| GdbRead::new(op.at, op.buf.get_mut(..len).unwrap_or_default())).collect();
            client.read_physical_many(&mut reads);
            Ok(reads.into_iter().map(|read| read.result).collect::<Vec<_>>())
        });
        let results = match read {
            Ok(results) => results,
            Err(error) => {
                let failures = self.execution.failures();
                for op in ops {
                    op.result = Err(match error.kind() {
                        ErrorKind::Ended { why, .. } => failures.ended(why.clone()),
                        _ => failures.other("reading memory", error.to_string()),
                    });
                }
                return;
            }
        };
        for ((op, result), len) in ops.iter_mut().zip(results).zip(there) {
            op.result = match result {
                Err(error) => Err(self.execution.failures().gdb("reading memory", error)),
                Ok(()) if len < op.buf.len() => Err(Error::hole(op.at.wrapping_add(len as u64)).after(len)),
                Ok(()) => Ok(()),
            };
        }
    }

    fn write(&self, at: PhysAddr, data: &[u8]) -> Result<()> {
        self.pieces.write(at, data, |here, part| {
            self.execution.while_stopped("writing memory", |client| client.write_physical(here, part))
        })
    }
}
