//! What the tasks need of the machine: installed where that is possible, else named.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::step::command;

/// Programs the lab needs, and the Debian packages that have them.
const LAB: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("gcc", "gcc"),
    ("/usr/include/stdio.h", "libc6-dev"),
    ("zstd", "zstd"),
    ("lzop", "lzop"),
    ("bzip2", "bzip2"),
    ("xz", "xz-utils"),
    ("lz4", "lz4"),
    ("makedumpfile", "makedumpfile"),
    ("hivexsh", "libhivex-bin"),
    ("python3", "python3"),
    ("awk", "mawk"),
    ("dpkg-deb", "dpkg"),
    ("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring"),
];

/// What the tests of libvirt need besides, and the Debian packages that have it.
const LIBVIRT: &[(&str, &str)] = &[
    ("/etc/libvirt/qemu.conf", "libvirt-daemon-system"),
    ("libvirtd", "libvirt-daemon"),
    ("virsh", "libvirt-clients"),
    ("/usr/include/libvirt/libvirt.h", "libvirt-dev"),
];

/// What the Xen driver's control calls are built with, and the Debian packages that have it. The lab fetches Xen itself.
const XEN: &[(&str, &str)] = &[("/usr/include/xenctrl.h", "libxen-dev"), ("/usr/lib/llvm-*/lib/libclang.so", "libclang-dev")];

/// What unpacks another release of Debian whole and makes CD images that boot, and the Debian packages that have it.
const BOOT_IMAGES: &[(&str, &str)] = &[
    ("debootstrap", "debootstrap"),
    ("grub-mkrescue", "grub-common"),
    ("/usr/lib/grub/i386-pc/multiboot.mod", "grub-pc-bin"),
    ("xorriso", "xorriso"),
];

/// What compiles a kernel as a PE file with its program database, and the Debian packages that have it.
const COMPILERS: &[(&str, &str)] = &[("clang", "clang"), ("lld-link", "lld"), ("llvm-pdbutil", "llvm")];

/// What the tests of the C library need besides, and the Debian packages that have it.
const CAPI: &[(&str, &str)] = &[
    ("clang", "clang"),
    ("clang++", "clang"),
    ("/usr/share/doc/libclang-rt-*", "libclang-rt-dev"),
    ("g++", "g++"),
    ("valgrind", "valgrind"),
    ("pkg-config", "pkgconf"),
    ("nm", "binutils"),
];

/// Components of the Rust toolchain, and a program each brings along.
const RUST: &[(&str, &str)] = &[("cargo-fmt", "rustfmt"), ("cargo-clippy", "clippy")];

/// Whether there is such a program on the path (or such a file, for an absolute name, in which one `*` stands for the rest of a directory's name).
pub(crate) fn present(program: &str) -> bool {
    if let Some((before, rest)) = program.split_once('*') {
        let (directory, beginning) = before.rsplit_once('/').unwrap_or((".", before));
        let names = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let mut names = names.filter_map(|name| name.into_string().ok()).filter(|name| name.starts_with(beginning));
        return names.any(|name| Path::new(&format!("{directory}/{name}{rest}")).exists());
    }
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join(program).exists()))
}

fn missing(table: &[(&str, &'static str)]) -> Vec<&'static str> {
    table.iter().filter(|(program, _)| !present(program)).map(|(_, package)| *package).collect()
}

fn is_root() -> bool {
    Path::new("/proc/self").metadata().is_ok_and(|metadata| metadata.uid() == 0)
}

/// Have Debian packages: installed where that is possible.
fn packages(table: &[(&str, &'static str)]) -> Result<(), String> {
    let packages = missing(table);
    if packages.is_empty() {
        return Ok(());
    }
    if is_root() && present("apt-get") {
        println!("installing {}", packages.join(" "));
        let install = ["-y", "-qq", "--no-install-recommends", "install"];
        let install: Vec<&str> = install.iter().chain(&packages).copied().collect();
        for arguments in [["-qq", "update"].as_slice(), &install] {
            // what went wrong stands in its output, and is missing below
            let _ = command("apt-get", arguments).env("DEBIAN_FRONTEND", "noninteractive").status();
        }
    }
    match missing(table).join(" ") {
        missing if missing.is_empty() => Ok(()),
        missing => Err(format!("missing: {missing}\nOn Debian, as root: apt-get install --no-install-recommends {missing}")),
    }
}

/// Have what the lab needs, or say what is missing.
///
/// # Errors
/// The sentence to print: which packages are missing, and the command that installs them.
pub(crate) fn lab() -> Result<(), String> {
    packages(LAB)
}

/// Have what the tests of libvirt need besides, or say what is missing.
///
/// # Errors
/// As [`lab`].
pub(crate) fn libvirt() -> Result<(), String> {
    packages(LIBVIRT)
}

/// Have what the Xen driver's control calls are built with, or say what is missing.
///
/// # Errors
/// As [`lab`].
pub(crate) fn xen() -> Result<(), String> {
    packages(XEN)
}

/// Have what other releases of Debian are unpacked and CD images are made with, as Bochs and VirtualBox need, or say what is missing.
///
/// # Errors
/// As [`lab`].
pub(crate) fn boot_images() -> Result<(), String> {
    packages(BOOT_IMAGES)
}

/// Have what compiles a kernel as a PE file, or say what is missing.
///
/// # Errors
/// As [`lab`].
pub(crate) fn compilers() -> Result<(), String> {
    packages(COMPILERS)
}

/// Have what the tests of the C library need besides, or say what is missing.
///
/// # Errors
/// As [`lab`].
pub(crate) fn capi() -> Result<(), String> {
    packages(CAPI)
}

/// Have rustfmt and clippy, or say what is missing.
///
/// # Errors
/// The sentence to print: which components are missing, and the command that installs them.
pub(crate) fn rust() -> Result<(), String> {
    let components = missing(RUST);
    if components.is_empty() {
        return Ok(());
    }
    let arguments: Vec<&str> = ["component", "add"].iter().chain(&components).copied().collect();
    let _ = command("rustup", &arguments).status();
    match missing(RUST).join(" ") {
        missing if missing.is_empty() => Ok(()),
        missing => {
            Err(format!("missing: {missing}\nrustup component add {missing}, or your distribution's package of that name"))
        }
    }
}
