//! Objects, handles, the registry, services and the views of processes on machines that `nt-machine` builds, against what it says it has put there.
//! Tier: synthetic NT layout.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nt_machine::objects::hive_cells::Key as WrittenKey;
use nt_machine::{Build, NtMachine, System};
use vmi_arch_x86::{PagingMode, X86};
use vmi_core::synthetic::SyntheticDriver;
use vmi_core::{Isf, Memory, PhysAddr, ProcessView, VirtAddr, Vmi};
use vmi_os_windows::registry::{Cells, Hive, HiveFile, Key};
use vmi_os_windows::{Kernel, Windows};

/// Of each generation and width.
const BUILDS: &[&str] = &[
    "xp_sp3_x86",
    "win2003_sp2_x64",
    "vista_sp2_x64",
    "win7_sp1_x86",
    "win7_sp1_x64",
    "win81_u1_x86",
    "win81_u1_x64",
    "win10_x64",
    "win10_x64_17763",
    "win10_x86_19041",
    "win10_x64_19041",
    "isf_x64_10.0.22000.2538",
];

struct Guest {
    machine: NtMachine,
    system: System,
    vmi: Vmi<SyntheticDriver<X86>>,
}

impl Guest {
    fn new(build: &str) -> Self {
        Self::of(NtMachine::typical(Build::named(build).unwrap_or_else(|| panic!("no build {build}"))))
    }

    fn of((machine, system): (NtMachine, System)) -> Self {
        let runs = machine.memory().into_iter().map(|(at, bytes)| (PhysAddr::new(at), bytes));
        let vmi = Vmi::new(SyntheticDriver::with_arch(runs));
        Self { machine, system, vmi }
    }

    fn windows(&self) -> Windows<'_, SyntheticDriver<X86>> {
        let truth = self.machine.truth();
        let isf = Isf::parse(&serde_json::to_vec(&self.machine.isf()).unwrap()).unwrap();
        let mode = match self.machine.options().paging.unwrap_or(self.machine.build().paging) {
            nt_machine::Paging::FourLevel { .. } => PagingMode::Level4,
            nt_machine::Paging::Pae => PagingMode::Pae,
            nt_machine::Paging::Legacy => PagingMode::Bits32,
        };
        let kernel = Kernel {
            mode,
            root: PhysAddr::new(truth.system_root),
            base: VirtAddr::new(truth.kernel_base),
            size: truth.kernel_size,
            pdb: None,
            build: Some(truth.build_number),
            symbols: Arc::new(isf.symbols(truth.kernel_base)),
            types: Arc::new(isf),
            remarks: Vec::new(),
        };
        Windows::with_kernel(&self.vmi, kernel).unwrap()
    }
}

#[test]
fn synthetic_nt_layout_types_and_named_objects() {
    for build in BUILDS {
        let guest = Guest::new(build);
        let windows = guest.windows();
        let types: BTreeMap<String, u64> =
            windows.object_types().unwrap().into_iter().map(|kind| (kind.name, kind.object.get())).collect();
        let expected = guest.system.objects.types.values().map(|kind| (kind.name.to_owned(), kind.address)).collect();
        assert_eq!(types, expected, "{build}");
        let rows: Vec<_> = windows.named_objects().map(|row| row.unwrap_or_else(|error| panic!("{build}: {error}"))).collect();
        let found: BTreeMap<&str, u64> = rows.iter().map(|row| (row.path.as_str(), row.object.get())).collect();
        assert_eq!(found.len(), rows.len(), "{build}: each path once");
        for (kind, path, object) in guest.system.objects.named_paths() {
            let row = rows.iter().find(|row| row.path == path).unwrap_or_else(|| panic!("{build}: no {path}"));
            assert_eq!((row.type_name.as_deref(), row.object.get()), (Some(kind.as_str()), object), "{build}: {path}");
        }
        for (path, object) in guest.system.objects.directories.iter().filter(|(path, _)| *path != "\\") {
            assert_eq!(found.get(path.as_str()), Some(object), "{build}: {path}");
        }
        for (path, target) in &guest.system.links {
            let row = rows.iter().find(|row| row.path == *path).unwrap_or_else(|| panic!("{build}: no {path}"));
            assert_eq!(row.target.as_deref(), Some(target.as_str()), "{build}: {path}");
        }
        assert!(rows.iter().all(|row| row.type_name.is_some()), "{build}");
        let null = windows.object("\\device\\NULL").unwrap();
        assert_eq!(null.path().unwrap().as_deref(), Some("\\Device\\Null"), "{build}");
        assert_eq!(null.type_name().unwrap(), "Device", "{build}");
    }
}

