//! Inference by shape on real guests: against their own /proc, and, where the kernel carries BTF, against that.
//!
//! `VMI_LAB_IMAGES` names the directory with one directory a guest (`memory.lime` and `truth/`); without it nothing is tested, and
//! that is said. `VMI_LAB_ONLY` names one guest.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmi_core::{Symbols, SymbolsBuilder, TypeSource, Vmi};
use vmi_driver_file::ImageDriver;
use vmi_os_linux::shape::{Hints, Inferred, infer};
use vmi_os_linux::{Kernel, Linux, discover};

/// What is inferred on every kernel of the lab, 32 and 64 bits wide, 4.4 to 7.3. (Modules, if any are loaded.)
const ALWAYS: [(&str, &str); 39] = [
    ("task_struct", "tasks.next"),
    ("task_struct", "comm"),
    ("task_struct", "pid"),
    ("task_struct", "tgid"),
    ("task_struct", "real_parent"),
    ("task_struct", "parent"),
    ("task_struct", "group_leader"),
    ("task_struct", "thread_node"),
    ("task_struct", "signal"),
    ("task_struct", "mm"),
    ("task_struct", "__state"),
    ("task_struct", "exit_state"),
    ("task_struct", "flags"),
    ("task_struct", "stack"),
    ("task_struct", "start_time"),
    ("task_struct", "start_boottime"),
    ("task_struct", "real_cred"),
    ("task_struct", "cred"),
    ("signal_struct", "thread_head"),
    ("cred", "uid.val"),
    ("cred", "euid.val"),
    ("cred", "egid.val"),
    ("mm_struct", "pgd"),
    ("mm_struct", "start_code"),
    ("mm_struct", "arg_start"),
    ("mm_struct", "arg_end"),
    ("mm_struct", "env_start"),
    ("mm_struct", "env_end"),
    ("vm_area_struct", "vm_start"),
    ("vm_area_struct", "vm_end"),
    ("vm_area_struct", "vm_mm"),
    ("vm_area_struct", "vm_flags"),
    ("vm_area_struct", "vm_pgoff"),
    ("vm_area_struct", "vm_file"),
    ("vm_area_struct", "vm_ops"),
    ("file", "f_path.dentry"),
    ("dentry", "d_name.name"),
    ("dentry", "d_op"),
    ("mount", "mnt_parent"),
];

/// The kernel's log as it is since 5.10: it is found without symbols.
const LOG: (&str, &str) = ("printk_ringbuffer", "text_data_ring.data");

/// What is inferred where modules are loaded.
const MODULES: [(&str, &str); 4] = [("module", "list"), ("module", "name"), ("module", "refcnt"), ("module", "syms")];

/// The same where the kernel keeps symbols.
const MODULE_SYMBOLS: [(&str, &str); 2] = [("module", "kallsyms"), ("mod_kallsyms", "symtab")];

fn guests() -> Vec<PathBuf> {
    let Some(images) = std::env::var_os("VMI_LAB_IMAGES").map(PathBuf::from) else {
        println!("skipped: VMI_LAB_IMAGES names no directory with lab images");
        return Vec::new();
    };
    let only = std::env::var("VMI_LAB_ONLY").ok();
    let mut guests: Vec<_> = fs::read_dir(&images).unwrap().map(|entry| entry.unwrap().path()).collect();
    // An image that is still being made has a name that begins with a dot.
    guests.retain(|guest| {
        guest.join("truth/tasks.stat").exists() && !guest.file_name().unwrap().as_encoded_bytes().starts_with(b".")
    });
    guests.retain(|guest| only.as_ref().is_none_or(|only| guest.ends_with(only)));
    guests.sort();
    guests
}

fn open(guest: &Path) -> Vmi<ImageDriver> {
    Vmi::new(ImageDriver::open(guest.join("memory.lime")).unwrap())
}

fn no_symbols() -> Symbols {
    SymbolsBuilder::default().build()
}

fn has_modules(guest: &Path) -> bool {
    !fs::read_to_string(guest.join("truth/modules")).unwrap().is_empty()
}

/// Whether the kernel's log is of the form that it has since 5.10.
fn has_ring_buffer(guest: &Path) -> bool {
    let version = fs::read_to_string(guest.join("truth/version")).unwrap();
    let mut numbers = version.split_whitespace().nth(2).unwrap().split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (5, 10)
}

/// Members that should have been inferred and were not.
fn lacking(types: &dyn TypeSource, guest: &Path) -> Vec<String> {
    let (modules, symbols) = (has_modules(guest), guest.join("truth/kallsyms.gz").exists());
    let wanted =
        ALWAYS.iter().chain(MODULES.iter().filter(|_| modules)).chain(MODULE_SYMBOLS.iter().filter(|_| modules && symbols));
    let wanted = wanted.chain(Some(&LOG).filter(|_| has_ring_buffer(guest)));
    wanted.filter(|(name, path)| types.field(name, path).is_err()).map(|(name, path)| format!("{name}.{path}")).collect()
}

