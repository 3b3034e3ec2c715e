//! The header is what cbindgen makes of the sources, and what it says is kept: names, version, few places with unsafe code.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

fn made() -> String {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    let mut header = Vec::new();
    cbindgen::Builder::new().with_crate(root()).with_config(config).generate().unwrap().write(&mut header);
    String::from_utf8(header).unwrap()
}

fn sources() -> Vec<(String, String)> {
    let files = std::fs::read_dir(root().join("src")).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(&path).unwrap())).collect()
}

/// The functions that are exported, as the sources define them.
fn exported() -> BTreeSet<String> {
    let names = sources().into_iter().flat_map(|(_, text)| {
        let after = |line: &str| Some(line.split_once("extern \"C\" fn ")?.1.split_once('(')?.0.to_owned());
        text.lines().filter_map(after).filter(|name| name.starts_with("vmi_")).collect::<Vec<_>>()
    });
    names.collect()
}

/// With `VMI_WRITE_HEADER=1` the header is written instead.
#[test]
fn the_header_is_what_the_sources_say() {
    let (path, made) = (root().join("include/vmi.h"), made());
    if std::env::var_os("VMI_WRITE_HEADER").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap();
    let differs = committed.lines().zip(made.lines()).find(|(old, new)| old != new);
    assert!(
        committed == made,
        "run `VMI_WRITE_HEADER=1 cargo test -p vmi-capi --test header`; the first difference: {differs:?}"
    );
}

#[test]
fn every_function_is_declared() {
    let header = made();
    for name in exported() {
        assert!(header.contains(&format!("{name}(")), "{name}");
    }
    assert!(exported().len() > 90, "{}", exported().len());
}

#[test]
fn the_version_is_the_package_s() {
    let header = made();
    for (name, value) in [
        ("MAJOR", env!("CARGO_PKG_VERSION_MAJOR")),
        ("MINOR", env!("CARGO_PKG_VERSION_MINOR")),
        ("PATCH", env!("CARGO_PKG_VERSION_PATCH")),
    ] {
        assert!(header.contains(&format!("#define VMI_VERSION_{name} {value}\n")), "{name}");
    }
}

/// A program may be linked with both libraries. The names are those of the guide's table, which names all functions of LibVMI.
#[test]
fn no_function_has_a_name_of_libvmi() {
    let guide = std::fs::read_to_string(root().join("../../docs/c.md")).unwrap();
    let theirs = guide.split("## Coming from LibVMI").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = theirs.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let theirs: BTreeSet<_> =
        rows.flat_map(|cell| cell.split('`')).filter(|word| word.starts_with("vmi_")).map(str::to_owned).collect();
    assert!(theirs.len() > 150, "{}", theirs.len());
    assert_eq!(theirs.intersection(&exported()).collect::<Vec<_>>(), Vec::<&String>::new());
}

/// What the guide names on our side exists.
#[test]
fn the_guide_names_what_there_is() {
    let guide = std::fs::read_to_string(root().join("../../docs/c.md")).unwrap();
    let header = made();
    let theirs = guide.split("## Coming from LibVMI").nth(1).unwrap();
    let cells = theirs.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split(" | ").nth(1));
    let ours = cells.flat_map(|cell| cell.split('`')).filter(|word| word.starts_with("vmi_") || word.starts_with("VMI_"));
    let missing: BTreeSet<_> = ours.filter(|word| !header.contains(word.trim_end_matches('*'))).collect();
    assert_eq!(missing, BTreeSet::new());
}

#[test]
fn unsafe_code_is_where_it_is_said_to_be() {
    let with_blocks = sources().into_iter().filter(|(_, text)| text.contains("unsafe {") || text.contains("unsafe impl"));
    let with_blocks: BTreeSet<_> = with_blocks.map(|(name, _)| name).collect();
    let known = ["border.rs", "event.rs", "events.rs", "machine.rs", "memory.rs", "processes.rs"].map(str::to_owned);
    assert_eq!(with_blocks, BTreeSet::from(known));
}
