//! Xen: the driver with its control calls, and the checks that run in dom0 of a real Xen, which an emulator boots.

use std::path::{Path, PathBuf};

use crate::prerequisites;
use crate::step::{Steps, cargo, command};
use crate::tasks::{Outcome, built, cache, target};
use crate::test_output::TestOutput;
use crate::unchanged::Unchanged;

/// The checks that run in Bochs unless others are named: those of what differs between processors.
const BOCHS_CHECKS: &[&str] = &[
    "registers::",
    "events::",
    "breakpoints::",
    "views::",
    "killed::",
    "smp::what_another_vcpu_could_pass_is_emulated",
    "windows::a_function_is_told_once_for_each_call",
];

/// The others.
const QEMU_CHECKS: &[&str] = &["lab::", "toolstack::", "memory::", "linux::", "windows::", "control::", "smp::"];

/// What the checks in Bochs depend on that nothing else tests: the rest of the core works alike on every processor.
const BOCHS_SOURCES: &[&str] = &[
    "crates/vmi-driver-xen",
    "crates/vmi-core/src/event.rs",
    "crates/vmi-core/src/event",
    "crates/vmi-arch-x86",
    "tests/xen",
    "tests/lab/xen",
    "tests/lab/bochs-run.sh",
    "tests/lab/bochs.sh",
    "tests/lab/cpio.py",
];

/// Which emulator boots Xen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Emulator {
    /// AMD's SVM with NPT, in less than a minute.
    Qemu,
    /// Intel's VMX with EPT, which traps on memory, single steps, breakpoints and views need.
    Bochs,
}

impl Emulator {
    /// Which Xen it boots if the caller does not say: not the same, so that the test command sees the oldest and the newest that are known.
    fn version(self) -> String {
        let default = match self {
            Self::Qemu => "4.17",
            Self::Bochs => "4.20",
        };
        std::env::var("XEN_LAB_VERSION").unwrap_or_else(|_| default.to_owned())
    }
}

/// The program that runs in dom0.
const PROGRAM: &str = "xen-checks";

/// Builds that program, as the build of the tests does.
fn build(steps: &mut Steps) -> Option<PathBuf> {
    let done = steps.run("xen build", &mut cargo(&["build", "--package", PROGRAM, "--features", "xen"]));
    done.then(|| built(PROGRAM))
}

/// The files of a synthetic NT machine, which a check starts as a domain; none where there is no compiler for it.
fn nt_machine(steps: &mut Steps) -> Option<String> {
    if let Err(missing) = prerequisites::compilers() {
        steps.skip("xen: the synthetic NT machine", &missing);
        return None;
    }
    let out = target().join("nt-machine-live");
    let arguments = ["run", "--quiet", "--package", "nt-machine", "--bin", "nt-machine-live", "--", "--out"];
    steps
        .run("xen: the synthetic NT machine", cargo(&arguments).arg(&out))
        .then(|| ["boot.elf", "truth.json", "ntkrnlmp.pdb"].map(|file| out.join(file).display().to_string()).join(" "))
}

/// Boots once and runs the checks of `program` whose names contain one of `names`; all, without any.
fn checks(steps: &mut Steps, program: &Path, emulator: Emulator, names: &[&str]) -> bool {
    let (name, word, default) = match emulator {
        Emulator::Qemu => ("xen", "qemu", "pvh pv"),
        Emulator::Bochs => ("xen in Bochs", "bochs", "pvh"),
    };
    let mut run = command("bash", &["tests/lab/xen/run-in-dom0.sh"]);
    // Minutes where nothing else runs; who is as busy as a machine can be gets its result all the same.
    run.env("XEN_LAB_CMD_TIMEOUT", "1200").env("XEN_LAB_TIMEOUT", "1800");
    // Room for the program, and for a core of a domain, with which its memory is compared.
    run.env("XEN_LAB_DOM0_MEMORY", "768").arg(program).args(names).env("XEN_LAB_EMU", word);
    run.env("XEN_LAB_DOMUS", std::env::var("XEN_LAB_DOMUS").unwrap_or_else(|_| default.to_owned()));
    run.env("XEN_LAB_VERSION", emulator.version());
    let all = emulator == Emulator::Qemu && names.iter().all(|name| name.starts_with("--"));
    if (all || names.iter().any(|name| name.starts_with("windows")))
        && let Some(files) = nt_machine(steps)
    {
        run.env("XEN_LAB_DEVICE_MODEL", "1").env("XEN_LAB_FILES", files);
    }
    steps.run_counted::<TestOutput>(name, &mut run)
}

