//! What the guest's vCPUs do, as it happens: breakpoints, accesses of memory, writes of registers, single steps. One interface for all back ends.
//!
//! Core knows what all architectures have; what belongs to one is [`Architecture::Watch`], [`Architecture::Incident`] and [`Architecture::Injection`]. Which of
//! it all a back end can do is a question at run time: [`EventAbilities`].
//!
//! [`Vmi::events`] opens a session. [`Events::set`] sets a [`Trap`], [`Events::next`] waits for an [`Event`]; while one is held the vCPU
//! that caused it stands still (with QEMU's gdb stub: all of them). [`Event::reply`] lets it go on; an event that is dropped
//! is answered by "go on". When the session is dropped every trap is gone and the guest runs.

mod ability;
mod memory;
mod reply;
mod trap;

use core::fmt;
use core::time::Duration;

pub use ability::{EventAbilities, EventAbility};
pub use memory::{AccessOrigin, Accesses, MemoryAccess, MemoryWatch, ViewId, Views};
pub use reply::{Action, Emulation, Reply};
pub use trap::{Cause, Place, Trap, TrapId, TrapKind};

use crate::{Architecture, Capability, Driver, Error, PhysAddr, Result, VcpuId, VirtAddr, Vmi};

/// A back end that reports what vCPUs do. It also overrides [`Driver::events`].
pub trait EventSource: Driver {
    /// What it can report, and which answers it can carry out, for this guest. Asking leaves the guest alone.
    ///
    /// # Errors
    /// [`ErrorKind::Driver`](crate::ErrorKind::Driver) if the back end fails.
    fn abilities(&self) -> Result<EventAbilities>;

    /// Begins to take part in the guest's execution. The guest runs on meanwhile.
    ///
    /// # Errors
    /// [`ErrorKind::Driver`](crate::ErrorKind::Driver) if the back end cannot, or if another session has it.
    fn subscribe(&self) -> Result<Box<dyn EventSession<Self::Arch> + '_>>;
}

/// A back end's side of an event session. Dropping it removes every trap and lets the guest run.
///
/// Callers are bound to the order `next`, `reply`, `next`, `reply`; [`Events`] sees to it.
pub trait EventSession<A: Architecture>: Send {
    /// What this session can report and do: as [`EventSource::abilities`].
    fn abilities(&self) -> EventAbilities;

    /// Sets a trap. Where the cause is a linear address, `roots` are the page tables through which it is meant; none: those of the system, or whichever the
    /// vCPUs run on. Called again for a cause that is set already if it is meant through other ones as well.
    ///
    /// # Errors
    /// [`ErrorKind::Driver`](crate::ErrorKind::Driver), with the back end's reason: no such kind, no more hardware slots, no memory there.
    fn arm(&mut self, cause: Cause<A>, roots: &[PhysAddr]) -> Result<()>;

    /// Removes a trap that was set, for all page tables.
    ///
    /// # Errors
    /// [`ErrorKind::Driver`](crate::ErrorKind::Driver) if the back end fails.
    fn disarm(&mut self, cause: Cause<A>) -> Result<()>;

    /// Waits for the next event; `None` if there was none within `limit`, and the guest runs on.
    ///
    /// # Errors
    /// [`ErrorKind::Ended`](crate::ErrorKind::Ended) if the guest is gone, [`ErrorKind::Driver`](crate::ErrorKind::Driver) if the back end fails.
    fn next(&mut self, limit: Duration) -> Result<Option<Occurrence<A>>>;

    /// Answers the event that [`EventSession::next`] gave; the guest runs on.
    ///
    /// # Errors
    /// As [`EventSession::next`].
    fn reply(&mut self, reply: Reply<A::Registers>) -> Result<()>;

    /// Views of memory, if this back end has them.
    fn views(&mut self) -> Option<&mut dyn Views> {
        None
    }

    /// What puts interrupts and exceptions into vCPUs, if this back end has it.
    fn injector(&mut self) -> Option<&mut dyn Injector<A>> {
        None
    }
}

/// A back end that puts interrupts and exceptions into vCPUs.
pub trait Injector<A: Architecture>: Send {
    /// The vCPU takes the interrupt or exception when it goes on. A second one before that may take the place of the first.
    ///
    /// # Errors
    /// [`ErrorKind::Driver`](crate::ErrorKind::Driver) if the back end fails: another one waits already, there is no such vCPU.
    fn inject(&mut self, vcpu: VcpuId, what: A::Injection) -> Result<()>;
}

/// What a back end reports.
#[derive(Clone, Debug)]
pub struct Occurrence<A: Architecture> {
    /// The vCPU that did it.
    pub vcpu: VcpuId,
    /// Its registers now. After a breakpoint the instruction pointer is at the instruction, after a watchpoint behind the one that did it; at accesses of
    /// guest-physical memory and at what the processor does of its own it is at the instruction, which has not done it yet.
    pub registers: A::Registers,
    /// What it did.
    pub what: What<A>,
}

