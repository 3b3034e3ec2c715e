//! The end of a session: the domain is as it was, and runs.

use vmi_arch_x86::X86;
use vmi_core::{PhysAddr, Reply, Result, WriteMemory};

use super::XenEvents;
use crate::failure::Failures;
use crate::libraries::CallError;
use crate::libraries::monitor_calls::MonitorCalls;

/// More requests than a ring holds.
const MOST_WAITING: usize = 64;

/// Takes away what a program that was killed left: its breakpoints, its steps, its views. Access rights that nobody listens for are lifted by Xen itself when they are
/// met (xen/arch/x86/mm/mem_access.c, `p2m_mem_access_check`).
pub(super) fn take_away_what_was_left(
    driver: &dyn WriteMemory<Arch = X86>,
    calls: &MonitorCalls,
    vcpu_count: u32,
    breakpoints: &[(PhysAddr, u8)],
    failures: &Failures,
) -> Result<()> {
    for (at, original) in breakpoints {
        driver.write(*at, &[*original])?;
    }
    let tell = |action: &str, result: std::result::Result<(), CallError>| {
        if let Err(error) = result {
            tracing::debug!(%error, machine = %failures.machine(), action, "cleaning up behind a program that was killed");
        }
    };
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
                None => self.ring.take(),
            };
            let answered = match request {
                Ok(Some(request)) => self.go(&request, &Reply::resume()),
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
        self.ring.close();
        if paused && let Err(error) = self.ring.calls.unpause() {
            tell("letting the domain go on", &error);
        }
    }
}

impl Drop for XenEvents<'_> {
    fn drop(&mut self) {
        self.end();
    }
}
