//! Synthetic NT layout: processes, threads, modules, memory areas, tokens and pages of machines that `nt-machine` wrote, compared with what it placed. The symbol file
//! is the machine's own.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nt_machine::objects::spec::{PageState, RegionKind};
use nt_machine::{BrokenList, Build, KvaShadow, NtMachine, Options, Paging, System};
use vmi_arch_x86::{PagingMode, X86};
use vmi_core::synthetic::{LiveDriver, SyntheticDriver};
use vmi_core::{ErrorKind, Guest, Isf, Memory, PhysAddr, VirtAddr, Vmi};
use vmi_os_windows::{Kernel, ModuleOrder, Page, PdbIdentity, ThreadState, VadKind, Windows};

type Machine = Vmi<SyntheticDriver<X86>>;

fn open(machine: &NtMachine) -> (Machine, Kernel) {
    let truth = machine.truth();
    let runs = machine.memory().into_iter().map(|(start, bytes)| (PhysAddr::new(start), bytes));
    let vmi = Vmi::new(SyntheticDriver::with_arch(runs));
    let isf = Isf::parse(machine.isf().to_string().as_bytes()).unwrap();
    let kernel = Kernel {
        mode: match machine.tables().paging() {
            Paging::FourLevel { .. } => PagingMode::Level4,
            Paging::Pae => PagingMode::Pae,
            Paging::Legacy => PagingMode::Bits32,
        },
        root: PhysAddr::new(truth.system_root),
        base: VirtAddr::new(truth.kernel_base),
        size: truth.kernel_size,
        pdb: None::<PdbIdentity>,
        build: Some(truth.build_number),
        symbols: Arc::new(isf.symbols(truth.kernel_base)),
        types: Arc::new(isf),
        remarks: Vec::new(),
    };
    (vmi, kernel)
}

/// The moment of a file time, computed otherwise than by the crate: seconds from 1601 to 1970 by the days of 369 years, 89 of them leap years.
fn moment(time: u64) -> SystemTime {
    let days = 369 * 365 + 89;
    UNIX_EPOCH + Duration::from_nanos(100 * (time - days * 86400 * 10_000_000))
}

