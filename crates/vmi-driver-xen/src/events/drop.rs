//! The end of a session: the domain is as it was, and runs.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use vmi_arch_x86::X86;
use vmi_core::{Accesses, PhysAddr, Reply, Result, VcpuId, WriteMemory};

use super::{Late, XenEvents, decode};
use crate::failure::Failures;
use crate::libraries::CallError;
use crate::libraries::monitor_calls::MonitorCalls;
use crate::views::access;

/// How long a vCPU may take to run on behind its last answer.
const PATIENCE: Duration = Duration::from_millis(500);
/// More requests than a ring holds.
const MOST_WAITING: usize = 64;

/// Takes away what a program that was killed left: its breakpoints, its steps, its views. Access rights of other pages are lifted when they are met: by Xen itself where
/// nobody listens (xen/arch/x86/mm/mem_access.c, `p2m_mem_access_check`), else by the session, which finds that nobody watches there.
pub(super) fn take_away_what_was_left(
    driver: &dyn WriteMemory<Arch = X86>,
    calls: &MonitorCalls,
    vcpu_count: u32,
    breakpoints: &[(PhysAddr, u8)],
    failures: &Failures,
) -> Result<()> {
    let tell = |action: &str, result: std::result::Result<(), CallError>| {
        if let Err(error) = result {
            tracing::debug!(%error, machine = %failures.machine(), action, "cleaning up behind a program that was killed");
        }
    };
    let frames: BTreeSet<u64> = breakpoints.iter().map(|(at, _)| decode::frame(*at).get()).collect();
    for (at, original) in breakpoints {
        driver.write(*at, &[*original])?;
    }
    for frame in frames {
        tell("allowing all access to a page with breakpoints", calls.set_access(frame, 1, access(Accesses::ALL)));
    }
    for vcpu in 0..vcpu_count {
        tell("ending its steps", calls.single_step(vcpu, false));
    }
    if calls.views_on().unwrap_or(false) {
        tell("switching to the domain's own memory", calls.switch_view(0));
        tell("turning views off", calls.set_views_on(false));
    }
    Ok(())
}

impl XenEvents<'_> {
    fn end(&mut self) {
        let name = self.failures.machine().to_owned();
        let tell = |action: &str, error: &dyn std::fmt::Display| {
            tracing::error!(%error, machine = %name, action, "at the end of an event session");
        };
        // While it stands still no vCPU comes to anything new.
        let paused = self.ring.calls.pause().inspect_err(|error| tell("pausing", error)).is_ok();
        for cause in std::mem::take(&mut self.armed) {
            let undone = match cause {
                vmi_core::Cause::Place(place) => self.disarm_breakpoint(place),
                vmi_core::Cause::Memory(watch) => self.disarm_memory(watch),
                _ => Ok(()),
            };
            if let Err(error) = undone {
                tell("removing a trap", &error);
            }
        }
        let still_watched: Vec<_> = self.pages.clear().collect();
        for vcpu in 0..self.vcpu_count {
            // Pages that are open for a step stay so; nothing is watched any more.
            let known = self.vcpus.entry(vcpu).or_default();
            let open = std::mem::take(&mut known.open);
            let view = known.back_to.take();
            (known.steps, known.asked, known.always) = (false, false, false);
            for page in open.into_iter().chain(still_watched.iter().copied()) {
                if let Err(error) = self.open_page(vcpu, page) {
                    tell("giving a page back", &error);
                }
            }
            let known = self.vcpus.entry(vcpu).or_default();
            known.open.clear();
            if view.is_some() {
                tracing::debug!(vcpu, "a step between views was cut short");
            }
        }
        let mut waiting = self.current.take();
        for _ in 0..MOST_WAITING {
            let request = match waiting.take() {
                Some(request) => Ok(Some(request)),
                None => self.take(),
            };
            let answered = match request {
                Ok(Some(request)) => self.answer(&request, &Reply::resume()),
                Ok(None) => break,
                Err(error) => Err(error),
            };
            if let Err(error) = answered {
                tell("answering an event", &error);
            }
        }
        for vcpu in 0..self.vcpu_count {
            if self.has(vmi_core::EventAbility::Step)
                && let Err(error) = self.ring.calls.single_step(vcpu, false)
            {
                tell("ending single steps", &error);
            }
        }
        self.made.take_away(&self.ring.calls, &self.failures);
        self.ring.turn_all_off();
        if let Err(error) = self.let_answers_take_effect(paused) {
            tell("setting registers", &error);
        }
        self.ring.close();
        if paused && let Err(error) = self.ring.calls.unpause() {
            tell("letting the domain go on", &error);
        }
    }

    /// Waits until the vCPUs have run on whose last answers Xen carries out only then. Nothing is watched any more.
    fn let_answers_take_effect(&mut self, paused: bool) -> Result<()> {
        let answers = std::mem::take(&mut self.vcpus).into_iter().filter_map(|(vcpu, known)| Some((vcpu, known.late?)));
        for (vcpu, late) in answers {
            if self.has_run(vcpu, &late)? {
                continue;
            }
            if paused {
                self.ring.calls.unpause().map_err(|error| self.failures.other("letting the domain go on", error))?;
            }
            let began = Instant::now();
            let mut ran = Ok(false);
            while matches!(ran, Ok(false)) && began.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(1));
                ran = self.has_run(vcpu, &late);
            }
            if paused {
                self.ring.calls.pause().map_err(|error| self.failures.other("pausing", error))?;
            }
            // Somebody else has paused it, or it has not come to its turn.
            if !ran.and_then(|ran| if ran { Ok(true) } else { self.has_run(vcpu, &late) })?
                && let (Some(wanted), Some(vcpus)) = (late.wanted, self.driver.write_vcpus())
            {
                let mut registers = vcpus.registers(VcpuId(vcpu))?;
                registers.set_general(wanted.general());
                (registers.rip, registers.rflags) = (wanted.rip, wanted.rflags);
                vcpus.set_registers(VcpuId(vcpu), &registers)?;
            }
        }
        Ok(())
    }

    /// Whether a vCPU has run on behind an answer: it has other registers than before.
    fn has_run(&self, vcpu: u32, late: &Late) -> Result<bool> {
        let Some(vcpus) = self.driver.vcpus() else { return Ok(true) };
        let (now, before) = (vcpus.registers(VcpuId(vcpu))?, &late.before);
        Ok((now.general(), now.rip, now.rflags) != (before.general(), before.rip, before.rflags))
    }
}

impl Drop for XenEvents<'_> {
    fn drop(&mut self) {
        self.end();
    }
}