/// What a vCPU did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum What<A: Architecture> {
    /// It came to a breakpoint or touched watched memory.
    Trapped {
        /// The trap that was sprung.
        place: Place,
        /// The address: of the instruction, or of the memory that was touched, if the back end tells which part it was.
        at: VirtAddr,
    },
    /// It is about to touch guest-physical memory that is watched.
    Memory(MemoryAccess),
    /// The processor did, or is about to do, something of its architecture.
    Processor(A::Incident),
    /// It ran the one instruction that [`Reply::step`] let it run, or one of those that [`Trap::instructions`] asks for.
    Stepped,
    /// It stopped for a reason that is not ours: another debugger, the guest's own breakpoint instruction.
    Stopped,
}

/// An event session: see the [module's description](crate::Events#method.next) of the cycle. When it is dropped every trap is removed and the
/// guest runs.
pub struct Events<'v, D: Driver> {
    vmi: &'v Vmi<D>,
    session: Box<dyn EventSession<D::Arch> + 'v>,
    traps: Vec<(TrapId, Trap<D::Arch>)>,
    /// The vCPUs that were told to run one instruction.
    steps: Vec<VcpuId>,
    last_id: u64,
    passed_over: u64,
}

impl<'v, D: EventSource> Events<'v, D> {
    pub(crate) fn new(vmi: &'v Vmi<D>) -> Result<Self> {
        let session = vmi.driver().subscribe()?;
        Ok(Self { vmi, session, traps: Vec::new(), steps: Vec::new(), last_id: 0, passed_over: 0 })
    }
}

impl<'v, D: Driver> Events<'v, D> {
    /// Sets a trap. It stays until [`Events::remove`] or until the session ends. Several at the same place are all told apart by their
    /// address spaces; the first that fits is reported.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if the back end has no such traps: see [`Events::abilities`]. Else as [`EventSession::arm`].
    pub fn set(&mut self, trap: Trap<D::Arch>) -> Result<TrapId> {
        let cause = trap.cause();
        let same = |(_, other): &(TrapId, Trap<D::Arch>)| other.cause() == cause && other.roots() == trap.roots();
        if !self.traps.iter().any(same) {
            self.require(cause.ability())?;
            self.session.arm(cause, trap.roots())?;
        }
        self.last_id = self.last_id.saturating_add(1);
        let id = TrapId(self.last_id);
        self.traps.push((id, trap));
        Ok(id)
    }

    /// Removes a trap. One that is not set is none to remove.
    ///
    /// # Errors
    /// As [`EventSession::disarm`].
    pub fn remove(&mut self, id: TrapId) -> Result<()> {
        let Some(index) = self.traps.iter().position(|(known, _)| *known == id) else { return Ok(()) };
        let (_, trap) = self.traps.remove(index);
        if self.is_armed(trap.cause()) { Ok(()) } else { self.session.disarm(trap.cause()) }
    }

    fn is_armed(&self, cause: Cause<D::Arch>) -> bool {
        self.traps.iter().any(|(_, trap)| trap.cause() == cause)
    }

    fn require(&self, ability: EventAbility) -> Result<()> {
        if self.session.abilities().has(ability) { Ok(()) } else { Err(self.lacks(ability)) }
    }

    #[cold]
    fn lacks(&self, ability: EventAbility) -> Error {
        Error::unsupported(Capability::Event(ability), &self.vmi.machine().name)
    }

    /// What the back end can report and do for this guest.
    pub fn abilities(&self) -> EventAbilities {
        self.session.abilities()
    }

    /// Views of memory.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if the back end has none.
    pub fn views(&mut self) -> Result<&mut dyn Views> {
        self.require(EventAbility::View)?;
        let lacks = self.lacks(EventAbility::View);
        self.session.views().ok_or(lacks)
    }

    /// Puts an interrupt or exception into a vCPU, which takes it when it goes on.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if the back end cannot; else as [`Injector::inject`].
    pub fn inject(&mut self, vcpu: VcpuId, what: <D::Arch as Architecture>::Injection) -> Result<()> {
        self.require(EventAbility::Inject)?;
        let lacks = self.lacks(EventAbility::Inject);
        self.session.injector().ok_or(lacks)?.inject(vcpu, what)
    }

    /// The traps that are set, in the order in which they were.
    pub fn traps(&self) -> impl Iterator<Item = (TrapId, &Trap<D::Arch>)> {
        self.traps.iter().map(|(id, trap)| (*id, trap))
    }

    /// How many events were let go on unseen, as they happened in other address spaces than asked for.
    pub fn passed_over(&self) -> u64 {
        self.passed_over
    }

