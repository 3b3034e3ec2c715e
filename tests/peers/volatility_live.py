#!/usr/bin/env python3
"""Volatility's Linux plugins on running guests, with symbol files made of the guests' own memory.

    volatility_live.py --python PYTHON [--only PLUGIN,...] [GUEST...]    guests of the lab; x64-5.10, x64-6.1 and x64-6.12 if none is named

PYTHON is the interpreter of an environment with volatility3, vmi and vmi-volatility3: `crates/vmi-python/tests/run.py --release --keep DIR` leaves one
in DIR/venv. Each guest is booted under QEMU and says by its /proc what is in it. The plugins run twice with an empty cache: on the running guest
(`vmi:qemu:SOCKET`) and on a snapshot of it (`vmi+snapshot:qemu:SOCKET`). Seven of them are compared with /proc as volatility.py does.

Exit code 1 if one of them differs or does not run, or the guest does not run afterwards.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time

import volatility
from peers import HERE, PEERS, run

sys.path.insert(0, str(HERE.parent / "lab"))
import guest as lab  # noqa: E402

GUESTS = ["x64-5.10", "x64-6.1", "x64-6.12"]


class LiveGuest(lab.Guest):
    """A guest in a directory of its own, beside those that the lab itself runs."""

    def __init__(self, name, directory):
        super().__init__(name)
        self.dir = pathlib.Path(directory, "g")
        self.truth = self.dir / "truth"

    def save_after(self):
        """What is there at the end: what was there before and after was there in between."""
        (self.truth / "tasks.stat.after").write_bytes(self.eval(lab.LIST_TASKS))


def check(python, guest, prefix, only, scratch):
    """Whether all plugins that are compared ran and say what /proc said."""
    location = f"{prefix}:qemu:{guest.dir}/qmp.sock"
    failed, seconds, seen = False, 0, set()
    os.environ["XDG_CACHE_HOME"] = str(scratch / prefix)
    (scratch / prefix).mkdir()
    (scratch / "none/linux").mkdir(parents=True, exist_ok=True)
    results = []
    for plugin, result, took in volatility.plugins(python, scratch / "none", scratch / prefix / "volatility3", location, only):
        results.append((plugin, result, took))
    guest.save_after()
    truth = volatility.Truth(guest.truth)
    ran = 0
    for plugin, result, took in results:
        line, bad = volatility.verdict(truth, plugin, result, None)
        failed |= bad
        ran += result[0] is not None
        seconds += took
        seen.add(plugin)
        if plugin in volatility.CHECKS or result[0] is None:
            print(f"{'FAIL' if bad else 'ok  '} {prefix} {plugin.removeprefix('linux.')}: {line}, {took} s", flush=True)
    for plugin in sorted(set(volatility.CHECKS) - seen):
        if not only or any(word in plugin for word in only):
            print(f"FAIL {prefix} {plugin}: did not run")
            failed = True
    made = [path.name for path in (scratch / prefix).rglob("vmi-*.json.xz")]
    print(f"{prefix}: {ran} of {len(results)} plugins ran in {seconds:.0f} s, symbol file {made}", flush=True)
    return failed or len(made) != 1


def one(python, name, only):
    with tempfile.TemporaryDirectory(prefix="vmi-") as scratch, LiveGuest(name, scratch) as guest:
        scratch = pathlib.Path(scratch)
        facts = guest.start()
        print(f"# {name}: {facts['release']} on {facts['qemu']}", flush=True)
        failed = False
        for prefix in ("vmi", "vmi+snapshot"):
            failed |= check(python, guest, prefix, only, scratch)
        text = run(python.with_name("vol"), "-q", "--offline", "-r", "csv", "-f", f"vmi:qemu:{guest.dir}/qmp.sock", "linux.pslist")
        print(f"vol -f vmi:qemu:SOCKET linux.pslist: {sum(line.count(',') > 5 for line in text.splitlines()) - 1} rows")
        before = float(guest.eval("cat /proc/uptime").split()[0])
        time.sleep(0.5)
        runs = float(guest.eval("cat /proc/uptime").split()[0]) > before
        print(f"{'ok  ' if runs else 'FAIL'} the guest runs on", flush=True)
        return failed or not runs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=pathlib.Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("guests", nargs="*", default=GUESTS)
    given = parser.parse_args()
    PEERS.mkdir(parents=True, exist_ok=True)
    only = [word for word in given.only.split(",") if word]
    return 1 if any([one(given.python, name, only) for name in given.guests]) else 0


if __name__ == "__main__":
    sys.exit(main())
