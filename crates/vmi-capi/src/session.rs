//! The thread of an event session.
//!
//! In Rust an event borrows its session, which borrows the machine. Here the session lives on the stack of a thread of its own, and C's handles hold the ends of channels.
//! An event whose channel is closed is let go on.

use core::fmt;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmi::x86::{Registers, X86};
use vmi::{Reply, Trap, TrapId, What};

use crate::error::{Failure, Result, vmi_status};
use crate::machine::Shared;

/// How long the thread waits at a time: other calls get their turn, and an end is seen, in between.
const TURN: Duration = Duration::from_millis(50);

/// What is asked of the thread.
enum Command {
    Set(Box<Trap<X86>>, Sender<vmi::Result<u64>>),
    Remove(u64, Sender<vmi::Result<()>>),
    PassedOver(Sender<u64>),
    Next(Duration, Sender<vmi::Result<Option<Occurred>>>),
}

/// An event on its way to C.
pub(crate) struct Occurred {
    pub(crate) vcpu: u32,
    pub(crate) registers: Registers,
    pub(crate) what: What<X86>,
    pub(crate) trap: Option<u64>,
    pub(crate) answering: Arc<Answering>,
}

struct Answer {
    reply: Reply<Registers>,
    done: Sender<vmi::Result<()>>,
}

/// The way to answer an event: gone when it was answered.
#[derive(Default)]
pub(crate) struct Answering(Mutex<Option<Sender<Answer>>>);

impl fmt::Debug for Answering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answering").field("answered", &self.is_answered()).finish()
    }
}

impl Answering {
    fn take(&self) -> Option<Sender<Answer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) fn is_answered(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Answers, and waits until the guest goes on.
    pub(crate) fn reply(&self, reply: Reply<Registers>) -> Result<()> {
        let answered = || Failure::new(vmi_status::State, "the event was answered already");
        let answering = self.take().ok_or_else(answered)?;
        let (done, result) = channel();
        // Where the thread is no more, it has let the guest go on.
        match answering.send(Answer { reply, done }).ok().and_then(|()| result.recv().ok()) {
            Some(result) => Ok(result?),
            None => Ok(()),
        }
    }

    /// Lets the guest go on, if that was not said yet.
    pub(crate) fn let_go(&self) -> Result<()> {
        if self.is_answered() { Ok(()) } else { self.reply(Reply::resume()) }
    }
}

/// The thread: until nobody holds the other end of `commands`.
fn serve(shared: &Shared, commands: &Receiver<Command>, ready: &Sender<vmi::Result<()>>) {
    let mut events = match shared.vmi.events() {
        Ok(events) => events,
        Err(error) => {
            _ = ready.send(Err(error));
            return;
        }
    };
    _ = ready.send(Ok(()));
    let mut ids: Vec<(u64, TrapId)> = Vec::new();
    let mut last = 0u64;
    // Nobody may wait for an answer any more: that is no failure.
    for command in commands {
        match command {
            Command::Set(trap, answer) => {
                let set = events.set(*trap).map(|id| {
                    last = last.saturating_add(1);
                    ids.push((last, id));
                    last
                });
                _ = answer.send(set);
            }
            Command::Remove(number, answer) => {
                let found = ids.iter().position(|(known, _)| *known == number).map(|index| ids.remove(index).1);
                _ = answer.send(found.map_or(Ok(()), |id| events.remove(id)));
            }
            Command::PassedOver(answer) => _ = answer.send(events.passed_over()),
            Command::Next(limit, answer) => match events.next(limit) {
                Ok(Some(event)) => {
                    let (reply, replied) = channel();
                    let trap = event.trap().and_then(|id| ids.iter().find(|(_, known)| *known == id));
                    let occurred = Occurred {
                        vcpu: event.vcpu().0,
                        registers: *event.registers(),
                        what: event.what(),
                        trap: trap.map(|(number, _)| *number),
                        answering: Arc::new(Answering(Mutex::new(Some(reply)))),
                    };
                    _ = answer.send(Ok(Some(occurred)));
                    match replied.recv() {
                        Ok(Answer { reply, done }) => _ = done.send(event.reply(reply)),
                        Err(_) => drop(event),
                    }
                }
                Ok(None) => _ = answer.send(Ok(None)),
                Err(error) => _ = answer.send(Err(error)),
            },
        }
    }
}

