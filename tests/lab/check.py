#!/usr/bin/env python3
"""Check images against their ground truth: check.py IMAGE-DIRECTORY...

The known pages of the guest's witness process must lie where its pagemap says, in
every format, and the ELF and LiME files must agree with the raw one everywhere.
"""
import json
import mmap
import struct
import sys
from pathlib import Path

STEP = 16 << 20


def elf_segments(data):
    if data[4] == 2:
        offset, size, count = *struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54)
        form, pick = "<IIQQQQ", lambda h: (h[2], h[4], h[5])
    else:
        offset, size, count = *struct.unpack_from("<I", data, 28), *struct.unpack_from("<HH", data, 42)
        form, pick = "<IIIIII", lambda h: (h[1], h[3], h[4])
    for i in range(count):
        header = struct.unpack_from(form, data, offset + i * size)
        if header[0] == 1:  # PT_LOAD
            yield pick(header)  # file offset, physical address, length in the file


def lime_segments(data):
    at = 0
    while at < len(data):
        magic, version, start, last = struct.unpack_from("<IIQQ", data, at)
        assert (magic, version) == (0x4C694D45, 1), f"no LiME header at {at:#x}"
        yield at + 32, start, last + 1 - start
        at += 32 + last + 1 - start


def check(directory):
    """Return the number of known pages found; raise AssertionError at the first difference."""
    truth = directory / "truth"
    facts = [line.split() for line in (truth / "facts").read_text().splitlines()]
    pages = [(kind, int(at, 16)) for _, kind, _, at in (f for f in facts if f[0] == "page")]
    frames = struct.unpack(f"<{len(pages)}Q", (truth / "pagemap").read_bytes())
    ram = json.loads((truth / "ram.json").read_text())
    found = 0
    with open(directory / "memory.raw", "rb") as raw:
        for (kind, at), frame in zip(pages, frames):
            assert (frame >> 63) == (kind != "absent"), f"{kind} page {at:#x}: pagemap says {frame:#x}"
            if kind != "absent":
                raw.seek((frame & (1 << 55) - 1) << 12)
                wanted = struct.pack("<1024I", *(0 if kind == "zero" else a ^ 0x5A5A5A5A
                                                 for a in range(at, at + 4096, 4)))
                assert raw.read(4096) == wanted, f"{kind} page {at:#x} has other content"
                found += 1
        for name, segments in ("memory.elf", elf_segments), ("memory.lime", lime_segments):
            path = directory / name
            if not path.exists():
                continue
            with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
                for offset, start, length in segments(data):
                    # QEMU's ELF also has the BIOS ROM below 4 GiB, which is not RAM
                    if any(r["start"] <= start < r["end"] for r in ram):
                        raw.seek(start)
                        for at in range(0, length, STEP):
                            n = min(STEP, length - at)
                            assert raw.read(n) == data[offset + at:offset + at + n], f"{name} differs near {start + at:#x}"
    return found


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(f"{argument}: {check(Path(argument))} known pages")
