//! A back end chosen at run time.

use core::fmt;

use vmi_arch_x86::{Registers, X86};
use vmi_core::{
    Capability, Control, Driver, Error, EventAbilities, EventSession, EventSource, GuestMapping, MachineInfo, MappedRange,
    PhysAddr, ReadOp, Region, Result, VcpuId, Vcpus, WriteMemory, WriteVcpus,
};

/// Whatever back end [`open`](crate::open()) chose: a tool that works on all of them names this one type.
///
/// It claims every capability. What the back end behind it lacks fails with
/// [`ErrorKind::Unsupported`](vmi_core::ErrorKind::Unsupported), which names the capability and the back end;
/// [`Driver::vcpus`], [`Driver::write_memory`] and their siblings tell beforehand.
///
/// Reads of mapped memory do not come here (see [`Driver::mapping`]), so the indirection costs them nothing.
pub struct AnyDriver(Box<dyn Driver<Arch = X86>>);

impl AnyDriver {
    /// Hides which back end `driver` is.
    pub fn new(driver: impl Driver<Arch = X86> + 'static) -> Self {
        Self(Box::new(driver))
    }

    fn require<T>(&self, found: Option<T>, capability: Capability) -> Result<T> {
        found.ok_or_else(|| Error::unsupported(capability, &self.machine().name))
    }
}

impl From<Box<dyn Driver<Arch = X86>>> for AnyDriver {
    fn from(driver: Box<dyn Driver<Arch = X86>>) -> Self {
        Self(driver)
    }
}

impl Driver for AnyDriver {
    type Arch = X86;

    fn machine(&self) -> &MachineInfo {
        self.0.machine()
    }

    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        self.0.read(at, buf)
    }

    fn read_batch(&self, ops: &mut [ReadOp<'_, PhysAddr>]) {
        self.0.read_batch(ops);
    }

    fn mapping(&self) -> Option<&GuestMapping> {
        self.0.mapping()
    }

    fn map_range(&self, range: Region) -> Result<MappedRange> {
        self.0.map_range(range)
    }

    fn epoch(&self) -> Option<u64> {
        self.0.epoch()
    }

    fn reads_are_copies(&self) -> bool {
        self.0.reads_are_copies()
    }

    fn page_tables_name_others(&self) -> bool {
        self.0.page_tables_name_others()
    }

    fn resolve_frame(&self, named: PhysAddr) -> PhysAddr {
        self.0.resolve_frame(named)
    }

    fn reads_stop_the_guest(&self) -> bool {
        self.0.reads_stop_the_guest()
    }

    fn check(&self) -> Result<()> {
        self.0.check()
    }

    fn vcpus(&self) -> Option<&dyn Vcpus<Arch = X86>> {
        self.0.vcpus()
    }

    fn write_memory(&self) -> Option<&dyn WriteMemory<Arch = X86>> {
        self.0.write_memory()
    }

    fn control(&self) -> Option<&dyn Control<Arch = X86>> {
        self.0.control()
    }

    fn write_vcpus(&self) -> Option<&dyn WriteVcpus<Arch = X86>> {
        self.0.write_vcpus()
    }

    fn events(&self) -> Option<&dyn EventSource<Arch = X86>> {
        self.0.events()
    }
}

impl Vcpus for AnyDriver {
    /// Zero if the back end does not show vCPUs.
    fn vcpu_count(&self) -> u32 {
        self.vcpus().map_or(0, Vcpus::vcpu_count)
    }

    fn registers(&self, vcpu: VcpuId) -> Result<Registers> {
        self.require(self.vcpus(), Capability::Vcpus)?.registers(vcpu)
    }
}

impl WriteVcpus for AnyDriver {
    fn set_registers(&self, vcpu: VcpuId, registers: &Registers) -> Result<()> {
        self.require(self.write_vcpus(), Capability::WriteVcpus)?.set_registers(vcpu, registers)
    }
}

impl EventSource for AnyDriver {
    fn abilities(&self) -> Result<EventAbilities> {
        self.require(self.events(), Capability::Events)?.abilities()
    }

    fn subscribe(&self) -> Result<Box<dyn EventSession<X86> + '_>> {
        self.require(self.events(), Capability::Events)?.subscribe()
    }
}

impl WriteMemory for AnyDriver {
    fn write(&self, at: PhysAddr, data: &[u8]) -> Result<()> {
        self.require(self.write_memory(), Capability::WriteMemory)?.write(at, data)
    }
}

impl Control for AnyDriver {
    fn pause(&self) -> Result<()> {
        self.require(self.control(), Capability::Control)?.pause()
    }

    fn resume(&self) -> Result<()> {
        self.require(self.control(), Capability::Control)?.resume()
    }
}

impl fmt::Debug for AnyDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AnyDriver").field(self.machine()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmi_core::synthetic::{LiveDriver, SyntheticDriver};
    use vmi_core::{ErrorKind, Memory, Vmi};

    #[test]
    fn what_the_back_end_has_is_forwarded() {
        let vmi = Vmi::new(AnyDriver::new(LiveDriver::new(vec![0; 64], Some(7))));
        vmi.write(PhysAddr::new(8), b"abc").unwrap();
        assert_eq!(vmi.read_vec(PhysAddr::new(8), 3).unwrap(), b"abc");
        assert_eq!(vmi.driver().epoch(), Some(7));
        assert!(vmi.driver().mapping().is_none());
        assert_eq!(vmi.machine().memory.total(), 64);

        let mut buf = [0; 3];
        let mut ops = [ReadOp::new(PhysAddr::new(8), &mut buf)];
        vmi.driver().read_batch(&mut ops);
        assert!(ops[0].result.is_ok());
        assert_eq!(&buf, b"abc");
    }

    #[test]
    fn mapped_memory_stays_mapped() {
        let driver = SyntheticDriver::<X86>::with_arch([(PhysAddr::ZERO, b"frozen".to_vec())]);
        let vmi = Vmi::new(AnyDriver::new(driver));
        assert_eq!(vmi.slice(PhysAddr::ZERO, 6), Some(&b"frozen"[..]));
        let range = vmi.map_range(Region::new(PhysAddr::new(1), 5).unwrap()).unwrap();
        drop(vmi);
        assert_eq!(range.read_vec(PhysAddr::new(1), 5).unwrap(), b"rozen");
    }

    #[test]
    fn what_it_lacks_is_named() {
        let vmi = Vmi::new(AnyDriver::new(SyntheticDriver::<X86>::with_arch([(PhysAddr::ZERO, vec![0; 16])])));
        let lacks = |result: Result<()>, wanted: Capability| match result.unwrap_err().kind() {
            ErrorKind::Unsupported { capability, back_end } => {
                assert_eq!((*capability, back_end.as_str()), (wanted, "synthetic machine"));
            }
            other => panic!("{other}"),
        };
        lacks(vmi.write(PhysAddr::ZERO, b"x"), Capability::WriteMemory);
        lacks(vmi.pause().map(drop), Capability::Control);
        lacks(vmi.registers(VcpuId(0)).map(drop), Capability::Vcpus);
        lacks(vmi.set_registers(VcpuId(0), &Registers::default()), Capability::WriteVcpus);
        lacks(vmi.events().map(drop), Capability::Events);
        let vmi = Vmi::new(AnyDriver::new(LiveDriver::new(vec![0; 64], None)));
        assert!(matches!(
            vmi.map_range(Region::new(PhysAddr::ZERO, 8).unwrap()).unwrap_err().kind(),
            ErrorKind::Unsupported { capability: Capability::MapRange, .. }
        ));
        assert_eq!(vmi.driver().vcpu_count(), 0);
    }
}
