//! The project's tasks, as `cargo xtask <task>`.
#![forbid(unsafe_code)]

mod kvm;
mod prerequisites;
mod report;
mod step;
mod tasks;
mod test_output;
mod unchanged;
mod xen;

use std::process::ExitCode;

const HELP: &str = "\
Tasks of the project.

Usage: cargo xtask <task> [arguments]

Tasks:
  test               everything that a change must pass; the images of the guest lab are made once and then kept
  lab [arguments]    make images of the lab's guests (arguments as of tests/lab/lab.py); without any, also fetch what live guests need
  check              formatting, lints, documentation, dependencies; no guests
  fuzz [seconds]     each fuzz target for a while (default 5 seconds) from its committed corpus
  peers [guest]      crash, drgn and volatility3 on images that dump-memory writes; fetches them and the kernel's debug package
  peers volatility   Volatility's Linux plugins with the symbol files that symbol-file writes, against the guests' /proc
  peers volatility-live     the same on guests that run, through the package vmi-volatility3
  peers volatility-plugins  every Linux plugin of Volatility on images of the lab, as the table of docs/volatility.md
  peers windows      volatility3, MemProcFS and our tools on synthetic Windows machines, against what was placed in them
  python             the Python module's wheel in a fresh environment: pytest and mypy
  xen [check...]     the Xen driver's checks in dom0 of a real Xen, which QEMU boots; those whose names contain one of these words
  xen --bochs [...]  the same in Bochs, whose processor has what traps on memory, single steps, breakpoints and views need
  xen --bench        what the Xen driver's reads and events cost, beside a bare foreign mapping and a bare loop over the event ring
                     (XEN_LAB_VERSION=4.17 or 4.20 before either: Xen and kernels of Debian 12 or 13; else 4.17 in QEMU, 4.20 in Bochs.
                     XEN_LAB_DOMUS: which domains, as in tests/lab/xen/run-in-dom0.sh)
  xen --cores        have xl write cores of two domains, which the tests of image files then read; five minutes
  virtualbox         have VirtualBox write a core of a Linux guest, which the tests of image files then read; ten minutes once
  capi [arguments]   the C library installed: examples and tests by gcc and clang, under AddressSanitizer and valgrind (arguments as of
                     crates/vmi-capi/tests/run.py, such as --bench)
  kvm [test...]      the tests of running guests under KVM, in a machine that QEMU emulates (AMD's SVM); those whose names contain one of these words
  kvm --bochs [...]  the same in Bochs (Intel's VMX), which software breakpoints need: QEMU 10.0 and no examples
  demo               boot the demo's guest anew and write demo/

Examples:
  cargo xtask test
  cargo xtask lab --list
  cargo xtask lab x64-6.1 'x86-*'
  cargo xtask lab --all --jobs 1
  cargo xtask fuzz 600

The lab keeps its kernels and images below $VMI_LAB_CACHE (default ~/.cache/vmi-lab).
Exit code: 0 all passed, 1 something failed, 2 wrong usage, 3 a prerequisite is missing.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        ["test"] => tasks::test(),
        ["lab", rest @ ..] => tasks::lab(rest),
        ["check"] => tasks::check(),
        ["fuzz"] => tasks::fuzz("5"),
        ["fuzz", seconds] if seconds.parse::<u32>().is_ok() => tasks::fuzz(seconds),
        ["peers", guest @ ..] if guest.len() < 2 => tasks::peers(guest),
        ["python"] => tasks::python(),
        ["xen", "--cores"] => xen::cores(),
        ["xen", "--bench"] => xen::bench(),
        ["xen", "--bochs", names @ ..] | ["xen", names @ ..] if names.iter().all(|name| !name.starts_with('-')) => {
            xen::task(arguments.get(1..).unwrap_or_default())
        }
        ["capi", rest @ ..] => tasks::capi(rest),
        ["kvm", "--bochs", names @ ..] | ["kvm", names @ ..] if names.iter().all(|name| !name.starts_with('-')) => {
            kvm::task(arguments.get(1..).unwrap_or_default())
        }
        ["virtualbox"] => tasks::virtualbox(),
        ["demo"] => tasks::demo(),
        ["help"] | [.., "--help" | "-h"] => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(missing) => {
            eprintln!("{missing}");
            ExitCode::from(3)
        }
    }
}
