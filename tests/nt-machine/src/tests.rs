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
fn every_build_compiles_to_a_kernel_with_a_program_database() {
    for build in Build::all() {
        let base = if build.is_64_bit { 0xFFFF_F804_7000_0000 } else { 0x8240_0000 };
        let compiled = match CompiledKernel::compile(&build, base) {
            Ok(compiled) => compiled,
            Err(why) if why.contains("No such file") => return println!("skipped: {why}"),
            Err(why) => panic!("{}: {why}", build.name),
        };
        let options = Options { kernel: KernelImage::Compiled(Box::new(compiled.clone())), ..Options::default() };
        let mut machine = NtMachine::new(build, options);
        machine.populate();
        let truth = machine.truth();
        assert_eq!(walk(&machine).len(), truth.processes.len());
        assert_eq!(truth.kernel_base, base);
        assert_eq!(&compiled.pdb[..24], b"Microsoft C/C++ MSF 7.00");
        println!(
            "{}: {} bytes of PE, {} of PDB, {} symbols, {:?}",
            truth.build,
            compiled.pe.len(),
            compiled.pdb.len(),
            compiled.symbols.len(),
            truth.pdb
        );
    }
}
