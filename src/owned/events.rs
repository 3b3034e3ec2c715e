//! An event session that runs in a thread of its own.

use core::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmi_arch_x86::{Injection, Registers, X86};
use vmi_core::{Accesses, EventAbilities, Gfn, Reply, Trap, TrapId, VcpuId, ViewId, Views, What};

use super::Machine;
use super::session::{self, Answer, Command, Occurred, State};

/// How long the thread waits at a time: other calls get their turn, and an end is seen, in between.
const TURN: Duration = Duration::from_millis(50);

/// Why an event session did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// Two sessions on one machine would take each other's events.
    #[error("this machine has an event session already: close that one first")]
    Busy,
    /// An event is held.
    #[error("answer the event first: traps are set, removed and listed while the guest runs")]
    Held,
    /// The guest went on after the event.
    #[error("the event was answered already")]
    Answered,
    /// The session has ended.
    #[error("the event session was closed")]
    Closed,
    /// This host gives no thread.
    #[error("the thread of the event session cannot be started: {0}")]
    Thread(std::io::Error),
    /// The back end cannot do it, or failed.
    #[error(transparent)]
    Guest(#[from] vmi_core::Error),
}

/// An event session of a [`Machine`], which any thread may use: [`vmi_core::Events`] in a thread of its own. The guest runs on meanwhile.
///
/// While an event is held the vCPU that caused it stands still (with QEMU's gdb stub: all of them). It goes on when the event is answered or dropped, when the next one is
/// asked for, and at the end of the session: then all traps are gone. While one thread waits for an event, calls of others take up to 50 ms.
///
/// ```no_run
/// use vmi::owned::Machine;
/// use vmi::{Guest as _, Reply, Trap};
///
/// let machine = Machine::open("qemu:/run/guest.qmp")?;
/// let guest = machine.attach()?;
/// let events = machine.events()?;
/// events.set(Trap::breakpoint(guest.symbols().address("do_exit")?))?;
/// while let Some(event) = events.next(None)? {
///     println!("{} ends with {:#x}", guest.running_on(event.vcpu())?.name, event.registers().rdi);
///     event.reply(Reply::resume())?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Events {
    machine: Machine,
    commands: Sender<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Whether [`Events::end`] was called.
    ended: AtomicBool,
}

impl Events {
    pub(super) fn begin(machine: Machine) -> Answer<Self> {
        if !machine.begin_session() {
            return Err(SessionError::Busy);
        }
        let (commands, orders) = channel();
        let (ready, began) = channel();
        let of_thread = machine.clone();
        let serve = move || {
            session::serve(&of_thread, &orders, &ready);
            of_thread.end_session();
        };
        let spawned = std::thread::Builder::new().name("vmi events".to_owned()).spawn(serve);
        let thread = spawned.map_err(|error| {
            machine.end_session();
            SessionError::Thread(error)
        })?;
        match began.recv() {
            Ok(Ok(())) => Ok(Self { machine, commands, thread: Mutex::new(Some(thread)), ended: AtomicBool::new(false) }),
            Ok(Err(error)) => {
                _ = thread.join();
                Err(error)
            }
            Err(_) => {
                machine.end_session();
                Err(SessionError::Closed)
            }
        }
    }