#[test]
fn synthetic_nt_layout_handles_of_every_process() {
    let (mut count, mut levels) = (0, BTreeSet::new());
    for build in BUILDS {
        let guest = Guest::new(build);
        let windows = guest.windows();
        for (pid, contents) in &guest.system.processes {
            let Ok(process) = windows.process(*pid as u32) else { continue };
            let handles: Vec<_> = process.handles().map(|handle| handle.unwrap()).collect();
            levels.insert(contents.handle_level);
            let found: Vec<_> = handles
                .iter()
                .map(|handle| {
                    let object = handle.object();
                    let name = object.full_name().unwrap_or_else(|error| panic!("{build} {pid} {:#x}: {error}", handle.value()));
                    let rights = (handle.granted_access(), handle.attributes());
                    (handle.value(), object.address().get(), rights, object.type_name().unwrap(), name)
                })
                .collect();
            let mut written: Vec<_> = contents.handles.iter().collect();
            written.sort_by_key(|handle| handle.value);
            assert_eq!(found.len(), written.len(), "{build}: process {pid}");
            for (found, written) in found.iter().zip(written) {
                count += 1;
                let rights = (written.access & 0x1ff_ffff, u32::from(written.attributes));
                let expected = (u64::from(written.value), written.object, rights, written.kind.clone());
                assert_eq!((found.0, found.1, found.2, found.3.clone()), expected, "{build}: process {pid}");
                let name = found.4.clone().unwrap_or_default();
                match written.kind.as_str() {
                    "Process" | "Thread" | "Token" => {}
                    "Key" => assert_eq!(name.to_uppercase(), written.name.to_uppercase(), "{build}: process {pid}"),
                    _ => assert_eq!(name, written.name, "{build}: process {pid} {:#x} {}", written.value, written.kind),
                }
            }
        }
    }
    assert!(count > 100, "{count} handles");
    println!("{count} handles, tables of levels {levels:?}");
}

#[test]
fn synthetic_nt_layout_the_table_of_ids() {
    for build in BUILDS {
        let guest = Guest::new(build);
        let windows = guest.windows();
        let table = windows.id_table().unwrap();
        let found: BTreeMap<u32, u64> =
            table.entries().map(|entry| entry.unwrap()).map(|entry| (entry.handle as u32, entry.pointer.get())).collect();
        assert_eq!(found, guest.system.ids, "{build}");
        for (id, object) in &guest.system.ids {
            assert_eq!(table.entry(u64::from(*id)).unwrap().map(|entry| entry.pointer.get()), Some(*object), "{build}");
        }
        assert_eq!(table.entry(0x3f_fffc).unwrap(), None, "{build}");
    }
}

#[test]
fn synthetic_nt_layout_services() {
    for build in BUILDS {
        let guest = Guest::new(build);
        let windows = guest.windows();
        let services = windows.services().unwrap();
        assert!(!guest.system.services.is_empty(), "{build}");
        let found: Vec<_> = services.iter().map(|service| (service.number, service.target.get(), service.outside)).collect();
        let written: Vec<_> =
            guest.system.services.iter().map(|service| (service.number, service.function, service.hooked)).collect();
        assert_eq!(found, written, "{build}");
        assert!(services.iter().filter(|service| !service.outside).all(|service| service.module.is_some()), "{build}");
    }
}

#[test]
fn synthetic_nt_layout_processes_by_every_view() {
    for build in BUILDS {
        let guest = Guest::new(build);
        let windows = guest.windows();
        let survey = windows.survey_processes();
        let problems: Vec<_> = survey.problems.iter().map(|(view, error)| format!("{view}: {error}")).collect();
        assert_eq!(problems, [""; 0], "{build}");
        let truth = guest.machine.truth();
        let found: BTreeMap<u64, _> =
            survey.processes.iter().map(|process| (process.object.map_or(0, VirtAddr::get), process)).collect();
        assert_eq!(found.len(), truth.processes.len(), "{build}: {survey:#?}");
        for process in &truth.processes {
            let row = found.get(&process.eprocess).unwrap_or_else(|| panic!("{build}: no {}", process.name));
            let name: String = process.name.chars().take(15).collect();
            assert_eq!((u64::from(row.pid), row.name.as_str()), (process.pid, name.as_str()), "{build}");
            let known = |view| row.known_to(view).unwrap();
            assert_eq!(known(ProcessView::List), process.linked, "{build}: {name}");
            assert_eq!(row.exited, process.exit_time != 0, "{build}: {name}");
            assert!(known(ProcessView::Pool), "{build}: {name}");
            assert!(known(ProcessView::IdTable), "{build}: {name}");
            assert_eq!(known(ProcessView::Threads), !process.threads.is_empty(), "{build}: {name}");
            assert_eq!(row.hidden, process.name == "rootkit.exe", "{build}: {name}");
        }
        let threads = windows.scan_threads().unwrap();
        let found: BTreeSet<u64> = threads.iter().map(|thread| u64::from(thread.tid)).collect();
        let written: BTreeSet<u64> = truth.processes.iter().flat_map(|process| &process.threads).map(|thread| thread.1).collect();
        assert_eq!(found, written, "{build}");
    }
}

