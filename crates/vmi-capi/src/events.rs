//! What vCPUs do, as it happens: breakpoints, watchpoints, single steps.

use core::ffi::c_void;
use core::fmt;
use core::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use vmi::x86::{Registers, X86};
use vmi::{PhysAddr, Reply, Trap, TrapKind, VirtAddr, What};

use crate::border::{self, VMI_FOREVER, VMI_UNKNOWN_ADDRESS};
use crate::error::{Failure, Result, vmi_error, vmi_status};
use crate::machine::{Shared, vmi_machine};
use crate::registers::vmi_registers;
use crate::session::{Answering, Occurred, Session};
use crate::table::{self, Handle, Object};

/// An event session. The guest runs on, and each trap that is sprung is an event of vmi_events_next. One session for a machine at a time. Any thread may use it; while one
/// waits for an event, calls of others take up to 50 ms.
#[derive(Debug)]
pub struct vmi_events {
    _opaque: [u8; 0],
}

impl Handle for vmi_events {
    type Object = Events;
}

/// Something that a vCPU did. It stands still (with QEMU's gdb stub: all of them do) until the event is answered or closed, until the next one is asked for, or until the
/// session is closed. Any thread may use it.
#[derive(Debug)]
pub struct vmi_event {
    _opaque: [u8; 0],
}

impl Handle for vmi_event {
    type Object = Event;
}

/// A session in the table.
pub struct Events {
    shared: Arc<Shared>,
    session: Session,
    /// The key of the event that was given last.
    current: AtomicUsize,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("machine", &self.shared).finish_non_exhaustive()
    }
}

impl Object for Events {
    const NAME: &'static str = "vmi_events";

    fn close(&self) {
        self.session.end();
        self.close_event();
    }
}

impl Events {
    fn close_event(&self) {
        table::close_key(self.current.swap(0, Ordering::AcqRel));
    }

    /// The handle of the next event; the one before is closed.
    fn next(&self, milliseconds: u64) -> Result<Option<usize>> {
        self.close_event();
        let limit = (milliseconds != VMI_FOREVER).then(|| Duration::from_millis(milliseconds));
        let Some(Occurred { vcpu, registers, what, trap, answering }) = self.session.next(limit)? else { return Ok(None) };
        let key = table::insert(Event { vcpu, registers, what, trap, answering })?;
        table::close_key(self.current.swap(key, Ordering::AcqRel));
        Ok(Some(key))
    }
}

/// An event in the table.
#[derive(Debug)]
pub struct Event {
    vcpu: u32,
    registers: Registers,
    what: What<X86>,
    trap: Option<u64>,
    answering: Arc<Answering>,
}

impl Object for Event {
    const NAME: &'static str = "vmi_event";

    fn close(&self) {
        // A failure means that the guest is gone, or that it is let go on by the end of the session.
        _ = self.answering.let_go();
    }
}

/// What springs a trap, or what an event is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmi_event_kind {
    /// An instruction is about to run, found by a breakpoint instruction or what the back end has in its place.
    SoftwareBreakpoint = 0,
    /// An instruction is about to run, found by a debug register: it changes no guest memory, and there are few.
    HardwareBreakpoint = 1,
    /// Memory was written.
    Write = 2,
    /// Memory was read.
    Read = 3,
    /// Memory was read or written.
    Access = 4,
    /// Not for traps: the vCPU ran the one instruction that VMI_ACTION_STEP let it run.
    Step = 5,
    /// Not for traps: it stopped for another reason.
    Stop = 6,
}

/// How an event is answered.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmi_action {
    /// The guest goes on.
    Resume = 0,
    /// The vCPU runs one instruction, after which there is an event of kind VMI_EVENT_KIND_STEP.
    Step = 1,
    /// For callbacks: the guest goes on, and vmi_events_run returns.
    End = 2,
}

/// A request to be told when a vCPU does something.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmi_trap {
    /// What springs it: a vmi_event_kind up to VMI_EVENT_KIND_ACCESS.
    pub kind: u32,
    /// First virtual address; of a breakpoint, of the instruction.
    pub at: u64,
    /// Bytes that are watched; not looked at for breakpoints.
    pub length: u64,
    /// Only while the vCPU runs on page tables with one of these roots (vmi_guest_get_page_tables); NULL for all.
    pub roots: *const u64,
    /// How many roots there are.
    pub root_count: usize,
}

