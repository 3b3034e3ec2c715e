//! Real Windows bytes: Microsoft's database of ntdll, symbol files of five kernels, and the built-in table. They were made in different ways and must agree.

use std::path::Path;
use std::time::Instant;

use vmi_core::{Type, TypeSource, VirtAddr};

use super::super::SymbolFile;
use super::real_files;
use crate::{BuiltIn, PdbIdentity};

/// What the crate cannot do without: structures and members of every 64-bit kernel since 8.1.
const REQUIRED: [(&str, &str); 16] = [
    ("_EPROCESS", "UniqueProcessId"),
    ("_EPROCESS", "ActiveProcessLinks.Flink"),
    ("_EPROCESS", "ImageFileName"),
    ("_EPROCESS", "InheritedFromUniqueProcessId"),
    ("_EPROCESS", "Pcb.DirectoryTableBase"),
    ("_EPROCESS", "Peb"),
    ("_EPROCESS", "ObjectTable"),
    ("_EPROCESS", "VadRoot.Root"),
    ("_EPROCESS", "Token.Object"),
    ("_ETHREAD", "Cid.UniqueThread"),
    ("_ETHREAD", "Tcb.Teb"),
    ("_PEB", "Ldr"),
    ("_LDR_DATA_TABLE_ENTRY", "FullDllName.Buffer"),
    ("_HANDLE_TABLE", "TableCode"),
    ("_OBJECT_HEADER", "TypeIndex"),
    ("_MMVAD_SHORT", "StartingVpn"),
];

const SYMBOLS: [&str; 6] = [
    "PsActiveProcessHead",
    "PsLoadedModuleList",
    "PsInitialSystemProcess",
    "NtBuildNumber",
    "PspCidTable",
    "KdDebuggerDataBlock",
];

/// Structures of the kernel's core, which user mode's database has too. Not `_KPRCB`: this ntdll is of a later update, in which `CoresPerPhysicalProcessor`
/// and its neighbours have other places.
const CORE: [&str; 9] =
    ["_EPROCESS", "_KPROCESS", "_ETHREAD", "_KTHREAD", "_PEB", "_TEB", "_KPCR", "_HANDLE_TABLE", "_LDR_DATA_TABLE_ENTRY"];

/// Members that two descriptions have in common: how many, and those of which offset, width or size differ.
///
/// `sizes`: of structures too. The built-in table does not have all of them, and of several kernels only the smallest.
fn compare(one: &dyn TypeSource, other: &dyn TypeSource, sizes: bool) -> (usize, Vec<String>) {
    let (mut common, mut differences) = (0, Vec::new());
    for structure in one.structures() {
        let (Ok(ours), Ok(theirs)) = (one.structure(&structure), other.structure(&structure)) else { continue };
        if sizes && ours.size != theirs.size {
            differences.push(format!("sizeof {structure}: {:#x} {:#x}", ours.size, theirs.size));
        }
        for member in &ours.members {
            // What an anonymous member holds is found by its own name.
            let fields = (one.field(&structure, &member.name), other.field(&structure, &member.name));
            let (Ok(a), Ok(b)) = fields else { continue };
            common += 1;
            // A member of the table whose type is not known has no size.
            let known = !matches!(one.resolve(a.ty), Ok(Type::Void));
            let structure_size = !sizes && matches!(one.resolve(a.ty), Ok(Type::Structure(_)));
            let same_bits = !known || a.bits == b.bits && (structure_size || a.size == b.size);
            if a.offset != b.offset && known || !same_bits {
                differences.push(format!("{structure}.{}: {a:?} {b:?}", member.name));
            }
        }
    }
    (common, differences)
}

fn isf_files(directory: &Path) -> Vec<(String, SymbolFile)> {
    let index = std::fs::read_to_string(directory.join("isf/INDEX.tsv")).unwrap();
    let mut files = Vec::new();
    for line in index.lines() {
        let [version, file, _] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
        files.push((version.to_owned(), SymbolFile::open(directory.join("isf").join(file)).unwrap()));
    }
    files
}

