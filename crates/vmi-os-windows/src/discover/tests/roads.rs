//! Each strategy by itself, on each kind of machine.

use super::*;

fn options() -> nt_machine::Options {
    nt_machine::Options::default()
}

#[test]
fn every_strategy_alone_finds_every_build() {
    for build in Build::all() {
        let machine = machine(&build, options());
        let truth = machine.truth();
        let vmi = with_registers(&machine);
        for strategy in [Strategy::Registers, Strategy::LowStub, Strategy::PageTables, Strategy::PhysicalScan] {
            let is_64_bit = build.is_64_bit;
            let possible = match strategy {
                Strategy::LowStub => is_64_bit,
                Strategy::PhysicalScan => machine.tables().paging() != Paging::Legacy,
                _ => true,
            };
            if possible {
                match find_by(&vmi, strategy) {
                    Ok(kernel) => check(&kernel, &truth),
                    Err(error) => panic!("{} by {strategy}: {error}", build.name),
                }
            }
        }
    }
}

#[test]
fn a_given_root_is_enough() {
    for name in ["win10_x64_19041", "win7_sp1_x86", "xp_sp3_x86"] {
        let machine = machine(&named(name), options());
        let vmi = frozen(&machine);
        // A process's own tables lead to those of System.
        let other = machine.truth().processes.iter().map(|process| process.dtb).find(|&dtb| dtb != machine.system_root());
        for root in [machine.system_root(), machine.system_root() | 2, other.unwrap()] {
            let root = Some(PhysAddr::new(root));
            let kernel = find_with(&vmi, &Options { strategies: vec![Strategy::GivenRoot], root, ..Options::default() }).unwrap();
            check(&kernel, &machine.truth());
        }
    }
}

#[test]
fn all_paging_modes_of_32_bit_kernels() {
    for paging in [Paging::Pae, Paging::Legacy] {
        for name in ["xp_sp3_x86", "win7_sp1_x86"] {
            let machine = machine(&named(name), nt_machine::Options { paging: Some(paging), ..options() });
            check(&find_by(&frozen(&machine), Strategy::PageTables).unwrap(), &machine.truth());
            check(&find_by(&with_registers(&machine), Strategy::Registers).unwrap(), &machine.truth());
        }
    }
}

#[test]
fn the_self_map_may_have_any_slot() {
    for self_map in [0x100, 0x1ed, 0x17f, 0x1ff] {
        let paging = Some(Paging::FourLevel { self_map });
        let machine = machine(&named("win10_x64_19041"), nt_machine::Options { paging, ..options() });
        check(&find_by(&frozen(&machine), Strategy::PageTables).unwrap(), &machine.truth());
    }
}

/// Windows 11 under UEFI: the tables of System lie far above 16 MiB, even above 4 GiB, and there is no low stub.
#[test]
fn page_tables_above_16_mib_and_4_gib() {
    let high = 5u64 << 30;
    for (ram, root) in [
        (vec![0..64 << 20], 0x2ab_c000),
        (vec![0..1 << 20, 1 << 30..(1 << 30) + (64 << 20)], (1 << 30) + 0x1ad_000),
        (vec![0..1 << 20, high..high + (64 << 20)], high + 0x1ad_000),
    ] {
        for name in ["win11_x64_22000", "win10_x64_14393"] {
            let given = nt_machine::Options { ram: ram.clone(), system_root: Some(root), low_stub: None, ..options() };
            let machine = machine(&named(name), given);
            let kernel = find(&frozen(&machine)).unwrap();
            check(&kernel, &machine.truth());
        }
    }
}

#[test]
fn small_pages_and_a_lonely_header() {
    for name in ["win10_x64_19041", "win11_x64_22000", "win7_sp1_x86"] {
        for lonely_header in [false, true] {
            let given = nt_machine::Options { kernel_large_pages: false, lonely_header, ..options() };
            let machine = machine(&named(name), given);
            for strategy in [Strategy::Registers, Strategy::PageTables] {
                check(&find_by(&with_registers(&machine), strategy).unwrap(), &machine.truth());
            }
        }
    }
}

#[test]
fn an_image_of_full_size_from_its_last_function() {
    let machine = machine(&named("win10_x64_19041"), nt_machine::Options { kernel_full_size: true, ..options() });
    for strategy in [Strategy::Registers, Strategy::LowStub] {
        check(&find_by(&with_registers(&machine), strategy).unwrap(), &machine.truth());
    }
}

#[test]
fn exports_and_the_record_of_the_database_may_be_paged_out() {
    for build in Build::all() {
        let given = nt_machine::Options {
            exports_paged_out: true,
            codeview_paged_out: true,
            kernel_large_pages: false,
            kdbg: Some(if build.is_64_bit { Kdbg::Encoded } else { Kdbg::Absent }),
            ..options()
        };
        let machine = machine(&build, given);
        check(&find(&frozen(&machine)).unwrap(), &machine.truth());
    }
}