/// What happened.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmi_event_info {
    /// What it is: a vmi_event_kind.
    pub kind: u32,
    /// The vCPU that did it.
    pub vcpu: u32,
    /// The instruction of a breakpoint, or the memory that was touched; VMI_UNKNOWN_ADDRESS for a step or a stop.
    pub at: u64,
    /// The instruction pointer: at the instruction of a breakpoint, behind the one that touched watched memory.
    pub instruction: u64,
    /// The number of the trap that was sprung; 0 if none was.
    pub trap: u64,
    /// Whether it was answered.
    pub answered: bool,
}

/// Takes an event, which it may answer by vmi_event_reply; else it answers by what it returns, a vmi_action. Anything else lets the guest go on and ends vmi_events_run with
/// VMI_STATUS_CALLBACK. It may call this library, must not throw a C++ exception or jump out, and must not keep the event.
pub type vmi_event_callback = Option<extern "C" fn(event: *mut vmi_event, user_data: *mut c_void) -> u32>;

fn kind(kind: TrapKind) -> vmi_event_kind {
    match kind {
        TrapKind::SoftwareBreakpoint => vmi_event_kind::SoftwareBreakpoint,
        TrapKind::HardwareBreakpoint => vmi_event_kind::HardwareBreakpoint,
        TrapKind::Write => vmi_event_kind::Write,
        TrapKind::Read => vmi_event_kind::Read,
        TrapKind::Access => vmi_event_kind::Access,
        _ => vmi_event_kind::Stop,
    }
}

/// Opens an event session: breakpoints, watchpoints, single steps. Closed with vmi_events_close.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_events_open(
    machine: *mut vmi_machine,
    events: Option<&mut MaybeUninit<*mut vmi_events>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let events = border::slot(events)?;
        let shared = table::get(machine)?.0.clone();
        let session = Session::begin(&shared)?;
        shared.put(events, Events { shared: shared.clone(), session, current: AtomicUsize::new(0) })
    })
}

/// Sets a trap, while no event is held; `number` tells it from others.
///
/// # Safety
/// `roots` of the trap is NULL with a count of 0, or has `root_count` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmi_events_set_trap(
    events: *mut vmi_events,
    trap: Option<&vmi_trap>,
    number: Option<&mut MaybeUninit<u64>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let number = border::place(number, "the place for the number")?;
        let given = trap.ok_or_else(|| Failure::null("the trap"))?;
        let events = table::get(events)?;
        // SAFETY: the caller's promise.
        let roots = unsafe { border::items_given(given.roots, given.root_count) }?;
        let at = VirtAddr::new(given.at);
        let is = |kind: vmi_event_kind| given.kind == kind as u32;
        let trap = if is(vmi_event_kind::SoftwareBreakpoint) {
            Trap::breakpoint(at)
        } else if is(vmi_event_kind::HardwareBreakpoint) {
            Trap::breakpoint(at).hardware()
        } else if is(vmi_event_kind::Write) {
            Trap::write(at, given.length)
        } else if is(vmi_event_kind::Read) {
            Trap::read(at, given.length)
        } else if is(vmi_event_kind::Access) {
            Trap::access(at, given.length)
        } else {
            return Err(Failure::argument(format!("{} is no kind of trap", given.kind)));
        };
        let trap = roots.iter().fold(trap, |trap, root| trap.in_address_space(PhysAddr::new(*root)));
        number.write(events.session.set(trap)?);
        Ok(())
    })
}

/// Removes a trap, while no event is held. One that is not set is none to remove.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_events_remove_trap(
    events: *mut vmi_events,
    number: u64,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || table::get(events)?.session.remove(number))
}

/// How many events were let go on unseen, as they happened in other address spaces than asked for. While no event is held.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_events_get_passed_over(
    events: *mut vmi_events,
    count: Option<&mut MaybeUninit<u64>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        border::place(count, "the place for the count")?.write(table::get(events)?.session.passed_over()?);
        Ok(())
    })
}

