//! The builder's own checks: what is written can be read back by walking the machine by hand.

use crate::*;

fn walk(machine: &NtMachine) -> Vec<u64> {
    let head = machine.symbol_address("PsActiveProcessHead");
    let links = machine.offset("_EPROCESS", "ActiveProcessLinks").unwrap();
    let mut at = machine.read_pointer(head);
    let mut found = Vec::new();
    while at != head {
        found.push(at - links);
        at = machine.read_pointer(at);
    }
    found
}

#[test]
fn every_build_makes_a_machine_whose_list_closes() {
    for build in Build::all() {
        println!("{}", build.name);
        let mut machine = NtMachine::new(build, Options::default());
        machine.populate();
        machine.add_process(ProcessSpec::new("hidden.exe", 6666, 4).hidden());
        let truth = machine.truth();
        let placed: Vec<u64> = truth.processes.iter().filter(|p| p.linked).map(|p| p.eprocess).collect();
        assert_eq!(walk(&machine), placed, "{}", truth.build);
        assert_eq!(truth.processes.last().unwrap().name, "hidden.exe");
        assert_eq!(machine.read_kernel(truth.kernel_base, 2), b"MZ");
        for process in &truth.processes {
            // The kernel's half is the same in all spaces, whenever they were made.
            assert_eq!(machine.translate(process.dtb, process.eprocess), machine.translate(truth.system_root, process.eprocess));
            assert_eq!(machine.translate(process.dtb, truth.kernel_base), Some(truth.kernel_physical));
            if process.peb != 0 {
                assert!(machine.translate(process.dtb, process.peb).is_some());
                assert!(machine.translate(truth.system_root, process.peb).is_none());
            }
        }
    }
}

#[test]
fn every_build_makes_a_typical_machine() {
    for build in builds() {
        println!("{}", build.name);
        let (machine, system) = NtMachine::typical(build);
        let truth = machine.truth();
        let placed: Vec<u64> = truth.processes.iter().filter(|p| p.linked).map(|p| p.eprocess).collect();
        assert_eq!(walk(&machine), placed, "{}", truth.build);
        assert_eq!(system.processes.len(), truth.processes.len());
        println!("{} bytes of truth", system.to_json().to_string().len());
    }
}
