#!/usr/bin/env python3
"""What a call from Python costs: the same work in Python and in Rust, side by side, the best of many rounds.

    bench.py IMAGE [--vol VOL] [--rounds N]

Run it with the Python that has the package `vmi` installed, built with --release. With --vol, the program of Volatility 3 in an environment with
vmi-volatility3 (`run.py --release --keep DIR` leaves one in DIR/venv), linux.pslist is run on a raw image through Volatility's own file layer and through
ours, in turns, with the same symbol file, and beside them a program of ours that lists the same.
"""
import argparse
import json
import os
import resource
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


def run(command, environment):
    """Seconds of the clock and of the processors that a run took, and the lines it printed."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr}")
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, busy, [line for line in done.stdout.splitlines() if "0x" in line]


def process_lists(vol, image, rounds):
    """The same list in three ways, each as a program of its own, in turns: what is busy beside this hits all of them."""
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch, "pslist.py")
        program.write_text(PSLIST)
        environment = {**os.environ, "XDG_CACHE_HOME": scratch}
        volatility = [vol, "-q", "--offline", "-f"]
        ways = {
            "volatility3, its file layer": [*volatility, image, "linux.pslist"],
            "volatility3, vmi": [*volatility, f"vmi:{image}", "linux.pslist"],
            "vmi alone": [sys.executable, program, image],
        }
        # Makes the symbol file that both use, and fills Volatility's cache.
        for command in (ways["volatility3, vmi"], ways["volatility3, its file layer"]):
            lists = run(command, environment)[2]
        best = {name: [float("inf"), float("inf")] for name in ways}
        for _ in range(rounds):
            for name, command in ways.items():
                wall, busy, rows = run(command, environment)
                if "volatility3" in name and rows != lists:
                    sys.exit(f"{name} lists something else")
                best[name] = [min(best[name][0], wall), min(best[name][1], busy)]
    print(f"\n{'linux.pslist':30} {'wall':>8} {'processor':>10}   ({len(lists)} rows, the best of {rounds})")
    for name, (wall, busy) in best.items():
        print(f"{name:30} {wall:6.2f} s {busy:8.2f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("--vol")
    parser.add_argument("--rounds", type=int, default=5)
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
        process_lists(given.vol, Path(given.image).resolve(), given.rounds)


if __name__ == "__main__":
    main()
