#!/usr/bin/env python3
"""Save a running guest's memory and registers: snapshot.py GUEST DIRECTORY [FORMAT...]

Formats: raw (sparse, offset = guest-physical address), elf, lime; further, if named:
paging (ELF with virtual addresses) and kdump-zlib (flattened). The ground truth goes
to DIRECTORY/truth. The guest goes on after.
"""
import gzip
import json
import os
import re
import shutil
import struct
import sys
import time
from pathlib import Path

from guest import LIST_TASKS, Guest, Qmp

FORMATS = ["raw", "elf", "lime"]
PAGE = 4096


def ram_ranges(qmp):
    """[(guest-physical start, end, offset in the RAM file)], adjoining ones merged."""
    tree = qmp.monitor("info mtree -f")
    view = tree.split("Root memory region: system")[1].split("FlatView")[0]
    ranges = []
    for line in view.splitlines():
        if m := re.match(r" *(\w{16})-(\w{16}) \(prio \d+, (?:ram|rom)\): ram(?: @(\w{16}))?", line):
            start, end, offset = int(m[1], 16), int(m[2], 16) + 1, int(m[3] or "0", 16)
            if ranges and ranges[-1][1] == start and ranges[-1][2] + start - ranges[-1][0] == offset:
                ranges[-1] = (ranges[-1][0], end, ranges[-1][2])
            else:
                ranges.append((start, end, offset))
    return ranges


def copy(source, target, length):
    """Copy, leaving holes for pages of zeros."""
    while length > 0:
        page = source.read(min(PAGE, length))
        if not page:
            raise EOFError(source.name)
        if any(page):
            target.write(page)
        else:
            target.seek(len(page), os.SEEK_CUR)
        length -= len(page)
    target.truncate()


def raw(qmp, directory, path):
    with open(path, "wb") as out:
        for start, end, _ in ram_ranges(qmp):
            part = directory / "part"
            qmp("pmemsave", val=start, size=end - start, filename=str(part))
            out.seek(start)
            with open(part, "rb") as file:
                copy(file, out, end - start)
            part.unlink()


def lime(truth, raw_path, path):
    """As LiME does: one header and one range for every top-level "System RAM"."""
    with open(raw_path, "rb") as source, open(path, "wb") as out:
        for m in re.finditer(r"^(\w+)-(\w+) : System RAM$", (truth / "iomem").read_text(), re.M):
            start, last = int(m[1], 16), int(m[2], 16)
            out.write(struct.pack("<IIQQQ", 0x4C694D45, 1, start, last, 0))
            source.seek(start)
            copy(source, out, last + 1 - start)


def sparse(path):
    with open(path, "rb") as source, open(f"{path}.part", "wb") as out:
        copy(source, out, path.stat().st_size)
    os.rename(f"{path}.part", path)


def save(guest, directory, formats):
    """Take all formats within one stop of a guest that is connected; return the seconds it took."""
    began = time.monotonic()
    directory.mkdir(parents=True, exist_ok=True)
    truth = directory / "truth"
    shutil.copytree(guest.truth, truth, dirs_exist_ok=True)
    qmp = Qmp(guest.dir)
    time.sleep(0.3)  # process 1 falls asleep in its next read
    qmp("stop")
    try:
        registers = qmp.monitor("info registers -a")
        (truth / "registers").write_text(registers)
        five_level = int(re.search(r"CR4=(\w+)", registers)[1], 16) >> 12 & 1
        # QEMU 7.2 takes half a minute over "info mem" of a 5-level guest, and then prints nothing
        for what in ["tlb"] if five_level else ["tlb", "mem"]:
            with gzip.open(truth / f"info-{what}.gz", "wt", 1) as out:
                out.write(qmp.monitor(f"info {what}"))
        keys = "start", "end", "offset"
        (truth / "ram.json").write_text(json.dumps([dict(zip(keys, r)) for r in ram_ranges(qmp)]) + "\n")
        if {"raw", "lime"} & set(formats):
            raw(qmp, directory, directory / "memory.raw")
        for form, extra in {"elf": {}, "paging": {"paging": True}, "kdump-zlib": {"format": "kdump-zlib"}}.items():
            if form in formats:
                path = directory / f"memory.{form}"
                qmp("dump-guest-memory", **{"paging": False, "protocol": f"file:{path}", **extra})
                if form != "kdump-zlib":
                    sparse(path)
    finally:
        qmp("cont")
    (truth / "tasks.stat.after").write_bytes(guest.eval(LIST_TASKS))
    if "lime" in formats:
        lime(truth, directory / "memory.raw", directory / "memory.lime")
    return round(time.monotonic() - began, 1)


def main(name, directory, *formats):
    guest, directory = Guest(name), Path(directory).resolve()
    guest.connect()
    save(guest, directory, formats or FORMATS)
    for path in sorted(directory.glob("memory.*")):
        print(f"{path.stat().st_size:>12} {path.stat().st_blocks * 512:>12} {path}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
