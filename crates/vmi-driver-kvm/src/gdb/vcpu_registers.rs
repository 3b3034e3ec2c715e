//! Registers of a vCPU, read and written.

use vmi_arch_x86::Registers;
use vmi_core::VcpuId;

use super::client::GdbClient;
use super::error::{GdbCause, GdbError};
use super::registers::{FIELDS, decode, untold};
use super::reply::{misunderstood, push_hex_bytes};

/// What became of a write of registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistersWritten {
    /// These had another value and now have the new one.
    pub changed: Vec<&'static str>,
    /// These were given, but the stub neither shows nor takes them: what the vCPU has in them is as it was.
    pub untold: Vec<&'static str>,
}

impl GdbClient {
    /// The registers of a vCPU, as the stub's answer to `g` shows them.
    ///
    /// QEMU shows the general registers, `rip`, `rflags`, CR0, CR2, CR3, CR4, CR8, EFER, KERNEL_GS_BASE, the selectors of the segments and
    /// the bases of FS and GS. While a vCPU runs 32-bit code, a 64-bit QEMU shows the lower halves of the general registers, and r8 to r15 as
    /// zero. Of CS, SS, DS and ES the base is not told, and of no segment limit and attributes: those are 0 and `None`. Everything else is
    /// `None`.
    ///
    /// # Errors
    /// [`GdbCause::NoVcpu`], [`GdbCause::Running`], or what goes wrong with the stub.
    pub fn registers(&mut self, vcpu: VcpuId) -> Result<Registers, GdbError> {
        let answer = self.register_block(vcpu)?;
        Ok(decode(&self.layout, &answer))
    }

    fn register_block(&mut self, vcpu: VcpuId) -> Result<Vec<u8>, GdbError> {
        self.select(vcpu)?;
        let answer = self.ask(b"g", "reading registers")?;
        if answer.len() > self.layout.byte_len().saturating_mul(2) {
            let why = format!("it has {} bytes of registers, the stub sent {}", self.layout.byte_len(), answer.len() >> 1);
            return Err(self.error("reading registers", GdbCause::Description(why)));
        }
        if self.layout.value("rip", &answer).or_else(|| self.layout.value("eip", &answer)).is_none() {
            return Err(self.error("reading registers", misunderstood(&answer)));
        }
        Ok(answer)
    }

    /// Gives a vCPU new registers: what differs from its present ones is written, then read back. `None` leaves a register as it is. Of
    /// segments, the selectors are written and the bases of FS and GS; a new selector loads the rest from the descriptor table.
    ///
    /// # Errors
    /// [`GdbCause::NotTaken`] with those that kept another value, for example r8 to r15 of a vCPU in 32-bit code, or a selector
    /// without a descriptor. What the others are then is what was asked.
    pub fn write_registers(&mut self, vcpu: VcpuId, wanted: &Registers) -> Result<RegistersWritten, GdbError> {
        let mut written = RegistersWritten { changed: Vec::new(), untold: untold(wanted, &self.layout) };
        // Selectors and control registers change others, which the second round puts right.
        for round in 0..3 {
            let present = self.registers(vcpu)?;
            let mut left = Vec::new();
            for field in FIELDS {
                let Some(place) = field.place(&self.layout) else { continue };
                let Some(value) = (field.get)(wanted).filter(|value| Some(*value) != (field.get)(&present)) else { continue };
                left.push(field.name());
                let Some(bytes) = value.to_le_bytes().get(..place.len).map(<[u8]>::to_vec) else { continue };
                if round < 2 {
                    let mut request = format!("P{:x}=", place.number).into_bytes();
                    push_hex_bytes(&bytes, &mut request);
                    self.command(&request, "writing registers")?;
                }
            }
            if left.is_empty() {
                return Ok(written);
            }
            if round == 2 {
                return Err(self.error("writing registers", GdbCause::NotTaken(left)));
            }
            for name in left {
                if !written.changed.contains(&name) {
                    written.changed.push(name);
                }
            }
        }
        Ok(written)
    }
}
