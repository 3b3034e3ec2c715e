#!/usr/bin/env python3
"""Make the demo image from the image of a "-small" guest: demo.py IMAGE-DIRECTORY OUTPUT-DIRECTORY

Zeroes the kernel's machine code, which nothing but a disassembler reads (its first page
stays), and compresses what is left. Page tables, data, rodata with BTF and kallsyms, slabs
and user pages stay as they are. Beside the image go the list of its processes and a README.
"""
import gzip
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

from guest import CACHE, table

LIMIT = 7_000_000
PAGE = 4096
README = """# The demo image

`{file}` is the memory of a real virtual machine. `cargo run --release --example process-list` reads it when no
other target is named, and tests compare what it says with `processes.tsv`.

| | |
|---|---|
| guest | Debian kernel {release}, {arch}, 96 MiB of RAM, 4-level paging, virtual KASLR |
| command line | `{append}` |
| format | raw (offset = guest-physical address), {size:,} bytes, zstd |
| SHA-256, compressed | `{compressed}` |
| SHA-256, raw | `{plain}` |

It was booted under {qemu} by `tests/lab`, as the guest `{guest}`.
The first process of the guest, a shell script (`tests/lab/init`), started all other programs and then wrote down what the guest's own /proc
said. Then the machine was stopped and its memory saved. `tests/lab/demo.py` did two more things:

- it zeroed the kernel's machine code, the physical range {start:#x}-{last:#x}, but for its first page. All else is as it was: data,
  read-only data with the symbol table and type information, page tables, and the pages of processes. Free memory was filled
  with zeros inside the guest before the image was taken.
- it wrote `processes.tsv`: process id, parent's process id, name, state and user id of every process (not of further threads), from
  `/proc/PID/stat`, `/proc/PID/status` and `/proc/PID/sched`. The list was read by process 1, which therefore calls itself
  running (R); in the image it sleeps (S), and that is what the file says.

`cargo xtask demo` boots the guest anew and writes this directory again. Process ids, addresses and checksums then differ.

## Licences and sources

The image holds data of programs that are not part of this project and keep their own licences. It is not under this project's
MIT OR Apache-2.0 licence. Debian has the complete source of each package: `apt-get source PACKAGE=VERSION` with the suite's
`deb-src` line, or <https://snapshot.debian.org/>.

| in the image | licence | binary package | source package |
|---|---|---|---|
{sources}

The programs `init` and `witness` in it are this project's own (`tests/lab/init`, `tests/lab/witness.c`).
"""


def zero_text(memory, truth):
    """Zero the kernel's text but for its first page; return its first and last address."""
    iomem = (truth / "iomem").read_text()
    start, last = (int(x, 16) for x in re.search(r"(\w+)-(\w+) : Kernel code", iomem).groups())
    # iomem names the range by symbols; read-only data must not be in it
    with gzip.open(truth / "kallsyms.gz", "rt") as file:
        symbols = {name: int(address, 16) for address, _, name in (line.split()[:3] for line in file)}
    text, rodata = symbols["_text"], symbols["__start_rodata"]
    assert last + 1 - start <= rodata - text, "the kernel's code overlaps its read-only data"
    memory[start + PAGE:last + 1] = bytes(last + 1 - start - PAGE)
    return start, last


def processes(truth):
    """[(pid, parent, comm, state, uid)] of all processes, as the image has them."""
    def rows(name):
        lines = (truth / name).read_text().splitlines()
        return {int(m[1]): (m[3], int(m[4])) for m in (re.match(r"(\d+) \((.*)\) (\w) (\d+) ", line) for line in lines) if m}

    before, after = rows("tasks.stat"), rows("tasks.stat.after")
    assert before == after, "tasks came, went or changed while the image was taken: boot the guest again"
    names = {int(m[2]): m[1] for m in re.finditer(r"^(.*) \((\d+), #threads", (truth / "tasks.comm").read_text(), re.M)}
    uids = {int(pid): int(uid) for pid, uid in
            re.findall(r"^/proc/(\d+)/status:Uid:\t(\d+)", (truth / "tasks.status").read_text(), re.M)}
    for pid in sorted(uids):  # /proc/PID/status is of processes, tasks.* of threads too
        state, parent = before[pid]
        yield pid, parent, names[pid], "S" if pid == 1 else state, uids[pid]


def sources(kernel, arch):
    """Rows of the README's last table."""
    def row(what, licence, line):
        binary, source, built_using = (line.split("\t") + [""])[:3]
        used = ", ".join(part.replace("(= ", "").rstrip(")") for part in built_using.split(", ") if part)
        return f"| {what} | {licence} | {binary} | {source}{'; ' if used else ''}{used} |"

    yield row("the kernel's data and its modules", "GPL-2.0", (CACHE / "kernels" / kernel / "sources").read_text().splitlines()[0])
    yield row("pages of BusyBox (static, with glibc)", "GPL-2.0; LGPL-2.1 (glibc)", (CACHE / "busybox" / arch / "sources").read_text().strip())
    seabios = subprocess.run(["dpkg-query", "-W", "-f", "${Package} ${Version}\\t${source:Package} ${source:Version}", "seabios"],
                             capture_output=True, text=True).stdout.strip()
    if seabios:
        yield row("firmware: SeaBIOS", "LGPL-3.0", seabios)


def main(directory, output):
    directory, output = Path(directory), Path(output)
    truth = directory / "truth"
    facts = json.loads((truth / "guest.json").read_text())
    memory = bytearray((directory / "memory.raw").read_bytes())
    start, last = zero_text(memory, truth)
    rows = list(processes(truth))
    output.mkdir(parents=True, exist_ok=True)
    version = re.match(r"\d+\.\d+", facts["release"])[0]
    image = output / f"debian-{version}.raw.zst"
    # a window of 2 MiB costs 1 % of size and makes decompression half again as fast as one of the whole image;
    # the size in the frame's header lets the reader allocate once
    subprocess.run(["zstd", "-qf", "--ultra", "-22", "--zstd=wlog=21", f"--stream-size={len(memory)}", "-o", image],
                   input=memory, check=True)
    size = image.stat().st_size
    assert size <= LIMIT, f"{image} has {size:,} bytes, more than {LIMIT:,}"
    with open(output / "processes.tsv", "w") as out:
        print("pid", "parent", "comm", "state", "uid", sep="\t", file=out)
        for row in rows:
            print(*row, sep="\t", file=out)
    (output / "README.md").write_text(README.format(
        file=image.name, size=len(memory), start=start, last=last,
        compressed=hashlib.sha256(image.read_bytes()).hexdigest(), plain=hashlib.sha256(memory).hexdigest(),
        sources="\n".join(sources(table("guests.tsv")[facts["guest"]][2], facts["arch"])), **{
            key: facts[key].replace(" emulator version", "") for key in ("guest", "release", "arch", "append", "qemu")}))
    print(f"{image}: {size:,} bytes, {len(rows)} processes")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except AssertionError as error:
        sys.exit(f"demo.py: {error}")
