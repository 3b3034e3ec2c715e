//! What each task does.

use std::num::NonZero;
use std::path::PathBuf;
use std::process::Command;

use crate::kvm;
use crate::prerequisites;
use crate::report::Counts;
use crate::step::{Steps, cargo, command, root};
use crate::test_output::TestOutput;
use crate::xen;

/// The guest whose image, made smaller, is the demo.
const DEMO_GUEST: &str = "x64-6.12-small";

/// The tests of domains that are opened through libvirt's library.
const LIBVIRT_DOMAINS: &str = "libvirt::library";

/// What a task came to: true if all passed, an error if a prerequisite is missing.
pub(crate) type Outcome = Result<bool, String>;

/// Where the lab keeps what it has fetched and made.
pub(crate) fn cache() -> PathBuf {
    let cache = std::env::var_os("VMI_LAB_CACHE").map(PathBuf::from);
    cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache/vmi-lab"))).unwrap_or_default()
}

/// The directory that has an image of each guest of the lab.
fn images() -> PathBuf {
    cache().join("images")
}

/// The directory that has Wine's PE files.
fn wine() -> PathBuf {
    cache().join("wine/usr/lib/x86_64-linux-gnu/wine/x86_64-windows")
}

/// Fetches Wine's PE files.
fn wine_command() -> Command {
    command("bash", &["tests/lab/wine.sh"])
}

/// The program of tests/lab/makedumpfile.sh.
fn makedumpfile() -> PathBuf {
    cache().join("makedumpfile/makedumpfile")
}

fn lab_command(arguments: &[&str]) -> Command {
    let mut command = command("python3", &["tests/lab/lab.py"]);
    command.args(arguments);
    command
}

/// Fetches what live guests are booted from.
pub(crate) fn live_command() -> Command {
    command("python3", &["tests/lab/live.py", "prepare"])
}

/// The features that the workspace's tests are built with, as far as what they need is here: what the others lack is skipped.
pub(crate) fn features(steps: &mut Steps) -> String {
    let mut features = vec!["vmi/download"];
    for (name, feature, found) in
        [("libvirt", "vmi/libvirt", prerequisites::libvirt()), ("xen", "xen-checks/xen", prerequisites::xen())]
    {
        match found {
            Ok(()) => features.push(feature),
            Err(missing) => steps.skip(name, &missing),
        }
    }
    features.join(",")
}

/// `cargo test` of the workspace. One build with every feature that can be built here makes most programs that steps run: each build more compiles most
/// things once more. The benchmarks have no tests, and half of all that others wrote is their peers.
pub(crate) fn tests_command(features: &str, arguments: &[&str]) -> Command {
    let tests = ["test", "--workspace", "--exclude", "vmi-bench", "--features", features];
    cargo(&[&tests[..], arguments].concat())
}

fn static_checks(steps: &mut Steps, features: &str) {
    steps.run("fmt", &mut cargo(&["fmt", "--all", "--check"]));
    steps.run("clippy", &mut cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]));
    let arguments = ["clippy", "--workspace", "--features", features, "--all-targets", "--", "-D", "warnings"];
    steps.run("clippy, features", &mut cargo(&arguments));
    steps.run("doc", cargo(&["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"));
    if prerequisites::present("cargo-deny") {
        steps.run("deny", &mut cargo(&["deny", "check", "--hide-inclusion-graph", "licenses", "bans", "sources"]));
    } else {
        steps.skip("deny", "cargo-deny is not installed");
    }
}

/// How many processors this machine has.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Each fuzz target for some seconds, by the program `vmi-fuzz`.
fn fuzz_targets(steps: &mut Steps, program: &mut Command, seconds: &str) {
    let jobs = processors().to_string();
    steps.run("fuzz", program.args(["all", "--seconds", seconds, "--jobs", &jobs]));
}

/// The Python module as a user installs it: a wheel in a fresh environment, on the demo, a live guest and a synthetic Windows machine.
/// `nt_machine` is the program of that name, which makes the last.
fn python_tests(steps: &mut Steps, nt_machine: &mut Command) {
    let check = "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))";
    if !command("python3", &["-c", check]).output().is_ok_and(|output| output.status.success()) {
        return steps.skip("python", "python3 of 3.11 or later with venv and ensurepip is missing");
    }
    let machine = target().join("nt-machine");
    if steps.run("nt-machine", nt_machine.args(["--build", "win10_x64_19041", "--typical", "--out"]).arg(&machine)) {
        let mut tests = command("python3", &["crates/vmi-python/tests/run.py"]);
        steps.run("python", tests.env("VMI_LAB_LIVE", "1").env("VMI_NT_MACHINE", &machine));
    }
}