    /// The machine that it is of.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Answer<T> {
        ask(&self.commands, command)
    }

    /// Sets a trap, while no event is held. It stays until it is removed or the session ends.
    ///
    /// # Errors
    /// [`SessionError::Held`] while an event is held; else as [`vmi_core::Events::set`].
    pub fn set(&self, trap: Trap<X86>) -> Answer<TrapId> {
        self.ask(|answer| Command::Set(Box::new(trap), answer))?
    }

    /// Removes a trap, while no event is held. One that is not set is none to remove.
    ///
    /// # Errors
    /// As [`Events::set`].
    pub fn remove(&self, trap: TrapId) -> Answer<()> {
        self.ask(|answer| Command::Remove(trap, answer))?
    }

    fn state(&self) -> Answer<State> {
        self.ask(Command::Look)?
    }

    /// The traps that are set, in the order in which they were. While no event is held.
    ///
    /// # Errors
    /// [`SessionError::Held`] while an event is held.
    pub fn traps(&self) -> Answer<Vec<(TrapId, Trap<X86>)>> {
        Ok(self.state()?.traps)
    }

    /// How many events were let go on unseen, as they happened in other address spaces than asked for. While no event is held.
    ///
    /// # Errors
    /// [`SessionError::Held`] while an event is held.
    pub fn passed_over(&self) -> Answer<u64> {
        Ok(self.state()?.passed_over)
    }

    /// What the back end can report and do for this guest.
    ///
    /// # Errors
    /// [`SessionError::Closed`] after the end.
    pub fn abilities(&self) -> Answer<EventAbilities> {
        self.ask(Command::Abilities)
    }

    /// Does something with views of memory, whether an event is held or not.
    fn views<T: Send + 'static>(&self, action: impl FnOnce(&mut dyn Views) -> vmi_core::Result<T> + Send + 'static) -> Answer<T> {
        let asked =
            |answer: Sender<vmi_core::Result<T>>| Command::Views(Box::new(move |views| _ = answer.send(views.and_then(action))));
        Ok(self.ask(asked)??)
    }

    /// Makes a view in which all memory may be accessed as `rights` says.
    ///
    /// # Errors
    /// As [`vmi_core::Events::views`] and [`Views::create`].
    pub fn create_view(&self, rights: Accesses) -> Answer<ViewId> {
        self.views(move |views| views.create(rights))
    }

    /// Destroys a view.
    ///
    /// # Errors
    /// As [`vmi_core::Events::views`] and [`Views::destroy`].
    pub fn destroy_view(&self, view: ViewId) -> Answer<()> {
        self.views(move |views| views.destroy(view))
    }

    /// Says how a page may be accessed in a view.
    ///
    /// # Errors
    /// As [`vmi_core::Events::views`] and [`Views::allow`].
    pub fn allow(&self, view: ViewId, page: Gfn, rights: Accesses) -> Answer<()> {
        self.views(move |views| views.allow(view, page, rights))
    }

    /// Shows page `instead` where `page` is, in a view; `None` shows the page itself again.
    ///
    /// # Errors
    /// As [`vmi_core::Events::views`] and [`Views::remap`].
    pub fn remap(&self, view: ViewId, page: Gfn, instead: Option<Gfn>) -> Answer<()> {
        self.views(move |views| views.remap(view, page, instead))
    }

    /// All vCPUs go on in this view.
    ///
    /// # Errors
    /// As [`vmi_core::Events::views`] and [`Views::switch`].
    pub fn switch_view(&self, view: ViewId) -> Answer<()> {
        self.views(move |views| views.switch(view))
    }

    /// Puts an interrupt or exception into a vCPU, which takes it when it goes on.
    ///
    /// # Errors
    /// As [`vmi_core::Events::inject`].
    pub fn inject(&self, vcpu: VcpuId, what: Injection) -> Answer<()> {
        Ok(self.ask(|answer| Command::Inject(vcpu, what, answer))??)
    }

    /// Lets the guest go on after an event that is held. Nothing if none is.
    ///
    /// # Errors
    /// [`SessionError::Closed`] after the end; else as [`vmi_core::Event::reply`].
    pub fn let_go(&self) -> Answer<()> {
        self.ask(Command::LetGoHeld)?
    }

    /// Waits for the next event, at most `limit` (`None`: for ever). One that is still held is let go on first.
    ///
    /// # Errors
    /// [`SessionError::Closed`] after the end, also of another thread's making; else as [`vmi_core::Events::next`].
    pub fn next(&self, limit: Option<Duration>) -> Answer<Option<Event>> {
        let began = Instant::now();
        self.let_go()?;
        loop {
            let left = limit.map_or(TURN, |limit| limit.saturating_sub(began.elapsed())).min(TURN);
            if let Some(event) = self.wait(left)? {
                return Ok(Some(event));
            }
            if limit.is_some_and(|limit| began.elapsed() >= limit) {
                return Ok(None);
            }
        }
    }

    /// As [`Events::next`], but for one turn: what other threads ask waits for as long, and an event that is held is left to whoever holds it, whose answer this waits for.
    /// For loops that have to look at something else now and then.
    ///
    /// # Errors
    /// As [`Events::next`].
    pub fn wait(&self, turn: Duration) -> Answer<Option<Event>> {
        let occurred = self.ask(|answer| Command::Next(turn, answer))??;
        Ok(occurred.map(|occurred| Event { occurred, commands: self.commands.clone() }))
    }

    /// Ends the session: all traps are gone and the guest runs when this returns. A second call does nothing. So does dropping it.
    pub fn end(&self) {
        if !self.ended.swap(true, Ordering::AcqRel) {
            _ = self.commands.send(Command::End);
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        _ = thread.map(JoinHandle::join);
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("machine", &self.machine).finish_non_exhaustive()
    }
}

fn ask<T>(commands: &Sender<Command>, command: impl FnOnce(Sender<T>) -> Command) -> Answer<T> {
    let (answer, answered) = channel();
    commands.send(command(answer)).map_err(|_| SessionError::Closed)?;
    answered.recv().map_err(|_| SessionError::Closed)
}

/// Something that a vCPU did. It stands still until this is answered or dropped, until the next event is asked for, or until the session ends.
#[must_use = "the guest goes on when this is dropped"]
pub struct Event {
    occurred: Occurred,
    commands: Sender<Command>,
}

impl Event {
    /// The vCPU that did it.
    pub fn vcpu(&self) -> VcpuId {
        self.occurred.vcpu
    }

    /// The registers of that vCPU, as they were when it happened.
    pub fn registers(&self) -> &Registers {
        &self.occurred.registers
    }

    /// What it did.
    pub fn what(&self) -> What<X86> {
        self.occurred.what
    }

    /// The trap that was sprung, if one was.
    pub fn trap(&self) -> Option<TrapId> {
        self.occurred.trap
    }

    /// Whether it was answered, and the guest went on.
    pub fn is_answered(&self) -> bool {
        self.occurred.answered.load(Ordering::Acquire)
    }

    /// Answers; the vCPU goes on as `reply` says when this returns.
    ///
    /// # Errors
    /// [`SessionError::Answered`] if it went on already, at the end of the session too; else as [`vmi_core::Event::reply`].
    pub fn reply(&self, reply: Reply<Registers>) -> Answer<()> {
        let asked = ask(&self.commands, |answer| Command::Reply(self.occurred.number, Box::new(reply), answer));
        // A session that has ended has let it go on.
        asked.unwrap_or(Err(SessionError::Answered))
    }

    /// Lets the guest go on, if that was not said yet.
    ///
    /// # Errors
    /// If the back end fails.
    pub fn let_go(&self) -> Answer<()> {
        match self.reply(Reply::resume()) {
            Err(SessionError::Answered) => Ok(()),
            other => other,
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if !self.is_answered() {
            _ = self.commands.send(Command::LetGo(self.occurred.number));
        }
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("vcpu", &self.vcpu())
            .field("what", &self.what())
            .field("trap", &self.trap())
            .finish_non_exhaustive()
    }
}
