//! What the guest's vCPUs do, as it happens: breakpoints, watchpoints, single steps. One interface for all back ends.
//!
//! [`Vmi::events`] opens a session. [`Events::set`] sets a [`Trap`], [`Events::next`] waits for an [`Event`]; while one is held the vCPU
//! that caused it stands still (with QEMU's gdb stub: all of them). [`Event::reply`] lets it go on; an event that is dropped
//! is answered by "go on". When the session is dropped every trap is gone and the guest runs.

use core::fmt;
use core::time::Duration;

use crate::{Architecture, Driver, PhysAddr, Result, VcpuId, VirtAddr, Vmi};

/// A back end that reports what vCPUs do. It also overrides [`Driver::events`].
pub trait EventSource: Driver {
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
    /// Sets a trap. No two are set at the same place with the same kind.
    ///
    /// # Errors
    /// [`ErrorKind::Driver`](crate::ErrorKind::Driver), with the back end's reason: no such kind, no more hardware slots, no memory there.
    fn arm(&mut self, place: Place) -> Result<()>;

    /// Removes a trap that was set.
    ///
    /// # Errors
    /// [`ErrorKind::Driver`](crate::ErrorKind::Driver) if the back end fails.
    fn disarm(&mut self, place: Place) -> Result<()>;

    /// Waits for the next event; `None` if there was none within `limit`, and the guest runs on.
    ///
    /// # Errors
    /// [`ErrorKind::Ended`](crate::ErrorKind::Ended) if the guest is gone, [`ErrorKind::Driver`](crate::ErrorKind::Driver) if the back end fails.
    fn next(&mut self, limit: Duration) -> Result<Option<Occurrence<A::Registers>>>;

    /// Answers the event that [`EventSession::next`] gave; the guest runs on.
    ///
    /// # Errors
    /// As [`EventSession::next`].
    fn reply(&mut self, reply: Reply<A::Registers>) -> Result<()>;
}

/// Where and how a trap is sprung.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// What springs it.
    pub kind: TrapKind,
    /// First linear address; breakpoints: of the instruction.
    pub at: VirtAddr,
    /// Bytes that are watched; 1 for breakpoints.
    pub len: u64,
}

/// What springs a trap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TrapKind {
    /// An instruction is about to run, found by a breakpoint instruction or what the back end has in its place.
    SoftwareBreakpoint,
    /// An instruction is about to run, found by a debug register or its like.
    HardwareBreakpoint,
    /// Memory was written.
    Write,
    /// Memory was read.
    Read,
    /// Memory was read or written.
    Access,
}

impl fmt::Display for TrapKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SoftwareBreakpoint => "software breakpoint",
            Self::HardwareBreakpoint => "hardware breakpoint",
            Self::Write => "write watchpoint",
            Self::Read => "read watchpoint",
            Self::Access => "access watchpoint",
        })
    }
}

/// A request to be told when a vCPU does something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trap {
    place: Place,
    roots: Vec<PhysAddr>,
}

impl Trap {
    /// Sprung when the instruction at `at` is about to run. [`Trap::hardware`] chooses debug registers instead.
    pub const fn breakpoint(at: VirtAddr) -> Self {
        Self::new(TrapKind::SoftwareBreakpoint, at, 1)
    }

    /// Sprung when any of `len` bytes at `at` is written.
    pub const fn write(at: VirtAddr, len: u64) -> Self {
        Self::new(TrapKind::Write, at, len)
    }

    /// Sprung when any of `len` bytes at `at` is read.
    pub const fn read(at: VirtAddr, len: u64) -> Self {
        Self::new(TrapKind::Read, at, len)
    }

    /// Sprung when any of `len` bytes at `at` is read or written.
    pub const fn access(at: VirtAddr, len: u64) -> Self {
        Self::new(TrapKind::Access, at, len)
    }

    const fn new(kind: TrapKind, at: VirtAddr, len: u64) -> Self {
        Self { place: Place { kind, at, len }, roots: Vec::new() }
    }

    /// A breakpoint by debug register: it changes no guest memory, and there are few (four on x86 under KVM).
    #[must_use]
    pub fn hardware(mut self) -> Self {
        if self.place.kind == TrapKind::SoftwareBreakpoint {
            self.place.kind = TrapKind::HardwareBreakpoint;
        }
        self
    }

    /// Only when the vCPU runs on the page tables at `root`, whose flags do not matter. May be called for several roots: a Linux process under page-table
    /// isolation has two. The vCPU stops all the same in other address spaces, and is let go on at once.
    #[must_use]
    pub fn in_address_space(mut self, root: PhysAddr) -> Self {
        self.roots.push(root);
        self
    }

    /// Where and how it is sprung.
    pub const fn place(&self) -> Place {
        self.place
    }
}

/// A trap that is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrapId(u64);