/// The Python module alone.
pub(crate) fn python() -> Outcome {
    prerequisites::lab()?;
    let mut steps = Steps::new();
    steps.run("live", &mut live_command());
    let arguments = ["run", "--quiet", "--package", "nt-machine", "--bin", "nt-machine", "--"];
    python_tests(&mut steps, &mut cargo(&arguments));
    Ok(steps.summary())
}

/// The C library as a user installs it: its examples and tests by two compilers, under AddressSanitizer and valgrind. What is missing for that is skipped there.
fn capi_tests(steps: &mut Steps, arguments: &[&str]) {
    if let Err(missing) = prerequisites::capi() {
        println!("{missing}");
    }
    let mut tests = command("python3", &["-B", "crates/vmi-capi/tests/run.py"]);
    tests.args(arguments).env("VMI_LAB_LIVE", "1");
    // The Python module's tests made it.
    let machine = target().join("nt-machine");
    if machine.join("truth.json").exists() {
        tests.env("VMI_NT_MACHINE", &machine);
    }
    steps.run_counted::<Counts>("capi", &mut tests);
}

/// The C library alone.
pub(crate) fn capi(arguments: &[&str]) -> Outcome {
    prerequisites::lab()?;
    let mut steps = Steps::new();
    steps.run("live", &mut live_command());
    capi_tests(&mut steps, arguments);
    Ok(steps.summary())
}

/// Everything that a change must pass.
pub(crate) fn test() -> Outcome {
    prerequisites::lab()?;
    prerequisites::rust()?;
    let mut steps = Steps::new();
    steps.run_counted::<Counts>("lab", &mut lab_command(&[]));
    steps.run_counted::<Counts>("live", &mut live_command());
    let features = features(&mut steps);
    let compilers = prerequisites::compilers();
    steps.run("build tests", &mut tests_command(&features, &["--no-run"]));
    // Domains of libvirt are looked at by themselves: their test sees what any other guest's leaves on this host.
    let mut libvirt = tests_command(&features, &["--test", "live", "--", "--show-output", LIBVIRT_DOMAINS]);
    // One more at a time than there are processors: guests wait as much as they work.
    let threads = processors().saturating_add(1).to_string();
    let arguments = ["--no-fail-fast", "--", "--show-output", "--test-threads", &threads, "--skip", LIBVIRT_DOMAINS];
    let mut tests = tests_command(&features, &arguments);
    tests.env("VMI_LAB_IMAGES", images()).env("VMI_LAB_LIVE", "1").env("VMI_LAB_XEN_CORES", cache().join("xen/cores"));
    tests.env("VMI_LAB_VIRTUALBOX", cache().join("virtualbox/core"));
    if steps.run("wine", &mut wine_command()) {
        tests.env("VMI_WINE_PE", wine());
    }
    if steps.run("makedumpfile", &mut command("bash", &["tests/lab/makedumpfile.sh"])) {
        tests.env("VMI_MAKEDUMPFILE", makedumpfile());
    }
    if let Err(missing) = compilers {
        steps.skip("kernels compiled as PE files", &missing);
    }
    steps.run_counted::<TestOutput>("test", &mut tests);
    if features.contains("libvirt") {
        steps.run_counted::<TestOutput>("libvirt", libvirt.env("VMI_LAB_LIVE", "1"));
    }
    kvm::test(&mut steps, &features);
    // interleavings of the translation cache's readers and writers, of reading and unmapping in a window, and of the two sides of Xen's ring; in a directory of
    // its own, for its flags rebuild everything
    for (name, package, tests) in
        [("loom", "vmi-core", &["tlb", "mapping::readers"][..]), ("loom ring", "vmi-driver-xen", &["ring"])]
    {
        let arguments = ["test", "--package", package, "--lib", "--target-dir", "target/loom", "--"];
        let mut tests = cargo(&[&arguments[..], tests].concat());
        steps.run_counted::<TestOutput>(name, tests.env("RUSTFLAGS", "--cfg loom"));
    }
    python_tests(&mut steps, &mut command(built("nt-machine"), &[]));
    capi_tests(&mut steps, &[]);
    static_checks(&mut steps, &features);
    steps.run("demo", &mut cargo(&["run", "--example", "process-list"]));
    xen::test(&mut steps);
    fuzz_targets(&mut steps, &mut command(built("vmi-fuzz"), &[]), "5");
    Ok(steps.summary())
}

