//! The back end: a running guest of a stock QEMU.

use core::fmt;
use std::path::Path;
use std::sync::Arc;

use vmi_arch_x86::{Registers, X86};
use vmi_core::{
    Capability, Control, Driver, Error, EventAbilities, EventSession, EventSource, GuestMapping, MachineInfo, PhysAddr, ReadOp,
    Result, VcpuId, Vcpus, WriteMemory, WriteVcpus,
};

use crate::Options;
use crate::events::GdbEvents;
use crate::execution::Execution;
use crate::failure::Failures;
use crate::gdb::GdbAddress;
use crate::human_registers;
use crate::memory::PhysicalMemory;
use crate::open::{self, OpenError};
use crate::options::Road;
use crate::qmp::Monitor;

/// A running guest of QEMU, under KVM or TCG.
///
/// | capability | by | what it costs |
/// |---|---|---|
/// | memory | the best [`Road`] that works | from a plain load to a stop of the guest |
/// | registers | the monitor's `info registers` | the guest runs on; no MSR but EFER is told |
/// | pause and resume | the monitor; the gdb stub while that is in use | |
/// | setting registers, events | the gdb stub, opened through the monitor if there is none | the guest stands still for each |
///
/// If this process ends while it holds the guest, by whatever end, a guardian process lets the guest run on: see [`Options::guardian`].
///
/// The memory map is that of the time of opening: a guest that gets or loses memory later has to be opened again.
pub struct QemuDriver {
    machine: MachineInfo,
    road: Road,
    memory: Box<dyn PhysicalMemory>,
    monitor: Arc<dyn Monitor>,
    execution: Arc<Execution>,
    failures: Failures,
    vcpus: u32,
    pid: Option<u32>,
    /// Whether the gdb connection is held open for as long as the driver lives.
    holds_link: bool,
}

/// What [`open`] has found out.
pub(crate) struct Parts {
    pub(crate) machine: MachineInfo,
    pub(crate) road: Road,
    pub(crate) memory: Box<dyn PhysicalMemory>,
    pub(crate) monitor: Arc<dyn Monitor>,
    pub(crate) execution: Arc<Execution>,
    pub(crate) failures: Failures,
    pub(crate) vcpus: u32,
    pub(crate) pid: Option<u32>,
    pub(crate) holds_link: bool,
}

impl QemuDriver {
    /// Opens the guest whose QEMU serves QMP at `path` (`-qmp unix:PATH,server=on,wait=off`).
    ///
    /// # Errors
    /// [`OpenError`] says what was tried and why it failed.
    pub fn connect(path: impl AsRef<Path>, options: &Options) -> Result<Self, OpenError> {
        open::qmp(path.as_ref(), options).map(Self::from_parts)
    }

    /// Opens the guest of the QEMU process `pid`: its QMP socket or gdb stub is looked up in its command line.
    ///
    /// # Errors
    /// As [`QemuDriver::connect`].
    pub fn attach(pid: u32, options: &Options) -> Result<Self, OpenError> {
        open::process(pid, options).map(Self::from_parts)
    }

    /// Opens a guest by its gdb stub alone. The guest's memory is read from QEMU's process where that is on this host and allowed, else through the stub.
    ///
    /// # Errors
    /// As [`QemuDriver::connect`].
    pub fn gdb(address: GdbAddress, options: &Options) -> Result<Self, OpenError> {
        open::gdb(address, options).map(Self::from_parts)
    }

    /// Opens the guest behind a monitor that somebody else has reached, whose process is `pid` if it is known.
    ///
    /// # Errors
    /// As [`QemuDriver::connect`].
    pub fn over(monitor: Arc<dyn Monitor>, pid: Option<u32>, options: &Options) -> Result<Self, OpenError> {
        open::over(monitor, pid, options).map(Self::from_parts)
    }

    pub(crate) fn from_parts(parts: Parts) -> Self {
        let Parts { machine, road, memory, monitor, execution, failures, vcpus, pid, holds_link } = parts;
        Self { machine, road, memory, monitor, execution, failures, vcpus, pid, holds_link }
    }

    /// The way to memory that was chosen.
    pub fn road(&self) -> Road {
        self.road
    }

    /// QEMU's process, if it is known.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// QEMU's monitor: for what this driver does not do itself.
    pub fn monitor(&self) -> &dyn Monitor {
        &*self.monitor
    }

    fn all_registers(&self) -> Result<Vec<Registers>> {
        const ACTION: &str = "reading registers";
        let text = self.monitor.human("info registers -a").map_err(|error| self.failures.monitor(ACTION, error))?;
        human_registers::parse(&text).map_err(|error| self.failures.other(ACTION, error))
    }
}

impl Driver for QemuDriver {
    type Arch = X86;

