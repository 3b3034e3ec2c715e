//! How a vCPU goes on behind an event.

use vmi_arch_x86::Registers;
use vmi_core::{Accesses, Action, Emulation, EventAbility, Gfn, PAGE_SIZE, PhysAddr, Reply, Result, VirtAddr};

use super::{Late, XenEvents, decode, place};
use crate::breakpoints::INT3;
use crate::vm_event::{AccessFlags, Flags, Reason, Request, Response, settable};

/// Answers that Xen cannot carry out.
#[derive(Debug, thiserror::Error)]
enum ReplyError {
    #[error(
        "an answer sets the general registers, the flags and the instruction pointer; others differ: set those through the vCPU"
    )]
    OtherRegisters,
    #[error("the register is written already: with other registers the instruction pointer must be set behind the instruction")]
    WouldRunTwice,
    #[error("registers cannot be set where an instruction is emulated with other data: Xen has one place for both")]
    RegistersAndData,
    #[error("Xen emulates at accesses of memory, breakpoints and accesses of descriptor tables, not here")]
    NothingToEmulate,
    #[error("{0} bytes are more than an answer holds")]
    TooLong(usize),
    #[error("there is no exception to give to the guest")]
    NothingToReinject,
    #[error("Xen 4.17 has written the register already when it tells of it")]
    Written,
    #[error(
        "to go on from a breakpoint with other registers takes a single step, which this processor has not; set the instruction pointer too"
    )]
    NeedsStep,
}

/// Why an answer was not carried out.
enum Refusal {
    Here(ReplyError),
    Core(vmi_core::Error),
}

impl From<vmi_core::Error> for Refusal {
    fn from(error: vmi_core::Error) -> Self {
        Self::Core(error)
    }
}

impl From<ReplyError> for Refusal {
    fn from(error: ReplyError) -> Self {
        Self::Here(error)
    }
}

