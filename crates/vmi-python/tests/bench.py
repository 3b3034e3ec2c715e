#!/usr/bin/env python3
"""What a call from Python costs: the same work in Python and in Rust, side by side, the best of many rounds.

    bench.py IMAGE [--vol VOL --symbols DIRECTORY]

Run it with the Python that has the package `vmi` installed, built with --release. With --vol (Volatility 3's program) and a directory of
its symbol files, the wall time of linux.pslist on the image is compared with a program of ours that does the same.
"""
import argparse
import json
import subprocess
import sys
import tempfile
import time
import timeit
from pathlib import Path

import vmi

CRATE = Path(__file__).resolve().parents[1]
PSLIST = """
import sys, vmi
with vmi.open(sys.argv[1]) as machine:
    for process in machine.attach().processes():
        print(process.pid, process.parent_pid, process.name, hex(process.object), process.uid, process.started)
"""


def best(rounds, calls, work):
    """Nanoseconds of one call."""
    return min(timeit.repeat(work, repeat=rounds, number=calls)) / calls * 1e9


def wall(command, times):
    """Seconds of the fastest run."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        took.append(time.perf_counter() - began)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: {done.stderr}")
    return min(took), len(done.stdout.splitlines())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("--vol")
    parser.add_argument("--symbols", action="append", default=[])
    given = parser.parse_args()

    cargo = ["cargo", "run", "--quiet", "--release", "-p", "vmi-python", "--example", "same_in_rust", "--", str(Path(given.image).resolve())]
    rust = json.loads(subprocess.run(cargo, cwd=CRATE, capture_output=True, text=True, check=True).stdout)

    with vmi.open(given.image) as machine:
        guest, at = machine.attach(), 0x200000
        memory, buffer = machine.memory, bytearray(4096)
        python = {
            "read_4k": best(50, 2000, lambda: machine.read(at, 4096)),
            "read_into_4k": best(50, 2000, lambda: machine.read_into(at, buffer)),
            "read_u64": best(50, 2000, lambda: memory.read_u64(at)),
            "processes": best(30, 5, lambda: sum(1 for _ in guest.processes())),
        }
        task = guest.struct("task_struct", "init_task")
        member = best(50, 1000, lambda: task.pid)
        empty = best(50, 20000, lambda: None)
    print(f"{'':14} {'Python':>12} {'Rust':>12} {'more':>12} {'ratio':>7}")
    for name, ours in python.items():
        print(f"{name:14} {ours:9.0f} ns {rust[name]:9.0f} ns {ours - rust[name]:9.0f} ns {ours / rust[name]:7.2f}")
    print(f"{'task.pid':14} {member:9.0f} ns   (a Python call that does nothing: {empty:.0f} ns, contained in all of these)")

    if given.vol:
        with tempfile.NamedTemporaryFile("w", suffix=".py") as program:
            program.write(PSLIST)
            program.flush()
            ours, rows = wall([sys.executable, program.name, given.image], 3)
        symbols = [f"--symbol-dirs={directory}" for directory in given.symbols]
        theirs, lines = wall([given.vol, "-q", *symbols, "-f", given.image, "linux.pslist"], 3)
        print(f"process list, wall: ours {ours:.2f} s ({rows} rows), volatility3 {theirs:.2f} s ({lines} lines): {theirs / ours:.1f} times as long")


if __name__ == "__main__":
    main()
