//! The objects behind C's handles.
//!
//! A handle is a key of this table in the form of a pointer. Keys are never used twice, so a closed handle stays closed, and none is an address, so that
//! following one by mistake faults at once.

use core::any::Any;
use core::ptr;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use rustc_hash::FxBuildHasher;

use crate::error::{Failure, Result, vmi_status};

/// The distance of keys.
const STEP: usize = 16;

/// What a handle may stand for.
pub trait Object: Any + Send + Sync {
    /// What it is, for messages.
    const NAME: &'static str;

    /// Called when its handle is closed, while calls of other threads may still use it.
    fn close(&self) {}
}

/// The type of a handle in C.
pub trait Handle {
    /// What it stands for.
    type Object: Object;
}

#[derive(Clone)]
struct Entry {
    name: &'static str,
    object: Arc<dyn Any + Send + Sync>,
    close: fn(&(dyn Any + Send + Sync)),
}

struct Table {
    last: usize,
    entries: HashMap<usize, Entry, FxBuildHasher>,
}

static TABLE: LazyLock<RwLock<Table>> =
    LazyLock::new(|| RwLock::new(Table { last: 0, entries: HashMap::with_hasher(FxBuildHasher) }));

fn close_as<T: Object>(object: &(dyn Any + Send + Sync)) {
    if let Some(object) = object.downcast_ref::<T>() {
        object.close();
    }
}

/// Takes an object in; its key.
pub(crate) fn insert<T: Object>(object: T) -> Result<usize> {
    let entry = Entry { name: T::NAME, object: Arc::new(object), close: close_as::<T> };
    let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
    let Some(key) = table.last.checked_add(STEP) else {
        return Err(Failure::new(vmi_status::Limit, "this process has had more handles than an address has values"));
    };
    table.last = key;
    table.entries.insert(key, entry);
    Ok(key)
}

/// The object of a key.
fn at<T: Object>(key: usize) -> Result<Arc<T>> {
    if key == 0 {
        return Err(Failure::null(T::NAME));
    }
    let table = TABLE.read().unwrap_or_else(PoisonError::into_inner);
    let Some(entry) = table.entries.get(&key) else {
        return Err(Failure::new(vmi_status::Closed, format!("the {} was closed, or never was one", T::NAME)));
    };
    let name = entry.name;
    let object = entry.object.clone();
    drop(table);
    object
        .downcast()
        .map_err(|_| Failure::new(vmi_status::WrongHandle, format!("a {} was expected, and this is a {name}", T::NAME)))
}

/// The object behind a handle.
///
/// # Errors
/// If it is NULL, closed, or of another kind.
pub(crate) fn get<H: Handle>(handle: *mut H) -> Result<Arc<H::Object>> {
    at(handle.addr())
}

/// Closes a handle, if it is an open one of this kind.
pub(crate) fn close<H: Handle>(handle: *mut H) {
    if at::<H::Object>(handle.addr()).is_ok() {
        close_key(handle.addr());
    }
}

/// Closes whatever has this key.
pub(crate) fn close_key(key: usize) {
    let removed = TABLE.write().unwrap_or_else(PoisonError::into_inner).entries.remove(&key);
    // Outside of the lock: what an object does at its end may close others.
    if let Some(entry) = removed {
        (entry.close)(&*entry.object);
    }
}

/// The handle for a key.
pub(crate) fn handle<H: Handle>(key: usize) -> *mut H {
    ptr::without_provenance_mut(key)
}

/// How many handles are open in this process. For tests: a program that has closed all that it opened sees 0.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_open_handles() -> usize {
    TABLE.read().unwrap_or_else(PoisonError::into_inner).entries.len()
}
