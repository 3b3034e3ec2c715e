#!/usr/bin/env python3
"""Write the ELF file that a Linux bzImage has inside, packed by xz, lz4 or Zstandard.

    unbzimage.py BZIMAGE ELF

An emulated processor needs many seconds to unpack it. Format: Linux, Documentation/x86/boot.rst (setup_sects, payload_offset,
payload_length).
"""
import lzma
import struct
import subprocess
import sys
from pathlib import Path


def main():
    image = Path(sys.argv[1]).read_bytes()
    protected_mode = ((image[0x1F1] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[protected_mode + offset:][:length]
    if payload.startswith(b"\xfd7zXZ\0"):
        elf = lzma.LZMADecompressor().decompress(payload)
    elif tool := {b"\x02\x21\x4c\x18": "lz4", b"\x28\xb5\x2f\xfd": "zstd"}.get(payload[:4]):
        # the last 4 bytes are the length of the whole, which the tool would take for a block's or a frame's
        elf = subprocess.run([tool, "-dc"], input=payload[:-4], stdout=subprocess.PIPE, check=True).stdout
    else:
        sys.exit(f"{sys.argv[1]}: packed in an unknown way: {payload[:8].hex()}")
    if not elf.startswith(b"\x7fELF"):
        sys.exit(f"{sys.argv[1]}: no ELF file inside")
    Path(sys.argv[2]).write_bytes(elf)


main()
