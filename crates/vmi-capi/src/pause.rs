//! A guest that stands still for a while.

use core::fmt;
use core::mem::MaybeUninit;
use std::sync::{Arc, Mutex, PoisonError};

use vmi::owned;

use crate::border;
use crate::error::{vmi_error, vmi_status};
use crate::machine::{Shared, vmi_machine};
use crate::table::{self, Handle, Object};

/// A guest that stands still until this is closed. Any thread may use it.
#[derive(Debug)]
pub struct vmi_pause {
    _opaque: [u8; 0],
}

impl Handle for vmi_pause {
    type Object = Pause;
}

/// The pause, until it ends.
pub struct Pause {
    shared: Arc<Shared>,
    guard: Mutex<Option<owned::Paused>>,
}

impl fmt::Debug for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pause").finish_non_exhaustive()
    }
}

impl Object for Pause {
    const NAME: &'static str = "vmi_pause";

    fn close(&self) {
        let guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(guard);
    }
}

/// Stops the guest until the pause, and every other one, is closed with vmi_pause_close.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_machine_pause(
    machine: *mut vmi_machine,
    pause: Option<&mut MaybeUninit<*mut vmi_pause>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let pause = border::slot(pause)?;
        let shared = table::get(machine)?.0.clone();
        let guard = shared.machine.pause()?;
        shared.put(pause, Pause { shared: shared.clone(), guard: Mutex::new(Some(guard)) })
    })
}

/// Lets the guest run on, unless other pauses hold it. NULL and closed ones are left alone.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_pause_close(pause: *mut vmi_pause) {
    border::plain((), || {
        if let Ok(object) = table::get(pause) {
            object.shared.close_child(pause);
        }
    });
}
