//! DWARF of small C programs, compiled at test time, against what the compiler itself says of offsets and sizes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use proptest::prelude::*;
use vmi_core::{Field, Type, TypeSource};

use super::*;

/// Types of many shapes. `other.c` describes `struct hidden`, which is only declared here.
const MAIN: &str = r#"
struct hidden;
enum colour { RED = -3, GREEN, BLUE = 70000 };
enum big { SMALL = 1, LARGE = 0xfffffffff };
typedef const volatile struct inner { char c; short s[3]; } inner_t;
union choice { int number; char bytes[12]; };
struct outer {
    char first;
    inner_t named;
    struct { int x; union { long y; struct { short z0, z1; }; }; };
    unsigned a : 3, b : 7, : 4, c : 12;
    unsigned long long wide : 40, rest : 9;
    unsigned char small : 2;
    int matrix[4][5];
    union choice choice;
    enum colour colour;
    struct hidden *hidden;
    struct outer *next, *(*call)(struct outer *, int);
    _Bool flag;
    double number;
    struct { int only; } tagless;
    int flexible[];
};
struct outer *keep;
inner_t *keep_inner;
enum big keep_big;
struct empty {} keep_empty;
"#;

const OTHER: &str = "struct hidden { int a; long b; } keep_hidden; struct outer { int clash; } keep_other;\n";

/// Members that `offsetof` takes.
const MEMBERS: [&str; 20] = [
    "first",
    "named",
    "named.c",
    "named.s",
    "x",
    "y",
    "z0",
    "z1",
    "matrix",
    "choice",
    "choice.bytes",
    "colour",
    "hidden",
    "next",
    "call",
    "flag",
    "number",
    "tagless",
    "tagless.only",
    "flexible",
];

/// Bitfields, with their widths.
const BITFIELDS: [(&str, u32); 6] = [("a", 3), ("b", 7), ("c", 12), ("wide", 40), ("rest", 9), ("small", 2)];

