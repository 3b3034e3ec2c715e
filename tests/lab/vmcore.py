#!/usr/bin/env python3
"""Let a guest crash, and its crash kernel write /proc/vmcore.

    vmcore.py serve KERNEL    boot a guest with a crash kernel loaded (one of kernels.tsv), have it panic, print one line of JSON when the crash
                              kernel has written /proc/vmcore to a disk, and keep the files until standard input ends

The line has the paths of the core and of the guest's RAM as the crash kernel left it, where that RAM is in physical memory, and what the
guest said before: /proc/iomem, its processes, some of /proc/kallsyms, and the facts of the process `actor` (actor.c).
Where something is missing on this machine, it is {"skipped": why}.
"""
import json
import os
import sys

from guest import GuestDied
from live import BOOT_SECONDS, SHAPES, Live, Missing, archive, run
from scratch import Scratch, end_by_exception, until_eof

LOW_MIB = 320
RESERVED = "crashkernel=96M"
SAVE = """#!/bin/busybox sh
mount -t proc proc /proc
mount -t devtmpfs dev /dev
set -x
exec 3<> /dev/ttyS1
stty raw -echo <&3
until [ -b /dev/nvme0n1 ]; do usleep 20000; done
dd if=/proc/vmcore of=/dev/nvme0n1 bs=1M conv=fsync && stat -c %s /proc/vmcore >&3
sleep 1000000
"""


class Crashing(Live):
    """A guest that has what its crash kernel boots."""

    def initramfs(self):
        kernel = (self.kdir / "vmlinuz").resolve().read_bytes()
        # the one of the crash kernel differs in what is process 1
        return super().initramfs() + archive("mnt/vmlinuz", kernel) + archive("mnt/initramfs", super().initramfs() + archive("bin/save", SAVE.encode()))

    def said(self, log):
        """Of two kernels the last lines say more than a panic."""
        return " | ".join((self.dir / log).read_text(errors="replace").splitlines()[-4:])

    def crash(self, core):
        """Have it crash; return when `core` is written."""
        said = self.eval('actor crash-kernel /mnt/vmlinuz /mnt/initramfs'
                         ' "console=ttyS0 nr_cpus=1 reset_devices irqpoll no_timer_check panic=-1 earlyprintk=ttyS0 rdinit=/bin/save"')
        if said.strip():
            raise GuestDied(said.decode(errors="replace").strip())
        processes = self.eval('for f in /proc/[0-9]*/stat; do read -r l < $f && echo "$l"; done').decode()
        self.cmd.sendall(b"echo c > /proc/sysrq-trigger\n")
        os.truncate(core, int(self.wait_for(b"\n", BOOT_SECONDS)))
        return processes


def crashed(directory, kernel):
    """What the JSON says."""
    core = directory / "vmcore"
    mib = sum(SHAPES["crash"][0])
    core.touch()
    os.truncate(core, 2 * mib << 20)
    with Crashing(directory, kernel) as guest:
        booted = guest.boot("own", "crash", "file", RESERVED, [
            "-drive", f"if=none,id=disk,format=raw,file={core}", "-device", "nvme,drive=disk,serial=1"])
        guest.connect()
        iomem, symbols = guest.eval("cat /proc/iomem").decode(), guest.eval("grep '00 [TDR] ' /proc/kallsyms").decode()
        processes = guest.crash(core)
    low = LOW_MIB << 20
    return {
        "core": str(core), "ram": booted["memory"][0]["path"], "ranges": [[0, low], [4 << 30, (mib << 20) - low]],
        "iomem": iomem, "processes": processes, "symbols": symbols, "actor": booted["actor"],
        "release": booted["release"], "qemu": booted["qemu"],
    }


def main(verb=None, kernel=None, *more):
    if verb != "serve" or not kernel or more:
        sys.exit(__doc__)
    end_by_exception()
    try:
        with Scratch() as directory:
            print(json.dumps(crashed(directory, kernel)), flush=True)
            until_eof()
    except Missing as missing:
        print(json.dumps({"skipped": str(missing)}), flush=True)


if __name__ == "__main__":
    run(main, *sys.argv[1:])
