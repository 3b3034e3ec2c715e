#!/usr/bin/env python3
"""Volatility's Linux plugins on symbol files that `symbol-file` makes of a guest's own memory.

    volatility.py [--keep DIR] [--only PLUGIN,...] [GUEST...]    guests of the lab; x64-5.10, x64-6.1, x64-6.12 and x64-sid if none is named

For each guest: the file is made from memory.raw, all of Volatility's Linux plugins that need no further argument run with it, and what seven of
them say is compared with what the guest's own /proc said. If the lab's cache has a symbol file of the same kernel from its debug information
(`peers.py` makes one of it), the plugins run with that too, and all rows and structures are compared.

Prints a table. Exit code 1 if a comparison with /proc differs, or a plugin fails that works with the file from debug information.
Needs `cargo build --release --example symbol-file` and what `peers.py` needs.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

import agree
from peers import CACHE, HERE, PEERS, TARGET, environment, run

GUESTS = ["x64-5.10", "x64-6.1", "x64-6.12", "x64-sid"]


def plugins(python, symbols, cache, image, only):
    """What each plugin gives, as it comes: its name, its rows or the error that ended it, and the seconds it took."""
    cache.mkdir(parents=True, exist_ok=True)
    command = [python, HERE / "plugins.py", symbols, cache, image, *only]
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        for line in process.stdout:
            if line.startswith("{"):
                line = json.loads(line)
                yield line["plugin"], (line["rows"], line["error"]), line["seconds"]


class Truth:
    """What the guest's /proc said before its memory was written."""

    def __init__(self, directory):
        self.directory = directory

    def text(self, name):
        return (self.directory / name).read_bytes().decode("utf-8", "replace")

    def files(self, name):
        """A file of each process, as `tail` printed them."""
        parts = re.split(rf"(?:^|\n)==> /proc/(\d+)/{name} <==\n", self.text(f"tasks.{name}"))
        return {int(pid): text for pid, text in zip(parts[1::2], parts[2::2])}

    def processes(self, name="tasks.stat"):
        """Process, parent and name; threads are left out."""
        groups = {int(pid): int(group) for pid, group in re.findall(r"^/proc/(\d+)/status:Tgid:\t(\d+)", self.text("tasks.status"), re.MULTILINE)}
        rows = re.findall(r"^(\d+) \((.*)\) (\S) (\d+)", self.text(name), re.MULTILINE)
        # Volatility's list leaves out zombies.
        return {(int(pid), int(parent), own_name(comm)) for pid, comm, state, parent in rows if groups.get(int(pid)) == int(pid) and state != "Z"}


def own_name(name):
    """The name in the kernel: 15 characters at most, and without what /proc adds to those of kernel workers, which is what they do."""
    return (re.split("[-+]", name)[0] if re.match(r"kworker/[^R]", name) else name)[:15]


def differences(found, wanted):
    """Only what differs: first what is missing, then what should not be there."""
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    return "" if not missing and not extra else f"missing {missing[:3]} ({len(missing)}), too many {extra[:3]} ({len(extra)})"


def same_processes(truth, rows):
    # What is there before and after was there when the memory was written. The rest came or went.
    lasting = truth.processes() & truth.processes("tasks.stat.after")
    either = truth.processes() | truth.processes("tasks.stat.after")
    found = {(row["PID"], row["PPID"], row["COMM"]) for row in rows}
    return differences({row for row in found if row in lasting or row not in either}, lasting)


def same_arguments(truth, rows):
    pids = {row[0] for row in truth.processes()}
    wanted = {(pid, text.replace("\0", " ").strip()) for pid, text in truth.files("cmdline").items() if text.strip("\n") and pid in pids}
    found = {(row["PID"], row["ARGS"].strip()) for row in rows if row["PID"] in dict(wanted)}
    return differences(found, wanted)


def same_environment(truth, rows):
    pids = {row[0] for row in truth.processes()}
    wanted = {
        (pid, *word.split("=", 1))
        for pid, text in truth.files("environ").items()
        for word in text.strip("\n").split("\0")
        if "=" in word and pid in pids
    }
    return differences({(row["PID"], row["KEY"], row["VALUE"]) for row in rows}, wanted)


def same_maps(truth, rows):
    pids = {row[0] for row in truth.processes()}
    line = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (...)", re.MULTILINE)
    # What is above all user memory is no area of the process: the page of vsyscall.
    wanted = {
        (pid, int(start, 16), int(end, 16), rights)
        for pid, text in truth.files("maps").items()
        for start, end, rights in line.findall(text)
        if pid in pids and int(start, 16) < 1 << 63
    }
    return differences({(row["PID"], row["Start"], row["End"], row["Flags"]) for row in rows}, wanted)


def same_modules(truth, rows):
    wanted = {line.split()[0] for line in truth.text("modules").splitlines()}
    return differences({row["Module Name"] for row in rows}, wanted)


