//! The end of a step that nobody asked for.

use std::time::{Duration, Instant};

use vmi_core::{Reply, Result};

use super::XenEvents;
use crate::vm_event::{Reason, Request};

/// How long a vCPU may take for one instruction. Where it takes longer, as somebody else has paused the domain, the step ends when events are asked for.
const PATIENCE: Duration = Duration::from_millis(200);

impl XenEvents<'_> {
    /// The next request: one that came while a step was waited for, or the next of the ring.
    pub(super) fn take(&mut self) -> Result<Option<Request>> {
        match self.waiting.pop_front() {
            Some(request) => Ok(Some(request)),
            None => self.ring.take(),
        }
    }

    /// Waits for the end of a step by which an instruction passes what was undone for it, if the vCPU makes one that is not to be reported.
    pub(super) fn end_step(&mut self, vcpu: u32) -> Result<()> {
        let began = Instant::now();
        while self.passes(vcpu) && self.driver.epoch().is_none() {
            if let Some(request) = self.ring.take()? {
                if request.vcpu == vcpu && matches!(request.reason, Reason::SingleStep { .. }) {
                    let closed = self.occurrence(&request).map(drop);
                    return closed.and(self.answer(&request, &Reply::resume()));
                }
                let same = request.vcpu == vcpu;
                self.waiting.push_back(request);
                if same {
                    // The instruction was an event itself. The step ends behind the answer to that.
                    return Ok(());
                }
                continue;
            }
            let left = PATIENCE.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            self.ring.wait(left)?;
        }
        Ok(())
    }

    /// Whether a vCPU runs one instruction past what is watched, and nobody asked for that step.
    fn passes(&self, vcpu: u32) -> bool {
        let passes = |vcpu: &super::Vcpu| !vcpu.asked && !vcpu.always && (vcpu.back_to.is_some() || !vcpu.open.is_empty());
        self.vcpus.get(&vcpu).is_some_and(passes)
    }
}