    /// Waits until a vCPU springs a trap, at most `limit`; `None` if none did, and the guest runs on.
    ///
    /// # Errors
    /// As [`EventSession::next`].
    pub fn next(&mut self, limit: Duration) -> Result<Option<Event<'_, 'v, D>>> {
        let began = std::time::Instant::now();
        loop {
            let left = limit.saturating_sub(began.elapsed());
            let Some(occurrence) = self.session.next(left)? else { return Ok(None) };
            self.vmi.changed();
            let mut fits = None;
            let step_was_asked_for = matches!(occurrence.what, What::Stepped) && self.steps.contains(&occurrence.vcpu);
            if !matches!(occurrence.what, What::Stopped) {
                let (by_us, found) = self.first_that_fits(&occurrence);
                if by_us && found.is_none() {
                    self.passed_over = self.passed_over.saturating_add(1);
                    self.session.reply(Reply::resume())?;
                    continue;
                }
                fits = found;
            }
            if step_was_asked_for {
                self.steps.retain(|vcpu| *vcpu != occurrence.vcpu);
            }
            return Ok(Some(Event { events: self, occurrence, trap: fits, answered: false }));
        }
    }

    /// Whether only traps can have caused it; and the first one that did and that asked for this address space.
    fn first_that_fits(&self, occurrence: &Occurrence<D::Arch>) -> (bool, Option<TrapId>) {
        let caused = |trap: &Trap<D::Arch>| match (&occurrence.what, trap.cause()) {
            (What::Trapped { place, .. }, Cause::Place(mine)) => mine == *place,
            (What::Memory(access), Cause::Memory(watch)) => watch.is_sprung_by(access),
            (What::Processor(incident), Cause::Processor(watch)) => D::Arch::springs(&watch, incident),
            (What::Stepped, Cause::Instructions(vcpu)) => vcpu == occurrence.vcpu,
            _ => false,
        };
        // A source that does not tell the root cannot rule an address space out.
        let here = |root: &PhysAddr| D::Arch::runs_on(&occurrence.registers, *root).unwrap_or(true);
        let fits = |trap: &Trap<D::Arch>| caused(trap) && (trap.roots().is_empty() || trap.roots().iter().any(here));
        let found = self.traps.iter().find(|(_, trap)| fits(trap)).map(|(id, _)| *id);
        // Steps come from answers as well, accesses from views, and a back end may report incidents unasked: those are shown.
        let by_us = match occurrence.what {
            What::Trapped { .. } => true,
            What::Memory(access) => access.view.is_none_or(|view| view == ViewId::HOST),
            What::Stepped => !self.steps.contains(&occurrence.vcpu),
            _ => self.traps.iter().any(|(_, trap)| caused(trap)),
        };
        (by_us, found)
    }
}

impl<D: Driver> fmt::Debug for Events<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("machine", &self.vmi.machine().name).field("traps", &self.traps).finish_non_exhaustive()
    }
}

/// Something a vCPU did. It stands still until this is answered or dropped.
#[must_use = "the guest goes on when this is dropped"]
pub struct Event<'e, 'v, D: Driver> {
    events: &'e mut Events<'v, D>,
    occurrence: Occurrence<D::Arch>,
    trap: Option<TrapId>,
    answered: bool,
}

impl<D: Driver> Event<'_, '_, D> {
    /// The vCPU that did it.
    pub fn vcpu(&self) -> VcpuId {
        self.occurrence.vcpu
    }

    /// The registers of that vCPU.
    pub fn registers(&self) -> &<D::Arch as Architecture>::Registers {
        &self.occurrence.registers
    }

    /// What it did.
    pub fn what(&self) -> What<D::Arch> {
        self.occurrence.what
    }

    /// The trap that was sprung, if one was.
    pub fn trap(&self) -> Option<TrapId> {
        self.trap
    }

    /// Views of memory, while this is held.
    ///
    /// # Errors
    /// As [`Events::views`].
    pub fn views(&mut self) -> Result<&mut dyn Views> {
        self.events.views()
    }

    /// Puts an interrupt or exception into a vCPU, which takes it when it goes on.
    ///
    /// # Errors
    /// As [`Events::inject`].
    pub fn inject(&mut self, vcpu: VcpuId, what: <D::Arch as Architecture>::Injection) -> Result<()> {
        self.events.inject(vcpu, what)
    }

    /// Answers; the vCPU goes on as `reply` says.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if the back end cannot carry it out: the vCPU goes on as if the event was dropped. Else as
    /// [`EventSession::reply`].
    pub fn reply(mut self, reply: Reply<<D::Arch as Architecture>::Registers>) -> Result<()> {
        for ability in reply.abilities() {
            self.events.require(ability)?;
        }
        self.answered = true;
        self.events.vmi.changed();
        if reply.step {
            self.events.steps.push(self.occurrence.vcpu);
        }
        self.events.session.reply(reply)
    }
}

impl<D: Driver> Drop for Event<'_, '_, D> {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        self.events.vmi.changed();
        if let Err(error) = self.events.session.reply(Reply::resume()) {
            tracing::error!(%error, machine = %self.events.vmi.machine().name, "the guest could not be let go on after an event");
        }
    }
}

impl<D: Driver> fmt::Debug for Event<'_, '_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("occurrence", &self.occurrence).field("trap", &self.trap).finish_non_exhaustive()
    }
}