/// The checks that Bochs is for, or those of `names`. That the former passed is noted.
fn bochs(steps: &mut Steps, program: &Path, names: &[&str]) {
    if let Err(missing) = prerequisites::boot_images() {
        return steps.skip("xen in Bochs", &missing);
    }
    if !names.is_empty() {
        checks(steps, program, Emulator::Bochs, names);
        return;
    }
    let unchanged = unchanged();
    println!("\nnot in Bochs, as they have passed in QEMU: {}", QEMU_CHECKS.join(" "));
    if checks(steps, program, Emulator::Bochs, &[&["--brief"], BOCHS_CHECKS].concat()) {
        unchanged.passed();
    }
}

/// What the checks in Bochs depend on, and whether they passed.
fn unchanged() -> Unchanged {
    Unchanged::new(cache().join("xen/passed-in-bochs"), BOCHS_SOURCES, &Emulator::Bochs.version())
}

/// The steps of the test command: all that does not take long in QEMU, and Bochs if something changed since all passed there. The build of the tests has made
/// the program.
pub(crate) fn test(steps: &mut Steps) {
    if let Err(missing) = prerequisites::xen() {
        return steps.skip("xen", &missing);
    }
    let program = built(PROGRAM);
    checks(steps, &program, Emulator::Qemu, &["--brief"]);
    if let Some(same) = unchanged().since_it_passed() {
        return steps.skip("xen in Bochs", &format!("{same}: cargo xtask xen --bochs"));
    }
    bochs(steps, &program, &[]);
}

/// The checks in one emulator; those whose names contain one of `names`, or all.
pub(crate) fn task(arguments: &[&str]) -> Outcome {
    prerequisites::lab()?;
    prerequisites::rust()?;
    prerequisites::xen()?;
    let mut steps = Steps::new();
    let (options, names): (Vec<&str>, Vec<&str>) = arguments.iter().partition(|word| word.starts_with("--"));
    if let Some(program) = build(&mut steps) {
        match options.as_slice() {
            [] => drop(checks(&mut steps, &program, Emulator::Qemu, &names)),
            _ => bochs(&mut steps, &program, &names),
        }
    }
    Ok(steps.summary())
}

/// What reads and events cost beside what is written by hand: in dom0 of the emulated machine, and reads on this processor, where another domain's memory is a file's.
pub(crate) fn bench() -> Outcome {
    prerequisites::lab()?;
    prerequisites::rust()?;
    prerequisites::xen()?;
    let mut steps = Steps::new();
    let arguments = ["build", "--release", "--package", PROGRAM, "--features", "xen"];
    if steps.run("xen build", &mut cargo(&arguments)) {
        let mut run = command("bash", &["tests/lab/xen/run-in-dom0.sh"]);
        run.arg(target().join("release").join(PROGRAM)).arg("--bench").env("XEN_LAB_DOMUS", "pvh pv");
        steps.run("xen bench", &mut run);
    }
    steps.run("window bench", &mut cargo(&["bench", "--package", "vmi-core", "--bench", "window"]));
    Ok(steps.summary())
}

/// Have Xen's tools write the cores that the tests of image files read.
pub(crate) fn cores() -> Outcome {
    prerequisites::lab()?;
    let mut steps = Steps::new();
    steps.run("xen cores", &mut command("bash", &["tests/lab/xen/cores.sh"]));
    Ok(steps.summary())
}
