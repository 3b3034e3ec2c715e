//! Events by Xen's monitor ring.
//!
//! A vCPU that causes an event waits for its answer; the others run on. What the guest must not notice is undone for one instruction of that vCPU: below a breakpoint the
//! byte is put back, of a watched page all access is allowed, in a view the vCPU goes to the domain's own memory; the vCPU steps (VMX's monitor trap flag), and all is as
//! before. In a domain of several vCPUs the others could pass meanwhile, so there Xen emulates the instruction instead.
//!
//! Such a step ends with an event of its own. The answer that begins it waits for that, so that the guest runs on whether or not the program asks for more events.
//!
//! A page with breakpoints may be executed only: reads and writes of it are events that are let through with the guest's own bytes in place.

mod decode;
mod drop;
mod pages;
mod place;
mod reply;
mod step;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use vmi_arch_x86::{Incident, Registers, Watch, X86};
use vmi_core::{
    Accesses, Cause, EventAbilities, EventAbility, EventSession, Gfn, Injector, Occurrence, PhysAddr, Reply, Result, VcpuId,
    ViewId, Views, VirtAddr, What, WriteMemory,
};

use crate::breakpoints::{Breakpoints, INT3};
use crate::failure::Failures;
use crate::inject::XenInjector;
use crate::libraries::monitor_calls::MonitorCalls;
use crate::monitor::MonitorRing;
use crate::views::{Made, XenViews};
use crate::vm_event::{Reason, Request, Response};
use pages::Pages;

/// How long to wait at a time; in between it is seen whether the domain is still there.
const TURN: Duration = Duration::from_millis(500);

/// What a vCPU is doing for us.
#[derive(Debug, Default)]
struct Vcpu {
    /// It steps.
    steps: bool,
    /// A step was asked for.
    asked: bool,
    /// Each of its steps was asked for.
    always: bool,
    /// The pages that are open for this step.
    open: Vec<Gfn>,
    /// The view to which it goes back behind this step.
    back_to: Option<u16>,
    /// What its last answer asks of Xen, if that is done only when the vCPU runs on.
    late: Option<Late>,
}

/// An answer that Xen carries out when the vCPU runs on.
#[derive(Clone, Copy, Debug)]
struct Late {
    /// The registers before.
    before: Registers,
    /// Those that it is to have.
    wanted: Option<Registers>,
}

/// An event session on one domain.
pub(crate) struct XenEvents<'d> {
    driver: &'d dyn WriteMemory<Arch = X86>,
    failures: Failures,
    abilities: EventAbilities,
    vcpu_count: u32,
    ring: MonitorRing,
    armed: Vec<Cause<X86>>,
    breakpoints: Breakpoints,
    pages: Pages,
    vcpus: BTreeMap<u32, Vcpu>,
    /// The event that was reported and waits for its answer.
    current: Option<Request>,
    /// Requests that came while a step was waited for.
    waiting: VecDeque<Request>,
    made: Made,
    injector: XenInjector,
}

impl core::fmt::Debug for XenEvents<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("XenEvents").field("domain", &self.failures.machine()).field("armed", &self.armed).finish_non_exhaustive()
    }
}

/// What this Xen can do for a domain. Touches neither its ring nor its views.
pub(crate) fn abilities(domain: u32, failures: &Failures) -> Result<EventAbilities> {
    let calls = MonitorCalls::open(domain).map_err(|error| failures.interface("asking which events there are", error))?;
    abilities_by(&calls, failures)
}

fn abilities_by(calls: &MonitorCalls, failures: &Failures) -> Result<EventAbilities> {
    let capabilities = calls.capabilities().map_err(|error| failures.other("asking which events there are", error))?;
    Ok(decode::abilities(capabilities, calls.views_on().is_ok()))
}

impl<'d> XenEvents<'d> {
    /// Turns the event ring of `domain` on.
    pub(crate) fn new(driver: &'d dyn WriteMemory<Arch = X86>, domain: u32, guarded: bool) -> Result<Self> {
        let failures = Failures::new(&driver.machine().name);
        let vcpu_count = driver.vcpus().map_or(1, |vcpus| vcpus.vcpu_count());
        let ring = MonitorRing::open(domain, vcpu_count, guarded, &failures, |calls, bytes| {
            drop::take_away_what_was_left(driver, calls, vcpu_count, bytes, &failures)
        })?;
        let abilities = abilities_by(&ring.calls, &failures)?;
        let injector = XenInjector::new(domain, failures.clone());
        let mut session = Self {
            driver,
            failures,
            abilities,
            vcpu_count,
            ring,
            armed: Vec::new(),
            breakpoints: Breakpoints::default(),
            pages: Pages::default(),
            vcpus: BTreeMap::new(),
            current: None,
            waiting: VecDeque::new(),
            made: Made::default(),
            injector,
        };
        session.set_monitors()?;
        Ok(session)
    }

    fn has(&self, ability: EventAbility) -> bool {
        self.abilities.has(ability)
    }

    /// Turns those monitors on that are needed, and no others.
    fn set_monitors(&mut self) -> Result<()> {
        let wanted = decode::monitors(&self.armed, self.has(EventAbility::Step));
        let needless: Vec<_> = self.ring.monitors().iter().copied().filter(|monitor| !wanted.contains(monitor)).collect();
        for monitor in needless {
            self.ring.turn_off(monitor).map_err(|error| self.failures.other("turning an event off", error))?;
        }
        for monitor in wanted {
            self.ring.turn_on(monitor).map_err(|error| self.failures.other("turning an event on", error))?;
        }
        Ok(())
    }

