//! The back end: a domain of Xen.

use core::fmt;
use std::sync::Arc;

use vmi_arch_x86::xen::{RegistersError, SaveRecords, VcpuContext};
use vmi_arch_x86::{Registers, X86};
use vmi_core::{
    Control, Driver, ErrorKind, EventSource, GuestMapping, MachineInfo, MappedRange, PAGE_SIZE, PhysAddr, ReadOp, Region, Result,
    VcpuId, Vcpus, WriteMemory, WriteVcpus,
};

use crate::domain_info::{DomainInfo, DomainKind};
use crate::domains::Domain;
use crate::execution::Execution;
use crate::failure::Failures;
use crate::foreign_memory::{GuestMemory, MappingCounters, XenMapper};
use crate::frames::Paravirtual;
use crate::libraries::control;
use crate::{OpenError, Options, open};

/// A domain of Xen: HVM, PVH or 64-bit PV. This program runs in dom0, as root.
///
/// | capability | by | what it costs |
/// |---|---|---|
/// | memory | foreign mappings that come and go, bounded ([`Options::mapped`], [`Options::lifetime`]), or of all memory at once ([`Options::map_whole`]), or of a range ([`Driver::map_range`]) | a load, and a call to Xen for each new chunk |
/// | registers | save records (HVM, PVH), vCPU contexts (PV) | Xen pauses the domain for the call |
/// | setting registers | the same; what Xen does not take is an error | the same |
/// | pause and resume | the toolstack's pause, which Xen counts | |
/// | events, views, injection | Xen's monitor ring, altp2m, the device-model interface; not of PV domains | the vCPU stands still for each event |
///
/// If this process ends while the domain is paused, by whatever end, a guardian process lets it run on: see [`Options::guardian`].
///
/// # PV domains
/// Guest-physical addresses are the domain's own (pseudo-physical) ones, as in the files of `xl dump-core`. Its page tables hold machine frames: page walks ask
/// [`Driver::resolve_frame`] for each entry, and CR3 is told as a guest-physical address. What raw entries say is therefore not what walks say.
///
/// The memory map is that of the time of opening: a domain that gets or loses memory later has to be opened again to see it in the map; reads see it after
/// [`Options::lifetime`].
pub struct XenDriver {
    machine: MachineInfo,
    memory: GuestMemory<XenMapper>,
    paravirtual: Option<Arc<Paravirtual>>,
    execution: Execution,
    control: Arc<control::Control>,
    failures: Failures,
    domain: Domain,
}

/// What [`open`] has found out.
pub(crate) struct Parts {
    pub(crate) machine: MachineInfo,
    pub(crate) memory: GuestMemory<XenMapper>,
    pub(crate) paravirtual: Option<Arc<Paravirtual>>,
    pub(crate) execution: Execution,
    pub(crate) control: Arc<control::Control>,
    pub(crate) failures: Failures,
    pub(crate) domain: Domain,
}

/// An address that no memory has, for machine frames that are not the domain's: physical addresses have 52 bits.
const NOWHERE: u64 = 1 << 63;

impl XenDriver {
    /// Opens a domain by name, number or UUID. It runs on.
    ///
    /// # Errors
    /// [`OpenError`] says what was tried and why it failed.
    pub fn open(domain: &str, options: &Options) -> Result<Self, OpenError> {
        let Parts { machine, memory, paravirtual, execution, control, failures, domain } = open::open(domain, options)?;
        Ok(Self { machine, memory, paravirtual, execution, control, failures, domain })
    }

    /// Which domain it is, as it was when it was opened.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// What Xen says of the domain now.
    ///
    /// # Errors
    /// [`ErrorKind::Ended`] if it is gone, [`ErrorKind::Driver`] if Xen does not say.
    pub fn info(&self) -> Result<DomainInfo> {
        let id = self.domain.info.id;
        let info = self.control.domain_from(id).map_err(|error| self.failures.call("asking whether it lives", error))?;
        // A number that was given to another domain comes with another UUID.
        info.filter(|info| info.id == id && info.uuid == self.domain.info.uuid)
            .ok_or_else(|| self.failures.ended("Xen knows no domain of its number any more"))
    }

    /// Whether guardians are wanted.
    pub(crate) fn is_guarded(&self) -> bool {
        self.execution.is_guarded()
    }

    /// How the cache of mappings has fared.
    pub fn mapping_counters(&self) -> MappingCounters {
        self.memory.counters()
    }

    /// Unmaps all memory that is mapped for the cache; it is mapped again when it is read.
    pub fn forget_mappings(&self) {
        self.memory.forget();
    }

    /// The page that a machine frame is, as the domain says; `None` if it is none of its. PV domains only.
    fn page(&self, machine: u64) -> Option<u64> {
        self.paravirtual.as_ref()?.page(machine / PAGE_SIZE)
    }

    fn vcpu_error(&self, action: &str, vcpu: VcpuId, error: RegistersError) -> vmi_core::Error {
        match error {
            RegistersError::Offline { .. } => ErrorKind::NoObject { what: format!("{vcpu} that is online") }.into(),
            error => self.failures.other(action, error),
        }
    }