    fn machine(&self) -> &MachineInfo {
        &self.machine
    }

    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        self.memory.read(at, buf)
    }

    fn read_batch(&self, ops: &mut [ReadOp<'_, PhysAddr>]) {
        self.memory.read_batch(ops);
    }

    fn mapping(&self) -> Option<&GuestMapping> {
        self.memory.mapping()
    }

    fn epoch(&self) -> Option<u64> {
        self.execution.epoch()
    }

    fn vcpus(&self) -> Option<&dyn Vcpus<Arch = X86>> {
        Some(self)
    }

    fn write_memory(&self) -> Option<&dyn WriteMemory<Arch = X86>> {
        Some(self)
    }

    fn control(&self) -> Option<&dyn Control<Arch = X86>> {
        Some(self)
    }

    fn write_vcpus(&self) -> Option<&dyn WriteVcpus<Arch = X86>> {
        Some(self)
    }

    fn events(&self) -> Option<&dyn EventSource<Arch = X86>> {
        Some(self)
    }

    fn reads_stop_the_guest(&self) -> bool {
        self.road == Road::Gdb
    }

    fn check(&self) -> Result<()> {
        const ACTION: &str = "asking whether the guest lives";
        let state = self.monitor.status().map_err(|error| self.failures.monitor(ACTION, error))?;
        // QEMU: RunState in qapi/run-state.json.
        match state.status.as_str() {
            "shutdown" | "guest-panicked" | "internal-error" => Err(self.failures.ended(format!("QEMU says `{}`", state.status))),
            _ => Ok(()),
        }
    }
}

impl Vcpus for QemuDriver {
    fn vcpu_count(&self) -> u32 {
        self.vcpus
    }

    /// Also of a vCPU that runs; then its registers are those of one moment, of which no two vCPUs' are the same.
    fn registers(&self, vcpu: VcpuId) -> Result<Registers> {
        let all = self.all_registers()?;
        let found = usize::try_from(vcpu.0).ok().and_then(|index| all.get(index).copied());
        let mut registers = found.ok_or_else(|| Error::from(vmi_core::ErrorKind::NoObject { what: vcpu.to_string() }))?;
        // The gdb stub tells two more; it is not opened for that, as it would stop the guest.
        if let Some(more) = self.execution.if_stopped(|client| client.registers(vcpu)) {
            registers.kernel_gs_base = more.kernel_gs_base;
            registers.cr8 = more.cr8;
        }
        Ok(registers)
    }
}

impl WriteVcpus for QemuDriver {
    fn set_registers(&self, vcpu: VcpuId, registers: &Registers) -> Result<()> {
        let wanted = changes(registers, &self.registers(vcpu)?);
        let written = self.execution.while_stopped("setting registers", |client| client.write_registers(vcpu, &wanted))?;
        if written.untold.is_empty() {
            return Ok(());
        }
        let back_end = format!("{} (of {})", self.failures.machine(), written.untold.join(", "));
        Err(Error::unsupported(Capability::WriteVcpus, back_end))
    }
}

/// What differs in `wanted` from what a vCPU has; what is the same becomes "not told".
fn changes(wanted: &Registers, now: &Registers) -> Registers {
    let mut changes = *wanted;
    macro_rules! drop_equal {
        ($($($field:ident).+),* $(,)?) => {
            $(if changes.$($field).+ == now.$($field).+ {
                changes.$($field).+ = None;
            })*
        };
    }
    drop_equal!(gdtr, idtr, cr0, cr2, cr3, cr4, cr8, xcr0, dr, efer, star, lstar, cstar, sfmask, kernel_gs_base, pat);
    drop_equal!(sysenter_cs, sysenter_esp, sysenter_eip);
    drop_equal!(segments.cs, segments.ds, segments.es, segments.fs, segments.gs, segments.ss, segments.ldt, segments.tr);
    changes
}

impl WriteMemory for QemuDriver {
    fn write(&self, at: PhysAddr, data: &[u8]) -> Result<()> {
        self.memory.write(at, data)
    }
}

impl Control for QemuDriver {
    fn pause(&self) -> Result<()> {
        self.execution.pause()
    }

    fn resume(&self) -> Result<()> {
        self.execution.resume()
    }
}

impl EventSource for QemuDriver {
    fn abilities(&self) -> Result<EventAbilities> {
        Ok(crate::events::ABILITIES)
    }

    fn subscribe(&self) -> Result<Box<dyn EventSession<X86> + '_>> {
        Ok(Box::new(GdbEvents::new(Arc::clone(&self.execution), self.failures.clone())?))
    }
}

impl Drop for QemuDriver {
    fn drop(&mut self) {
        if self.holds_link {
            self.execution.release();
        }
    }
}

impl fmt::Debug for QemuDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QemuDriver").field("machine", &self.machine).field("road", &self.road).finish_non_exhaustive()
    }
}
