//! The structures and variables of a build as C, for a kernel that a compiler makes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::build::Build;
use crate::layout::{Kind, Layout};
use crate::pointers::target;
use crate::variables::{VARIABLES, is_code};

/// Types of fixed width and all structures of the layout, each after those that it contains.
///
/// A structure whose members overlap becomes an anonymous union of anonymous structures: its members keep their names, as in Microsoft's program databases.
pub(crate) fn structures(layout: &Layout, is_64_bit: bool) -> String {
    let mut text = String::from(
        "typedef unsigned char u8; typedef unsigned short u16; typedef unsigned int u32; typedef unsigned long long u64;\n\
         typedef signed char i8; typedef short i16; typedef int i32; typedef long long i64; typedef unsigned short wchar;\n#pragma pack(push, 1)\n",
    );
    let mut done = BTreeSet::new();
    let known: BTreeMap<_, _> = layout.structs.iter().filter(|(name, _)| !layout.borrowed.contains(name)).collect();
    for name in known.keys() {
        let _ = writeln!(text, "struct {name};");
    }
    for name in known.keys() {
        structure(layout, is_64_bit, name, &mut done, &mut text);
    }
    text += "#pragma pack(pop)\n";
    // A type that nothing uses is not in the program database.
    for name in known.keys() {
        let _ = writeln!(text, "struct {name} *nt_type{name};");
    }
    text
}

fn contained(kind: &Kind) -> Option<&str> {
    match kind {
        Kind::Struct(name) => Some(name),
        Kind::Array(of, _) => contained(of),
        _ => None,
    }
}

fn structure(layout: &Layout, is_64_bit: bool, name: &str, done: &mut BTreeSet<String>, text: &mut String) {
    let Some(of) = layout.structs.get(name).filter(|_| done.insert(name.to_owned())) else { return };
    for inner in of.kinds.values().filter_map(contained) {
        structure(layout, is_64_bit, inner, done, text);
    }
    let mut members: Vec<(&String, u64, &Kind)> =
        of.members.iter().map(|(member, at)| (member, *at, of.kinds.get(member).unwrap_or(&Kind::Any))).collect();
    members.sort_by_key(|(_, at, _)| *at);
    // Each lane is a structure without overlaps; bits have one of their own each.
    let mut lanes: Vec<(u64, String)> = vec![(0, String::new())];
    for (nth, (member, at, kind)) in members.into_iter().enumerate() {
        let bits = matches!(kind, Kind::Bits { .. });
        let free = if bits { None } else { lanes.iter().position(|(end, _)| *end <= at) };
        let lane = free.unwrap_or_else(|| {
            lanes.push((0, String::new()));
            lanes.len() - 1
        });
        let (end, body) = &mut lanes[lane];
        if at > *end {
            let _ = write!(body, "u8 pad{nth}_[{:#x}]; ", at - *end);
        }
        let _ = match kind {
            Kind::Bits { lowest, width } => {
                let position = lowest - at * 8;
                let holder = (position + width).div_ceil(8).next_power_of_two() * 8;
                let before = if position == 0 { String::new() } else { format!("u{holder} : {position}; ") };
                write!(body, "{before}u{holder} {member} : {width};")
            }
            _ => write!(body, "{}", declaration(layout, name, member, kind)),
        };
        *end = if bits { u64::MAX } else { at + layout.kind_size(kind, is_64_bit) };
        body.push('\n');
    }
    let _ = writeln!(text, "struct {name} {{");
    if let [(end, body)] = &lanes[..] {
        text.push_str(body);
        if of.size > *end {
            let _ = writeln!(text, "u8 rest_[{:#x}];", of.size - end);
        }
    } else {
        text.push_str("union {\n");
        for (_, body) in lanes.iter().filter(|(_, body)| !body.is_empty()) {
            let _ = writeln!(text, "struct {{\n{body}}};");
        }
        let _ = writeln!(text, "u8 all_[{:#x}];\n}};", of.size.max(1));
    }
    text.push_str("};\n");
    for (member, at) in of.members.iter().filter(|(member, _)| !matches!(of.kinds.get(*member), Some(Kind::Bits { .. }))) {
        let _ = writeln!(text, "_Static_assert(__builtin_offsetof(struct {name}, {member}) == {at:#x}, \"{name}.{member}\");");
    }
    if of.size != 0 {
        let _ = writeln!(text, "_Static_assert(sizeof(struct {name}) == {:#x}, \"{name}\");", of.size);
    }
}

fn declaration(layout: &Layout, structure: &str, member: &str, kind: &Kind) -> String {
    let spelled = |kind: &Kind| match kind {
        Kind::Unsigned(size) => format!("u{}", size * 8),
        Kind::Signed(size) => format!("i{}", size * 8),
        Kind::Pointer => match target(structure, member) {
            known @ ("void" | "wchar") => format!("{known} *"),
            other => format!("struct {other} *"),
        },
        Kind::Struct(name) if layout.structs.contains_key(name) => format!("struct {name}"),
        _ => "u8".to_owned(),
    };
    match kind {
        Kind::Array(of, count) => format!("{} {member}[{count}];", spelled(of)),
        _ => format!("{} {member};", spelled(kind)),
    }
}

/// The kernel's variables and functions, each in its section.
///
/// Those that `without` names have a definition elsewhere.
pub(crate) fn variables(build: &Build, without: &[&str]) -> String {
    let mut text = String::new();
    let word = build.pointer();
    for variable in VARIABLES.iter().filter(|variable| is_here(build, variable.name) && !without.contains(&variable.name)) {
        let code = is_code(variable.section);
        let section = variable.section;
        let (name, bytes) = (variable.name, variable.words * word);
        if code {
            let convention = if name == "KiSystemStartup" && !build.is_64_bit { "__stdcall " } else { "" };
            let _ = writeln!(
                text,
                "__attribute__((section(\"{section}\"), noinline, used)) void {convention}{name}({}) {{ {} }}",
                if name == "KiSystemStartup" { "void *block" } else { "void" },
                // Long enough for what lies behind it: the vectors' handlers are told apart by their distance.
                format_args!("__asm__ volatile(\".fill {}, 1, 0xCC\");", bytes)
            );
        } else {
            let of = match name {
                "PsActiveProcessHead" | "PsLoadedModuleList" => format!("struct _LIST_ENTRY {name}"),
                "PsInitialSystemProcess" | "PsIdleProcess" => format!("struct _EPROCESS *{name}"),
                _ => format!("u8 {name}[{bytes}]"),
            };
            let _ = writeln!(text, "__attribute__((section(\"{section}\"), used, aligned(16))) {of} = {{0}};");
        }
    }
    let _ = writeln!(text, "__attribute__((section(\".data\"), used, aligned(4096))) u8 KiSpareData[{SPARE:#x}] = {{1}};");
    text
}

/// Bytes of writable data that have no name yet.
pub(crate) const SPARE: u64 = 0x8000;

pub(crate) fn is_here(build: &Build, name: &str) -> bool {
    let system_call = if build.is_64_bit { "KiFastCallEntry" } else { "KiSystemCall64" };
    !name.starts_with(system_call)
}
