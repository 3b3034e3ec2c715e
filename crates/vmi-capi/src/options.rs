//! What is known of a target beforehand.

use core::mem::MaybeUninit;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmi::AttachOptions;
use vmi::file::{OpenOptions, RawMap};
use vmi::kvm::Road;

use crate::border::{self, Text};
use crate::error::{Failure, Result, vmi_error, vmi_status};
use crate::table::{self, Handle, Object};

/// What is known of a target beforehand, for vmi_machine_open and vmi_guest_attach. One may serve many calls. Any thread may use it.
#[derive(Debug)]
pub struct vmi_options {
    _opaque: [u8; 0],
}

impl Handle for vmi_options {
    type Object = Options;
}

/// The values of the options.
#[derive(Debug, Default)]
pub struct Options(Mutex<Values>);

#[derive(Debug, Default, Clone)]
struct Values {
    raw_map: Option<RawMap>,
    allow_truncated: bool,
    base: Option<PathBuf>,
    snapshot: Option<String>,
    road: Option<Road>,
    symbols: Vec<PathBuf>,
    download: bool,
}

impl Object for Options {
    const NAME: &'static str = "vmi_options";
}

impl Options {
    fn values(&self) -> MutexGuard<'_, Values> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the options say, where NULL says nothing.
fn values(options: *mut vmi_options) -> Result<Values> {
    if options.is_null() { Ok(Values::default()) } else { Ok(table::get(options)?.values().clone()) }
}

/// For opening.
#[allow(clippy::needless_update, reason = "with more back ends there are more options")]
pub(crate) fn for_open(options: *mut vmi_options) -> Result<vmi::Options> {
    let Values { raw_map, allow_truncated, base, snapshot, road, .. } = values(options)?;
    let mut image = OpenOptions::new().allow_truncated(allow_truncated);
    if let Some(map) = raw_map {
        image = image.raw_map(map);
    }
    if let Some(base) = base {
        image = image.base(base);
    }
    if let Some(name) = snapshot {
        image = image.snapshot(name);
    }
    let mut qemu = vmi::kvm::Options::new();
    if let Some(road) = road {
        qemu = qemu.road(road);
    }
    Ok(vmi::Options { image, qemu, ..vmi::Options::default() })
}

/// For attaching.
pub(crate) fn for_attach(options: *mut vmi_options) -> Result<AttachOptions> {
    let Values { symbols, download, .. } = values(options)?;
    let known = symbols.iter().try_fold(AttachOptions::new(), AttachOptions::symbols);
    let known = known.map_err(|error| Failure::of(vmi_status::Attach, &error))?;
    Ok(if download { with_downloads(known) } else { known })
}

#[cfg(feature = "download")]
fn with_downloads(known: AttachOptions) -> AttachOptions {
    known.download()
}

/// Refused by `vmi_options_set_download`.
#[cfg(not(feature = "download"))]
fn with_downloads(known: AttachOptions) -> AttachOptions {
    known
}

/// Makes options that say nothing yet. Closed with vmi_options_close.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_options_new(
    options: Option<&mut MaybeUninit<*mut vmi_options>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || border::slot(options)?.put(Options::default()))
}

/// Where the memory of a raw image lies, as "0x0-0xc0000000,0x100000000-0x140000000": the parts of the file in their order.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_options_set_raw_map(
    options: *mut vmi_options,
    map: Text,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let options = table::get(options)?;
        let map = map.required("the map")?.parse().map_err(|error| Failure::argument(format!("the map: {error}")))?;
        options.values().raw_map = Some(map);
        Ok(())
    })
}

/// Whether an image that is cut short is read as far as it goes (not 0), or refused (0, as without this call).
#[unsafe(no_mangle)]
pub extern "C" fn vmi_options_set_allow_truncated(
    options: *mut vmi_options,
    allow: u32,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        table::get(options)?.values().allow_truncated = allow != 0;
        Ok(())
    })
}

/// Reads a running guest of QEMU in this way or not at all: "shared", "process", "pmemaccess" or "gdb". See docs/live-guests.md.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_options_set_road(
    options: *mut vmi_options,
    road: Text,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let options = table::get(options)?;
        let road: Road = road.required("the road")?.parse().map_err(|error| Failure::argument(format!("{error}")))?;
        options.values().road = Some(road);
        Ok(())
    })
}

/// Adds a file that describes a kernel which does not describe itself, or a directory of such files. It is read when it is used.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_options_add_symbols(
    options: *mut vmi_options,
    path: Text,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let options = table::get(options)?;
        let path = path.path("the path")?;
        options.values().symbols.push(path);
        Ok(())
    })
}

/// Lays the image over this one, as a differential snapshot over the full one.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_options_set_base(
    options: *mut vmi_options,
    path: Text,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let options = table::get(options)?;
        let path = path.path("the path")?;
        options.values().base = Some(path);
        Ok(())
    })
}

/// Reads the snapshot of this name, or else of this number, of a disk image that has several. Without this call that is the newest one with memory.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_options_set_snapshot(
    options: *mut vmi_options,
    name: Text,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let options = table::get(options)?;
        options.values().snapshot = Some(name.required("the snapshot's name")?.to_owned());
        Ok(())
    })
}

/// Whether symbol files of Windows that are nowhere on this host are fetched (not 0) from the servers that _NT_SYMBOL_PATH names, or from Microsoft's. VMI_STATUS_UNSUPPORTED
/// if the library was built without the feature `download`.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_options_set_download(
    options: *mut vmi_options,
    download: u32,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let options = table::get(options)?;
        if download != 0 && !cfg!(feature = "download") {
            return Err(Failure::new(vmi_status::Unsupported, "this library was built without the feature `download`"));
        }
        options.values().download = download != 0;
        Ok(())
    })
}

/// Closes options. NULL and closed ones are left alone.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_options_close(options: *mut vmi_options) {
    border::plain((), || table::close(options));
}
