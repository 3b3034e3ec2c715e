//! Xen: the driver with its control calls, and the checks that run in dom0 of a real Xen, which an emulator boots.

use crate::prerequisites;
use crate::step::{Steps, cargo, command};
use crate::tasks::{Outcome, target};
use crate::test_output::TestOutput;

/// The checks that run in Bochs unless others are named: those of what differs between processors. The others have passed in QEMU.
const BOCHS_CHECKS: &[&str] = &["lab::", "registers::", "events::", "breakpoints::", "views::"];

/// Which emulator boots Xen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Emulator {
    /// AMD's SVM with NPT, in less than a minute.
    Qemu,
    /// Intel's VMX with EPT, which traps on memory, single steps, breakpoints and views need.
    Bochs,
}

/// Lints and unit tests of what is built only with the feature `xen`.
fn build(steps: &mut Steps) -> bool {
    // The whole workspace is named, so that what the crates depend on keeps its features and is not built again.
    let arguments = ["clippy", "--workspace", "--features", "xen-checks/xen", "--all-targets", "--", "-D", "warnings"];
    steps.run("xen clippy", &mut cargo(&arguments));
    let arguments = ["test", "--package", "vmi-driver-xen", "--features", "xenctrl", "--no-fail-fast", "--", "--show-output"];
    steps.run_counted("xen unit", &mut cargo(&arguments), TestOutput::line, TestOutput::counts);
    steps.run("xen build", &mut cargo(&["build", "--release", "--package", "xen-checks", "--features", "xen"]))
}

/// Boots once and runs the checks whose names contain one of `names`; all, without any.
fn checks(steps: &mut Steps, emulator: Emulator, names: &[&str]) -> bool {
    let (name, word, domains) = match emulator {
        Emulator::Qemu => ("xen", "qemu", "pvh pv"),
        Emulator::Bochs => ("xen in Bochs", "bochs", "pvh"),
    };
    let mut run = command("bash", &["tests/lab/xen/run-in-dom0.sh"]);
    run.arg(target().join("release/xen-checks")).args(names).env("XEN_LAB_EMU", word).env("XEN_LAB_DOMUS", domains);
    steps.run_counted(name, &mut run, TestOutput::line, TestOutput::counts)
}

fn bochs(steps: &mut Steps, names: &[&str]) {
    if let Err(missing) = prerequisites::bochs() {
        return steps.skip("xen in Bochs", &missing);
    }
    checks(steps, Emulator::Bochs, if names.is_empty() { BOCHS_CHECKS } else { names });
}

/// The steps of the test command: what needs no Xen.
pub(crate) fn test(steps: &mut Steps) {
    if let Err(missing) = prerequisites::xen() {
        return steps.skip("xen", &missing);
    }
    build(steps);
    // Of the emulated boots, some end with a domain that does not start; in Bochs not all checks pass yet.
    steps.skip(
        "xen",
        "a domain of the emulated Xen does not start each time: cargo xtask xen boots it and runs the checks in dom0",
    );
    steps.skip("xen in Bochs", "single steps, accesses of memory, breakpoints and views are not proven: cargo xtask xen --bochs");
}

/// The checks in one emulator; those whose names contain one of `names`, or all.
pub(crate) fn task(arguments: &[&str]) -> Outcome {
    prerequisites::lab()?;
    prerequisites::rust()?;
    prerequisites::xen()?;
    let mut steps = Steps::new();
    let (options, names): (Vec<&str>, Vec<&str>) = arguments.iter().partition(|word| word.starts_with("--"));
    if build(&mut steps) {
        match options.as_slice() {
            [] => drop(checks(&mut steps, Emulator::Qemu, &names)),
            _ => bochs(&mut steps, &names),
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
    if build(&mut steps) {
        let mut run = command("bash", &["tests/lab/xen/run-in-dom0.sh"]);
        run.arg(target().join("release/xen-checks")).arg("--bench").env("XEN_LAB_DOMUS", "pvh pv");
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
