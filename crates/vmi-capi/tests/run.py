#!/usr/bin/env python3
"""Installs the C library into a scratch prefix and tests what a user of C gets there.

    run.py [--profile PROFILE] [--keep DIRECTORY] [--steps N] [--seed N] [--only WORD] [--instrumented] [--bench]

Examples and tests are built by gcc and clang from the installed pkg-config file, with warnings as errors, and run as they are, under AddressSanitizer and under valgrind: on the
demo image, where VMI_NT_MACHINE names a machine of nt-machine on that, and where VMI_LAB_LIVE=1 on a live guest. What is missing is skipped. --steps is for the random test (each of its runs), whose seed is new each time and printed.
With --instrumented the library is built once more, with its Rust code under AddressSanitizer too, in a target directory of its own (minutes the first time); all that
else is run under AddressSanitizer is run on that as well. The last line counts. Exit code: 0 if nothing failed.
"""
import argparse
import contextlib
import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import install

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
DEMO = ROOT / "demo/debian-6.12.raw.zst"
EXAMPLES = ["process-list", "process-views", "dump-memory", "break-on", "register-trace"]
TESTS = ["api", "random", "live", "bench", "overrun"]
WARNINGS = ["-std=c11", "-D_DEFAULT_SOURCE", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
BOTH_SIDES = "AddressSanitizer on both sides"
TARGET = "x86_64-unknown-linux-gnu"
FUNCTION = "__x64_sys_personality"  # called by nobody in the guest but its program actor
SECONDS = 900


class Failed(Exception):
    """A check that did not hold."""


class Skipped(Exception):
    """What is missing here."""


unasked = False  # whether the check at hand is not asked for


class Report:
    def __init__(self, only):
        self.only, self.passed, self.failed, self.skipped = only, 0, 0, 0

    @contextlib.contextmanager
    def check(self, name, always=False):
        """Counts what is done inside. The first program of a check that is not asked for ends it."""
        global unasked
        began = time.monotonic()
        unasked = bool(self.only) and self.only not in name and not always
        try:
            yield
        except Skipped as why:
            if not unasked:
                self.skipped += 1
                print(f"skipped: {name}: {why}", flush=True)
        except (Failed, subprocess.TimeoutExpired, OSError) as why:
            self.failed += 1
            print(f"FAILED: {name}: {why}", flush=True)
        else:
            self.passed += 1
            print(f"passed: {name} ({time.monotonic() - began:.1f} s)", flush=True)
        finally:
            unasked = False


def ask():
    """Ends a check that is not asked for."""
    if unasked:
        raise Skipped("not asked for")


def run(command, env=None, good=(0,), **more):
    ask()
    done = subprocess.run([str(part) for part in command], capture_output=True, timeout=SECONDS, env={**os.environ, **(env or {})}, **more)
    if done.returncode not in good:
        said = (done.stdout[-2000:] + done.stderr[-6000:]).decode(errors="replace")
        raise Failed(f"{' '.join(str(part) for part in command)}: exit code {done.returncode}\n{said}")
    return done


def require(program, package):
    ask()
    if not shutil.which(program):
        raise Skipped(f"{program} is missing: apt-get install {package}")


class Build:
    """The installed library, and programs built with it."""

    def __init__(self, where, libdir, instrumented=False):
        self.where, self.libdir, self.instrumented = where, libdir, instrumented
        self.env = {"PKG_CONFIG_PATH": str(libdir / "pkgconfig"), "LD_LIBRARY_PATH": str(libdir)}

    def flags(self, *options):
        return run(["pkg-config", *options, "vmi-capi"], self.env).stdout.decode().split()

    def program(self, compiler, name, source, extra=(), static=False):
        output = self.where / f"{name}.{compiler}{'.asan' if extra else ''}{'.static' if static else ''}"
        if static:
            private = [flag for flag in self.flags("--libs", "--static") if flag != "-lvmi_capi"]
            libraries = [self.libdir / "libvmi_capi.a", *private]
        else:
            libraries = self.flags("--libs")
        run([compiler, *WARNINGS, *extra, *self.flags("--cflags"), source, "-o", output, *libraries])
        return output


def tools(build, live=False):
    """How a program is run to find out what it does wrong: name, compiler, build flags, command before it, environment."""
    if build.instrumented:
        return {name: tool for name, tool in all_tools(build, live).items() if name in (BOTH_SIDES, f"{BOTH_SIDES} (gcc)")}
    return {name: tool for name, tool in all_tools(build, live).items() if BOTH_SIDES not in name}


def all_tools(build, live):
    asan = {"ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0:exitcode=99", "UBSAN_OPTIONS": "print_stacktrace=1"}
    # What is "possibly lost" is referred to by a pointer into its middle, as a hash table of Rust refers to its memory: no report.
    kinds = "definite,indirect"
    # On a live guest AddressSanitizer alone looks for leaks: valgrind does so in the process that guards a stopped guest too, word by word through memory which that does not
    # have (MADV_DONTFORK), for minutes.
    leaks = ["--leak-check=no"] if live else ["--leak-check=full", f"--errors-for-leak-kinds={kinds}", f"--show-leak-kinds={kinds}"]
    valgrind = ["valgrind", "--quiet", "--error-exitcode=99", "--fair-sched=yes", *leaks]
    return {
        "plain": ("gcc", [], [], build.env),
        "AddressSanitizer": ("clang", SANITIZE, [], {**build.env, **asan}),
        "valgrind": ("gcc", [], valgrind, build.env),
        BOTH_SIDES: ("clang", SANITIZE, [], {**build.env, **asan}),
        f"{BOTH_SIDES} (gcc)": ("gcc", SANITIZE, [], {**build.env, **asan}),
    }


def programs(report, build):
    """Everything, by both compilers; the paths of what the tools need."""
    built = {}
    for compiler in ["gcc", "clang"]:
        for name in EXAMPLES + TESTS:
            source = ROOT / f"examples/c/{name}.c" if name in EXAMPLES else HERE / f"c/{name}.c"
            # A program without the runtime cannot be linked with a library that is instrumented.
            if not build.instrumented:
                with report.check(f"{name}.c built by {compiler}"):
                    require(compiler, compiler)
                    built[compiler, name, False] = build.program(compiler, name, source)
            with report.check(f"{name}.c built by {compiler} with {BOTH_SIDES if build.instrumented else 'AddressSanitizer'}"):
                require(compiler, compiler)
                try:
                    built[compiler, name, True] = build.program(compiler, name, source, SANITIZE)
                except Failed as failed:
                    if "libclang_rt" in str(failed) or "cannot find -lasan" in str(failed) or "libasan_preinit" in str(failed):
                        raise Skipped(f"{compiler} has no AddressSanitizer: apt-get install libclang-rt-dev libasan8") from None
                    raise
    return built


def runner(build, built, tool, live=False):
    if build.instrumented and tool == "plain":
        # A program without the runtime cannot load this library.
        tool = BOTH_SIDES
    compiler, extra, before, env = all_tools(build, live)[tool]

    def call(name, *arguments, good=(0,), **more):
        if before:
            require(before[0], before[0])
        path = built.get((compiler, name, bool(extra))) or (built.get(("gcc", name, bool(extra))) if extra else None)
        if not path:
            raise Skipped("it was not built")
        done = run([*before, path, *arguments], env, good, **more)
        if report := re.search(rb"^==\d+==.*$|ERROR: \w+Sanitizer|runtime error:", done.stderr, flags=re.M):
            raise Failed(f"{tool} reports: {done.stderr[report.start():][:4000].decode(errors='replace')}")
        return done

    return call


def names(report, build):
    with report.check("the shared library's soname and exported names"):
        require("nm", "binutils")
        library = build.libdir / "libvmi_capi.so"
        said = run(["readelf", "--dynamic", library]).stdout.decode()
        soname = re.search(r"Library soname: \[(.*)\]", said)
        if not soname or not (build.libdir / soname[1]).exists() or soname[1] == "libvmi_capi.so":
            raise Failed(f"soname: {soname and soname[1]}")
        exported = {line.split()[-1].split("@")[0] for line in run(["nm", "--dynamic", "--defined-only", library]).stdout.decode().splitlines()}
        header = (build.libdir.parent / "include/vmi.h").read_text()
        declared = set(re.findall(r"\b(vmi_\w+)\(", re.sub(r"/\*.*?\*/", "", header, flags=re.S))) - set(re.findall(r"\(\*(vmi_\w+)\)", header))
        if exported != declared:
            raise Failed(f"exported but not declared {exported - declared}, declared but not exported {declared - exported}")


def alone(report, build):
    """The header by itself, as C and as C++."""
    for compiler, language, standard in [("gcc", "c", "c99"), ("clang", "c", "c17"), ("g++", "c++", "c++11"), ("clang++", "c++", "c++17")]:
        with report.check(f"vmi.h by {compiler} as {standard}"):
            require(compiler, compiler)
            run([compiler, "-x", language, f"-std={standard}", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", *build.flags("--cflags"),
                 "-include", "vmi.h", "/dev/null"])


def truth():
    with open(ROOT / "demo/processes.tsv", newline="") as file:
        return [(int(row["pid"]), int(row["parent"]), int(row["uid"]), row["state"], row["comm"]) for row in csv.DictReader(file, delimiter="\t")]


def listed(output):
    """The rows of process-list."""
    rows = []
    for line in output.decode().splitlines():
        pid, parent, uid, state, rest = line.split(None, 4)
        rows.append((int(pid), -1 if parent == "-" else int(parent), int(uid), state, rest))
    return rows


def equal_processes(rows, expected):
    """Both lists, names compared as far as the list has them (arguments follow)."""
    rows = {row[0]: row for row in rows if row[0]}
    expected = {row[0]: row for row in expected if row[0]}
    if rows.keys() != expected.keys():
        raise Failed(f"processes {sorted(rows.keys() ^ expected.keys())} are on one side only")
    for pid, row in expected.items():
        if rows[pid][:4] != row[:4] or not rows[pid][4].startswith(row[4]):
            raise Failed(f"{rows[pid]} and not {row}")


def demo(report, build, built, steps, seed):
    """On the demo image."""
    image = build.where / "demo.raw"
    for tool in tools(build):
        call = runner(build, built, tool)
        with report.check(f"process-list on the demo image: {tool}"):
            equal_processes(listed(call("process-list", DEMO).stdout), truth())
        with report.check(f"process-views on the demo image, in which nothing hides: {tool}"):
            if said := call("process-views", DEMO).stdout:
                raise Failed(said)
        with report.check(f"dump-memory on the demo image: {tool}"):
            require("zstd", "zstd")
            written = build.where / f"{tool}.raw"
            call("dump-memory", DEMO, written, "raw")
            if not image.exists():
                run(["zstd", "-q", "-d", DEMO, "-o", image])
            run(["cmp", written, image])
            written.unlink()
        with report.check(f"break-on on the demo image, which cannot: {tool}"):
            said = call("break-on", DEMO, "do_exit", good=(1,)).stderr.decode()
            if "does not support breakpoints" not in said:
                raise Failed(said)
        with report.check(f"api on the demo image: {tool}"):
            call("api", DEMO, "Linux version 6.12.")
        for threads in [1, 4]:
            with report.check(f"random calls, {threads} threads, seed {seed}: {tool}"):
                number = max(1, steps // (100 if tool == "valgrind" else 1) // threads)
                print(call("random", DEMO, seed, number, threads).stdout.decode().splitlines()[0])


def windows(report, build, built):
    """Synthetic NT layout: a machine that `nt-machine --out DIRECTORY` wrote, where VMI_NT_MACHINE names the directory."""
    for tool in tools(build):
        call = runner(build, built, tool)
        with report.check(f"process-list on a synthetic Windows machine: {tool}"):
            said, target = nt_machine()
            names = {process["pid"]: process["name"][:14] for process in said}
            output = call("process-list", *target, good=(0, 1)).stdout.decode()
            rows = [line.split(None, 4) for line in output.splitlines()]
            wrong = [row for row in rows if not row[4].startswith(names.get(int(row[0]), "no such process"))]
            if wrong or len(rows) < 3:
                raise Failed(f"{wrong} of {len(rows)} rows")
        with report.check(f"process-views on a synthetic Windows machine: {tool}"):
            said, target = nt_machine()
            hidden = [[str(process["pid"]), process["name"]] for process in said if not process["linked"] and not process["exit_time"]]
            output = call("process-views", *target, good=(3,)).stdout.decode()
            rows = [line.split()[:3] for line in output.splitlines()]
            if not hidden or rows != [[*row, "-list"] for row in hidden]:
                raise Failed(f"{rows} and not {hidden}")


def nt_machine():
    """The processes that were placed in the synthetic machine, and the arguments by which it is opened."""
    if "VMI_NT_MACHINE" not in os.environ:
        raise Skipped("VMI_NT_MACHINE names no directory of nt-machine")
    where = Path(os.environ["VMI_NT_MACHINE"])
    said = json.loads((where / "truth.json").read_text())["processes"]
    return said, (where / "memory.raw", where / "symbols/windows")


def static(report, build):
    with report.check("process-list linked with the static library"):
        require("gcc", "gcc")
        path = build.program("gcc", "process-list", ROOT / "examples/c/process-list.c", static=True)
        if b"libvmi_capi" in run(["ldd", path]).stdout:
            raise Failed("it still needs the shared library")
        equal_processes(listed(run([path, DEMO]).stdout), truth())


class Shell:
    """The shell of process 1 of a guest of tests/lab."""

    def __init__(self, path):
        self.lock = threading.Lock()
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.socket.settimeout(120)

    def __call__(self, line):
        with self.lock:
            mark = f"@@{time.monotonic_ns():x}"
            self.socket.sendall(f"{line}\necho; echo '{mark}'\n".encode())
            got = b""
            while not got.endswith(f"\n{mark}\n".encode()):
                block = self.socket.recv(1 << 16)
                if not block:
                    raise Failed("the guest ended")
                got += block
            return got[: -len(mark) - 2].decode().rstrip("\n")


@contextlib.contextmanager
def again_and_again(shell, line):
    """Has the guest run a line over and over meanwhile."""
    over = threading.Event()

    def loop():
        while not over.is_set():
            shell(line)
            time.sleep(0.05)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(150)


@contextlib.contextmanager
def guest():
    """A live guest: what tests/lab says of it, and its shell."""
    ask()
    if os.environ.get("VMI_LAB_LIVE") != "1":
        raise Skipped("live guests are booted where VMI_LAB_LIVE=1")
    server = subprocess.Popen(["python3", "-B", ROOT / "tests/lab/live.py", "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        facts = json.loads(server.stdout.readline() or '{"skipped": "live.py failed"}')
        if "skipped" in facts:
            raise Skipped(facts["skipped"])
        yield facts, Shell(facts["cmd"])
    finally:
        server.stdin.close()
        server.wait(60)


def proc(shell):
    """The processes as the guest's own /proc has them: id and name."""
    said = shell("for d in /proc/[0-9]*; do echo ${d#/proc/} $(sed -n 's/^Name:.//p' $d/status); done")
    return {int(pid): name for pid, _, name in (line.partition(" ") for line in said.splitlines())}


def live(report, build, built):
    with contextlib.ExitStack() as stack:
        with report.check("a live guest", always=True):
            facts, shell = stack.enter_context(guest())
        if "facts" not in locals():
            return
        target, pid = f"qemu:{facts['qmp']}", facts["actor"]["pid"]
        for tool in tools(build):
            call = runner(build, built, tool, live=True)
            with report.check(f"process-list on a live guest: {tool}"):
                rows = {row[0]: row[4] for row in listed(call("process-list", target).stdout) if row[0]}
                said = proc(shell)
                # /proc adds to the names of kernel threads what they work on; a few workers come and go.
                wrong = [pid for pid, name in rows.items() if pid in said and not (said[pid].startswith(name.split()[0]) or name.startswith(said[pid]))]
                if wrong or not {1, 2, pid} <= set(rows) or len(set(rows) ^ set(said)) > 4:
                    raise Failed(f"{wrong}, {sorted(set(rows) ^ set(said))}")
            with report.check(f"dump-memory on a live guest: {tool}"):
                image = build.where / f"{tool}.elf"
                call("dump-memory", "--snapshot", target, image, "elf")
                rows = listed(runner(build, built, "plain")("process-list", image).stdout)
                if pid not in {row[0] for row in rows}:
                    raise Failed("the image does not have the process")
                image.unlink()
            with report.check(f"break-on on a live guest: {tool}"), again_and_again(shell, "actor call personality 5"):
                lines = call("break-on", target, FUNCTION, 7, 60).stdout.decode().splitlines()
                if len(lines) != 7 or not all(" actor " in line for line in lines):
                    raise Failed("\n".join(lines))
            with report.check(f"register-trace on a live guest, whose back end cannot: {tool}"):
                for register, what in [("cr3", "control-register"), ("0xc0000082", "model-specific")]:
                    said = call("register-trace", target, register, good=(1,)).stderr.decode()
                    if "does not support" not in said or what not in said:
                        raise Failed(said)
            with report.check(f"live on a live guest: {tool}"):
                with again_and_again(shell, "actor call personality 5"):
                    call("live", target, pid, hex(0x40000000), FUNCTION)  # PAGE of tests/lab/actor.c
                time.sleep(0.3)
                if "inbox 4660" not in shell("actor report"):
                    raise Failed("the process did not read what was written")


def wild(report, build, built, seed):
    """Random calls on a live guest, which they may kill at any time."""
    for threads in [1, 4]:
        with report.check(f"random calls on a live guest, {threads} threads, seed {seed}: {BOTH_SIDES if build.instrumented else 'AddressSanitizer'}"), guest() as (facts, _):
            call = runner(build, built, BOTH_SIDES if build.instrumented else "AddressSanitizer")
            print(call("random", f"qemu:{facts['qmp']}", seed, 4000 // threads, threads).stdout.decode().splitlines()[0])


def instrumented(report, every, where, profile, steps, seed):
    """Everything that AddressSanitizer looks at, with the library's own Rust code instrumented. The program brings the one runtime: a shared library of Rust has none."""
    build = None
    with report.check(f"install: {BOTH_SIDES}", always=True):
        target = run(["cargo", "metadata", "--no-deps", "--format-version", "1"], cwd=ROOT).stdout
        # RUSTC_BOOTSTRAP: a stable compiler takes the flag then, and has a standard library that goes with it.
        settings = {
            "RUSTC_BOOTSTRAP": "1",
            "RUSTFLAGS": "-Zsanitizer=address",
            "CARGO_TARGET_DIR": str(Path(json.loads(target)["target_directory"]) / "asan"),
        }
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        try:
            libdir = install.install(where / "instrumented", profile=profile, target=TARGET)
        except subprocess.CalledProcessError as failed:
            raise Skipped(f"the library cannot be built with AddressSanitizer: {failed}") from None
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
        needed = run(["nm", "--dynamic", "--undefined-only", libdir / "libvmi_capi.so"]).stdout
        if b"__asan_report_store16" not in needed:
            raise Failed("the library is not instrumented")
        where = where / "programs"
        where.mkdir(exist_ok=True)
        build = Build(where, libdir, instrumented=True)
    if not build:
        return
    built = programs(every, build)
    overrun(report, build, built)
    demo(report, build, built, steps, seed)
    windows(report, build, built)
    live(report, build, built)
    wild(report, build, built, seed)


def overrun(report, build, built):
    """That AddressSanitizer sees what Rust code does: a buffer that is shorter than the program says must be reported, by the library's own code."""
    for compiler in ["clang", "gcc"]:
        with report.check(f"a buffer that is too short is reported, built by {compiler}: {BOTH_SIDES}"):
            path = built.get((compiler, "overrun", True))
            if not path:
                raise Skipped("it was not built")
            said = run([path, DEMO], {**build.env, "ASAN_OPTIONS": "exitcode=99:symbolize=0"}, good=(99,)).stderr.decode()
            if "heap-buffer-overflow" not in said or not re.search(r"#[01] \S+ +\(\S*libvmi_capi\.so", said):
                raise Failed(said[:3000])


def bench(report, build, built):
    """What a call from C costs over the same in Rust. Only with optimisation."""
    with report.check("a read from C against one in Rust"):
        c = runner(build, built, "plain")("bench", DEMO).stdout.decode()
        command = ["cargo", "run", "--quiet", "--release", "--package", "vmi-capi", "--example", "bench_in_rust", "--", DEMO]
        rust = run(command, cwd=ROOT).stdout.decode()
        numbers = lambda text: {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if line.startswith(("page", "word"))}
        c, rust = numbers(c), numbers(rust)
        for what in c:
            print(f"{what}: {c[what]:.0f} ns from C, {rust[what]:.0f} ns in Rust")
        if c["word"] - rust["word"] > 1000:
            raise Failed("a call takes more than 1 us")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="test", help="cargo's profile; `test` is that of the workspace's tests")
    parser.add_argument("--keep", type=Path, help="use and keep this directory")
    parser.add_argument("--steps", type=int, default=100000)
    parser.add_argument("--seed", type=int, default=time.time_ns() & 0xFFFFFFFF)
    parser.add_argument("--only", help="only what has this in its name (and what builds it)")
    parser.add_argument("--instrumented", action="store_true", help="with the library's own code under AddressSanitizer too")
    parser.add_argument("--bench", action="store_true", help="the benchmark too: builds with optimisation")
    given = parser.parse_args()
    report, every = Report(given.only), Report(None)
    with tempfile.TemporaryDirectory() as scratch:
        where = given.keep or Path(scratch)
        where.mkdir(parents=True, exist_ok=True)
        with every.check("install"):
            require("pkg-config", "pkgconf")
            try:
                libdir = install.install(where / "prefix", profile="release" if given.bench else given.profile)
            except subprocess.CalledProcessError as failed:
                raise Failed(str(failed)) from None
        if every.passed:
            build = Build(where, libdir)
            names(report, build)
            alone(report, build)
            built = programs(every, build)
            static(report, build)
            demo(report, build, built, given.steps, given.seed)
            windows(report, build, built)
            live(report, build, built)
            wild(report, build, built, given.seed)
            if given.instrumented:
                instrumented(report, every, where, given.profile, given.steps, given.seed)
            if given.bench:
                bench(report, build, built)
    passed, failed, skipped = (getattr(report, name) + getattr(every, name) for name in ("passed", "failed", "skipped"))
    print(f"capi: {passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
