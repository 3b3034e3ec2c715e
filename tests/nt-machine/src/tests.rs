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

fn make(name: &str, options: Options) -> NtMachine {
    let mut machine = NtMachine::new(Build::named(name).unwrap(), options);
    machine.populate();
    assert_eq!(walk(&machine).len(), machine.truth().processes.len());
    machine
}

#[test]
fn memory_with_holes_and_above_four_gigabytes_is_used() {
    let ram = vec![0..0x9_F000, 0x10_0000..48 << 20, 4 << 30..(4 << 30) + (32 << 20)];
    let machine = make("win10_x64_19041", Options { ram, ..Options::default() });
    assert!(machine.processes().any(|(_, process)| process.dtb >= 4 << 30));
    assert_eq!(machine.memory().len(), 3);
    let directory = std::env::temp_dir().join(format!("nt-machine-raw-{}", std::process::id()));
    machine.write_raw(&directory).unwrap();
    assert_eq!(std::fs::metadata(&directory).unwrap().len(), (4 << 30) + (32 << 20));
    std::fs::remove_file(&directory).unwrap();
    make("win7_sp1_x86", Options::default().with_memory(5 << 30));
}

#[test]
fn pages_of_the_image_can_be_missing() {
    let small = || Options { kernel_large_pages: false, ..Options::default() };
    for build in ["win10_x64_19041", "win10_x86_19041", "xp_sp3_x86", "win11_x64_22000"] {
        let machine = make(build, Options { exports_paged_out: true, codeview_paged_out: true, ..small() });
        let root = machine.system_root();
        let places = [machine.image.export_directory, machine.image.codeview];
        assert!(places.iter().all(|at| machine.translate(root, machine.base + at).is_none()));
        let machine = make(build, Options { lonely_header: true, ..small() });
        assert!(machine.translate(root, machine.base).is_some() && machine.translate(root, machine.base + 0x1000).is_none());
    }
}

#[test]
fn shadows_have_no_kernel_in_them() {
    let options = Options { kva_shadow: KvaShadow::InUserMode, ..Options::default() };
    let machine = make("win10_x64_19041", options);
    let shadow = machine.registers().cr3;
    assert_ne!(shadow, machine.system_root());
    assert_eq!(machine.translate(shadow, machine.base), None);
    assert!(machine.translate(shadow, machine.registers().lstar).is_some());
    let process = machine.truth().processes.into_iter().find(|process| process.user_dtb == shadow).unwrap();
    assert_eq!(machine.translate(shadow, process.peb), machine.translate(process.dtb, process.peb));
}

#[test]
fn other_page_tables_than_usual_and_other_places() {
    make("win7_sp1_x86", Options { paging: Some(Paging::Legacy), ..Options::default() });
    make("win10_x86_19041", Options { paging: Some(Paging::Legacy), ..Options::default() });
    make(
        "win10_x64_19041",
        Options {
            paging: Some(Paging::FourLevel { self_map: 0x100 }),
            system_root: Some(0x3A5_6000),
            low_stub: None,
            ..Options::default()
        },
    );
    make(
        "win10_x64_17763",
        Options { stale_kernel: true, kernel_full_size: true, kdbg: Some(Kdbg::Absent), ..Options::default() },
    );
    make("vista_sp2_x64", Options::default());
    make("win2003_sp2_x86", Options::default());
    make(
        "win10_x64_10240",
        Options { kernel_large_pages: false, kernel_base: Some(0xFFFF_F802_1234_5000), ..Options::default() },
    );
}

#[test]
fn lists_break_as_told() {
    for how in [BrokenList::Circle, BrokenList::Hole, BrokenList::Itself] {
        let mut machine = make("win7_sp1_x64", Options::default());
        machine.break_list(how);
        let links = machine.offset("_EPROCESS", "ActiveProcessLinks").unwrap();
        let last = machine.truth().processes.last().unwrap().eprocess + links;
        let next = machine.read_pointer(last);
        assert_ne!(next, machine.symbol_address("PsActiveProcessHead"));
        assert_eq!(machine.translate(machine.system_root(), next).is_none(), how == BrokenList::Hole);
    }
}

#[test]
fn an_encoded_data_block_decodes_by_the_published_steps() {
    let machine = make("win10_x64_19041", Options::default());
    let block = machine.read_kernel(machine.symbol_address("KdDebuggerDataBlock"), 0x380);
    let [never, always] = ["KiWaitNever", "KiWaitAlways"].map(|name| machine.read_pointer(machine.symbol_address(name)));
    let flag = machine.symbol_address("KdpDataBlockEncoded");
    assert_eq!(machine.read_kernel(flag, 1), [1]);
    let clear: Vec<u64> = block
        .chunks(8)
        .map(|word| {
            let word = (u64::from_le_bytes(word.try_into().unwrap()) ^ never).rotate_left(never as u32 & 0xFF);
            (word ^ flag).swap_bytes() ^ always
        })
        .collect();
    assert_eq!(&clear[2].to_le_bytes()[..4], b"KDBG");
    assert_eq!(clear[3], machine.base);
    assert_eq!(clear[0x50 / 8], machine.symbol_address("PsActiveProcessHead"));
}

#[test]
fn every_build_makes_a_typical_machine() {
    for build in Build::all() {
        println!("{}", build.name);
        let (machine, system) = NtMachine::typical(build);
        let truth = machine.truth();
        let placed: Vec<u64> = truth.processes.iter().filter(|p| p.linked).map(|p| p.eprocess).collect();
        assert_eq!(walk(&machine), placed, "{}", truth.build);
        assert_eq!(system.processes.len(), truth.processes.len());
        println!("{} bytes of truth", system.to_json().to_string().len());
    }
}

#[test]
fn machines_at_random_can_be_made() {
    for build in Build::all() {
        for seed in 0..12 {
            let options = Options::random(&build, seed);
            println!("{} {seed}", build.name);
            let mut machine = NtMachine::new(build.clone(), options);
            machine.populate();
            machine.add_noise(64);
            assert_eq!(walk(&machine).len(), machine.truth().processes.len());
        }
    }
}
