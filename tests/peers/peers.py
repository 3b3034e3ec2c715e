#!/usr/bin/env python3
"""Images that this workspace writes, in front of tools that read images: do they list the same tasks as in QEMU's own?

    peers.py [GUEST]        a guest of the lab, x64-5.10 if none is named

crash, drgn and volatility3 read what QEMU wrote of the guest, and what `dump-memory` makes of the raw image. crash 8.0 of Debian 12 finds one task in
Debian's 6.1.176, and none of 6.12, whoever wrote the dump.
Needs the packages crash and binutils, and room for the kernel's debug package (700 MB unpacked) and a Python environment with drgn and
volatility3, both kept in the lab's cache. `cargo xtask peers` builds `dump-memory` and calls this.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or HERE.parent.parent / "target")
CACHE = pathlib.Path(os.environ.get("VMI_LAB_CACHE") or pathlib.Path.home() / ".cache/vmi-lab")
PEERS = CACHE / "peers"
FORMATS = ["elf", "kdump", "lime", "avml"]


def run(*command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def environment():
    """The interpreter of an environment with drgn and volatility3."""
    python = PEERS / "venv/bin/python"
    if not python.exists():
        run(sys.executable, "-m", "venv", PEERS / "venv")
        run(python, "-m", "pip", "install", "--quiet", "drgn", "volatility3", "python-snappy")
    return python


def debug_kernel(guest, release):
    """The kernel with its debug information, from the mirror that the lab has its kernels from."""
    table = (HERE.parent / "lab/guests.tsv").read_text().splitlines()
    kernel = next(fields[2] for fields in map(str.split, table) if fields[:1] == [guest])
    vmlinux = CACHE / "kernels" / kernel / "dbg/usr/lib/debug/boot" / f"vmlinux-{release}"
    if not vmlinux.exists():
        run(HERE.parent / "lab/kernels.sh", "--dbg", kernel)
    return vmlinux


def crash_tasks(vmlinux, image):
    text = run("crash", "-s", "--no_scroll", vmlinux, image, input="ps\nquit\n")
    rows = [line.replace(">", " ").split(None, 8) for line in text.splitlines()]
    return {(int(row[0]), int(row[1]), row[8].strip("[]")) for row in rows if len(row) == 9 and row[0].isdecimal()}


def drgn_tasks(python, vmlinux, image):
    rows = [line.split(" ", 2) for line in run(python, HERE / "tasks.py", vmlinux, image).splitlines()]
    return {(int(pid), int(parent), name) for pid, parent, name in rows}


def volatility_tasks(python, symbols, image):
    volatility = python.with_name("vol")
    text = run(volatility, "-q", "--offline", "-r", "csv", "-s", symbols, "-f", image, "linux.pslist")
    rows = [line.split(",") for line in text.splitlines() if line.count(",") > 5]
    head = rows[0]
    pid, parent, name = head.index("PID"), head.index("PPID"), head.index("COMM")
    return {(int(row[pid]), int(row[parent]), row[name]) for row in rows[1:]}


def main(guest="x64-5.10"):
    image = CACHE / "images" / guest
    banner = (image / "truth/version").read_text()
    release = banner.split()[2]
    PEERS.mkdir(parents=True, exist_ok=True)
    python, vmlinux = environment(), debug_kernel(guest, release)
    symbols = PEERS / "symbols"
    (symbols / "linux").mkdir(parents=True, exist_ok=True)
    isf = symbols / "linux" / f"{release}.json.xz"
    if not isf.exists():
        run(python, HERE / "isf.py", vmlinux, image / "memory.elf", banner, isf)

    readers = {
        "crash": (["elf", "kdump"], lambda file: crash_tasks(vmlinux, file)),
        "drgn": (["elf", "kdump"], lambda file: drgn_tasks(python, vmlinux, file)),
        "volatility3": (["elf", "lime", "avml"], lambda file: volatility_tasks(python, symbols, file)),
    }
    if not shutil.which("crash"):
        print("crash: skipped: not installed (package crash)")
        del readers["crash"]
    failed = False
    with tempfile.TemporaryDirectory(dir=PEERS) as directory:
        ours = {name: pathlib.Path(directory) / f"ours.{name}" for name in FORMATS}
        for name, file in ours.items():
            run(TARGET / "release/examples/dump-memory", "--quiet", "--format", name, "-o", file, image / "memory.raw")
        for reader, (formats, tasks) in readers.items():
            wanted = tasks(image / "memory.elf")
            print(f"{reader}: {len(wanted)} tasks in QEMU's ELF dump")
            for name in formats:
                try:
                    found = tasks(ours[name])
                    verdict = "the same" if found == wanted and found else f"differ: {sorted(found ^ wanted)[:5]}"
                except RuntimeError as error:
                    verdict = f"not read: {error}"
                failed |= verdict != "the same"
                print(f"{reader}: our {name}: {verdict}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
