//! The whole Linux layer on a real image that somebody has tampered with.

use std::sync::Arc;

use vmi_arch_x86::{X86, X86Driver};
use vmi_core::synthetic::SyntheticDriver;
use vmi_core::{Guest, Note, PhysAddr, SymbolsBuilder, Vmi};
use vmi_os_linux::discover::{self, Failure, Strategy};
use vmi_os_linux::shape::{self, Hints};
use vmi_os_linux::{Kernel, Linux};

use super::demo::patched;
use super::head;

/// 1 byte strategies, then a script of patches.
pub fn attach(data: &[u8]) -> bool {
    let Some(([chosen], script)) = head::<1>(data) else { return false };
    patched(script, |vmi, original| {
        let mut options = discover::Options::default();
        match chosen % 4 {
            0 => {}
            1 => {
                options.root = Some(original.root);
                options.strategies = vec![Strategy::GivenRoot];
            }
            2 => options.strategies = vec![Strategy::Kallsyms],
            // The kernel was found before somebody tampered with it.
            _ => return look(vmi, original.clone()),
        }
        discover::find_with(vmi, &options).is_ok_and(|kernel| look(vmi, kernel))
    })
}

/// 1 byte what is known beforehand, then a script of patches.
pub fn shape(data: &[u8]) -> bool {
    let Some(([known], script)) = head::<1>(data) else { return false };
    patched(script, |vmi, original| {
        let nothing = SymbolsBuilder::default().build();
        let symbols = if known & 1 == 0 { &nothing } else { &original.symbols };
        let tables = (known & 2 == 0).then_some((original.mode, original.root));
        let Ok(inferred) = shape::infer(vmi, &Hints { symbols, pointer_size: None, tables }) else { return false };
        let mut symbols = SymbolsBuilder::default();
        for (name, address) in &inferred.symbols {
            symbols.push(name, *address, b'?');
        }
        let (mode, root, remarks) = (inferred.mode, inferred.root, inferred.remarks);
        let (symbols, types) = (Arc::new(symbols.build()), Arc::new(inferred.types));
        look(vmi, Kernel { mode, root, symbols, types, banner: original.banner.clone(), remarks })
    })
}

/// 2 bytes length of a VMCOREINFO note, the note, then physical memory from 0 on.
pub fn vmcoreinfo(data: &[u8]) -> bool {
    let Some((len, rest)) = head::<2>(data) else { return false };
    let (note, memory) = rest.split_at(usize::from(u16::from_le_bytes(len)).min(rest.len()));
    let machine = SyntheticDriver::<X86>::with_arch([(PhysAddr::ZERO, memory.to_vec())]);
    let vmi = Vmi::new(machine.with_notes(vec![Note::VmCoreInfo(note.to_vec())]));
    let Err(error) = discover::find(&vmi) else { return true };
    error.attempts.iter().any(|(strategy, why)| *strategy == Strategy::Note && matches!(why, Failure::NoSymbols { .. }))
}

/// Reads everything there is.
fn look<D: X86Driver>(vmi: &Vmi<D>, kernel: Kernel) -> bool {
    let Ok(linux) = Linux::with_kernel(vmi, kernel) else { return false };
    for task in linux.processes() {
        let Ok(task) = task else { continue };
        let _ = (task.pid(), task.parent_pid(), task.name(), task.state(), task.uid(), task.start_time());
        let _ = (task.command_line(), task.environment(), task.executable());
        task.memory_areas().for_each(drop);
    }
    Linux::threads(&linux).for_each(drop);
    let _ = linux.survey_processes();
    for module in Guest::modules(&linux) {
        let _ = module.map(|module| linux.module_types(&module.name).map(drop));
    }
    Guest::processes(&linux).for_each(drop);
    Guest::threads(&linux).for_each(drop);
    Guest::kernel_log(&linux).for_each(drop);
    let _ = (linux.symbols().len(), Guest::remarks(&linux), linux.boot_time());
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A patch of `bytes` at all of the first 8 KiB of a place.
    fn over(place: u16, byte: u8) -> Vec<u8> {
        let patch = |offset: u16| [&place.to_le_bytes()[..], &offset.to_le_bytes(), &[255], &[byte; 255]].concat();
        (0..32).flat_map(|at| patch(at * 255)).collect()
    }

    /// What a script changes is seen, and gone with the next.
    #[test]
    fn patches_reach_the_kernel_and_are_undone() {
        let of = |name| super::super::demo::place_of(name);
        assert!(attach(&[3]));
        assert!(!attach(&[&[3][..], &over(of("init_task"), 0)].concat()), "the first task has no name");
        assert!(attach(&[3]));
        assert!(!attach(&[&[1][..], &over(of("linux_banner"), 0)].concat()));
        assert!(!attach(&[&[1][..], &over(of("init_top_pgt"), 0)].concat()));
        assert!(shape(&[0]) && !shape(&[&[0][..], &over(of("init_task"), 0xff)].concat()));
        assert!(attach(&[0]));
    }
}