#[test]
fn real_windows_bytes_the_database_of_ntdll_has_the_structures_of_its_kernel() {
    let Some(directory) = real_files("pdb/ntdll.pdb") else { return };
    let start = Instant::now();
    let ntdll = SymbolFile::open(directory.join("pdb/ntdll.pdb")).unwrap();
    println!("ntdll.pdb: {ntdll:?} in {:?}", start.elapsed());
    // The stream of information says 3, what tools made of it; images name the age of the debug stream.
    assert_eq!(ntdll.identity().unwrap().key(), "CCC0E36120F424BE044DE630C3BD80C41");
    assert_eq!(ntdll.pointer_size(), 8);
    assert!(ntdll.offsets().len() > 6000);
    let kernel = SymbolFile::open(directory.join("isf/5278AFF86C341677D7D7835C85B7B844-1.json.xz")).unwrap();
    // Of the structures that both have, user mode sees some otherwise; those of the kernel's core are the same.
    for structure in CORE {
        let (ours, theirs): (&dyn TypeSource, &dyn TypeSource) = (&ntdll, &kernel);
        let (a, b) = (ours.structure(structure).unwrap(), theirs.structure(structure).unwrap());
        assert_eq!(a.size, b.size, "{structure}");
        let names = |members: &[vmi_core::Member]| {
            members.iter().map(|member| (member.bit_offset, member.name.clone())).collect::<Vec<_>>()
        };
        let (a_names, b_names) = (names(&a.members), names(&b.members));
        let gone: Vec<_> = b_names.iter().filter(|it| !a_names.contains(it)).collect();
        let moved: Vec<_> = gone.iter().filter(|it| a_names.iter().any(|(_, name)| *name == it.1)).collect();
        assert!(moved.is_empty(), "{structure}: {moved:?}");
        // This ntdll is of a later update than the kernel: members were added in what was room before. And a symbol file names each member once, where
        // the database has two bitfields of one name for spare bits.
        let again = |name: &str| a_names.iter().filter(|(_, other)| other == name).count() > 1;
        let more: Vec<_> = a_names.iter().filter(|it| !b_names.contains(it) && !again(&it.1)).collect();
        println!(
            "{structure}: all {} members of the symbol file at the same places in the database, which has also {more:?}",
            b_names.len()
        );
    }
    let (common, differences) = compare(&ntdll, &kernel, true);
    println!(
        "ntdll.pdb and the symbol file of 19041.804: {common} members in common, {} differ: {differences:#?}",
        differences.len()
    );
    let core: Vec<_> = differences.iter().filter(|it| CORE.iter().any(|core| it.contains(&format!("{core}.")))).collect();
    assert!(core.is_empty(), "{core:?}");
    assert!(common > 3000 && differences.len() < common / 20, "{common}");
    let (common, differences) = compare(&BuiltIn::named("isf_x64_10.0.19041.804").unwrap(), &ntdll, false);
    println!("the built-in table and ntdll.pdb: {common} members in common, {differences:?}");
    assert!(common > 150 && differences.is_empty());
}

#[test]
fn real_windows_bytes_every_symbol_file_has_what_is_needed() {
    let Some(directory) = real_files("isf/INDEX.tsv") else { return };
    for (version, file) in isf_files(&directory) {
        let types: &dyn TypeSource = &file;
        for (structure, member) in REQUIRED {
            assert!(types.field(structure, member).is_ok(), "{version}: {structure}.{member}");
        }
        let symbols = file.symbols(VirtAddr::new(0xffff_f800_0000_0000));
        for symbol in SYMBOLS {
            assert!(symbols.address(symbol).is_ok(), "{version}: {symbol}");
        }
    }
}

/// The table of issue and proof: whoever describes the same kernel says the same.
#[test]
fn real_windows_bytes_symbol_files_and_the_built_in_table_agree() {
    let Some(directory) = real_files("isf/INDEX.tsv") else { return };
    println!("{:<20} {:<28} {:>8} {:>8}", "symbol file", "built-in table", "common", "differ");
    for (version, file) in isf_files(&directory) {
        let build: u32 = version.split('.').nth(2).unwrap().parse().unwrap();
        let exact = BuiltIn::for_pdb(file.identity().unwrap());
        let found = BuiltIn::for_build(build, true).unwrap();
        for table in exact.into_iter().chain([found.agreed()]).chain(found.candidates()) {
            let (common, differences) = compare(&table, &file, false);
            let several = table.origin().contains(", ");
            let name = if several { format!("agreed of build {build}") } else { table.name().to_owned() };
            println!("{version:<20} {name:<28} {common:>8} {:>8}", differences.len());
            assert!(common > 200, "{version} {name}: {common}");
            // Other servicing levels of a build may differ in what moved; what all of them agree on may not.
            if several || table.pdb() == file.identity() {
                assert!(differences.is_empty(), "{version} {name}: {differences:#?}");
            } else if !differences.is_empty() {
                println!("    {}", differences.join("\n    "));
            }
            // The symbols of exactly known kernels.
            if table.pdb().map(PdbIdentity::key) == file.identity().map(PdbIdentity::key) {
                let symbols = file.symbols(VirtAddr::new(0));
                for (name, offset) in table.symbols() {
                    assert_eq!(symbols.address(name).unwrap().get(), *offset, "{name}");
                }
            }
        }
    }
}

#[test]
fn real_windows_bytes_the_cache_gives_back_the_symbol_file() {
    let Some(directory) = real_files("isf/INDEX.tsv") else { return };
    for (version, file) in isf_files(&directory) {
        let start = Instant::now();
        let kept = SymbolFile::from_cache(file.as_bytes().to_vec()).unwrap();
        let opened = start.elapsed();
        let symbols = kept.symbols(VirtAddr::new(0)).len();
        println!(
            "{version}: {} bytes, opened in {opened:?}, with {symbols} symbols in {:?}",
            kept.as_bytes().len(),
            start.elapsed()
        );
        assert_eq!(symbols, file.offsets().len());
        let (common, differences) = compare(&file, &kept, true);
        assert!(common > 9000 && differences.is_empty(), "{version}: {common} {differences:?}");
    }
}