/// Runs on each build, telling which one it was.
fn on_typical_machines(check: impl Fn(&NtMachine, &System, &Windows<'_, SyntheticDriver<X86>>)) {
    for build in Build::all() {
        println!("{}", build.name);
        let (machine, system) = NtMachine::typical(build);
        let (vmi, kernel) = open(&machine);
        let windows = Windows::with_kernel(&vmi, kernel).unwrap();
        check(&machine, &system, &windows);
    }
}

/// Whether this build's structures are known so far. Of the newest ones only those of processes are.
fn has(windows: &Windows<'_, SyntheticDriver<X86>>, structure: &str, member: &str) -> bool {
    let known = windows.types().field(structure, member).is_ok();
    if !known {
        println!("skipped: {structure}.{member} of this build is not known");
    }
    known
}

#[test]
fn synthetic_nt_layout_processes_and_threads() {
    on_typical_machines(|machine, system, windows| {
        let truth = machine.truth();
        let linked: Vec<_> = truth.processes.iter().filter(|process| process.linked).collect();
        let found: Vec<_> = windows.processes().map(Result::unwrap).collect();
        assert_eq!(
            found.iter().map(|process| process.address().get()).collect::<Vec<_>>(),
            linked.iter().map(|process| process.eprocess).collect::<Vec<_>>()
        );
        for (process, placed) in found.iter().zip(linked) {
            let contents = &system.processes[&placed.pid];
            assert_eq!(u64::from(process.pid().unwrap()), placed.pid);
            assert_eq!(u64::from(process.parent_pid().unwrap()), placed.parent);
            assert_eq!(process.name().unwrap(), placed.name);
            assert_eq!(process.page_table().unwrap().get(), placed.dtb);
            assert_eq!(process.create_time().unwrap(), Some(moment(placed.create_time)));
            assert_eq!(process.exit_time().unwrap(), (placed.exit_time != 0).then(|| moment(placed.exit_time)));
            assert_eq!(process.exit_status().unwrap(), (placed.exit_time != 0).then_some(0));
            assert_eq!(process.image_path().unwrap().unwrap_or_default(), placed.image_path);
            assert_eq!(process.peb_address().unwrap().unwrap_or_default().get(), placed.peb);
            assert_eq!(process.wow64_peb_address().unwrap().unwrap_or_default().get(), placed.wow64_peb, "{}", placed.name);
            if let Some(protection) = process.protection().unwrap() {
                assert_eq!(protection.kind | u8::from(protection.audit) << 3 | protection.signer << 4, contents.protection);
            }
            if !has(windows, "_ETHREAD", "Cid") {
                continue;
            }
            let threads: Vec<_> = process.threads().map(Result::unwrap).collect();
            let ids = |threads: &[(u64, u64)]| threads.to_vec();
            let read: Vec<_> = threads.iter().map(|thread| (thread.address().get(), u64::from(thread.tid().unwrap()))).collect();
            assert_eq!(read, ids(&placed.threads));
            for (thread, placed_thread) in threads.iter().zip(&contents.threads) {
                assert_eq!(u64::from(thread.pid().unwrap()), placed.pid);
                assert_eq!(thread.process().unwrap().address().get(), placed.eprocess);
                assert_eq!(thread.attached_process().unwrap().address().get(), placed.eprocess);
                assert_eq!(thread.start_address().unwrap().get(), placed_thread.start);
                assert_eq!(thread.win32_start_address().unwrap().get(), placed_thread.win32_start);
                assert_eq!(thread.state().unwrap(), ThreadState::from(placed_thread.state));
                assert_eq!(thread.wait_reason().unwrap().0, placed_thread.wait_reason);
                assert_eq!(
                    thread.create_time().unwrap(),
                    Some(moment(placed_thread.create_time)),
                    "{}",
                    placed_thread.create_time
                );
                assert_eq!(thread.teb_address().unwrap().unwrap_or_default().get(), placed_thread.teb);
            }
        }
        // As rows: all of them, none with an error.
        let rows: Vec<_> = Guest::processes(windows).map(Result::unwrap).collect();
        assert_eq!(rows.len(), found.len());
        if has(windows, "_ETHREAD", "Cid") {
            let count: usize = truth.processes.iter().filter(|process| process.linked).map(|process| process.threads.len()).sum();
            assert_eq!(Guest::threads(windows).map(Result::unwrap).count(), count);
        }
        assert!(windows.version().contains(&truth.build_number.to_string()), "{}", windows.version());
        for row in rows.iter().filter(|row| row.page_table.is_some()) {
            let found = Guest::process_of(windows, row.page_table.unwrap()).unwrap().unwrap();
            assert_eq!(found.pid, row.pid);
        }
    });
}

#[test]
fn synthetic_nt_layout_what_a_program_was_started_with() {
    on_typical_machines(|_, system, windows| {
        let mut seen = 0;
        for process in windows.processes().map(Result::unwrap) {
            let contents = &system.processes[&u64::from(process.pid().unwrap())];
            let pebs = [process.peb().unwrap(), process.wow64_peb().unwrap()];
            for peb in pebs.into_iter().flatten() {
                seen += 1;
                assert_eq!(peb.command_line().unwrap().unwrap(), contents.command_line);
                assert_eq!(peb.image_path().unwrap().unwrap(), contents.image_path);
                assert_eq!(peb.current_directory().unwrap().unwrap(), contents.directory);
                let placed: Vec<_> = contents.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
                assert_eq!(peb.environment().unwrap(), placed);
            }
        }
        assert!(seen > 4, "{seen}");
    });
}

#[test]
fn synthetic_nt_layout_loaded_modules_of_all_views() {
    on_typical_machines(|_, system, windows| {
        if !has(windows, "_MMVAD_SHORT", "StartingVpn") {
            return;
        }
        let mut hidden = 0;
        for process in windows.processes().map(Result::unwrap) {
            let contents = &system.processes[&u64::from(process.pid().unwrap())];
            for (order, pick) in [(ModuleOrder::Load, 0), (ModuleOrder::Memory, 1), (ModuleOrder::Initialization, 2)] {
                for wow64 in [false, true] {
                    let placed: BTreeMap<_, _> = contents
                        .modules
                        .iter()
                        .filter(|module| [module.lists.load, module.lists.memory, module.lists.initialization][pick])
                        .filter(|module| module.wow64 == wow64)
                        .map(|module| (module.base, (module.size, module.name.clone(), module.path.clone(), module.entry_point)))
                        .collect();
                    let read = if wow64 { process.wow64_modules(order) } else { process.loaded_modules(order) };
                    let read: BTreeMap<_, _> = read
                        .into_iter()
                        .map(Result::unwrap)
                        .map(|module| {
                            (
                                module.base.get(),
                                (module.size, module.name.unwrap(), module.path.unwrap(), module.entry_point.get()),
                            )
                        })
                        .collect();
                    // A 32-bit program is in the 64-bit lists as well.
                    let missing: Vec<_> = placed.iter().filter(|(base, module)| read.get(base) != Some(module)).collect();
                    assert!(missing.is_empty(), "{} {order:?} {wow64}: {missing:x?} of {read:x?}", contents.pid);
                    let more: Vec<_> = read.keys().filter(|base| !placed.contains_key(base)).collect();
                    let known = |base: &u64| contents.modules.iter().any(|module| module.base == *base);
                    assert!(more.iter().all(|base| known(base)) && more.len() <= 1, "{more:x?}");
                }
            }
            let views = process.module_views().unwrap();
            for module in &contents.modules {
                let view = views.iter().find(|view| view.base.get() == module.base).unwrap();
                assert_eq!(
                    (view.in_load_order, view.in_memory_order, view.in_initialization_order),
                    (module.lists.load, module.lists.memory, module.lists.initialization),
                    "{}",
                    module.name
                );
                hidden += usize::from(!view.agree());
            }
        }
        assert!(hidden >= 1, "a typical machine has a module that is unlinked");
    });
}

#[test]
fn synthetic_nt_layout_memory_areas() {
    on_typical_machines(|_, system, windows| {
        if !has(windows, "_MMVAD_SHORT", "StartingVpn") {
            return;
        }
        for process in windows.processes().map(Result::unwrap) {
            let contents = &system.processes[&u64::from(process.pid().unwrap())];
            let read: Vec<_> = process.vads().map(Result::unwrap).collect();
            let places: Vec<_> = read.iter().map(|vad| (vad.start().get(), vad.end().get() - 1)).collect();
            let placed: Vec<_> = contents.regions.iter().map(|region| (region.start, region.end)).collect();
            assert_eq!(places, placed, "{}", contents.pid);
            for (vad, region) in read.iter().zip(&contents.regions) {
                assert_eq!(vad.address().get(), region.node);
                assert_eq!(vad.protection().unwrap().0, region.protection);
                assert_eq!(vad.is_private().unwrap(), region.kind == RegionKind::Private);
                let (kind, file) = match &region.kind {
                    RegionKind::Private | RegionKind::Shared => (VadKind::Plain, None),
                    RegionKind::File(path) => (VadKind::Plain, Some(path)),
                    RegionKind::Image(path) => (VadKind::Image, Some(path)),
                };
                assert_eq!(vad.kind().unwrap(), kind);
                assert_eq!(vad.file().unwrap().as_ref(), file);
                if let Some(commit) = vad.commit_charge().unwrap() {
                    assert_eq!(commit, region.commit);
                }
                let found = process.vad_at(vad.end().checked_sub(1).unwrap()).unwrap().unwrap();
                assert_eq!(found.address(), vad.address());
            }
            assert!(process.vad_at(VirtAddr::ZERO).unwrap().is_none());
            let rows = Guest::memory_areas(windows, process.pid().unwrap()).map(Result::unwrap).count();
            assert_eq!(rows, placed.len());
        }
    });
}

#[test]
fn synthetic_nt_layout_pages_that_the_processor_does_not_find() {
    on_typical_machines(|machine, system, windows| {
        if !has(windows, "_MMVAD_SHORT", "StartingVpn") {
            return;
        }
        // The real kernels of XP with PAE have types of their own; this machine has those of the kernel without.
        let narrow = windows.types().field("_MMPTE_PROTOTYPE", "ProtoAddressLow").is_ok();
        if machine.tables().paging() == Paging::Pae && narrow {
            println!("skipped: the types of this machine describe entries without PAE");
            return;
        }
        let mut kinds = Vec::new();
        for process in windows.processes().map(Result::unwrap) {
            let contents = &system.processes[&u64::from(process.pid().unwrap())];
            for page in contents.regions.iter().flat_map(|region| &region.pages) {
                let memory = process.memory().unwrap();
                let at = VirtAddr::new(page.address);
                let state = memory.page(at);
                let bytes = memory.read::<u64>(at);
                let what = format!("{:?} at {at} of {}: {state:?}", page.state, contents.pid);
                kinds.push(core::mem::discriminant(&page.state));
                match page.state {
                    PageState::Present => assert!(matches!(state.unwrap(), Page::Present(_)) && bytes.unwrap() == page.marker),
                    PageState::Transition
                    | PageState::PrototypeValid
                    | PageState::PrototypeTransition
                    | PageState::VadPrototype => {
                        assert!(matches!(state, Ok(Page::Resident(_))), "{what}");
                        assert_eq!(bytes.unwrap(), page.marker, "{what}");
                    }
                    PageState::DemandZero => {
                        assert_eq!(state.unwrap(), Page::DemandZero, "{what}");
                        assert_eq!(bytes.unwrap(), 0, "{what}");
                    }
                    PageState::PageFile { file, page } => {
                        // A kernel that may mask its entries, and whose mask is in a variable that this machine does not have.
                        let mask = ["MiState", "MiInvalidPteMask"].iter().any(|name| windows.symbols().find(name).is_some());
                        let masked = windows.types().field("_MMPTE_SOFTWARE", "SwizzleBit").is_ok() && !mask;
                        let offset = (!masked).then_some(page << 12);
                        assert_eq!(state.unwrap(), Page::PageFile { file: Some(file), offset }, "{what}");
                        if masked {
                            let error = bytes.unwrap_err();
                            assert!(matches!(error.kind(), ErrorKind::PagedOut { why, .. } if why.contains("masked")), "{error}");
                            continue;
                        }
                        let error = bytes.unwrap_err();
                        let text = format!("paged out to page file {file} at offset {:#x}", page << 12);
                        assert!(matches!(error.kind(), ErrorKind::PagedOut { why, .. } if *why == text), "{error}");
                    }
                    PageState::Nothing => println!("{what}"),
                }
            }
        }
        kinds.dedup();
        assert!(kinds.len() > 4, "{}", kinds.len());
    });
}

#[test]
fn synthetic_nt_layout_tokens() {
    on_typical_machines(|_, system, windows| {
        if !has(windows, "_TOKEN", "UserAndGroups") {
            return;
        }
        for process in windows.processes().map(Result::unwrap).filter(|process| !process.has_exited().unwrap()) {
            let placed = &system.processes[&u64::from(process.pid().unwrap())].token;
            let token = process.token().unwrap();
            assert_eq!(token.address.get(), placed.address);
            assert_eq!(token.user.to_string(), placed.user);
            assert_eq!(process.user().unwrap(), token.user);
            let groups: Vec<_> = token.groups.iter().map(|group| group.sid.to_string()).collect();
            assert_eq!(groups, placed.groups);
            if let Some(integrity) = token.integrity {
                assert_eq!(Some(&integrity.to_string()), placed.groups.last());
            }
            if let Some(privileges) = token.privileges {
                let present = privileges.iter().fold(0u64, |set, privilege| set | 1 << privilege.number);
                let enabled = privileges.iter().filter(|one| one.enabled).fold(0u64, |set, one| set | 1 << one.number);
                assert_eq!((present, enabled), (placed.privileges.0, placed.privileges.0 & placed.privileges.1));
            }
        }
    });
}

#[test]
fn synthetic_nt_layout_modules_of_the_kernel() {
    on_typical_machines(|machine, system, windows| {
        if !has(windows, "_LDR_DATA_TABLE_ENTRY", "DllBase") {
            return;
        }
        let truth = machine.truth();
        let read: Vec<_> = windows
            .kernel_modules()
            .map(Result::unwrap)
            .map(|module| {
                (
                    module.address().get(),
                    module.base().unwrap().get(),
                    module.size().unwrap(),
                    module.name().unwrap(),
                    module.path().unwrap(),
                )
            })
            .collect();
        let placed: Vec<_> = truth
            .modules
            .iter()
            .map(|module| (module.entry, module.base, module.size, module.name.clone(), module.path.clone()))
            .collect();
        assert_eq!(read, placed);
        let unloaded: Vec<_> = windows
            .unloaded_drivers()
            .unwrap()
            .into_iter()
            .rev()
            .map(|driver| (driver.name, driver.start.get(), driver.end.get(), driver.time.unwrap()))
            .collect();
        let placed: Vec<_> =
            system.unloaded.iter().map(|driver| (driver.name.clone(), driver.start, driver.end, moment(driver.time))).collect();
        assert_eq!(unloaded, placed);
    });
}

fn process_ids(machine: &NtMachine) -> (Vec<u64>, Option<vmi_core::Error>) {
    let (vmi, kernel) = open(machine);
    let windows = Windows::with_kernel(&vmi, kernel).unwrap();
    let mut ids = Vec::new();
    for process in windows.processes() {
        match process.and_then(|process| process.pid()) {
            Ok(pid) => ids.push(u64::from(pid)),
            Err(error) => return (ids, Some(error)),
        }
    }
    (ids, None)
}

#[test]
fn synthetic_nt_layout_lists_that_do_not_close_end_in_an_error() {
    for build in ["xp_sp3_x86", "win7_sp1_x64", "win10_x64_19041"] {
        for how in [BrokenList::Circle, BrokenList::Hole, BrokenList::Itself] {
            let (mut machine, _) = NtMachine::typical(Build::named(build).unwrap());
            machine.break_list(how);
            let linked: Vec<_> =
                machine.truth().processes.iter().filter(|process| process.linked).map(|process| process.pid).collect();
            let (ids, error) = process_ids(&machine);
            assert!(ids.starts_with(&linked), "{build} {how:?}: {ids:?}");
            let error = error.unwrap();
            match how {
                BrokenList::Hole => assert!(error.is_absent(), "{error}"),
                _ => assert!(matches!(error.kind(), ErrorKind::Corrupt { .. }), "{error}"),
            }
        }
    }
}

#[test]
fn synthetic_nt_layout_page_tables_of_user_mode_belong_to_their_process() {
    let options = Options { kva_shadow: KvaShadow::InUserMode, ..Options::default().with_memory(128 << 20) };
    let (machine, _) = NtMachine::typical_with(Build::named("win10_x64_19041").unwrap(), options);
    let (vmi, kernel) = open(&machine);
    let windows = Windows::with_kernel(&vmi, kernel).unwrap();
    let mut shadows = 0;
    for placed in machine.truth().processes.iter().filter(|process| process.linked) {
        let row = Guest::process_of(&windows, PhysAddr::new(placed.dtb)).unwrap().unwrap();
        assert_eq!(u64::from(row.pid), placed.pid);
        let expected: Vec<_> = [placed.dtb, placed.user_dtb].into_iter().filter(|root| *root != 0).map(PhysAddr::new).collect();
        assert_eq!(Guest::page_tables(&windows, &row), expected);
        if placed.user_dtb != 0 {
            shadows += 1;
            // Flags of CR3 are left aside.
            let by_shadow = Guest::process_of(&windows, PhysAddr::new(placed.user_dtb | 3 | 1 << 63)).unwrap().unwrap();
            assert_eq!(u64::from(by_shadow.pid), placed.pid);
        }
    }
    assert!(shadows > 0);
}

#[test]
fn synthetic_nt_layout_symbols_of_another_kernel_are_refused() {
    let (machine, _) = NtMachine::typical(Build::named("win10_x64_19041").unwrap());
    let (other, _) = NtMachine::typical(Build::named("win7_sp1_x64").unwrap());
    let (vmi, mut kernel) = open(&machine);
    let isf = Isf::parse(other.isf().to_string().as_bytes()).unwrap();
    kernel.types = Arc::new(isf);
    let error = Windows::with_kernel(&vmi, kernel).unwrap_err();
    assert!(error.to_string().contains("another kernel"), "{error}");
}

/// Everything there is to read about processes. What comes out does not matter: it must come to an end.
fn exercise(windows: &Windows<'_, LiveDriver<X86>>) {
    for process in windows.processes().flatten() {
        _ = (process.image_path(), process.token(), process.session(), process.command_line(), process.handle_count());
        _ = process.peb().ok().flatten().map(|peb| (peb.environment(), peb.current_directory()));
        _ = process.module_views();
        _ = process.memory_areas().count();
        for thread in process.threads().flatten() {
            _ = (thread.name(), thread.process(), thread.general_state());
        }
        if let Ok(memory) = process.memory() {
            for page in [0x0830_0000, 0x1f2_3c30_0000, 0x7ff6_1a20_0000] {
                _ = memory.read::<u64>(VirtAddr::new(page));
            }
        }
    }
    _ = (Guest::processes(windows).count(), Guest::modules(windows).count(), windows.unloaded_drivers());
}

/// Words of the structures that are read are overwritten, with numbers at random and with addresses of other structures.
#[test]
fn synthetic_nt_layout_damaged_structures_come_to_an_end() {
    let (machine, system) = NtMachine::typical(Build::named("win10_x64_19041").unwrap());
    let (_, kernel) = open(&machine);
    let mut bytes = Vec::new();
    for (start, run) in machine.memory() {
        bytes.resize(start as usize, 0);
        bytes.extend(run);
    }
    let vmi = Vmi::new(LiveDriver::<X86>::new(bytes, Some(0)));
    let truth = machine.truth();
    let mut places: Vec<u64> = truth.processes.iter().map(|process| process.eprocess).collect();
    places.extend(system.processes.values().flat_map(|contents| contents.regions.iter().map(|region| region.node)));
    places.extend(system.processes.values().flat_map(|contents| contents.threads.iter().map(|thread| thread.ethread)));
    places.extend(system.processes.values().map(|contents| contents.token.address));
    places.extend(truth.modules.iter().map(|module| module.entry));
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..300 {
        let mut undo = Vec::new();
        for _ in 0..1 + random() % 4 {
            let object = places[random() as usize % places.len()];
            let at = object + random() % 0x110 * 8;
            let value = match random() % 3 {
                0 => random(),
                1 => places[random() as usize % places.len()] + random() % 8 * 8,
                _ => 0,
            };
            let Some(place) = machine.translate(truth.system_root, at).map(PhysAddr::new) else { continue };
            undo.push((place, vmi.read::<u64>(place).unwrap()));
            vmi.write(place, &value.to_le_bytes()).unwrap();
        }
        if let Ok(windows) = Windows::with_kernel(&vmi, kernel.clone()) {
            exercise(&windows);
        }
        for (place, value) in undo.into_iter().rev() {
            vmi.write(place, &value.to_le_bytes()).unwrap();
        }
    }
    // Undamaged again, all of it is there.
    let windows = Windows::with_kernel(&vmi, kernel).unwrap();
    assert!(Guest::processes(&windows).all(|row| row.is_ok()));
}