fn run(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// Links the programs without a C library, so that 32 bits work everywhere.
fn compile(folder: &Path, flags: &[&str]) -> Option<PathBuf> {
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    write("main.c", MAIN);
    write("other.c", OTHER);
    let output = folder.join("program");
    let mut gcc = Command::new("gcc");
    gcc.current_dir(folder).args(["-nostdlib", "-static", "-Wl,-e,0", "-fno-pic", "-no-pie"]).args(flags);
    run(gcc.args(["main.c", "other.c", "-o"]).arg(&output)).then_some(output)
}

/// What the compiler says: it stores the numbers in a section of an object file.
fn truth(folder: &Path, flags: &[&str]) -> Vec<u32> {
    let mut text = MAIN.to_owned();
    text += "unsigned truth[] __attribute__((section(\"numbers\"))) = { sizeof(struct outer)";
    for member in MEMBERS {
        let outer = "((struct outer *)0)";
        let size = if member == "flexible" { "0".to_owned() } else { format!("sizeof({outer}->{member})") };
        text += &format!(", __builtin_offsetof(struct outer, {member}), {size}");
    }
    text += " };\n";
    std::fs::write(folder.join("truth.c"), text).unwrap();
    let object = folder.join("truth.o");
    let mut gcc = Command::new("gcc");
    assert!(run(gcc.current_dir(folder).args(flags).args(["-c", "truth.c", "-o"]).arg(&object)), "the compiler made the program");
    use object::{Object, ObjectSection};
    let bytes = std::fs::read(object).unwrap();
    let elf = object::File::parse(&*bytes).unwrap();
    let data = elf.section_by_name("numbers").unwrap().data().unwrap();
    data.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
}

fn dwarf(path: &Path) -> Dwarf {
    Dwarf::parse(Arc::new(std::fs::read(path).unwrap())).unwrap()
}

/// The bits of a member set by the compiler: a program that stores -1 in the bitfield and nothing else, as data.
fn bits_set(folder: &Path, flags: &[&str], member: &str) -> Vec<u8> {
    let text = format!("{MAIN}\nstruct outer value __attribute__((section(\"probe\"))) = {{ .{member} = -1 }};\n");
    std::fs::write(folder.join("probe.c"), text).unwrap();
    let object = folder.join("probe.o");
    let mut gcc = Command::new("gcc");
    assert!(run(gcc.current_dir(folder).args(flags).args(["-w", "-c", "probe.c", "-o"]).arg(&object)));
    use object::{Object, ObjectSection};
    let bytes = std::fs::read(object).unwrap();
    object::File::parse(&*bytes).unwrap().section_by_name("probe").unwrap().data().unwrap().to_vec()
}

fn check(flags: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let Some(program) = compile(folder.path(), flags) else {
        println!("skipped: no gcc that takes {flags:?}");
        return;
    };
    let dwarf = dwarf(&program);
    let types: &dyn TypeSource = &dwarf;
    // Of two structures of one tag, the first in the file is meant.
    let [size, numbers @ ..] = &truth(folder.path(), flags)[..] else { panic!() };
    assert_eq!(types.structure("outer").unwrap().size, u64::from(*size), "{flags:?}");
    for (member, expected) in MEMBERS.iter().zip(numbers.chunks_exact(2)) {
        let Field { offset, size, bits, .. } = types.field("outer", member).unwrap();
        assert_eq!(([offset, size], bits), ([u64::from(expected[0]), u64::from(expected[1])], None), "{member} with {flags:?}");
    }
    for (member, width) in BITFIELDS {
        let field = types.field("outer", member).unwrap();
        let bytes = bits_set(folder.path(), flags, member);
        let set: Vec<u64> = (0..bytes.len() as u64 * 8).filter(|bit| bytes[(bit / 8) as usize] >> (bit % 8) & 1 != 0).collect();
        let (lowest, found) = field.bits.unwrap();
        assert_eq!((found, set.len() as u32), (width, width), "{member} with {flags:?}");
        assert_eq!(field.offset * 8 + u64::from(lowest), set[0], "{member} with {flags:?}");
    }
    let pointer = types.field("outer", "hidden").unwrap().ty;
    let Type::Pointer { target } = types.resolve(pointer).unwrap() else { panic!() };
    let Type::Structure(hidden) = types.resolve(target).unwrap() else { panic!("declared here, described in the other unit") };
    assert_eq!((hidden.name.as_str(), hidden.members.len()), ("hidden", 2));
    assert_eq!(types.constant("colour", "RED").unwrap(), -3);
    assert_eq!(types.constant("colour", "BLUE").unwrap(), 70000);
    assert_eq!(types.constant("big", "LARGE").unwrap(), 0xf_ffff_ffff);
    assert_eq!(types.structure("empty").unwrap().size, 0);
    assert!(types.structure("absent").is_err());
    let mut names: Vec<_> = types.structures().collect();
    names.sort();
    assert_eq!(names, ["choice", "empty", "hidden", "inner", "outer"]);
}

#[test]
fn versions_and_ways_of_packing() {
    for version in ["-gdwarf-2", "-gdwarf-3", "-gdwarf-4", "-gdwarf-5"] {
        check(&["-gno-strict-dwarf", version]);
        check(&["-gstrict-dwarf", version]);
        check(&["-m32", version]);
    }
    for version in ["-gdwarf-4", "-gdwarf-5"] {
        check(&[version, "-fdebug-types-section"]);
        check(&[version, "-gz=zlib"]);
        check(&[version, "-gz=zlib-gnu"]);
        check(&[version, "-gz=zstd"]);
    }
}

#[test]
fn what_has_no_linked_dwarf_is_refused() {
    let parse = |bytes: &[u8]| Dwarf::parse(Arc::new(bytes.to_vec())).unwrap_err();
    assert!(matches!(parse(b""), DwarfError::Elf(_)));
    assert!(matches!(parse(b"\x7fELF but not for long"), DwarfError::Elf(_)));
    let folder = tempfile::tempdir().unwrap();
    let Some(program) = compile(folder.path(), &[]) else {
        println!("skipped: no gcc");
        return;
    };
    assert!(matches!(parse(&std::fs::read(program).unwrap()), DwarfError::NoDwarf));
    truth(folder.path(), &["-g"]);
    assert!(matches!(parse(&std::fs::read(folder.path().join("truth.o")).unwrap()), DwarfError::Relocatable));
}

#[test]
fn mutated_files_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    for flags in [&["-gdwarf-5"][..], &["-gdwarf-4", "-fdebug-types-section"], &["-gdwarf-5", "-gz=zlib"]] {
        let Some(program) = compile(folder.path(), flags) else {
            println!("skipped: no gcc that takes {flags:?}");
            continue;
        };
        let whole = std::fs::read(program).unwrap();
        let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..16);
        let cut = prop::option::weighted(0.2, any::<prop::sample::Index>());
        proptest!(ProptestConfig::with_cases(200), |(edits in edits, cut in cut)| {
            let mut bytes = whole.clone();
            for (at, value) in edits {
                *at.get_mut(&mut bytes) = value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(whole.len()));
            }
            if let Ok(dwarf) = Dwarf::parse(Arc::new(bytes)) {
                let types: &dyn TypeSource = &dwarf;
                for name in types.structures().chain(["outer".to_owned()]) {
                    for member in types.structure(&name).map(|structure| structure.members).unwrap_or_default() {
                        let _ = (types.size_of(member.ty), types.field(&name, &member.name));
                    }
                }
                let _ = types.constant("colour", "RED");
            }
        });
    }
}
