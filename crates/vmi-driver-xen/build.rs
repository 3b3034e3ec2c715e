//! Says which packages bring what the feature `xenctrl` needs to be built, before the bindings' generator fails with less to say.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Variables that lead the generator to headers or to libclang elsewhere.
    let elsewhere = ["BINDGEN_EXTRA_CLANG_ARGS", "C_INCLUDE_PATH", "CPATH", "LIBCLANG_PATH"];
    for variable in elsewhere {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if env::var_os("CARGO_FEATURE_XENCTRL").is_none() || elsewhere.iter().any(|variable| env::var_os(variable).is_some()) {
        return;
    }
    let mut missing = Vec::new();
    if !["/usr/include/xenctrl.h", "/usr/local/include/xenctrl.h"].iter().any(|header| Path::new(header).exists()) {
        missing.push("Xen's headers (xenctrl.h): install libxen-dev on Debian and Ubuntu, xen-devel on Fedora");
    }
    if !has_libclang() {
        missing
            .push("libclang, by which the bindings are made: install libclang-dev on Debian and Ubuntu, clang-devel on Fedora");
    }
    for what in missing {
        println!(
            "cargo::error=the feature for Xen needs {what}; without the feature (`xen` of the crate vmi) nothing of Xen is needed"
        );
    }
}

/// Whether libclang is where the generator looks for it without being told.
fn has_libclang() -> bool {
    let mut folders: Vec<PathBuf> =
        ["/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/lib/x86_64-linux-gnu"].map(PathBuf::from).into();
    // Debian keeps each version in a folder of its own.
    for entry in std::fs::read_dir("/usr/lib").into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("llvm") {
            folders.push(entry.path().join("lib"));
        }
    }
    let is_libclang = |name: &str| name.starts_with("libclang.so") || name.starts_with("libclang-");
    let holds = |folder: &PathBuf| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| is_libclang(&entry.file_name().to_string_lossy()))
    };
    // A program `llvm-config` leads there too.
    folders.iter().any(holds)
        || env::split_paths(&env::var_os("PATH").unwrap_or_default()).any(|path| path.join("llvm-config").exists())
}
