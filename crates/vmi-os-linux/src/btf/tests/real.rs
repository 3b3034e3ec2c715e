//! The BTF of real kernels, from the images of the lab; needs `VMI_LAB_IMAGES`.

use std::collections::HashMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use vmi_core::{Type, TypeId, TypeSource};

use super::field;
use crate::btf::{Btf, find_headers};

fn guests() -> Vec<PathBuf> {
    let Some(images) = std::env::var_os("VMI_LAB_IMAGES") else {
        println!("skipped: VMI_LAB_IMAGES is not set, so there are no kernels to compare with");
        return Vec::new();
    };
    let guests = std::fs::read_dir(images).unwrap().map(|entry| entry.unwrap().path());
    guests.filter(|guest| guest.join("truth/vmlinux.btf.gz").exists()).collect()
}

fn truth(guest: &std::path::Path) -> Vec<u8> {
    let file = std::fs::File::open(guest.join("truth/vmlinux.btf.gz")).unwrap();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    bytes
}

/// Structure, member, offset in bits.
type Offset = (&'static str, &'static str, u64);

/// Offsets read from these kernels' BTF by an independent program.
const OFFSETS: [(&str, [Offset; 8]); 4] = [
    (
        "Linux version 5.10.0-32-cloud-amd64 ",
        [
            ("task_struct", "pid", 17856),
            ("task_struct", "tasks", 15808),
            ("task_struct", "comm", 21888),
            ("task_struct", "sched_reset_on_fork", 17312),
            ("mm_struct", "pgd", 640),
            ("mm_struct", "arg_start", 2496),
            ("module", "name", 192),
            ("page", "lru", 64),
        ],
    ),
    (
        "Linux version 6.1.0-50-cloud-amd64 ",
        [
            ("task_struct", "pid", 19328),
            ("task_struct", "tasks", 17536),
            ("task_struct", "comm", 23808),
            ("task_struct", "sched_reset_on_fork", 18720),
            ("mm_struct", "pgd", 576),
            ("mm_struct", "arg_start", 2432),
            ("module", "name", 192),
            ("page", "lru", 64),
        ],
    ),
    (
        "Linux version 6.12.117+deb12-cloud-amd64 ",
        [
            ("task_struct", "pid", 19456),
            ("task_struct", "tasks", 17792),
            ("task_struct", "comm", 23808),
            ("task_struct", "sched_reset_on_fork", 18848),
            ("mm_struct", "pgd", 960),
            ("mm_struct", "arg_start", 3008),
            ("module", "name", 192),
            ("page", "lru", 64),
        ],
    ),
    (
        "Linux version 7.2.13+deb14-cloud-amd64 ",
        [
            ("task_struct", "pid", 22464),
            ("task_struct", "tasks", 20800),
            ("task_struct", "comm", 26752),
            ("task_struct", "sched_reset_on_fork", 21856),
            ("mm_struct", "pgd", 960),
            ("mm_struct", "arg_start", 5824),
            ("module", "name", 192),
            ("page", "lru", 64),
        ],
    ),
];

#[test]
fn members_are_where_they_are() {
    for guest in guests() {
        let version = std::fs::read_to_string(guest.join("truth/version")).unwrap();
        let Some((_, offsets)) = OFFSETS.iter().find(|(prefix, _)| version.starts_with(prefix)) else {
            println!("skipped: no offsets are known of {version}");
            continue;
        };
        let btf = Btf::parse(truth(&guest), 8).unwrap();
        for &(structure, path, bits) in offsets {
            let found = field(&btf, structure, path);
            let lowest = found.bits.map_or(0, |(lowest, _)| u64::from(lowest));
            assert_eq!(found.offset * 8 + lowest, bits, "{structure}.{path} of {version}");
        }
        assert_eq!(field(&btf, "task_struct", "comm").size, 16);
        assert_eq!(field(&btf, "task_struct", "sched_reset_on_fork").bits, Some((0, 1)));
    }
}

#[test]
fn everything_decodes_and_every_name_is_found() {
    for guest in guests() {
        let btf = Btf::parse(truth(&guest), 8).unwrap();
        let mut first = HashMap::new();
        for id in 1..btf.end_id() {
            let ty = btf.get(TypeId(id)).unwrap();
            (&btf as &dyn TypeSource).size_of(TypeId(id)).unwrap();
            if let Type::Structure(structure) = ty
                && !structure.name.is_empty()
            {
                let bits = structure.size * 8;
                assert!(structure.members.iter().all(|member| member.bit_offset <= bits), "{}", structure.name);
                first.entry(structure.name).or_insert(TypeId(id));
            }
        }
        for (name, &id) in &first {
            assert_eq!(btf.find(name), Some(id), "{name}");
        }
        assert_eq!(btf.structures().count(), first.len());
        for variable in btf.variables() {
            let variable = variable.unwrap();
            assert_eq!(btf.variable(variable.name), Some(variable.ty));
            assert_eq!((&btf as &dyn TypeSource).size_of(variable.ty).unwrap(), u64::from(variable.size), "{}", variable.name);
        }
    }
}

#[test]
fn kernel_and_modules_are_found_in_memory() {
    for guest in guests() {
        // One image a release is enough.
        if !["x64-5.10", "x64-6.1-256m", "x64-6.12", "x64-sid"].iter().any(|name| guest.ends_with(name)) {
            continue;
        }
        let memory = std::fs::read(guest.join("memory.raw")).unwrap();
        let kernel = truth(&guest);
        let candidates: Vec<_> = find_headers(&memory).collect();
        let whole = candidates.iter().filter(|c| memory.get(c.offset..c.offset + c.len) == Some(&kernel[..])).count();
        assert!(whole >= 1, "the kernel's BTF is in {}", guest.display());

        // `ls -l /sys/kernel/btf`: size in the fifth column, name in the last.
        let listing = std::fs::read_to_string(guest.join("truth/btf")).unwrap();
        let base = Arc::new(Btf::parse(kernel, 8).unwrap());
        for line in listing.lines() {
            let columns: Vec<_> = line.split_whitespace().collect();
            let [_, _, _, _, size, .., name] = columns[..] else { continue };
            if name == "vmlinux" {
                continue;
            }
            let size: usize = size.parse().unwrap();
            let found = candidates
                .iter()
                .filter(|c| c.len == size)
                .find_map(|c| Btf::parse_split(base.clone(), memory.get(c.offset..c.offset + c.len)?).ok());
            let btf = found.unwrap_or_else(|| panic!("no BTF of {name} in {}", guest.display()));
            for id in base.end_id()..btf.end_id() {
                btf.get(TypeId(id)).unwrap();
            }
        }
    }
}