    fn number(&self, vcpu: VcpuId) -> Result<u16> {
        let there = vcpu.0 < self.domain.info.vcpus;
        let number = u16::try_from(vcpu.0).ok().filter(|_| there);
        number.ok_or_else(|| ErrorKind::NoObject { what: vcpu.to_string() }.into())
    }

    fn pv_registers(&self, bytes: &[u8], vcpu: VcpuId) -> Result<Registers> {
        let context = VcpuContext::of(bytes).map_err(|error| self.vcpu_error(READING, vcpu, error))?;
        let (mut registers, cr3) = context.paravirtual();
        let page = self.page(cr3.get()).and_then(|page| page.checked_mul(PAGE_SIZE));
        registers.cr3 = page;
        Ok(registers)
    }
}

const READING: &str = "reading registers";
const SETTING: &str = "setting registers";

impl Driver for XenDriver {
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
        Some(self.memory.mapping())
    }

    /// What the domain gives back while it is mapped stays here as it was then; what it gets in its place is not seen. A domain that ends is freed by Xen when nobody maps it any more.
    fn map_range(&self, range: Region) -> Result<MappedRange> {
        self.memory.map_range(range, &self.machine.memory)
    }

    fn epoch(&self) -> Option<u64> {
        self.execution.epoch()
    }

    fn reads_are_copies(&self) -> bool {
        true
    }

    fn page_tables_name_others(&self) -> bool {
        self.paravirtual.is_some()
    }

    fn resolve_frame(&self, named: PhysAddr) -> PhysAddr {
        if self.paravirtual.is_none() {
            return named;
        }
        let page = self.page(named.get()).and_then(|page| page.checked_mul(PAGE_SIZE));
        PhysAddr::new(page.unwrap_or(named.get() | NOWHERE))
    }

    fn check(&self) -> Result<()> {
        let info = self.info()?;
        match (info.dying, info.shut_down) {
            (true, _) => Err(self.failures.ended("it is being destroyed")),
            (_, true) => Err(self.failures.ended("it has shut down or crashed")),
            _ => Ok(()),
        }
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
        // Xen reports events of domains that run in hardware only.
        (self.domain.info.kind == DomainKind::Hardware).then_some(self)
    }
}

impl Vcpus for XenDriver {
    fn vcpu_count(&self) -> u32 {
        self.domain.info.vcpus
    }

    fn registers(&self, vcpu: VcpuId) -> Result<Registers> {
        let (id, number) = (self.domain.info.id, self.number(vcpu)?);
        match self.domain.info.kind {
            DomainKind::Hardware => {
                let records = self.control.hvm_context(id).map_err(|error| self.failures.call(READING, error))?;
                SaveRecords::new(&records).registers(number).map_err(|error| self.vcpu_error(READING, vcpu, error))
            }
            DomainKind::Paravirtual => {
                let context = self.control.vcpu_context(id, vcpu.0);
                let context = context.map_err(|error| self.failures.call(READING, error))?;
                self.pv_registers(&context.0, vcpu)
            }
        }
    }
}

impl WriteVcpus for XenDriver {
    fn set_registers(&self, vcpu: VcpuId, registers: &Registers) -> Result<()> {
        let (id, number) = (self.domain.info.id, self.number(vcpu)?);
        let wrong = |error| self.vcpu_error(SETTING, vcpu, error);
        let failed = |error| self.failures.call(SETTING, error);
        match self.domain.info.kind {
            DomainKind::Hardware => {
                let records = self.control.hvm_context(id).map_err(failed)?;
                match SaveRecords::new(&records).change(number, registers).map_err(wrong)? {
                    Some(mut changed) => self.control.set_hvm_context(id, &mut changed).map_err(failed),
                    None => Ok(()),
                }
            }
            DomainKind::Paravirtual => {
                let mut context = self.control.vcpu_context(id, vcpu.0).map_err(failed)?;
                let now = self.pv_registers(&context.0, vcpu)?;
                let changed = VcpuContext::of_mut(&mut context.0).and_then(|context| context.change(&now, registers));
                if changed.map_err(wrong)? {
                    self.control.set_vcpu_context(id, vcpu.0, &mut context).map_err(failed)?;
                }
                Ok(())
            }
        }
    }
}

impl WriteMemory for XenDriver {
    fn write(&self, at: PhysAddr, data: &[u8]) -> Result<()> {
        self.memory.write(at, data)
    }
}

impl Control for XenDriver {
    fn pause(&self) -> Result<()> {
        self.execution.pause(|| self.memory.stands())
    }

    fn resume(&self) -> Result<()> {
        self.execution.resume(|| self.memory.goes_on())
    }
}

impl Drop for XenDriver {
    fn drop(&mut self) {
        // What a cache holds may be dropped later than it.
        self.memory.forget();
    }
}

impl fmt::Debug for XenDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("XenDriver").field("machine", &self.machine.name).field("memory", &self.memory).finish_non_exhaustive()
    }
}