def same_files(truth, rows):
    pids = {row[0] for row in truth.processes()}
    link = re.compile(r" /proc/(\d+)/fd/(\d+) -> (.*)$", re.MULTILINE)
    wanted = {(int(pid), int(number), path) for pid, number, path in link.findall(truth.text("tasks.links")) if int(pid) in pids}
    # Sockets, pipes and the like have numbers for names, each tool in its own way.
    # For deleted files Volatility has no path.
    plain = lambda rows: {row for row in rows if row[2].startswith("/") and not row[2].endswith(" (deleted)")}
    found = {(row["PID"], row["FD"], row["Path"]) for row in rows if row["PID"] == row["TID"]}
    # The shell that took the list has descriptors of its own at that moment.
    taken_by = {pid for pid, number, path in wanted if path.startswith("/proc/")}
    keep = lambda rows: {row for row in plain(rows) if row[0] not in taken_by | {1}}
    return differences(keep(found), keep(wanted))


def same_sockets(truth, rows):
    """TCP sockets by their ends, and named sockets of the machine itself."""

    def end(text):
        address, port = text.split(":")
        return ".".join(str(byte) for byte in reversed(bytes.fromhex(address))), int(port, 16)

    lines = [line.split() for line in truth.text("tcp").splitlines()[1:]]
    # Those that nobody holds open (time-wait, and connections that are not accepted yet) have no descriptor.
    wanted = {end(line[1]) + end(line[2]) for line in lines if line[9] != "0"}
    wanted |= {(line.split()[7],) for line in truth.text("unix").splitlines()[1:] if len(line.split()) > 7}
    found = set()
    for row in rows:
        if row["Family"] == "AF_INET" and row["Proto"] == "TCP":
            found.add((row["Source Addr"], int(row["Source Port"]), row["Destination Addr"], int(row["Destination Port"])))
        elif row["Family"] == "AF_UNIX" and str(row["Source Addr"]).startswith("/"):
            found.add((row["Source Addr"],))
    return differences(found, wanted)


CHECKS = {
    "linux.pslist.PsList": same_processes,
    "linux.psaux.PsAux": same_arguments,
    "linux.envars.Envars": same_environment,
    "linux.proc.Maps": same_maps,
    "linux.lsmod.Lsmod": same_modules,
    "linux.lsof.Lsof": same_files,
    "linux.sockstat.Sockstat": same_sockets,
}


def verdict(truth, plugin, ours, reference):
    """One line about a plugin, and whether it counts as a failure."""
    rows, error = ours
    bad = False
    parts = [f"{len(rows)} rows" if rows is not None else f"fails: {error[:150]}"]
    bad |= rows is None and plugin in CHECKS
    if rows is not None and plugin in CHECKS:
        difference = CHECKS[plugin](truth, rows)
        parts.append(f"unlike /proc: {difference}" if difference else "as /proc")
        bad |= bool(difference)
    if reference:
        wanted, why = reference
        if wanted is None:
            parts.append("fails with debug information too" if rows is None else f"fails with debug information: {why[:100]}")
        elif rows is None:
            parts.append(f"{len(wanted)} rows with debug information")
            bad = True
        elif rows and not wanted:
            parts.append("none with debug information, where a type is missing")
        else:
            same = rows == wanted
            parts.append("the same with debug information" if same else f"unlike with debug information ({len(wanted)} rows)")
            bad |= not same
    return ", ".join(parts), bad


def guest(python, name, only, keep):
    images = CACHE / "images" / name
    image, truth = images / "memory.raw", Truth(images / "truth")
    release = truth.text("version").split()[2]
    reference_file = PEERS / "symbols/linux" / f"{release}.json.xz"
    failed = False
    print(f"# {name}: {release}", flush=True)
    with tempfile.TemporaryDirectory(dir=PEERS) as directory:
        directory = pathlib.Path(keep or directory) / name
        ours = directory / "symbols/linux/ours.json.xz"
        ours.parent.mkdir(parents=True, exist_ok=True)
        print(run(symbol_file(), "--quiet", "--force", "-o", ours, image), end="", flush=True)
        sides = [directory / "symbols"]
        if reference_file.exists():
            theirs = directory / "reference/linux/theirs.json.xz"
            theirs.parent.mkdir(parents=True, exist_ok=True)
            theirs.write_bytes(reference_file.read_bytes())
            sides.append(directory / "reference")
            lines, differ = agree.report(ours, theirs)
            print("\n".join(lines), flush=True)
            failed |= differ
        # Both run at the same time; each gives the same plugins in the same order.
        runs = [plugins(python, side, side / "cache", image, only) for side in sides]
        for results in zip(*runs, strict=True):
            plugin, result, _ = results[0]
            line, bad = verdict(truth, plugin, result, results[1][1] if len(results) > 1 else None)
            failed |= bad
            print(f"{'FAIL' if bad else 'ok  '} {plugin.removeprefix('linux.')}: {line}", flush=True)
    return failed


def symbol_file():
    builds = [TARGET / build / "examples/symbol-file" for build in ("release", "debug")]
    return next((build for build in builds if build.exists()), builds[0])


def main(arguments):
    only, keep, guests = [], None, []
    words = iter(arguments)
    for word in words:
        if word == "--only":
            only = next(words).split(",")
        elif word == "--keep":
            keep = next(words)
        else:
            guests.append(word)
    PEERS.mkdir(parents=True, exist_ok=True)
    python = environment()
    return 1 if any([guest(python, name, only, keep) for name in guests or GUESTS]) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
