//! Finding out which operating system is inside.

use core::fmt;

use vmi_arch_x86::X86Driver;
use vmi_core::{Guest, Vmi};

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Finds out which operating system runs in the machine, with no configuration.
///
/// A tool that serves one system only attaches to that one by its own type, which offers more.
///
/// # Errors
/// If no system is recognised, what each of them was missing.
pub fn attach<D: X86Driver>(vmi: &Vmi<D>) -> Result<Box<dyn Guest + '_>, AttachError> {
    let linux = match vmi_os_linux::Linux::attach(vmi) {
        Ok(linux) => return Ok(Box::new(linux)),
        Err(error) => Attempt { system: "Linux", error: error.into() },
    };
    Err(AttachError { machine: vmi.machine().name.clone(), attempts: vec![linux] })
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