/// What a back end reports.
#[derive(Clone, Debug)]
pub struct Occurrence<R> {
    /// The vCPU that did it.
    pub vcpu: VcpuId,
    /// Its registers now. After a breakpoint the instruction pointer is at the instruction, after a watchpoint behind the one that did it.
    pub registers: R,
    /// What it did.
    pub what: What,
}

/// What a vCPU did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum What {
    /// It came to a breakpoint or touched watched memory.
    Trapped {
        /// The trap that was sprung.
        place: Place,
        /// The address: of the instruction, or of the memory that was touched, if the back end tells which part it was.
        at: VirtAddr,
    },
    /// It ran the one instruction that [`Reply::step`] let it run.
    Stepped,
    /// It stopped for a reason that is not ours: another debugger, the guest's own breakpoint instruction.
    Stopped,
}

/// How an event is answered.
#[derive(Clone, Debug)]
#[must_use]
pub struct Reply<R> {
    /// Registers to set before the vCPU goes on.
    pub registers: Option<R>,
    /// Whether it runs one instruction only, which is then an event of its own ([`What::Stepped`]); the other vCPUs stand still for it.
    pub step: bool,
}

impl<R> Reply<R> {
    /// The guest goes on.
    pub const fn resume() -> Self {
        Self { registers: None, step: false }
    }

    /// The vCPU runs one instruction, and there is an event again.
    pub const fn step() -> Self {
        Self { registers: None, step: true }
    }

    /// With these registers in the vCPU.
    pub fn with_registers(mut self, registers: R) -> Self {
        self.registers = Some(registers);
        self
    }
}

/// An event session: see the [module's description](crate::Events#method.next) of the cycle. When it is dropped every trap is removed and the
/// guest runs.
pub struct Events<'v, D: Driver> {
    vmi: &'v Vmi<D>,
    session: Box<dyn EventSession<D::Arch> + 'v>,
    traps: Vec<(TrapId, Trap)>,
    next_id: u64,
    passed_over: u64,
}

impl<'v, D: EventSource> Events<'v, D> {
    pub(crate) fn new(vmi: &'v Vmi<D>) -> Result<Self> {
        let session = vmi.driver().subscribe()?;
        Ok(Self { vmi, session, traps: Vec::new(), next_id: 0, passed_over: 0 })
    }
}

impl<'v, D: Driver> Events<'v, D> {
    /// Sets a trap. It stays until [`Events::remove`] or until the session ends. Several at the same place are all told apart by their
    /// address spaces; the first that fits is reported.
    ///
    /// # Errors
    /// As [`EventSession::arm`].
    pub fn set(&mut self, trap: Trap) -> Result<TrapId> {
        if !self.is_armed(trap.place) {
            self.session.arm(trap.place)?;
        }
        let id = TrapId(self.next_id);
        self.next_id = self.next_id.saturating_add(1);
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
        if self.is_armed(trap.place) { Ok(()) } else { self.session.disarm(trap.place) }
    }

    fn is_armed(&self, place: Place) -> bool {
        self.traps.iter().any(|(_, trap)| trap.place == place)
    }

    /// The traps that are set, in the order in which they were.
    pub fn traps(&self) -> impl Iterator<Item = (TrapId, &Trap)> {
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
            let trap = match occurrence.what {
                What::Trapped { place, .. } => match self.first_that_fits(place, &occurrence.registers) {
                    None => {
                        self.passed_over = self.passed_over.saturating_add(1);
                        self.session.reply(Reply::resume())?;
                        continue;
                    }
                    found => found,
                },
                _ => None,
            };
            return Ok(Some(Event { events: self, occurrence, trap, answered: false }));
        }
    }

    fn first_that_fits(&self, place: Place, registers: &<D::Arch as Architecture>::Registers) -> Option<TrapId> {
        let fits = |trap: &Trap| {
            // A source that does not tell the root cannot rule an address space out.
            let here = |root: &PhysAddr| D::Arch::runs_on(registers, *root).unwrap_or(true);
            trap.place == place && (trap.roots.is_empty() || trap.roots.iter().any(here))
        };
        self.traps.iter().find(|(_, trap)| fits(trap)).map(|(id, _)| *id)
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
    occurrence: Occurrence<<D::Arch as Architecture>::Registers>,
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
    pub fn what(&self) -> What {
        self.occurrence.what
    }

    /// The trap that was sprung, if one was.
    pub fn trap(&self) -> Option<TrapId> {
        self.trap
    }

    /// Answers; the vCPU goes on as `reply` says.
    ///
    /// # Errors
    /// As [`EventSession::reply`].
    pub fn reply(mut self, reply: Reply<<D::Arch as Architecture>::Registers>) -> Result<()> {
        self.answered = true;
        self.events.vmi.changed();
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
