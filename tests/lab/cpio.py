#!/usr/bin/env python3
"""Write a directory as a cpio archive in the form that the Linux initramfs reads (newc).

    cpio.py DIRECTORY [OFFSET] > ARCHIVE

All belongs to root. With OFFSET, the length of another archive that this one is appended to, the output begins with the zeros that
align it to 4 bytes. Format: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
"""
import os
import sys


def write(out, number, name, mode, data):
    name = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    for part in (head, data):
        out.write(part + b"\0" * (-len(part) % 4))


def content(path):
    if os.path.islink(path):
        return os.readlink(path).encode()
    if os.path.isdir(path):
        return b""
    with open(path, "rb") as file:
        return file.read()


def main():
    top, out, number = sys.argv[1], sys.stdout.buffer, 1
    if len(sys.argv) > 2:
        out.write(b"\0" * (-int(sys.argv[2]) % 4))
    for where, directories, files in os.walk(top):
        directories.sort()
        for name in sorted(directories + files):
            path = os.path.join(where, name)
            write(out, number, os.path.relpath(path, top), os.lstat(path).st_mode, content(path))
            number += 1
    write(out, 0, "TRAILER!!!", 0, b"")


main()
