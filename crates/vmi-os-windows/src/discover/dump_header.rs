//! What the header of a Windows crash dump says of its kernel.

use vmi_arch_x86::{PagingMode, X86Driver};
use vmi_core::{Note, Vmi, WindowsDump};

use super::lead::{Lead, is_kernel_address};

/// The header, if the source is a crash dump.
pub(super) fn note<D: X86Driver>(vmi: &Vmi<D>) -> Option<&WindowsDump> {
    vmi.machine().notes.iter().find_map(|note| match note {
        Note::WindowsDump(dump) => Some(&**dump),
        _ => None,
    })
}

/// The page tables that the header names, in the modes that they can have, with the addresses in the kernel that it knows.
pub(super) fn leads(dump: &WindowsDump) -> Vec<Lead> {
    let modes: &[PagingMode] = match (dump.is_64_bit, dump.pae) {
        (true, _) => &[PagingMode::Level4, PagingMode::Level5],
        (false, Some(true)) => &[PagingMode::Pae],
        (false, Some(false)) => &[PagingMode::Bits32],
        (false, None) => &[PagingMode::Pae, PagingMode::Bits32],
    };
    let lead = |&mode| {
        let mut lead = Lead::new(dump.directory_table_base, mode);
        let named = [dump.loaded_modules, dump.active_processes, dump.debugger_data];
        lead.hints.extend(named.into_iter().flatten().filter(|&at| is_kernel_address(mode, at)));
        lead
    };
    modes.iter().map(lead).collect()
}
