//! Finding out which operating system is inside.

use core::fmt;

use vmi_arch_x86::X86Driver;
use vmi_core::{Guest, Note, Vmi};
use vmi_os_linux::{Linux, discover as linux};
use vmi_os_windows::{Windows, discover as windows};

use crate::{AttachOptions, System};

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// One step of the search: some strategies of one system.
#[derive(Clone, Copy)]
enum Step {
    Linux(&'static [linux::Strategy]),
    Windows(&'static [windows::Strategy]),
}

/// Strategies in order of cost, over both systems: what looks at a few places before what scans all memory.
const STEPS: [Step; 5] = [
    Step::Linux(&[linux::Strategy::Registers, linux::Strategy::Note, linux::Strategy::Trampoline]),
    Step::Windows(&[windows::Strategy::Registers, windows::Strategy::DumpHeader, windows::Strategy::LowStub]),
    Step::Linux(&[linux::Strategy::VmCoreInfo, linux::Strategy::Kallsyms]),
    Step::Windows(&[windows::Strategy::PageTables, windows::Strategy::PhysicalScan]),
    // Infers structures from their content, which takes longest of all to fail.
    Step::Linux(&[linux::Strategy::Tasks]),
];

/// Finds out which operating system runs in the machine, with no configuration.
///
/// A tool that serves one system only attaches to that one by its own type, which offers more.
///
/// # Errors
/// If no system is recognised, what each of them was missing.
pub fn attach<D: X86Driver>(vmi: &Vmi<D>) -> Result<Box<dyn Guest + '_>, AttachError> {
    attach_with(vmi, &AttachOptions::default())
}

/// As [`attach`], with what is known beforehand. Symbol files of one system leave out the other one.
///
/// # Errors
/// As [`attach`].
pub fn attach_with<'v, D: X86Driver>(vmi: &'v Vmi<D>, options: &AttachOptions) -> Result<Box<dyn Guest + 'v>, AttachError> {
    attach_system(vmi, options).map(System::into_guest)
}

/// As [`attach_with`], for tools that need more than what all systems share.
///
/// # Errors
/// As [`attach`].
pub fn attach_system<'v, D: X86Driver>(vmi: &'v Vmi<D>, options: &AttachOptions) -> Result<System<'v, D>, AttachError> {
    let mut search = Search { vmi, options, linux: None, windows: None };
    // The header of a Windows dump says what the machine was.
    let is_dump = vmi.machine().notes.iter().any(|note| matches!(note, Note::WindowsDump(_)));
    if is_dump && let Some(system) = search.windows(&windows::Strategy::ALL) {
        return Ok(system);
    }
    for step in STEPS {
        let system = match step {
            Step::Linux(strategies) => search.linux(strategies),
            Step::Windows(_) if is_dump => None,
            Step::Windows(strategies) => search.windows(strategies),
        };
        if let Some(system) = system {
            return Ok(system);
        }
    }
    Err(search.failed())
}

/// A search under way, with what each system has been missing so far.
struct Search<'v, 'o, D: X86Driver> {
    vmi: &'v Vmi<D>,
    options: &'o AttachOptions,
    linux: Option<vmi_os_linux::AttachError>,
    windows: Option<vmi_os_windows::AttachError>,
}

impl<'v, D: X86Driver> Search<'v, '_, D> {
    fn linux(&mut self, strategies: &[linux::Strategy]) -> Option<System<'v, D>> {
        use vmi_os_linux::AttachError;
        if !self.options.looks_for_linux() {
            return None;
        }
        let options = linux::Options { strategies: strategies.to_vec(), ..self.options.linux().clone() };
        let found = linux::find_with(self.vmi, &options).map_err(AttachError::from);
        match found.and_then(|kernel| Linux::with_kernel(self.vmi, kernel)) {
            Ok(linux) => return Some(System::Linux(Box::new(linux))),
            Err(error) => match (&mut self.linux, error) {
                (Some(AttachError::Discover(before)), AttachError::Discover(now)) => before.attempts.extend(now.attempts),
                // A kernel that was found and cannot be read tells more.
                (Some(_), AttachError::Discover(_)) => {}
                (earlier, error) => *earlier = Some(error),
            },
        }
        None
    }

    fn windows(&mut self, strategies: &[windows::Strategy]) -> Option<System<'v, D>> {
        use vmi_os_windows::AttachError;
        if !self.options.looks_for_windows() {
            return None;
        }
        let options = windows::Options { strategies: strategies.to_vec(), ..self.options.windows().clone() };
        let found = windows::find_with(self.vmi, &options).map_err(AttachError::from);
        match found.and_then(|kernel| Windows::with_kernel(self.vmi, kernel)) {
            Ok(windows) => return Some(System::Windows(Box::new(windows))),
            Err(error) => match (&mut self.windows, error) {
                (Some(AttachError::Discover(before)), AttachError::Discover(now)) => before.attempts.extend(now.attempts),
                (Some(_), AttachError::Discover(_)) => {}
                (earlier, error) => *earlier = Some(error),
            },
        }
        None
    }

    fn failed(self) -> AttachError {
        let linux = self.linux.map(|error| Attempt { system: "Linux", error: error.into() });
        let windows = self.windows.map(|error| Attempt { system: "Windows", error: error.into() });
        AttachError { machine: self.vmi.machine().name.clone(), attempts: linux.into_iter().chain(windows).collect() }
    }
}

/// No operating system was recognised in a machine.
#[derive(Debug)]
pub struct AttachError {
    machine: String,
    attempts: Vec<Attempt>,
}

/// One system that was looked for in vain.
#[derive(Debug)]
pub struct Attempt {
    /// The system.
    pub system: &'static str,
    /// What was missing.
    pub error: Cause,
}

impl AttachError {
    /// The systems that were looked for, in the order of the search.
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: no operating system was recognised", self.machine)?;
        for Attempt { system, error } in &self.attempts {
            write!(f, "\n{system}: {error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for AttachError {}
