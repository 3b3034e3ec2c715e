//! Views: Xen's altp2m. A domain has them if its configuration says `altp2m = "external"` (or mixed) and the processor is one of Intel's with EPT.

use vmi_core::{Accesses, Gfn, Result, ViewId, Views};

use crate::failure::Failures;
use crate::libraries::CallError;
use crate::libraries::monitor_calls::MonitorCalls;

/// `XENMEM_access_*` (xen/include/public/memory.h): bit 0 read, bit 1 write, bit 2 execute.
pub(crate) fn access(rights: Accesses) -> u32 {
    u32::from(rights.read) | (u32::from(rights.write) << 1) | (u32::from(rights.execute) << 2)
}

/// The views that a session made.
#[derive(Debug, Default)]
pub(crate) struct Made {
    views: Vec<u16>,
    /// Whether this session turned them on for the domain.
    on: bool,
}

/// The views of a session.
#[derive(Debug)]
pub(crate) struct XenViews<'s> {
    pub(crate) made: &'s mut Made,
    pub(crate) calls: &'s mut MonitorCalls,
    pub(crate) failures: &'s Failures,
}

impl Made {
    /// Whether there are any, or views are on by this session.
    pub(crate) fn any(&self) -> bool {
        self.on || !self.views.is_empty()
    }

    /// All vCPUs go back to the domain's own memory, and views are turned off if this session turned them on.
    pub(crate) fn take_away(&mut self, calls: &MonitorCalls, failures: &Failures) {
        let tell = |action: &str, result: std::result::Result<(), CallError>| {
            if let Err(error) = result {
                tracing::error!(%error, machine = %failures.machine(), action, "a view could not be taken away");
            }
        };
        if !self.on && self.views.is_empty() {
            return;
        }
        tell("switching to the domain's own memory", calls.switch_view(ViewId::HOST.0));
        for view in std::mem::take(&mut self.views) {
            tell("destroying it", calls.destroy_view(view));
        }
        if std::mem::take(&mut self.on) {
            tell("turning views off", calls.set_views_on(false));
        }
    }
}

impl Views for XenViews<'_> {
    fn create(&mut self, rights: Accesses) -> Result<ViewId> {
        let failed = |error| self.failures.other("making a view", error);
        if !self.calls.views_on().map_err(failed)? {
            self.calls.set_views_on(true).map_err(failed)?;
            self.made.on = true;
        }
        let view = self.calls.create_view(access(rights)).map_err(failed)?;
        self.made.views.push(view);
        Ok(ViewId(view))
    }

    fn destroy(&mut self, view: ViewId) -> Result<()> {
        self.calls.destroy_view(view.0).map_err(|error| self.failures.other(format!("destroying {view}"), error))?;
        self.made.views.retain(|made| *made != view.0);
        Ok(())
    }

    fn allow(&mut self, view: ViewId, page: Gfn, rights: Accesses) -> Result<()> {
        let allowed = self.calls.set_view_access(view.0, page.get(), access(rights));
        allowed.map_err(|error| {
            self.failures.other(format!("allowing {rights} to page {page:#x} in {view}", page = page.get()), error)
        })
    }

    fn remap(&mut self, view: ViewId, page: Gfn, instead: Option<Gfn>) -> Result<()> {
        let new = instead.map_or(u64::MAX, |page| page.get());
        let changed = self.calls.change_frame(view.0, page.get(), new);
        changed.map_err(|error| {
            self.failures.other(format!("showing another page at {page:#x} in {view}", page = page.get()), error)
        })
    }

    fn switch(&mut self, view: ViewId) -> Result<()> {
        self.calls.switch_view(view.0).map_err(|error| self.failures.other(format!("switching to {view}"), error))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn rights_are_numbered_as_in_the_header() {
        // XENMEM_access_n 0, r 1, w 2, rw 3, x 4, rx 5, wx 6, rwx 7
        let rx = Accesses::READ.or(Accesses::EXECUTE);
        assert_eq!(
            [Accesses::NONE, Accesses::READ, Accesses::WRITE, Accesses::EXECUTE, rx, Accesses::ALL].map(access),
            [0, 1, 2, 4, 5, 7]
        );
    }
}
