//! What this module asks of an operating-system layer beyond what all share: a new system is an implementation here and a step of the search.

use std::io::Write;

use vmi::linux::{Kernel, Linux};
use vmi::windows::Windows;
use vmi::x86::PagingMode;
use vmi::{AnyDriver, ErrorKind, Guest, IsfSummary, PhysAddr, Process, Result, TypeSource};

use crate::errors::with_causes;
use crate::windows::OfWindows;

/// An operating-system layer that is attached to a machine.
pub(crate) trait Layer: Guest + Send + Sync {
    /// The system, in one word.
    fn system(&self) -> &'static str;

    /// What describes its types.
    fn types(&self) -> &dyn TypeSource;

    /// The structures of a process and of a thread.
    fn structures(&self) -> (&'static str, &'static str);

    /// The environment of a process, which still must be that process.
    fn environment(&self, process: &Process) -> Result<Vec<String>>;

    /// The path of its program.
    fn executable(&self, process: &Process) -> Result<Option<String>>;

    /// Root and mode of the kernel's page tables.
    fn page_tables_of_kernel(&self) -> (PhysAddr, PagingMode);

    /// How far the kernel was moved from where it was linked; `None` for a system whose kernel has no such place.
    fn slide(&self) -> Result<Option<u64>>;

    /// Writes a Volatility 3 symbol file of the kernel. A string says why there is none.
    fn write_isf(&self, to: &mut dyn Write) -> core::result::Result<IsfSummary, String>;

    /// What only Windows has.
    fn windows(&self) -> Option<&dyn OfWindows> {
        None
    }

    /// The kernel of a Linux guest, by which it can be attached to again.
    fn linux_kernel(&self) -> Option<&Kernel> {
        None
    }
}

/// What `read` gives, if what is at the object is the process before and after.
pub(crate) fn of_process<T>(process: &Process, pid: impl Fn() -> Result<u32>, read: impl FnOnce() -> Result<T>) -> Result<T> {
    let same = || match pid() {
        Ok(pid) if pid == process.pid => Ok(()),
        _ => Err(vmi::Error::from(ErrorKind::Gone { what: format!("process {}", process.pid) })),
    };
    same()?;
    let value = read();
    same()?;
    value
}

impl Layer for Linux<'_, AnyDriver> {
    fn system(&self) -> &'static str {
        "linux"
    }

    fn types(&self) -> &dyn TypeSource {
        Linux::types(self)
    }

    fn structures(&self) -> (&'static str, &'static str) {
        ("task_struct", "task_struct")
    }

    fn environment(&self, process: &Process) -> Result<Vec<String>> {
        let task = self.task_at(process.object);
        of_process(process, || task.tgid(), || task.environment())
    }

    fn executable(&self, process: &Process) -> Result<Option<String>> {
        let task = self.task_at(process.object);
        of_process(process, || task.tgid(), || task.executable())
    }

    fn page_tables_of_kernel(&self) -> (PhysAddr, PagingMode) {
        (self.kernel().root, self.kernel().mode)
    }

    fn slide(&self) -> Result<Option<u64>> {
        Linux::slide(self).map(Some)
    }

    fn write_isf(&self, to: &mut dyn Write) -> core::result::Result<IsfSummary, String> {
        Linux::write_isf(self, to).map_err(|error| with_causes(&error))
    }

    fn linux_kernel(&self) -> Option<&Kernel> {
        Some(self.kernel())
    }
}

impl Layer for Windows<'_, AnyDriver> {
    fn system(&self) -> &'static str {
        "windows"
    }

    fn types(&self) -> &dyn TypeSource {
        Windows::types(self)
    }

    fn structures(&self) -> (&'static str, &'static str) {
        ("_EPROCESS", "_ETHREAD")
    }

    fn environment(&self, process: &Process) -> Result<Vec<String>> {
        let object = self.process_at(process.object);
        of_process(process, || object.pid(), || object.peb()?.map_or(Ok(Vec::new()), |peb| peb.environment()))
    }

    fn executable(&self, process: &Process) -> Result<Option<String>> {
        let object = self.process_at(process.object);
        of_process(process, || object.pid(), || object.image_path())
    }

    fn page_tables_of_kernel(&self) -> (PhysAddr, PagingMode) {
        (self.kernel().root, self.kernel().mode)
    }

    fn windows(&self) -> Option<&dyn OfWindows> {
        Some(self)
    }

    fn slide(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    fn write_isf(&self, _: &mut dyn Write) -> core::result::Result<IsfSummary, String> {
        Err("symbol files of Windows kernels are made of their program database, by Volatility itself".to_owned())
    }
}