/// Who is behind a broken place of the list need not hide: the list does not say of anybody any more that it does not have him.
#[test]
fn synthetic_nt_layout_a_list_that_broke_hides_nobody() {
    let (mut machine, system) = NtMachine::typical(Build::named("win10_x64_19041").unwrap());
    let second = machine.truth().processes.iter().filter(|process| process.linked).nth(1).unwrap().eprocess;
    let links = machine.isf()["user_types"]["_EPROCESS"]["fields"]["ActiveProcessLinks"]["offset"].as_u64().unwrap();
    machine.write_pointer(second + links, 0xffff_9999_0000_0000);
    let guest = Guest::of((machine, system));
    let survey = guest.windows().survey_processes();
    let all_of_the_list = survey.problems.iter().all(|(view, _)| *view == ProcessView::List);
    assert!(!survey.problems.is_empty() && all_of_the_list, "{:?}", survey.problems);
    let row = |name: &str| survey.processes.iter().find(|process| process.name == name).unwrap();
    assert_eq!((row("rootkit.exe").hidden, row("rootkit.exe").known_to(ProcessView::List)), (false, None));
    assert_eq!(row("rootkit.exe").known_to(ProcessView::IdTable), Some(true));
    assert_eq!(row("System").known_to(ProcessView::List), Some(true));
}

/// All of a key that is written down, as lines.
fn written(key: &WrittenKey, path: &str, lines: &mut BTreeSet<String>) {
    lines.insert(format!("{path} {} {}", key.written, key.volatile));
    for value in &key.values {
        lines.insert(format!("{path}:{} {} {:?}", value.name, value.kind, value.data));
    }
    for subkey in &key.keys {
        let path = if path.is_empty() { subkey.name.clone() } else { format!("{path}\\{}", subkey.name) };
        written(subkey, &path, lines);
    }
}

/// The same as it is read.
fn read<C: Cells>(root: &Key<'_, C>) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for found in root.tree() {
        let found = found.unwrap();
        lines.insert(format!("{} {} {}", found.path, found.key.last_write(), found.key.is_volatile()));
        for value in found.key.values() {
            let value = value.unwrap();
            lines.insert(format!("{}:{} {} {:?}", found.path, value.name(), value.data_type().0, value.bytes().unwrap()));
        }
    }
    lines
}

#[test]
fn synthetic_nt_layout_hives_in_memory_and_as_files() {
    let mut hives = 0;
    for build in BUILDS {
        let guest = Guest::new(build);
        if guest.system.hives.is_empty() {
            println!("{build}: its registry structures are not known to the machine");
            continue;
        }
        let windows = guest.windows();
        let found: Vec<_> = windows.hives().map(|hive| hive.unwrap()).collect();
        assert_eq!(found.len(), guest.system.hives.len(), "{build}");
        for (hive, truth) in found.into_iter().zip(&guest.system.hives) {
            hives += 1;
            assert_eq!(hive.address().get(), truth.address, "{build}");
            assert_eq!(hive.root_path().unwrap().as_deref(), Some(truth.path.as_str()), "{build}");
            assert_eq!(hive.file_path().unwrap().unwrap_or_default(), truth.file, "{build}");
            let mut expected = BTreeSet::new();
            written(&truth.root, "", &mut expected);
            assert!(expected.len() > 4);
            let hive = Hive::new(hive);
            assert_eq!(read(&hive.root().unwrap()), expected, "{build}: {}", truth.path);
            if !truth.root.volatile {
                let bytes = truth.file_bytes();
                let file = HiveFile::parse(&bytes).unwrap();
                assert!(file.has_checksum(), "{build}: {}", truth.path);
                let stable: BTreeSet<_> = read(&Hive::new(file).root().unwrap());
                assert!(stable.is_subset(&expected) && stable.len() > 4, "{build}: {}", truth.path);
            }
        }
        // A symbolic link that is in volatile storage is on the way.
        let found = windows.registry_key("\\Registry\\Machine\\System\\CurrentControlSet\\Services\\tcpip\\Parameters").unwrap();
        let key = found.key().unwrap();
        let name = key.value("HOSTNAME").unwrap().unwrap().data().unwrap();
        assert_eq!(name, vmi_os_windows::registry::Data::Text("ADA-PC".to_owned()), "{build}");
        assert!(windows.registry_key("\\Registry\\Machine\\System\\Nothing").is_err());
    }
    assert!(hives > 8, "{hives} hives");
}

/// A page of a process's handle table that is not in memory is an error among the handles.
#[test]
fn synthetic_nt_layout_a_handle_table_that_is_not_there() {
    let guest = Guest::new("win10_x64_19041");
    let windows = guest.windows();
    let process = windows.process(4).unwrap();
    let table = windows.handle_table_at(process.handle_table().unwrap().unwrap()).unwrap();
    let code: u64 = windows.kernel_space().read(table.address().wrapping_add(8)).unwrap();
    assert_ne!(code & !7, 0);
    let nowhere = windows.handle_table_at(VirtAddr::new(guest.machine.unmapped_kernel_address())).unwrap();
    let mut entries = nowhere.entries();
    assert!(entries.next().unwrap().unwrap_err().is_absent());
    assert!(entries.next().is_none());
}