struct Thread {
    commands: Sender<Command>,
    thread: JoinHandle<()>,
}

/// A session, until it ends.
pub(crate) struct Session {
    thread: Mutex<Option<Thread>>,
    held: Mutex<Option<Arc<Answering>>>,
}

impl Session {
    pub(crate) fn begin(shared: &Arc<Shared>) -> Result<Self> {
        if shared.in_session.swap(true, Ordering::AcqRel) {
            return Err(Failure::new(vmi_status::State, "this machine has an event session already: close that one first"));
        }
        let (commands, orders) = channel();
        let (ready, began) = channel();
        let of_thread = shared.clone();
        let serve = move || {
            serve(&of_thread, &orders, &ready);
            of_thread.in_session.store(false, Ordering::Release);
        };
        let spawned = std::thread::Builder::new().name("vmi events".to_owned()).spawn(serve);
        let thread = spawned.map_err(|error| {
            shared.in_session.store(false, Ordering::Release);
            Failure::of(vmi_status::Driver, &error)
        })?;
        match began.recv() {
            Ok(Ok(())) => Ok(Self { thread: Mutex::new(Some(Thread { commands, thread })), held: Mutex::default() }),
            Ok(Err(error)) => {
                _ = thread.join();
                Err(error.into())
            }
            Err(_) => Err(Failure::new(vmi_status::Driver, "the thread of the event session ended")),
        }
    }

    /// Asks the thread.
    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Result<T> {
        let closed = || Failure::new(vmi_status::Closed, "the event session was closed");
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let commands = thread.as_ref().ok_or_else(closed)?.commands.clone();
        drop(thread);
        let (answer, answered) = channel();
        commands.send(command(answer)).map_err(|_| closed())?;
        drop(commands);
        answered.recv().map_err(|_| closed())
    }

    /// The event that was not answered yet.
    fn held(&self) -> Option<Arc<Answering>> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).clone();
        held.filter(|held| !held.is_answered())
    }

    /// Asks the thread what it can answer only while it does not hold an event.
    fn ask_between<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Result<T> {
        if self.held().is_some() {
            return Err(Failure::new(
                vmi_status::State,
                "answer the event first: traps are set and removed while the guest runs",
            ));
        }
        self.ask(command)
    }

    pub(crate) fn set(&self, trap: Trap<X86>) -> Result<u64> {
        Ok(self.ask_between(|answer| Command::Set(Box::new(trap), answer))??)
    }

    pub(crate) fn remove(&self, trap: u64) -> Result<()> {
        Ok(self.ask_between(|answer| Command::Remove(trap, answer))??)
    }

    pub(crate) fn passed_over(&self) -> Result<u64> {
        self.ask_between(Command::PassedOver)
    }

    /// The next event; one that is still held is let go on first. `None` is no limit.
    pub(crate) fn next(&self, limit: Option<Duration>) -> Result<Option<Occurred>> {
        if let Some(held) = self.held() {
            held.let_go()?;
        }
        let began = Instant::now();
        loop {
            let left = limit.map_or(TURN, |limit| limit.saturating_sub(began.elapsed()));
            if let Some(occurred) = self.ask(|answer| Command::Next(left.min(TURN), answer))?? {
                *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(occurred.answering.clone());
                return Ok(Some(occurred));
            }
            if limit.is_some_and(|limit| began.elapsed() >= limit) {
                return Ok(None);
            }
        }
    }

    /// Removes all traps and lets the guest run. A second call does nothing.
    pub(crate) fn end(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Thread { commands, thread }) = thread else { return };
        drop(commands);
        // Another thread of the program may just be getting an event: it is let go on as well.
        while !thread.is_finished() {
            if let Some(held) = self.held() {
                drop(held.take());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        _ = thread.join();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end();
    }
}
