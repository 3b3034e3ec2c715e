//! Event sessions: what vCPUs do, as it happens.

use core::ffi::c_void;
use core::fmt;
use core::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use vmi::owned;
use vmi::{Reply, TrapId};

use crate::border::{self, VMI_FOREVER};
use crate::error::{Failure, Result, vmi_error, vmi_status};
use crate::event::{Event, vmi_action, vmi_event};
use crate::machine::{Shared, vmi_machine};
use crate::table::{self, Handle, Object};
use crate::trap::{self, vmi_trap};

/// An event session. The guest runs on, and each trap that is sprung is an event of vmi_events_next. One session for a machine at a time. Any thread may use it; while one
/// waits for an event, calls of others take up to 50 ms.
#[derive(Debug)]
pub struct vmi_events {
    _opaque: [u8; 0],
}

impl Handle for vmi_events {
    type Object = Events;
}

/// A session in the table.
pub struct Events {
    shared: Arc<Shared>,
    pub(crate) session: owned::Events,
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
        let Some(event) = self.session.next(limit)? else { return Ok(None) };
        let key = table::insert(Event(event))?;
        table::close_key(self.current.swap(key, Ordering::AcqRel));
        Ok(Some(key))
    }
}

/// Takes an event, which it may answer by vmi_event_reply or vmi_event_answer; else it answers by what it returns, a vmi_action. A number that is none, or an action that the
/// back end does not have, lets the guest go on and ends vmi_events_run: with VMI_STATUS_CALLBACK the one, with its error the other. It may call this library, must not throw a
/// C++ exception or jump out, and must not keep the event.
pub type vmi_event_callback = Option<extern "C" fn(event: *mut vmi_event, user_data: *mut c_void) -> u32>;

/// Opens an event session. Closed with vmi_events_close.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_events_open(
    machine: *mut vmi_machine,
    events: Option<&mut MaybeUninit<*mut vmi_events>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let events = border::slot(events)?;
        let shared = table::get(machine)?.0.clone();
        let session = shared.machine.events()?;
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
        number.write(events.session.set(trap::of(given, roots)?)?.0);
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
    border::call(error, || Ok(table::get(events)?.session.remove(TrapId(number))?))
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
            let answered = match said {
                _ if happened.0.is_answered() => Ok(()),
                _ if said == vmi_action::Step as u32 => happened.0.reply(Reply::step()),
                _ if said == vmi_action::Deny as u32 => happened.0.reply(Reply::deny()),
                _ if said == vmi_action::Reinject as u32 => happened.0.reply(Reply::reinject()),
                _ => happened.0.let_go(),
            };
            object.close_event();
            answered?;
            if said == vmi_action::End as u32 {
                return Ok(());
            }
            if said > vmi_action::Reinject as u32 {
                return Err(Failure::new(vmi_status::Callback, format!("the callback answered {said}")));
            }
        }
    });
    if let Some(count) = count {
        count.write(seen);
    }
    status
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