/// Waits for the next event, at most so many milliseconds (or VMI_FOREVER): VMI_STATUS_END if there was none. An event that is still held is let go on first, and its handle
/// closed. The new one is closed by vmi_event_reply, vmi_event_close, or the next call.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_events_next(
    events: *mut vmi_events,
    milliseconds: u64,
    event: Option<&mut MaybeUninit<*mut vmi_event>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call_for(error, || {
        let event = border::slot(event)?;
        match table::get(events)?.next(milliseconds)? {
            Some(key) => {
                event.put_key(key);
                Ok(vmi_status::Ok)
            }
            None => Ok(vmi_status::End),
        }
    })
}

/// Calls `callback` with each event and `user_data`, in this thread, for so many milliseconds (or VMI_FOREVER), or until it returns VMI_ACTION_END. `count`, which may be
/// NULL, is how many there were.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_events_run(
    events: *mut vmi_events,
    milliseconds: u64,
    callback: vmi_event_callback,
    user_data: *mut c_void,
    count: Option<&mut MaybeUninit<u64>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    let mut seen = 0u64;
    let status = border::call(error, || {
        let callback = callback.ok_or_else(|| Failure::null("the callback"))?;
        let object = table::get(events)?;
        let began = Instant::now();
        loop {
            let passed = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            let left = if milliseconds == VMI_FOREVER { VMI_FOREVER } else { milliseconds.saturating_sub(passed) };
            let Some(key) = object.next(left)? else { return Ok(()) };
            let event = table::handle(key);
            // Kept, as the callback may close it.
            let happened = table::get(event)?;
            seen = seen.saturating_add(1);
            let said = callback(event, user_data);
            let step = said == vmi_action::Step as u32 && !happened.answering.is_answered();
            let answered = if step { happened.answering.reply(Reply::step()) } else { happened.answering.let_go() };
            object.close_event();
            answered?;
            if said == vmi_action::End as u32 {
                return Ok(());
            }
            if said > vmi_action::End as u32 {
                return Err(Failure::new(vmi_status::Callback, format!("the callback answered {said}")));
            }
        }
    });
    if let Some(count) = count {
        count.write(seen);
    }
    status
}

/// What happened.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_event_get_info(
    event: *mut vmi_event,
    info: Option<&mut MaybeUninit<vmi_event_info>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let place = border::place(info, "the place for the information")?;
        let event = table::get(event)?;
        let (kind, at) = match event.what {
            What::Trapped { place, at } => (kind(place.kind), at.get()),
            What::Stepped => (vmi_event_kind::Step, VMI_UNKNOWN_ADDRESS),
            _ => (vmi_event_kind::Stop, VMI_UNKNOWN_ADDRESS),
        };
        place.write(vmi_event_info {
            kind: kind as u32,
            vcpu: event.vcpu,
            at,
            instruction: event.registers.rip,
            trap: event.trap.unwrap_or(0),
            answered: event.answering.is_answered(),
        });
        Ok(())
    })
}

/// The registers of the vCPU, as they were when it happened.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_event_get_registers(
    event: *mut vmi_event,
    registers: Option<&mut MaybeUninit<vmi_registers>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        border::place(registers, "the place for the registers")?.write((&table::get(event)?.registers).into());
        Ok(())
    })
}

/// Answers an event and closes it. `action` is VMI_ACTION_RESUME or VMI_ACTION_STEP. `registers`, which may be NULL, are brought to the vCPU before it goes on.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_event_reply(
    event: *mut vmi_event,
    action: u32,
    registers: Option<&vmi_registers>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let object = table::get(event)?;
        let reply = if action == vmi_action::Resume as u32 {
            Reply::resume()
        } else if action == vmi_action::Step as u32 {
            Reply::step()
        } else {
            return Err(Failure::argument(format!("{action} is no answer to an event")));
        };
        let reply = match registers {
            Some(registers) => reply.with_registers(registers.into()),
            None => reply,
        };
        let answered = object.answering.reply(reply);
        table::close(event);
        answered
    })
}

/// Closes an event; the guest goes on if that was not answered yet. NULL and closed ones are left alone.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_event_close(event: *mut vmi_event) {
    border::plain((), || table::close(event));
}

/// Closes a session: all traps are gone, and the guest runs. NULL and closed ones are left alone.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_events_close(events: *mut vmi_events) {
    border::plain((), || {
        if let Ok(object) = table::get(events) {
            object.shared.close_child(events);
        }
    });
}
