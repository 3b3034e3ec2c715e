//! Kernels of which nothing is known: the offsets that are needed, inferred by shape from the process System and its neighbours.
//!
//! The idea is that of MemProcFS. Each member is found by what its values are in all processes of the machine, and must be the only place that looks like
//! it; what is in doubt is left out and named in [`Inferred::remarks`]. Where the kernel's debugger data tells an offset, that is taken.

mod findings;
mod object;
mod process_fields;
mod processes;
#[cfg(test)]
mod tests;
mod threads;
mod types;

use vmi_arch_x86::X86Driver;
use vmi_core::{AddressSpace, Paging, VirtAddr, live};

pub use types::InferredTypes;

use crate::discover::DebuggerData;
use findings::Findings;
use processes::Processes;

/// What is known of the kernel beforehand.
#[derive(Clone, Copy, Debug)]
pub struct Hints<'a> {
    /// Where the kernel's image is, and how many bytes it has.
    pub image: (VirtAddr, u64),
    /// The process System.
    pub system: Option<VirtAddr>,
    /// The links of System in the list of processes.
    pub node: Option<VirtAddr>,
    /// What the kernel tells its debugger.
    pub debugger_data: Option<&'a DebuggerData>,
}

impl Hints<'_> {
    fn in_image(&self, at: VirtAddr) -> bool {
        at.offset_from(self.image.0).is_some_and(|offset| offset < self.image.1)
    }
}

/// What inference found.
#[derive(Debug)]
pub struct Inferred {
    /// The members that could be found out.
    pub types: InferredTypes,
    /// The process System.
    pub system: VirtAddr,
    /// How this was found, and what could not be: one sentence each.
    pub remarks: Vec<String>,
}

/// Why nothing could be inferred.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// No process System.
    #[error(
        "the process System was not found, so no structure can be inferred by shape: its memory may be paged out or not in this source"
    )]
    NoSystem,
    /// System was found, but not the list of processes.
    #[error("the process System was found, but not where its links to other processes are: {why}")]
    NoLinks {
        /// What was wrong.
        why: String,
    },
}

/// How often a running guest is looked at: a list that changes while it is read looks like none.
const MAX_LOOKS: usize = 3;

/// Infers by shape what no symbol file describes, in the address space of the kernel.
///
/// In a running guest, what changed halfway may be missing from the result. Pause it for all that there is.
///
/// # Errors
/// What was found missing: see [`ShapeError`].
pub fn infer<D: X86Driver>(space: &AddressSpace<'_, D>, hints: &Hints<'_>) -> Result<Inferred, ShapeError> {
    let mut left = MAX_LOOKS;
    loop {
        left = left.saturating_sub(1);
        match look(space, hints) {
            Err(_) if left > 0 && live::runs(space.vmi()) => {}
            other => return other,
        }
    }
}

/// See [`infer`].
fn look<D: X86Driver>(space: &AddressSpace<'_, D>, hints: &Hints<'_>) -> Result<Inferred, ShapeError> {
    let mut findings = Findings::default();
    let processes = Processes::find(space, hints, &mut findings)?;
    process_fields::infer(space, &processes, &mut findings);
    threads::infer(space, &processes, &mut findings);
    if let Some(data) = hints.debugger_data {
        take(data, space.mode().is_long(), &mut findings);
    }
    let system = processes.system().map(|system| system.object.at).ok_or(ShapeError::NoSystem)?;
    let types = InferredTypes::new(space.mode().pointer_size() == 8, &findings.structures);
    Ok(Inferred { types, system, remarks: findings.remarks(processes.all.len()) })
}

/// Takes what the debugger data tells and was not inferred.
fn take(data: &DebuggerData, is_64_bit: bool, findings: &mut Findings) {
    // KAPC_STATE.Process is behind two lists in all releases.
    let process = if is_64_bit { 0x20 } else { 0x10 };
    for (structure, member, offset) in data.members() {
        let (structure, member, offset) = match (structure, member) {
            ("_EPROCESS", "Pcb.DirectoryTableBase") => ("_KPROCESS", "DirectoryTableBase", offset),
            ("_KTHREAD", "ApcState.Process") => ("_KTHREAD", "ApcState", offset.saturating_sub(process)),
            other => (other.0, other.1, offset),
        };
        match findings.find(structure, member) {
            _ if offset == 0 => {}
            None => findings.add(structure, member, offset),
            Some(inferred) if inferred != offset => findings.remark(format!(
                "{structure}.{member} is at {inferred:#x} by shape, at {offset:#x} by the kernel's debugger data: the former is used"
            )),
            Some(_) => {}
        }
    }
    for (structure, size) in data.sizes() {
        findings.size(structure, size);
    }
}
