//! Inference by shape on synthetic NT layouts, one machine for each kernel of the table of offsets: what is inferred must be what the table has.

use nt_machine::{Build, NtMachine, Options};
use vmi_arch_x86::{PagingMode, X86};
use vmi_core::synthetic::SyntheticDriver;
use vmi_core::{PhysAddr, TypeSource, Vmi};

use super::*;
use crate::BuiltIn;

fn frozen(machine: &NtMachine) -> Vmi<SyntheticDriver<X86>> {
    let runs = machine.memory().into_iter().map(|(at, bytes)| (PhysAddr::new(at), bytes));
    Vmi::new(SyntheticDriver::with_arch(runs))
}

fn mode(machine: &NtMachine) -> PagingMode {
    match machine.tables().paging() {
        nt_machine::Paging::FourLevel { .. } => PagingMode::Level4,
        nt_machine::Paging::Pae => PagingMode::Pae,
        nt_machine::Paging::Legacy => PagingMode::Bits32,
    }
}

fn inferred(machine: &NtMachine) -> Inferred {
    let truth = machine.truth();
    let vmi = frozen(machine);
    let space = vmi.address_space(PhysAddr::new(truth.system_root), mode(machine));
    let node = machine.member("_EPROCESS", "ActiveProcessLinks", truth.processes[0].eprocess);
    let hints = Hints {
        image: (VirtAddr::new(truth.kernel_base), truth.kernel_size),
        system: None,
        node: Some(VirtAddr::new(node)),
        debugger_data: None,
    };
    let inferred = infer(&space, &hints).unwrap_or_else(|error| panic!("{}: {error}", truth.build));
    assert_eq!(inferred.system.get(), truth.processes[0].eprocess, "{}", truth.build);
    inferred
}

/// Members that inference looks for.
const MEMBERS: &[(&str, &str)] = &[
    ("_EPROCESS", "UniqueProcessId"),
    ("_EPROCESS", "ActiveProcessLinks"),
    ("_EPROCESS", "ImageFileName"),
    ("_EPROCESS", "InheritedFromUniqueProcessId"),
    ("_EPROCESS", "Peb"),
    ("_EPROCESS", "SectionBaseAddress"),
    ("_EPROCESS", "ObjectTable"),
    ("_EPROCESS", "Token"),
    ("_EPROCESS", "CreateTime"),
    ("_EPROCESS", "SeAuditProcessCreationInfo"),
    ("_EPROCESS", "VadRoot"),
    ("_EPROCESS", "ThreadListHead"),
    ("_EPROCESS", "ActiveThreads"),
    ("_KPROCESS", "DirectoryTableBase"),
    ("_KPROCESS", "ThreadListHead"),
    ("_KTHREAD", "ThreadListEntry"),
    ("_KTHREAD", "Teb"),
    ("_KTHREAD", "ApcState"),
    ("_KTHREAD", "Process"),
    ("_ETHREAD", "ThreadsProcess"),
    ("_ETHREAD", "ThreadListEntry"),
    ("_ETHREAD", "Cid"),
    ("_HANDLE_TABLE", "TableCode"),
    ("_HANDLE_TABLE", "UniqueProcessId"),
    ("_HANDLE_TABLE", "QuotaProcess"),
];

#[test]
fn what_is_inferred_is_what_every_kernel_of_the_table_has() {
    let mut counts = std::collections::BTreeMap::<_, (usize, usize)>::new();
    let mut builds = 0;
    for name in BuiltIn::names() {
        let Some(build) = Build::named(name) else { continue };
        builds += 1;
        let mut machine = NtMachine::new(build, Options { ram: vec![0..48 << 20], ..Options::default() });
        machine.populate();
        let inferred = inferred(&machine);
        let types: &dyn TypeSource = &inferred.types;
        let layout = |structure: &str, member: &str| machine.offset(structure, member);
        // Nothing that is given differs from the table, be it inferred or one of those members that are the same everywhere.
        for (structure, member) in MEMBERS {
            let found = types.field(structure, member).ok().map(|field| field.offset);
            let count = counts.entry((*structure, *member)).or_default();
            if let Some(expected) = layout(structure, member) {
                count.1 += 1;
                count.0 += usize::from(found.is_some());
                assert!(found.is_none_or(|found| found == expected), "{name}: {structure}.{member} {found:#x?} {expected:#x}\n{:#?}", inferred.remarks);
            } else {
                assert_eq!(found, None, "{name}: {structure}.{member}");
            }
        }
        for must in ["UniqueProcessId", "ActiveProcessLinks", "ImageFileName", "Pcb.DirectoryTableBase"] {
            assert!(types.field("_EPROCESS", must).is_ok(), "{name}: {must}");
        }
    }
    for ((structure, member), (found, of)) in &counts {
        println!("{structure}.{member}: {found} of {of}");
    }
    assert!(builds > 50, "{builds}");
}

#[test]
fn members_that_cannot_be_told_are_named() {
    let machine = NtMachine::new(Build::named("win10_x64_19041").unwrap(), Options::default());
    // System alone: nothing tells the environment block.
    let inferred = inferred(&machine);
    assert!((&inferred.types as &dyn TypeSource).field("_EPROCESS", "Peb").is_err());
    assert!(inferred.remarks.iter().any(|remark| remark.contains("_EPROCESS.Peb (nothing looks like it)")), "{:?}", inferred.remarks);
}

#[test]
fn no_process_is_an_error() {
    let machine = NtMachine::new(Build::named("win10_x64_19041").unwrap(), Options::default());
    let truth = machine.truth();
    let vmi = frozen(&machine);
    let space = vmi.address_space(PhysAddr::new(truth.system_root), mode(&machine));
    let image = (VirtAddr::new(truth.kernel_base), truth.kernel_size);
    for at in [None, Some(image.0), Some(VirtAddr::new(0x1000))] {
        let hints = Hints { image, system: at, node: at, debugger_data: None };
        assert_eq!(infer(&space, &hints).unwrap_err(), ShapeError::NoSystem);
    }
}