impl XenEvents<'_> {
    /// Answers a request, and waits until what was undone for one instruction is as before. It is answered whatever fails.
    pub(super) fn go(&mut self, request: &Request, reply: &Reply<Registers>) -> Result<()> {
        self.answer(request, reply).and(self.end_step(request.vcpu))
    }

    /// Answers a request. Xen knows by the vCPU what is answered, so the order of answers is free (xen/common/vm_event.c, `vm_event_resume`).
    pub(super) fn answer(&mut self, request: &Request, reply: &Reply<Registers>) -> Result<()> {
        let mut response = Response::to(request);
        let vcpu = self.vcpus.entry(request.vcpu).or_default();
        let back_to = if matches!(request.reason, Reason::SingleStep { .. }) { vcpu.back_to.take() } else { None };
        vcpu.asked |= reply.step;
        let prepared = self.prepare(request, reply, &mut response).map_err(|refusal| match refusal {
            Refusal::Here(error) => self.failures.other("answering an event", error),
            Refusal::Core(error) => error,
        });
        if prepared.is_err() {
            response = Response::to(request);
        }
        let vcpu = self.vcpus.entry(request.vcpu).or_default();
        let in_another_view = vcpu.back_to.is_some();
        if let Some(view) = reply.view.map(|view| view.0).or(back_to) {
            if in_another_view {
                vcpu.back_to = Some(view);
            } else {
                response.view(view);
            }
        }
        let steps = vcpu.always || vcpu.asked || in_another_view || !vcpu.open.is_empty();
        if steps != vcpu.steps && request.flags.contains(Flags::VCPU_PAUSED) {
            response.add(Flags::TOGGLE_SINGLESTEP);
            vcpu.steps = steps;
        }
        vcpu.late = response.is_late().then_some(Late { before: request.registers, wanted: response.wanted_registers() });
        self.ring.answer(response)?;
        prepared
    }

    fn prepare(&mut self, request: &Request, reply: &Reply<Registers>, response: &mut Response) -> Result<(), Refusal> {
        let now = &request.registers;
        let mut wanted = reply.registers;
        let moved = wanted.is_some_and(|wanted| wanted.rip != now.rip);
        if wanted.is_some_and(|wanted| !settable(now, &wanted)) {
            return Err(ReplyError::OtherRegisters.into());
        }
        let step = wanted.is_some() || reply.step;
        match (&reply.action, request.reason) {
            (Action::Go, Reason::SoftwareBreakpoint(debug)) if !moved => {
                let at = decode::byte_of(&debug, VirtAddr::new(now.rip));
                if self.breakpoints.get(at).is_some() {
                    self.pass_breakpoint(request, at, step, response)?;
                } else if self.byte_at(at) == Some(INT3) {
                    self.injector.reinject(request.vcpu, 3, &debug)?;
                } // else it was removed meanwhile, and the instruction runs
            }
            (Action::Go, Reason::MemAccess { gfn, .. }) if !moved => self.pass_access(request, Gfn::new(gfn), step, response)?,
            (Action::Go, Reason::Cpuid { length, .. }) if !moved => {
                // The result is in the registers, but the instruction pointer stays where it was if there is an event (xen/arch/x86/hvm, `hvm_vmexit_cpuid`).
                let mut registers = wanted.unwrap_or(*now);
                registers.rip = registers.rip.wrapping_add(u64::from(length));
                wanted = Some(registers);
            }
            (Action::Go, Reason::DebugException(debug)) => self.injector.reinject(request.vcpu, 1, &debug)?,
            (Action::Go, Reason::WriteCtrlReg { .. } | Reason::MovToMsr { .. }) if wanted.is_some() && !moved => {
                return Err(ReplyError::WouldRunTwice.into());
            }
            (Action::Emulate(how), _) => {
                let with_data = !matches!(how, Emulation::Plain | Emulation::WithoutWrites);
                if wanted.is_some() && (with_data || matches!(request.reason, Reason::SoftwareBreakpoint(_))) {
                    return Err(ReplyError::RegistersAndData.into());
                }
                self.emulate(request, how, response)?;
            }
            (Action::Reinject, Reason::SoftwareBreakpoint(debug)) => self.injector.reinject(request.vcpu, 3, &debug)?,
            (Action::Reinject, Reason::DebugException(debug)) => self.injector.reinject(request.vcpu, 1, &debug)?,
            (Action::Reinject, _) => return Err(ReplyError::NothingToReinject.into()),
            (Action::Deny, _) => return Err(ReplyError::Written.into()),
            _ => {}
        }
        if let Some(registers) = &wanted {
            response.registers(registers);
        }
        Ok(())
    }

    /// The instruction below a breakpoint of ours runs.
    fn pass_breakpoint(&mut self, request: &Request, at: PhysAddr, step: bool, response: &mut Response) -> Result<(), Refusal> {
        if self.has(EventAbility::Step) && (step || self.vcpu_count == 1) {
            return Ok(self.open_page(request.vcpu, decode::frame(at))?);
        }
        if step {
            return Err(ReplyError::NeedsStep.into());
        }
        response.emulate_instruction(&self.instruction(request, at));
        Ok(())
    }

    /// An access that was an event is made.
    fn pass_access(&mut self, request: &Request, page: Gfn, step: bool, response: &mut Response) -> Result<(), Refusal> {
        if let Some(view) = request.view.filter(|view| *view != 0) {
            self.vcpus.entry(request.vcpu).or_default().back_to = Some(view);
            response.view(0);
            return Ok(());
        }
        if self.rights(page) == Accesses::ALL {
            // It is no more watched, or a program that was killed watched it: then the page still forbids what nobody asks for.
            return Ok(self.set_rights(page, Accesses::ALL)?);
        }
        if step || self.vcpu_count == 1 {
            return Ok(self.open_page(request.vcpu, page)?);
        }
        response.add(Flags::EMULATE);
        let Reason::MemAccess { offset, flags, .. } = request.reason else { return Ok(()) };
        if flags.contains(AccessFlags::R) && !self.breakpoints.on(page).is_empty() {
            // What it reads must not show breakpoints. No access of memory is longer than 64 bytes.
            let at = PhysAddr::new(page.get().saturating_mul(PAGE_SIZE).saturating_add(offset));
            let rest = PAGE_SIZE.saturating_sub(offset % PAGE_SIZE).min(64);
            let mut bytes = vec![0; usize::try_from(rest).unwrap_or(64)];
            self.driver.read(at, &mut bytes)?;
            self.breakpoints.hide(at, &mut bytes);
            if !response.emulate_reading(&bytes) {
                return Err(ReplyError::TooLong(bytes.len()).into());
            }
        }
        Ok(())
    }

    fn emulate(&self, request: &Request, how: &Emulation, response: &mut Response) -> Result<(), ReplyError> {
        match (how, request.reason) {
            (Emulation::Instruction(bytes), Reason::SoftwareBreakpoint(_)) => response.emulate_instruction(bytes),
            (_, Reason::SoftwareBreakpoint(debug)) => {
                let at = decode::byte_of(&debug, VirtAddr::new(request.registers.rip));
                response.emulate_instruction(&self.instruction(request, at));
            }
            (Emulation::Reading(data), Reason::MemAccess { .. }) => {
                if !response.emulate_reading(data) {
                    return Err(ReplyError::TooLong(data.len()));
                }
            }
            (Emulation::WithoutWrites, Reason::MemAccess { .. }) => response.add(Flags::EMULATE | Flags::EMULATE_NOWRITE),
            (Emulation::Plain, Reason::MemAccess { .. } | Reason::DescriptorAccess { .. }) => response.add(Flags::EMULATE),
            _ => return Err(ReplyError::NothingToEmulate),
        }
        Ok(())
    }

    /// The bytes of an instruction, as the guest put them there; what cannot be read is NOPs.
    fn instruction(&self, request: &Request, at: PhysAddr) -> [u8; 16] {
        let mut bytes = [0x90; 16];
        let in_page = PAGE_SIZE.saturating_sub(at.get() % PAGE_SIZE);
        let (first, rest) = bytes.split_at_mut(usize::try_from(in_page).unwrap_or(16).min(16));
        let linear = VirtAddr::new(request.registers.rip.wrapping_add(first.len() as u64));
        let next = if rest.is_empty() { None } else { place::translate(self.driver, &request.registers, linear) };
        for (from, part) in [(Some(at), first), (next, rest)] {
            if let Some(from) = from
                && self.driver.read(from, part).is_ok()
            {
                self.breakpoints.hide(from, part);
            }
        }
        bytes
    }
}