    /// What a request is, as an event; `None` if it is not to be reported.
    fn occurrence(&mut self, request: &Request) -> Result<Option<What<X86>>> {
        if request.vcpu >= self.vcpu_count {
            return Err(self
                .failures
                .other("taking an event off the ring", format!("there is no vCPU {} in this domain", request.vcpu)));
        }
        let rip = VirtAddr::new(request.registers.rip);
        Ok(match request.reason {
            Reason::SoftwareBreakpoint(debug) => {
                let at = decode::byte_of(&debug, rip);
                let ours = self.breakpoints.get(at).and_then(|breakpoint| {
                    let here = breakpoint.places.iter().find(|place| place.at == rip);
                    here.or_else(|| breakpoint.places.first()).copied()
                });
                match ours {
                    Some(place) => Some(What::Trapped { place, at: rip }),
                    None if self.byte_at(at) == Some(INT3) && self.armed.contains(&Cause::Processor(Watch::Breakpoints)) => {
                        Some(What::Processor(Incident::Breakpoint { kind: debug.kind, length: debug.length }))
                    }
                    None => None,
                }
            }
            Reason::SingleStep { .. } => {
                self.close_pages(request.vcpu)?;
                let vcpu = self.vcpus.entry(request.vcpu).or_default();
                let reported = std::mem::take(&mut vcpu.asked) || vcpu.always;
                reported.then_some(What::Stepped)
            }
            Reason::MemAccess { gfn, .. } => {
                let access = decode::memory_access(request);
                let in_view = request.view.is_some_and(|view| view != 0);
                let watched = access.is_some_and(|access| !self.pages.watched(Gfn::new(gfn)).and(access.kinds).is_none());
                access.filter(|_| in_view || watched).map(What::Memory)
            }
            _ => decode::incident(&request.reason).map(What::Processor),
        })
    }

    fn byte_at(&self, at: PhysAddr) -> Option<u8> {
        let mut byte = [0];
        self.driver.read(at, &mut byte).ok()?;
        byte.first().copied()
    }
}

impl EventSession<X86> for XenEvents<'_> {
    fn abilities(&self) -> EventAbilities {
        self.abilities
    }

    fn arm(&mut self, cause: Cause<X86>, roots: &[PhysAddr]) -> Result<()> {
        let known = self.armed.contains(&cause);
        if !known {
            self.armed.push(cause);
        }
        let armed = self.set_monitors().and_then(|()| match cause {
            Cause::Place(place) => self.arm_breakpoint(place, roots),
            Cause::Memory(watch) => self.arm_memory(watch),
            Cause::Instructions(vcpu) => self.step_always(vcpu, true),
            _ => Ok(()),
        });
        if armed.is_err() && !known {
            // What was armed of it is taken away; the first failure is the one that is told.
            _ = self.disarm(cause);
        }
        armed
    }

    fn disarm(&mut self, cause: Cause<X86>) -> Result<()> {
        self.armed.retain(|armed| *armed != cause);
        let undone = match cause {
            Cause::Place(place) => self.disarm_breakpoint(place),
            Cause::Memory(watch) => self.disarm_memory(watch),
            Cause::Instructions(vcpu) => self.step_always(vcpu, false),
            _ => Ok(()),
        };
        undone.and(self.set_monitors())
    }

    fn next(&mut self, limit: Duration) -> Result<Option<Occurrence<X86>>> {
        let began = Instant::now();
        loop {
            let mut came = false;
            if let Some(request) = self.take()? {
                came = true;
                match self.occurrence(&request) {
                    Ok(Some(what)) => {
                        let occurrence = Occurrence { vcpu: VcpuId(request.vcpu), registers: request.registers, what };
                        self.current = Some(request);
                        return Ok(Some(occurrence));
                    }
                    Ok(None) => self.go(&request, &Reply::resume())?,
                    Err(error) => {
                        self.ring.answer(Response::to(&request))?;
                        return Err(error);
                    }
                }
            }
            let left = limit.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            if !came && !self.ring.wait(left.min(TURN))? {
                self.driver.check()?;
            }
        }
    }

    fn reply(&mut self, reply: Reply<Registers>) -> Result<()> {
        match self.current.take() {
            Some(request) => self.go(&request, &reply),
            None => Ok(()),
        }
    }

    fn views(&mut self) -> Option<&mut dyn Views> {
        if self.has(EventAbility::View) { Some(self) } else { None }
    }

    fn injector(&mut self) -> Option<&mut dyn Injector<X86>> {
        Some(&mut self.injector)
    }
}

/// The views of this session.
impl Views for XenEvents<'_> {
    fn create(&mut self, rights: Accesses) -> Result<ViewId> {
        self.ring.guard(false);
        self.xen_views().create(rights)
    }

    fn destroy(&mut self, view: ViewId) -> Result<()> {
        self.xen_views().destroy(view)
    }

    fn allow(&mut self, view: ViewId, page: Gfn, rights: Accesses) -> Result<()> {
        self.xen_views().allow(view, page, rights)
    }

    fn remap(&mut self, view: ViewId, page: Gfn, instead: Option<Gfn>) -> Result<()> {
        self.xen_views().remap(view, page, instead)
    }

    fn switch(&mut self, view: ViewId) -> Result<()> {
        self.xen_views().switch(view)
    }
}

impl XenEvents<'_> {
    fn xen_views(&mut self) -> XenViews<'_> {
        XenViews { made: &mut self.made, calls: &mut self.ring.calls, failures: &self.failures }
    }
}
