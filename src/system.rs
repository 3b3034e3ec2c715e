//! The operating system of a machine, as the type of its own layer, with what both layers have beyond [`Guest`].

use vmi_arch_x86::{PagingMode, X86Driver};
use vmi_core::{ErrorKind, Guest, PhysAddr, Process, Result, TypeSource};
use vmi_os_linux::Linux;
use vmi_os_windows::Windows;

/// The operating system of a machine, as the type of its own layer.
#[derive(Debug)]
#[non_exhaustive]
pub enum System<'v, D: X86Driver> {
    /// Linux.
    Linux(Box<Linux<'v, D>>),
    /// Windows.
    Windows(Box<Windows<'v, D>>),
}

impl<'v, D: X86Driver> System<'v, D> {
    /// What all systems share.
    pub fn guest(&self) -> &(dyn Guest + 'v) {
        match self {
            Self::Linux(linux) => &**linux,
            Self::Windows(windows) => &**windows,
        }
    }

    /// What all systems share, by value.
    pub fn into_guest(self) -> Box<dyn Guest + 'v> {
        match self {
            Self::Linux(linux) => linux,
            Self::Windows(windows) => windows,
        }
    }

    /// Its name in one word: `linux`, `windows`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Linux(_) => "linux",
            Self::Windows(_) => "windows",
        }
    }

    /// What describes the kernel's types.
    pub fn types(&self) -> &dyn TypeSource {
        match self {
            Self::Linux(linux) => linux.types(),
            Self::Windows(windows) => windows.types(),
        }
    }

    /// The names of the structures that [`Process::object`] and [`Thread::object`](vmi_core::Thread::object) are the addresses of.
    pub const fn structures(&self) -> (&'static str, &'static str) {
        match self {
            Self::Linux(_) => ("task_struct", "task_struct"),
            Self::Windows(_) => ("_EPROCESS", "_ETHREAD"),
        }
    }

    /// Root and mode of the kernel's own page tables; under Windows those of the process System.
    pub fn page_tables(&self) -> (PhysAddr, PagingMode) {
        match self {
            Self::Linux(linux) => (linux.kernel().root, linux.kernel().mode),
            Self::Windows(windows) => (windows.kernel().root, windows.kernel().mode),
        }
    }

    /// How far the kernel was moved from where it was linked, in bytes (KASLR); `None` for a system whose kernel has no such place.
    ///
    /// # Errors
    /// As [`Linux::slide`].
    pub fn slide(&self) -> Result<Option<u64>> {
        match self {
            Self::Linux(linux) => linux.slide().map(Some),
            Self::Windows(_) => Ok(None),
        }
    }

    /// The environment of a process, `NAME=value` each: under Linux the one that it was started with. Empty for one that has none.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`] if what is at the row's object is no more that process; else what reading it reports.
    pub fn environment(&self, process: &Process) -> Result<Vec<String>> {
        match self {
            Self::Linux(linux) => {
                let task = linux.task_at(process.object);
                of_process(process, || task.tgid(), || task.environment())
            }
            Self::Windows(windows) => {
                let object = windows.process_at(process.object);
                of_process(process, || object.pid(), || object.peb()?.map_or(Ok(Vec::new()), |peb| peb.environment()))
            }
        }
    }

    /// The path of the program that a process runs, as the kernel knows it; `None` if it has none.
    ///
    /// # Errors
    /// As [`System::environment`].
    pub fn executable(&self, process: &Process) -> Result<Option<String>> {
        match self {
            Self::Linux(linux) => {
                let task = linux.task_at(process.object);
                of_process(process, || task.tgid(), || task.executable())
            }
            Self::Windows(windows) => {
                let object = windows.process_at(process.object);
                of_process(process, || object.pid(), || object.image_path())
            }
        }
    }
}

/// What `read` gives, if `pid` finds the process of a row before and after: a structure of a process that has ended soon is another one's, whose contents would
/// pass for those of the first.
///
/// # Errors
/// [`ErrorKind::Gone`] if it is another one; else what `read` reports.
pub fn of_process<T>(process: &Process, pid: impl Fn() -> Result<u32>, read: impl FnOnce() -> Result<T>) -> Result<T> {
    let same = || match pid() {
        Ok(pid) if pid == process.pid => Ok(()),
        _ => Err(vmi_core::Error::from(ErrorKind::Gone { what: format!("process {}", process.pid) })),
    };
    same()?;
    let value = read();
    same()?;
    value
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use super::*;
    use vmi_core::VirtAddr;

    #[test]
    fn another_process_in_its_place_is_found_out() {
        let process = Process::new(7, "seven".to_owned(), VirtAddr::ZERO);
        let ids = |all: [u32; 2]| {
            let next = Cell::new(0);
            move || Ok(all[next.replace(next.get() + 1)])
        };
        assert_eq!(of_process(&process, ids([7, 7]), || Ok("its own")).unwrap(), "its own");
        for other in [[8, 7], [7, 8]] {
            let error = of_process(&process, ids(other), || Ok("another's")).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Gone { what } if what == "process 7"), "{error}");
        }
    }
}