#[test]
fn user_tables_of_a_kva_shadow_are_told_and_left() {
    let given = nt_machine::Options { kva_shadow: KvaShadow::InUserMode, ..options() };
    let mut machine = machine(&named("win10_x64_19041"), given);
    machine.add_process(ProcessSpec::new("more.exe", 9000, 4));
    let vmi = with_registers(&machine);
    check(&find_by(&vmi, Strategy::Registers).unwrap(), &machine.truth());
    // The user tables alone are refused, and named as what they are.
    let user = registers(&machine);
    let given =
        Options { strategies: vec![Strategy::GivenRoot], root: Some(PhysAddr::new(user.cr3.unwrap())), ..Options::default() };
    let error = find_with(&vmi, &given).unwrap_err();
    assert!(matches!(error.attempts[..], [(Strategy::GivenRoot, Failure::NoImage { .. })]), "{error}");
    let lead = &registers::leads(&vmi).unwrap()[0];
    assert!(matches!(locate::image(&vmi, lead), Err(Failure::UserTables { .. })));
}

#[test]
fn a_leftover_of_an_earlier_boot_is_not_the_kernel() {
    for name in ["win10_x64_19041", "win7_sp1_x64", "xp_sp3_x86"] {
        let machine = machine(&named(name), nt_machine::Options { stale_kernel: true, ..options() });
        check(&find(&frozen(&machine)).unwrap(), &machine.truth());
        if machine.tables().paging() != Paging::Legacy {
            check(&find_by(&frozen(&machine), Strategy::PhysicalScan).unwrap(), &machine.truth());
        }
    }
}

#[test]
fn holes_in_ram_are_respected() {
    let ram = vec![0..0x9_f000, 0x10_0000..32 << 20, 40 << 20..96 << 20];
    let machine = machine(&named("win10_x64_19041"), nt_machine::Options { ram, ..options() });
    for strategy in [Strategy::LowStub, Strategy::PageTables, Strategy::PhysicalScan] {
        check(&find_by(&frozen(&machine), strategy).unwrap(), &machine.truth());
    }
}

/// Of a running machine the vCPUs tell whether what memory holds is running.
#[test]
fn a_kernel_that_no_vcpu_runs_is_refused() {
    let machine = machine(&named("win10_x64_19041"), options());
    let bytes = runs(&machine).next().unwrap().1;
    let live =
        |vcpu: Registers| Vmi::new(WithRegisters { memory: LiveDriver::<X86>::new(bytes.clone(), Some(1)), vcpus: vec![vcpu] });
    check(&find_by(&live(registers(&machine)), Strategy::LowStub).unwrap(), &machine.truth());
    let mut firmware = Registers::default();
    (firmware.cr0, firmware.cr3, firmware.cr4, firmware.efer) = (Some(0x10), Some(0), Some(0), Some(0));
    let error = find_by(&live(firmware), Strategy::LowStub).unwrap_err();
    assert!(matches!(error.attempts[..], [(_, Failure::NotRunning { .. })]), "{error}");
}

#[test]
fn symbols_and_types_of_a_file() {
    let machine = machine(&named("win11_x64_22000"), options());
    let isf = vmi_core::Isf::parse(machine.isf().to_string().as_bytes()).unwrap();
    let given = Options { symbols: Some(Arc::new(isf.symbols(0))), types: Some(Arc::new(isf)), ..Options::default() };
    let kernel = find_with(&frozen(&machine), &given).unwrap();
    check(&kernel, &machine.truth());
    for (name, &at) in &machine.truth().symbols {
        assert_eq!(kernel.symbols.address(name).unwrap().get(), at, "{name}");
    }
    // Types of another kernel are refused by what System looks like, and the next source is asked.
    let other = vmi_core::Isf::parse(super::machine(&named("win7_sp1_x64"), options()).isf().to_string().as_bytes()).unwrap();
    // Without the user's symbols, which may have those of this kernel.
    let store = crate::SymbolStore::parse("");
    let given = Options { types: Some(Arc::new(other)), store, ..Options::default() };
    let kernel = find_with(&frozen(&machine), &given).unwrap();
    check(&kernel, &machine.truth());
    assert!(kernel.remarks.iter().any(|remark| remark.contains("does not fit")), "{:?}", kernel.remarks);
}

#[test]
fn the_debugger_data_in_the_clear_and_encoded() {
    for (name, kind) in [("win7_sp1_x64", Kdbg::Clear), ("xp_sp3_x86", Kdbg::Clear), ("win10_x64_19041", Kdbg::Encoded)] {
        let machine = machine(&named(name), nt_machine::Options { kdbg: Some(kind), ..options() });
        let truth = machine.truth();
        let vmi = frozen(&machine);
        let isf = vmi_core::Isf::parse(machine.isf().to_string().as_bytes()).unwrap();
        let symbols = isf.symbols(truth.kernel_base);
        let mode = find(&vmi).unwrap().mode;
        let lead = Lead { bases: vec![VirtAddr::new(truth.kernel_base)], ..Lead::new(PhysAddr::new(truth.system_root), mode) };
        let image = locate::image(&vmi, &lead).unwrap();
        let space = vmi.address_space(image.root, image.mode);
        let at = VirtAddr::new(truth.symbols["KdDebuggerDataBlock"]);
        let found = kdbg::at(&space, &image, Some(&symbols), at).unwrap();
        assert_eq!(found.was_encoded, kind == Kdbg::Encoded);
        for (name, at) in kdbg::variables(&found, &image) {
            if let Some(expected) = truth.symbols.get(name) {
                assert_eq!(at.get(), *expected, "{name}");
            }
        }
        // Without the keys an encoded block is nothing.
        assert_eq!(kdbg::at(&space, &image, None, at).is_some(), kind == Kdbg::Clear);
    }
}
