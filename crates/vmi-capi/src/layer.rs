//! What this library asks of an operating-system layer beyond what all share: a new system is an implementation here and a step of the search.

use vmi::linux::{Kernel, Linux};
use vmi::windows::Windows;
use vmi::{AnyDriver, ErrorKind, Guest, Process, Result, TypeSource};

/// An operating-system layer that is attached to a machine.
pub trait Layer: Guest + Send + Sync {
    /// The system, in one word.
    fn system(&self) -> &'static str;

    /// What describes its types.
    fn types(&self) -> &dyn TypeSource;

    /// The environment of a process, which still must be that process.
    fn environment(&self, process: &Process) -> Result<Vec<String>>;

    /// The path of its program.
    fn executable(&self, process: &Process) -> Result<Option<String>>;

    /// The kernel of a Linux guest, by which it can be attached to again.
    fn linux_kernel(&self) -> Option<&Kernel> {
        None
    }
}

/// What `read` gives, if what is at the object is the process before and after.
fn of_process<T>(process: &Process, pid: impl Fn() -> Result<u32>, read: impl FnOnce() -> Result<T>) -> Result<T> {
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

    fn environment(&self, process: &Process) -> Result<Vec<String>> {
        let task = self.task_at(process.object);
        of_process(process, || task.tgid(), || task.environment())
    }

    fn executable(&self, process: &Process) -> Result<Option<String>> {
        let task = self.task_at(process.object);
        of_process(process, || task.tgid(), || task.executable())
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

    fn environment(&self, process: &Process) -> Result<Vec<String>> {
        let object = self.process_at(process.object);
        of_process(process, || object.pid(), || object.peb()?.map_or(Ok(Vec::new()), |peb| peb.environment()))
    }

    fn executable(&self, process: &Process) -> Result<Option<String>> {
        let object = self.process_at(process.object);
        of_process(process, || object.pid(), || object.image_path())
    }
}
