//! Guests that run under KVM, in a machine that an emulator boots: this one need not have KVM.

use std::path::PathBuf;
use std::process::Command;

use crate::prerequisites;
use crate::step::{Steps, command};
use crate::tasks::{Outcome, cache, features, live_command, tests_command};
use crate::test_output::TestOutput;
use crate::unchanged::Unchanged;

/// The sources of the test programs, and what the test command runs of them in QEMU: each part of the back end once.
const PROGRAMS: &[(&str, &[&str])] = &[
    ("tests/live/main.rs", &["own_smp_memfd", "hotplug", "killed_at_an_event", "powered_off"]),
    ("crates/vmi-os-windows/tests/live.rs", &["user_mode_with_shadow_tables"]),
];

/// The test of the first program that the test command runs in Bochs, and the checks of it that depend on the processor.
const BOCHS_TEST: &str = "qemu10_smp_private";
const BOCHS_CHECKS: &str = "registers,snapshot,breakpoint,address space,watchpoint,replies,company";

/// What these depend on that nothing else tests: the rest of the core works alike on every processor.
const BOCHS_SOURCES: &[&str] = &[
    "crates/vmi-driver-kvm",
    "crates/vmi-core/src/event.rs",
    "crates/vmi-core/src/event",
    "crates/vmi-arch-x86",
    "tests/live",
    "tests/lab/kvm",
    "tests/lab/actor.c",
    "tests/lab/guest.py",
    "tests/lab/live.py",
    "tests/lab/bochs-run.sh",
    "tests/lab/bochs.sh",
    "tests/lab/cpio.py",
];

/// Runs those tests of a test program whose names contain one of `names` where there is KVM.
fn under_kvm(program: PathBuf, names: &[&str], emulator: &str) -> Command {
    let mut run = command("bash", &["tests/lab/kvm/run-under-kvm.sh"]);
    run.arg(program).arg("--show-output").args(names).env("KVM_LAB_EMU", emulator).env("VMI_LAB_LIVE", "1");
    run
}

/// The test program that cargo makes of a source.
fn program(features: &str, source: &str) -> Option<PathBuf> {
    let output = tests_command(features, &["--test", "live", "--no-run", "--message-format=json"]).output().ok()?;
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let message = messages.lines().find(|line| line.contains(&format!("/{source}\"")) && line.contains("\"executable\":\""))?;
    let path = message.split("\"executable\":\"").nth(1)?.split('"').next()?;
    Some(path.into())
}

/// The tests in QEMU whose names contain one of `names`, or the choice of the test command.
fn qemu(steps: &mut Steps, features: &str, names: &[&str]) {
    for (source, chosen) in PROGRAMS {
        let name = format!("kvm: {source}");
        match program(features, source) {
            Some(program) => {
                let names = if names.is_empty() { chosen } else { names };
                steps.run_counted::<TestOutput>(&name, &mut under_kvm(program, names, "qemu"));
            }
            None => steps.fail(&name, "cargo tells of no such program"),
        }
    }
}

/// The tests in Bochs.
fn bochs(steps: &mut Steps, features: &str, names: &[&str]) {
    const NAME: &str = "kvm in Bochs";
    if let Err(missing) = prerequisites::boot_images() {
        return steps.skip(NAME, &missing);
    }
    let Some(program) = PROGRAMS.first().and_then(|(source, _)| program(features, source)) else {
        return steps.fail(NAME, "cargo tells of no such program");
    };
    if !names.is_empty() {
        steps.run_counted::<TestOutput>(NAME, &mut under_kvm(program, names, "bochs"));
        return;
    }
    let unchanged = unchanged();
    if steps.run_counted::<TestOutput>(NAME, under_kvm(program, &[BOCHS_TEST], "bochs").env("VMI_LIVE_CHECK", BOCHS_CHECKS)) {
        unchanged.passed();
    }
}

/// What the tests in Bochs depend on, and whether they passed.
fn unchanged() -> Unchanged {
    Unchanged::new(cache().join("kvm/passed-in-bochs"), BOCHS_SOURCES, "")
}

/// The steps of the test command: a choice in QEMU, and Bochs if something changed since it passed there.
pub(crate) fn test(steps: &mut Steps, features: &str) {
    qemu(steps, features, &[]);
    match unchanged().since_it_passed() {
        Some(same) => steps.skip("kvm in Bochs", &format!("{same}: cargo xtask kvm --bochs")),
        None => bochs(steps, features, &[]),
    }
}

/// The tests in one emulator.
pub(crate) fn task(arguments: &[&str]) -> Outcome {
    prerequisites::lab()?;
    let mut steps = Steps::new();
    if steps.run("live", &mut live_command()) {
        let features = features(&mut steps);
        // The examples too, which the tests start.
        steps.run("build tests", &mut tests_command(&features, &["--no-run"]));
        match arguments {
            ["--bochs", names @ ..] => bochs(&mut steps, &features, names),
            names => qemu(&mut steps, &features, names),
        }
    }
    Ok(steps.summary())
}
