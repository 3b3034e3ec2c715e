//! What a back end is: a source of guest-physical memory, and optionally more.
//!
//! [`Driver`] is all that a back end must be. Each further ability is one small trait on top of it. A tool that
//! names its back end as a type calls those abilities directly, and what the back end lacks does not compile. A tool that
//! chooses its back end at run time asks the driver: [`Driver::vcpus`], [`Driver::control`], [`Driver::events`] and their siblings.

use core::fmt;

use crate::{
    Architecture, Capability, Error, ErrorKind, EventSource, GuestMapping, MappedRange, MemoryMap, PhysAddr, Region, Result,
    WindowsDump,
};

/// What a back end says of the machine it shows.
#[derive(Clone, Debug)]
pub struct MachineInfo {
    /// The back end and the guest, for messages: `LiME image guest.lime`.
    pub name: String,
    /// Where guest-physical memory is.
    pub memory: MemoryMap,
    /// Whether the guest may run while it is read.
    pub liveness: Liveness,
    /// What the source says about the guest beside its memory, for the operating-system layers. Hints, never trusted.
    pub notes: Vec<Note>,
}

/// Whether the guest may run while it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Liveness {
    /// The memory never changes: an image, a snapshot.
    Frozen,
    /// The memory belongs to a machine that may run.
    Live,
}

/// A note of the source about its guest.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Note {
    /// The text of a Linux VMCOREINFO note (kernel: Documentation/admin-guide/kdump/vmcoreinfo.rst).
    VmCoreInfo(Vec<u8>),
    /// The header of a Windows crash dump.
    WindowsDump(Box<WindowsDump>),
}

/// One read of a batch.
#[derive(Debug)]
pub struct ReadOp<'b, A> {
    /// First address to read.
    pub at: A,
    /// Where the bytes go; its length is the length of the read.
    pub buf: &'b mut [u8],
    /// How it went; each operation has its own status. `Ok` before the batch runs.
    pub result: Result<()>,
}

impl<'b, A> ReadOp<'b, A> {
    /// A read of `buf.len()` bytes at `at`, not yet done.
    pub fn new(at: A, buf: &'b mut [u8]) -> Self {
        Self { at, buf, result: Ok(()) }
    }
}

/// A source of guest-physical memory. One handle serves many threads.
pub trait Driver: Send + Sync {
    /// The architecture of the guest's processors.
    type Arch: Architecture;

    /// Name, memory map, liveness and notes.
    fn machine(&self) -> &MachineInfo;

    /// Fills `buf` with the guest-physical memory at `at`.
    ///
    /// # Errors
    /// [`ErrorKind::Hole`](crate::ErrorKind::Hole) at the first address that has no memory, [`ErrorKind::Driver`](crate::ErrorKind::Driver) if
    /// the back end fails; [`Error::done`](crate::Error::done) bytes of `buf` are good then, the others unspecified.
    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()>;

