#!/usr/bin/env python3
"""Take kernel modules and what they depend on: modules.py DIRECTORY TARGET MODULE...

The files below TARGET are unpacked, and their names sort in the order in which they can be loaded.
What a module depends on stands in its section .modinfo, as `depends=NAME,NAME`.
"""
import lzma
import sys
from pathlib import Path


def content(path):
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def depends(data):
    begin = data.index(b"\0depends=") + len(b"\0depends=")
    return [name.decode() for name in data[begin : data.index(b"\0", begin)].split(b",") if name]


def main():
    directory, target, wanted = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    files = {path.name.split(".ko")[0].replace("-", "_"): path for path in directory.rglob("*.ko*")}
    taken = {}

    def take(name):
        if name not in taken:
            data = content(files[name])
            for other in depends(data):
                take(other.replace("-", "_"))
            taken[name] = data

    for name in wanted:
        take(name)
    for number, (name, data) in enumerate(taken.items()):
        (target / f"{number:02}-{name}.ko").write_bytes(data)


main()
