//! The thread of an event session.
//!
//! An event borrows its session, which borrows the machine. Here the session lives on the stack of a thread of its own, and the owned objects hold the end of a
//! channel. The thread alone knows which event is held, so that two threads of a program cannot both answer it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use vmi_arch_x86::{Injection, Registers, X86};
use vmi_core::{EventAbilities, Reply, Result, Trap, TrapId, VcpuId, Views, What};

use super::{Machine, SessionError};
use crate::AnyDriver;

type Borrowed<'v> = vmi_core::Events<'v, AnyDriver>;
type Held<'e, 'v> = vmi_core::Event<'e, 'v, AnyDriver>;

/// What is done with views.
pub(super) type WithViews = Box<dyn FnOnce(Result<&mut dyn Views>) + Send>;

/// What is asked of the thread. Whoever asks waits at the other end of the sender; one that is dropped unanswered means that the session has ended.
pub(super) enum Command {
    /// While no event is held.
    Set(Box<Trap<X86>>, Sender<Answer<TrapId>>),
    /// While no event is held.
    Remove(TrapId, Sender<Answer<()>>),
    /// While no event is held.
    Look(Sender<Answer<State>>),
    Abilities(Sender<EventAbilities>),
    Views(WithViews),
    Inject(VcpuId, Injection, Sender<Result<()>>),
    /// The next event. Waits for the answer of one that is held.
    Next(Duration, Sender<Answer<Option<Occurred>>>),
    /// Answers the event of this number.
    Reply(u64, Box<Reply<Registers>>, Sender<Answer<()>>),
    /// Nobody refers to the event of this number any more.
    LetGo(u64),
    /// Whichever is held is let go on.
    LetGoHeld(Sender<Answer<()>>),
    End,
}

pub(super) type Answer<T> = core::result::Result<T, SessionError>;

/// What is set, and what was not shown.
pub(super) struct State {
    pub(super) traps: Vec<(TrapId, Trap<X86>)>,
    pub(super) passed_over: u64,
}

/// An event on its way out of the thread.
pub(super) struct Occurred {
    pub(super) number: u64,
    pub(super) vcpu: VcpuId,
    pub(super) registers: Registers,
    pub(super) what: What<X86>,
    pub(super) trap: Option<TrapId>,
    pub(super) answered: Arc<AtomicBool>,
}

/// The thread: until it is told to end.
pub(super) fn serve(machine: &Machine, commands: &Receiver<Command>, ready: &Sender<Answer<()>>) {
    let mut events = match machine.vmi().events() {
        Ok(events) => events,
        Err(error) => {
            _ = ready.send(Err(error.into()));
            return;
        }
    };
    _ = ready.send(Ok(()));
    let mut thread = Thread { commands, waiting: VecDeque::new(), last: 0 };
    while let Some(command) = thread.next_command() {
        match command {
            Command::Next(limit, answer) => {
                if !thread.wait(&mut events, limit, &answer) {
                    break;
                }
            }
            Command::End => break,
            other => between(&mut events, other),
        }
    }
}

/// What is done while no event is held. Nobody may wait for an answer any more: that is no failure.
fn between(events: &mut Borrowed<'_>, command: Command) {
    match command {
        Command::Set(trap, answer) => _ = answer.send(events.set(*trap).map_err(Into::into)),
        Command::Remove(trap, answer) => _ = answer.send(events.remove(trap).map_err(Into::into)),
        Command::Look(answer) => {
            let traps = events.traps().map(|(id, trap)| (id, trap.clone())).collect();
            _ = answer.send(Ok(State { traps, passed_over: events.passed_over() }));
        }
        Command::Abilities(answer) => _ = answer.send(events.abilities()),
        Command::Views(action) => action(events.views()),
        Command::Inject(vcpu, what, answer) => _ = answer.send(events.inject(vcpu, what)),
        // That event was let go on.
        Command::Reply(_, _, answer) => _ = answer.send(Err(SessionError::Answered)),
        Command::LetGoHeld(answer) => _ = answer.send(Ok(())),
        Command::LetGo(_) | Command::Next(..) | Command::End => {}
    }
}

struct Thread<'c> {
    commands: &'c Receiver<Command>,
    /// Those that wait until an event is answered.
    waiting: VecDeque<Command>,
    /// The number of the last event.
    last: u64,
}

impl Thread<'_> {
    /// The next command; `None` if nobody can give one any more.
    fn next_command(&mut self) -> Option<Command> {
        self.waiting.pop_front().or_else(|| self.commands.recv().ok())
    }

    /// Waits for an event and holds it until it is answered. Whether the session goes on.
    fn wait(&mut self, events: &mut Borrowed<'_>, limit: Duration, answer: &Sender<Answer<Option<Occurred>>>) -> bool {
        let abilities = events.abilities();
        let event = match events.next(limit) {
            Ok(Some(event)) => event,
            Ok(None) => {
                _ = answer.send(Ok(None));
                return true;
            }
            Err(error) => {
                _ = answer.send(Err(error.into()));
                return true;
            }
        };
        self.last = self.last.saturating_add(1);
        let answered = Arc::new(AtomicBool::new(false));
        let occurred = Occurred {
            number: self.last,
            vcpu: event.vcpu(),
            registers: *event.registers(),
            what: event.what(),
            trap: event.trap(),
            answered: answered.clone(),
        };
        // If nobody takes it any more, its end is the next command.
        _ = answer.send(Ok(Some(occurred)));
        let goes_on = self.hold(event, abilities, &answered);
        answered.store(true, Ordering::Release);
        goes_on
    }

    /// Serves commands while an event is held. Whether the session goes on.
    fn hold(&mut self, mut event: Held<'_, '_>, abilities: EventAbilities, answered: &AtomicBool) -> bool {
        let number = self.last;
        while let Ok(command) = self.commands.recv() {
            match command {
                Command::Reply(which, reply, answer) if which == number => {
                    let replied = event.reply(*reply).map_err(Into::into);
                    answered.store(true, Ordering::Release);
                    _ = answer.send(replied);
                    return true;
                }
                Command::LetGo(which) if which == number => return true,
                Command::LetGoHeld(answer) => {
                    let replied = event.reply(Reply::resume()).map_err(Into::into);
                    answered.store(true, Ordering::Release);
                    _ = answer.send(replied);
                    return true;
                }
                next @ Command::Next(..) => self.waiting.push_back(next),
                Command::Set(_, answer) => _ = answer.send(Err(SessionError::Held)),
                Command::Remove(_, answer) => _ = answer.send(Err(SessionError::Held)),
                Command::Look(answer) => _ = answer.send(Err(SessionError::Held)),
                Command::Abilities(answer) => _ = answer.send(abilities),
                Command::Views(action) => action(event.views()),
                Command::Inject(vcpu, what, answer) => _ = answer.send(event.inject(vcpu, what)),
                Command::Reply(_, _, answer) => _ = answer.send(Err(SessionError::Answered)),
                Command::LetGo(_) => {}
                Command::End => return false,
            }
        }
        false
    }
}