    /// Does many reads at once; each gets its own [`ReadOp::result`]. Back ends where a call is dear override this.
    fn read_batch(&self, ops: &mut [ReadOp<'_, PhysAddr>]) {
        for op in ops {
            op.result = self.read(op.at, op.buf);
        }
    }

    /// Guest RAM that is mapped into this process. Where there is one, reads bypass [`Driver::read`] and all caches.
    fn mapping(&self) -> Option<&GuestMapping> {
        None
    }

    /// Maps a range of guest memory, for as long as the result or a clone of it lives. Its reads are loads, with no look at what is mapped and what is not: for a tool that looks at the same
    /// memory all the time.
    ///
    /// # Errors
    /// [`ErrorKind::Hole`](crate::ErrorKind::Hole) at the first address without memory; [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if this back end does not map memory, or not
    /// this; [`ErrorKind::Driver`](crate::ErrorKind::Driver) if it fails.
    fn map_range(&self, range: Region) -> Result<MappedRange> {
        let MachineInfo { name, memory, .. } = self.machine();
        let unsupported = || Error::unsupported(Capability::MapRange, name.as_str());
        let mapped = self.mapping().ok_or_else(unsupported)?.range(range);
        mapped.map_err(|error| match error.kind() {
            // There is memory, but it is not mapped.
            ErrorKind::Hole { at } if memory.region_at(*at).is_some() => unsupported(),
            _ => error,
        })
    }

    /// Says whether memory holds still: two calls that return the same `Some` had no change of memory between them.
    /// The number never falls. `None` means that memory may change at any time, so nothing read from it may be remembered. A frozen
    /// source need not implement this.
    fn epoch(&self) -> Option<u64> {
        None
    }

    /// Whether [`Driver::read`] copies from memory that is mapped already, as a rule, so that a page cache in front of it would only cost time.
    fn reads_are_copies(&self) -> bool {
        false
    }

    /// Whether page tables of this guest name frames that are not guest-physical ones, so that [`Driver::resolve_frame`] has to be asked.
    fn page_tables_name_others(&self) -> bool {
        false
    }

    /// The guest-physical address of a frame that a page table of the guest names. The same, but for guests that know the machine's frames and keep those in
    /// their page tables (Xen's paravirtualised domains). A frame that is not the guest's becomes an address that no memory has.
    fn resolve_frame(&self, named: PhysAddr) -> PhysAddr {
        named
    }

    /// Whether every read stops the guest for its time. Whoever reads much then holds the guest once, around all of it: see
    /// [`Vmi::hold_for_reading`](crate::Vmi::hold_for_reading).
    fn reads_stop_the_guest(&self) -> bool {
        false
    }

    /// Whether the machine is still there. Mapped memory stays readable after its guest has ended, so a tool that looks at a live guest asks this after a
    /// result that matters. A frozen source is always there.
    ///
    /// # Errors
    /// [`ErrorKind::Ended`](crate::ErrorKind::Ended) if the guest is gone, [`ErrorKind::Driver`](crate::ErrorKind::Driver) if that cannot be found out.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// The vCPUs, if this back end shows them.
    fn vcpus(&self) -> Option<&dyn Vcpus<Arch = Self::Arch>> {
        None
    }

    /// Write access, if this back end has it.
    fn write_memory(&self) -> Option<&dyn WriteMemory<Arch = Self::Arch>> {
        None
    }

    /// Pause and resume, if this back end can.
    fn control(&self) -> Option<&dyn Control<Arch = Self::Arch>> {
        None
    }

    /// Write access to vCPU registers, if this back end has it.
    fn write_vcpus(&self) -> Option<&dyn WriteVcpus<Arch = Self::Arch>> {
        None
    }

    /// Breakpoints, watchpoints and single steps, if this back end reports them.
    fn events(&self) -> Option<&dyn EventSource<Arch = Self::Arch>> {
        None
    }
}

/// Number of a vCPU, counted from zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VcpuId(pub u32);

impl fmt::Display for VcpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {}", self.0)
    }
}

/// A back end that shows vCPU registers. It also overrides [`Driver::vcpus`].
pub trait Vcpus: Driver {
    /// How many vCPUs there are.
    fn vcpu_count(&self) -> u32;

    /// The registers of one vCPU. What the source does not tell is `None` in them, never zero.
    ///
    /// # Errors
    /// [`ErrorKind::NoObject`](crate::ErrorKind::NoObject) for a vCPU that does not exist, [`ErrorKind::Driver`](crate::ErrorKind::Driver) if the
    /// back end fails.
    fn registers(&self, vcpu: VcpuId) -> Result<<Self::Arch as Architecture>::Registers>;
}

/// A back end that sets vCPU registers. It also overrides [`Driver::write_vcpus`].
pub trait WriteVcpus: Vcpus {
    /// Sets the registers of one vCPU: those that `registers` tells and that differ from what the vCPU has. `None` in it leaves a register as it is.
    /// The guest must stand still, else the vCPU may run on between reading and writing.
    ///
    /// # Errors
    /// As [`Vcpus::registers`]; also if a register differs that this back end cannot set.
    fn set_registers(&self, vcpu: VcpuId, registers: &<Self::Arch as Architecture>::Registers) -> Result<()>;
}

/// A back end that writes guest memory. It also overrides [`Driver::write_memory`].
pub trait WriteMemory: Driver {
    /// Writes `data` to guest-physical memory at `at`.
    ///
    /// # Errors
    /// As [`Driver::read`]; [`Error::done`](crate::Error::done) bytes have been written then.
    fn write(&self, at: PhysAddr, data: &[u8]) -> Result<()>;
}

/// A back end that stops and continues the guest. It also overrides [`Driver::control`].
pub trait Control: Driver {
    /// Stops all vCPUs. Calls nest: as many [`Control::resume`] calls let the guest run again.
    ///
    /// # Errors
    /// [`ErrorKind::Driver`](crate::ErrorKind::Driver) if the back end fails.
    fn pause(&self) -> Result<()>;

    /// Undoes one [`Control::pause`].
    ///
    /// # Errors
    /// [`ErrorKind::Driver`](crate::ErrorKind::Driver) if the back end fails.
    fn resume(&self) -> Result<()>;
}