#[test]
fn processes_come_out_of_memory_alone() {
    for guest in guests() {
        let name = guest.file_name().unwrap().display();
        let vmi = open(&guest);
        let inferred = infer(&vmi, &Hints { symbols: &no_symbols(), pointer_size: None, tables: None })
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let lacking = lacking(&inferred.types, &guest);
        assert!(lacking.is_empty(), "{name}: {lacking:?}: {:?}", inferred.remarks);

        for remark in inferred.remarks.iter().skip(1) {
            println!("{name}: remark: {remark}");
        }
        let linux = Linux::with_kernel(&vmi, kernel(inferred)).unwrap();
        let mut found: BTreeMap<u32, (u32, String)> = BTreeMap::new();
        for task in linux.threads() {
            let task = task.unwrap();
            found.insert(task.pid().unwrap(), (task.parent_pid().unwrap(), task.name().unwrap()));
        }
        let truth = truth(&guest);
        // Kernel workers come and go between the truth and the image.
        let is_worker = |name: &str| name.starts_with("kworker/");
        found.retain(|_, (_, name)| !is_worker(name));
        let said: BTreeMap<_, _> = truth.into_iter().filter(|(_, (_, name))| !is_worker(name)).collect();
        assert_eq!(found, said, "{name}");
        let modules: Vec<String> = match has_modules(&guest) {
            true => linux.modules().map(|module| module.unwrap().name().unwrap()).collect(),
            false => Vec::new(),
        };
        let text = fs::read_to_string(guest.join("truth/modules")).unwrap();
        let said: Vec<&str> = text.lines().map(|line| line.split(' ').next().unwrap()).collect();
        assert_eq!(modules, said, "{name}");
        println!("{name}: {} tasks, {} modules", found.len(), modules.len());
    }
}

#[test]
fn inferred_members_are_where_btf_has_them() {
    for guest in guests() {
        let name = guest.file_name().unwrap().display();
        let vmi = open(&guest);
        let known = match discover::find(&vmi) {
            Ok(kernel) if kernel.types.origin().contains("BTF in") => kernel,
            Ok(_) => {
                println!("{name}: no BTF to compare with");
                continue;
            }
            Err(error) => {
                println!("{name}: skipped: {error}");
                continue;
            }
        };
        let none = no_symbols();
        let tables = Some((known.mode, known.root));
        for (symbols, tables) in [(&none, None), (&none, tables), (&*known.symbols, tables), (&*known.symbols, None)] {
            let inferred = infer(&vmi, &Hints { symbols, pointer_size: None, tables }).unwrap();
            let compared = compare(&inferred, &known);
            assert_eq!(compared.1, Vec::<String>::new(), "{name}");
            assert_eq!((inferred.mode, inferred.root), (known.mode, known.root), "{name}");
            for (symbol, address) in &inferred.symbols {
                // Since 6.13 the clock's copy has no name of its own.
                if symbol == "shadow_timekeeper" && known.symbols.find(symbol).is_none() {
                    continue;
                }
                assert_eq!(known.symbols.address(symbol).unwrap(), *address, "{name}: {symbol}");
            }
            println!("{name}: {} members equal", compared.0);
        }
    }
}

/// How many inferred members BTF has at the same place, and which it does not.
fn compare(inferred: &Inferred, known: &Kernel) -> (usize, Vec<String>) {
    let types: &dyn TypeSource = &inferred.types;
    let mut equal = 0;
    let mut different = Vec::new();
    for structure in types.structures() {
        for member in types.structure(&structure).unwrap().members {
            let ours = types.field(&structure, &member.name).unwrap();
            // Until 5.13 `state` was a `long`: inference knows its lower half.
            let theirs = known.types.field(&structure, &member.name).or_else(|error| match &*member.name {
                "__state" => known.types.field(&structure, "state"),
                // Until 5.5.
                "start_boottime" => known.types.field(&structure, "real_start_time"),
                _ => Err(error),
            });
            match theirs {
                // Names of anonymous structures, which BTF does not find by these.
                Err(_) if ["kuid_t", "kgid_t", "atomic_t"].contains(&&*structure) => equal += 1,
                Ok(theirs) if ours.offset == theirs.offset => equal += 1,
                theirs => different.push(format!("{structure}.{}: {ours:x?}, BTF {theirs:x?}", member.name)),
            }
        }
    }
    (equal, different)
}

fn kernel(inferred: Inferred) -> Kernel {
    let mut symbols = SymbolsBuilder::default();
    for (name, address) in &inferred.symbols {
        symbols.push(name, *address, b'd');
    }
    Kernel {
        mode: inferred.mode,
        root: inferred.root,
        symbols: Arc::new(symbols.build()),
        types: Arc::new(inferred.types),
        banner: String::new(),
        remarks: inferred.remarks,
    }
}

/// Parent and name of every task, of its own /proc/PID/task/TID/stat.
fn truth(guest: &Path) -> BTreeMap<u32, (u32, String)> {
    let text = fs::read_to_string(guest.join("truth/tasks.stat")).unwrap();
    let line = |line: &str| {
        let (pid, rest) = line.split_once(" (")?;
        let (name, rest) = rest.rsplit_once(") ")?;
        // /proc has longer names for kernel threads, from elsewhere.
        let name = name.chars().take(15).collect();
        Some((pid.parse().ok()?, (rest.split(' ').nth(1)?.parse().ok()?, name)))
    };
    text.lines().filter_map(line).collect()
}
