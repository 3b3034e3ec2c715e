//! Writing a machine's memory to an image file.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use vmi::file::Format;

use crate::border::{self, Text};
use crate::error::{Failure, vmi_error, vmi_status};
use crate::machine::vmi_machine;
use crate::table;

/// Formats of image files that can be written.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmi_format {
    /// Memory at its physical address; ranges without memory are holes of the file.
    Raw = 0,
    /// LiME.
    Lime = 1,
    /// AVML, version 2.
    Avml = 2,
    /// An ELF core.
    Elf = 3,
    /// kdump, as makedumpfile writes it.
    Kdump = 4,
}

/// What became of an image.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmi_written {
    /// Bytes of memory in it.
    pub memory: u64,
    /// Bytes that the file takes.
    pub stored: u64,
    /// Bytes of memory that could not be read and are zero in it.
    pub unreadable: u64,
}

/// Told how far a long call is: bytes that are done, and of all. It must not close the machine, throw a C++ exception or jump out.
pub type vmi_progress = Option<extern "C" fn(done: u64, all: u64, user_data: *mut c_void)>;

/// Writes all memory to an image file, over one that may be there. `format` is a vmi_format. `progress` is called now and then with `user_data`, from this thread; it and
/// `written` may be NULL.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_machine_write_image(
    machine: *mut vmi_machine,
    path: Text,
    format: u32,
    progress: vmi_progress,
    user_data: *mut c_void,
    written: Option<&mut MaybeUninit<vmi_written>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let machine = table::get(machine)?;
        let path = path.path("the path")?;
        let formats = [
            (vmi_format::Raw, Format::Raw),
            (vmi_format::Lime, Format::Lime),
            (vmi_format::Avml, Format::Avml),
            (vmi_format::Elf, Format::Elf),
            (vmi_format::Kdump, Format::Kdump),
        ];
        let found = formats.into_iter().find(|(number, _)| *number as u32 == format);
        let (_, format) = found.ok_or_else(|| Failure::argument(format!("{format} is no vmi_format")))?;
        let report = |done, all| {
            if let Some(progress) = progress {
                progress(done, all, user_data);
            }
        };
        let summary = vmi::file::write::image(machine.vmi(), path, format, report);
        let summary = summary.map_err(|error| Failure::of(vmi_status::WriteImage, &error))?;
        if let Some(written) = written {
            written.write(vmi_written { memory: summary.memory, stored: summary.stored, unreadable: summary.unreadable_bytes() });
        }
        Ok(())
    })
}