/// Make images of the lab's guests; for all of them, also fetch what live guests need.
pub(crate) fn lab(arguments: &[&str]) -> Outcome {
    if !arguments.iter().any(|argument| matches!(*argument, "--list" | "--help" | "-h")) {
        prerequisites::lab()?;
    }
    let mut good = lab_command(arguments).status().is_ok_and(|status| status.success());
    if arguments.is_empty() || arguments.contains(&"--all") {
        good &= live_command().status().is_ok_and(|status| status.success());
    }
    Ok(good)
}

/// Formatting, lints, documentation, dependencies.
pub(crate) fn check() -> Outcome {
    prerequisites::rust()?;
    let mut steps = Steps::new();
    let features = features(&mut steps);
    static_checks(&mut steps, &features);
    Ok(steps.summary())
}

/// Each fuzz target for some seconds.
pub(crate) fn fuzz(seconds: &str) -> Outcome {
    let mut steps = Steps::new();
    fuzz_targets(&mut steps, &mut cargo(&["run", "--package", "vmi-fuzz", "--release", "--"]), seconds);
    Ok(steps.summary())
}

/// Tools that others wrote, on the images that we write, with the symbol files that we write, and on synthetic Windows machines.
pub(crate) fn peers(what: &[&str]) -> Outcome {
    prerequisites::lab()?;
    let mut steps = Steps::new();
    let examples = |names: &[&str]| {
        let names = names.iter().flat_map(|name| ["--example", name]);
        cargo(&["build", "--release"].into_iter().chain(names).collect::<Vec<_>>())
    };
    match what {
        ["volatility"] => {
            if steps.run("examples", &mut examples(&["symbol-file"])) {
                steps.run("volatility", &mut command("python3", &["tests/peers/volatility.py"]));
            }
        }
        ["volatility-live" | "volatility-plugins"] => {
            // An environment with Volatility, the module and the package that brings the one to the other.
            let environment = target().join("volatility");
            let mut make = command("python3", &["crates/vmi-python/tests/run.py", "--release", "--only-environment", "--keep"]);
            if steps.run("live", &mut live_command()) && steps.run("environment", make.arg(&environment)) {
                let script = if what == ["volatility-live"] {
                    "tests/peers/volatility_live.py"
                } else {
                    "tests/peers/volatility_plugins.py"
                };
                let python = environment.join("venv/bin/python");
                steps.run("volatility", command("python3", &[script, "--python"]).arg(python));
            }
        }
        ["windows"] => {
            prerequisites::compilers()?;
            let ours = ["process-list", "module-list", "handle-list", "registry-list", "process-views"];
            if steps.run("examples", &mut examples(&ours))
                && steps.run("nt-machine", &mut cargo(&["build", "--package", "nt-machine"]))
            {
                let directory = target().join("release/examples");
                steps.run("windows", command("python3", &["tests/peers/windows.py", "--ours"]).arg(directory));
            }
        }
        guest => {
            if steps.run("examples", &mut examples(&["dump-memory"])) {
                steps.run("peers", command("python3", &["tests/peers/peers.py"]).args(guest));
            }
        }
    }
    Ok(steps.summary())
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A program of the workspace, as the build of the tests leaves it.
pub(crate) fn built(program: &str) -> PathBuf {
    target().join("debug").join(program)
}

/// Have VirtualBox write the core that the tests of image files read.
pub(crate) fn virtualbox() -> Outcome {
    prerequisites::lab()?;
    prerequisites::boot_images()?;
    let mut steps = Steps::new();
    steps.run("virtualbox", &mut command("bash", &["tests/lab/virtualbox/core.sh"]));
    Ok(steps.summary())
}

/// Boot the demo's guest anew and write `demo/`.
pub(crate) fn demo() -> Outcome {
    prerequisites::lab()?;
    let mut steps = Steps::new();
    if steps.run("boot", &mut lab_command(&["--force", DEMO_GUEST])) {
        let image = images().join(DEMO_GUEST);
        steps.run("shrink", command("python3", &["tests/lab/demo.py"]).arg(image).arg(root().join("demo")));
    }
    Ok(steps.summary())
}
