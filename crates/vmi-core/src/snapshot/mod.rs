//! A frozen copy of a running machine.
//!
//! How it is made keeps the guest's stand-still short: what takes longest is not copying but setting memory aside, so that is done while the
//! guest runs, in huge pages. Then the guest is paused and copied. `docs/snapshots.md` has the figures of this and of the other ways.

mod copy;

use core::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use copy::{Copy, Source};

use crate::{
    Architecture, Control, Driver, Error, ErrorKind, GuestMapping, Liveness, MachineInfo, MemoryMap, PhysAddr, Region, Result,
    VcpuId, Vcpus, Vmi,
};

/// A frozen copy of a machine: all of its memory as it was at one moment, and the registers of its vCPUs if the back end shows them.
///
/// Its memory lends plain slices ([`Memory::slice`](crate::Memory::slice)). It lies in private memory of this process, in huge pages where
/// the host has them; parts that are zero for the most take none. It is gone with the last handle.
pub struct Snapshot<A: Architecture> {
    machine: MachineInfo,
    mapping: GuestMapping,
    copy: Arc<Copy>,
    registers: Vec<A::Registers>,
    report: SnapshotReport,
}

/// How a snapshot was made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotReport {
    /// How long the guest stood still, from before it was paused until after it was resumed.
    pub stood_still: Duration,
    /// How long everything took.
    pub took: Duration,
    /// Bytes of this host's memory that the snapshot takes, in units of 2 MiB of which zeros were given back where they are the larger part.
    pub resident: u64,
    /// Memory that the back end's map names but that was not there. It is a hole in the snapshot.
    pub missing: Vec<Region>,
}

impl<D: Control> Vmi<D> {
    /// Copies all memory of the guest, and the registers of its vCPUs, as they are at one moment. The guest stands still for the copying, at
    /// the speed of memory; it runs on however this ends.
    ///
    /// The copy takes as much of this host's memory as the guest has in use: up to its whole size.
    ///
    /// # Errors
    /// [`ErrorKind::Driver`] if the back end fails or this host has no room for the copy. Memory that is not there
    /// ([`Error::is_absent`]) is no error but a hole: see [`SnapshotReport::missing`].
    pub fn snapshot(&self) -> Result<Vmi<Snapshot<D::Arch>>> {
        let started = Instant::now();
        let copy = Copy::new(&self.machine().memory, &name_of(self))?;
        self.take(copy, started)
    }

    /// Makes a snapshot in the memory of `previous`, which saves setting memory aside. All of the guest is copied again: a stock QEMU does not
    /// tell what has changed, and finding it out by comparing takes longer than copying (`docs/snapshots.md`).
    ///
    /// If something else still uses the memory of `previous` (a clone of its [`GuestMapping`]), or if the guest's memory map is another now,
    /// this is a new snapshot.
    ///
    /// # Errors
    /// As [`Vmi::snapshot`]. `previous` is gone then.
    pub fn snapshot_again(&self, previous: Vmi<Snapshot<D::Arch>>) -> Result<Vmi<Snapshot<D::Arch>>> {
        let started = Instant::now();
        let Snapshot { mapping, copy, .. } = previous.into_driver();
        drop(mapping);
        match Arc::try_unwrap(copy) {
            Ok(copy) if copy.is_of(&self.machine().memory) => self.take(copy, started),
            _ => self.snapshot(),
        }
    }

    fn take(&self, mut copy: Copy, started: Instant) -> Result<Vmi<Snapshot<D::Arch>>> {
        let name = name_of(self);
        // Where reading stops the guest there is nothing to gain from reading beforehand.
        if !self.driver().reads_stop_the_guest() {
            copy.prepare(self, &name)?;
        }
        let halted = Instant::now();
        let registers = {
            let _paused = self.pause()?;
            let registers = registers(self.driver())?;
            copy.fill(self, &name)?;
            registers
        };
        let stood_still = halted.elapsed();
        copy.discard();
        let (pieces, missing) = copy.found();
        let resident = copy.resident();
        let copy = Arc::new(copy);
        let mapping = GuestMapping::frozen(Arc::clone(&copy), &pieces).map_err(|error| -> Error {
            ErrorKind::Driver { back_end: name.clone(), action: "mapping the copy".to_owned(), source: Box::new(error) }.into()
        })?;
        let machine = MachineInfo {
            name,
            memory: MemoryMap::new(pieces.iter().map(|piece| piece.region)),
            liveness: Liveness::Frozen,
            notes: self.machine().notes.clone(),
        };
        if !missing.is_empty() {
            tracing::warn!(machine = %machine.name, ?missing, "guest memory that its map names was not there");
        }
        let took = started.elapsed();
        let report = SnapshotReport { stood_still, took, resident, missing };
        Ok(Vmi::new(Snapshot { machine, mapping, copy, registers, report }))
    }
}

fn name_of<D: Driver>(vmi: &Vmi<D>) -> String {
    format!("snapshot of {}", vmi.machine().name)
}

fn registers<D: Driver>(driver: &D) -> Result<Vec<<D::Arch as Architecture>::Registers>> {
    let Some(vcpus) = driver.vcpus() else { return Ok(Vec::new()) };
    (0..vcpus.vcpu_count()).map(|vcpu| vcpus.registers(VcpuId(vcpu))).collect()
}

impl<D: Driver> Source for Vmi<D> {
    fn fetch(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        self.read_uncached(at, buf)
    }

    fn is_zero(&self, at: PhysAddr, len: u64) -> bool {
        self.mapping().is_untouched(at, len)
    }
}

impl<A: Architecture> Snapshot<A> {
    /// How the snapshot was made, and what was missing.
    pub fn report(&self) -> &SnapshotReport {
        &self.report
    }
}

impl<A: Architecture> Driver for Snapshot<A> {
    type Arch = A;

    fn machine(&self) -> &MachineInfo {
        &self.machine
    }

    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        self.mapping.read_into(at, buf)
    }

    fn mapping(&self) -> Option<&GuestMapping> {
        Some(&self.mapping)
    }

    fn vcpus(&self) -> Option<&dyn Vcpus<Arch = A>> {
        if self.registers.is_empty() { None } else { Some(self) }
    }
}

impl<A: Architecture> Vcpus for Snapshot<A> {
    /// Zero if the back end did not show vCPUs.
    fn vcpu_count(&self) -> u32 {
        u32::try_from(self.registers.len()).unwrap_or(u32::MAX)
    }

    fn registers(&self, vcpu: VcpuId) -> Result<A::Registers> {
        let registers = usize::try_from(vcpu.0).ok().and_then(|index| self.registers.get(index));
        registers.cloned().ok_or_else(|| ErrorKind::NoObject { what: vcpu.to_string() }.into())
    }
}

impl<A: Architecture> fmt::Debug for Snapshot<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("machine", &self.machine).field("report", &self.report).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
