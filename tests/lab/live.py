#!/usr/bin/env python3
"""Boot guests for the tests of live back ends.

    live.py prepare                fetch what they need: the kernel, BusyBox and QEMU 10.0
    live.py serve [options]        boot a guest, print one line of JSON that says how to reach it, and keep it until
                                   standard input ends; then nothing of it is left

The line of `serve` has the process id of QEMU, the paths of the sockets (qmp, qmp2, gdb, cmd: the shell of process 1), the memory
backends with their size, path (of files) and whether they are shared, what was booted, and the facts of the process `actor` (actor.c).
Where something is missing on this machine, it is {"skipped": why}.
"""
import argparse
import contextlib
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import lab
from guest import ACCEL, CACHE, HERE, QEMU, Guest, GuestDied
from scratch import Scratch, die_with_parent, end_by_exception, until_eof

KERNEL = "x64-6.1"
BOOT_SECONDS = 300
HUGE_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
SHAPES = {  # sizes of the memory backends in MiB, options
    "one": ([128], []),
    "smp": ([128], ["-machine", "q35", "-smp", "2"]),
    # 128 MiB at 0, 64 MiB at 4 GiB
    "high": ([192], ["-machine", "pc,max-ram-below-4g=128M"]),
    # 64 MiB of the second backend are above 4 GiB
    "numa": ([64, 128], ["-machine", "pc,max-ram-below-4g=128M"]),
    # a DIMM can be plugged in: object-add, device_add pc-dimm; the guest takes it into use
    "dimm": ([256], []),  # with less, the kernel has no room for the bounce buffers that memory above 4 GiB would need
    # 320 MiB at 0, with room for a crash kernel wherever the kernel is, and 128 MiB at 4 GiB
    "crash": ([448], ["-machine", "pc,max-ram-below-4g=320M", "-smp", "2"]),
    # for benchmarks
    "big": ([1024], []),
}
MEMORY = {"file": "memory-backend-file", "memfd": "memory-backend-memfd", "huge": "memory-backend-memfd",
          "private": "memory-backend-ram"}


class Missing(Exception):
    """What this machine lacks."""


def qemu10():
    return CACHE / "qemu/10.0/qemu"


def qemu_command(which):
    command = QEMU if which == "own" else str(qemu10())
    if not shutil.which(command):
        raise Missing(f"no {command}" if which == "own" else "no QEMU 10.0: cargo xtask lab fetches it where it can be had")
    return command


@contextlib.contextmanager
def huge_pages(mib):
    """So much in huge pages: free ones, or as root ones that the kernel finds on demand and takes back."""
    wanted, overcommit = -(-mib // 2), HUGE_PAGES / "nr_overcommit_hugepages"
    if not HUGE_PAGES.exists():
        raise Missing("the kernel has no huge pages of 2 MiB")
    if int((HUGE_PAGES / "free_hugepages").read_text()) >= wanted:
        yield
        return
    if not os.access(overcommit, os.W_OK):
        raise Missing(f"fewer than {wanted} free huge pages of 2 MiB, and only root can have more")
    before = int(overcommit.read_text())
    try:
        overcommit.write_text(str(max(before, wanted)))
    except OSError as error:
        raise Missing(f"no huge pages of 2 MiB: {error.strerror}") from None
    try:
        yield
    finally:
        overcommit.write_text(str(before))


def have_kernel(name):
    if not (CACHE / "kernels" / name / "release").exists():
        raise Missing(f"no kernel {name} in {CACHE}: cargo xtask lab fetches it")


def actor():
    """The program as bytes; a 64-bit one."""
    with tempfile.TemporaryDirectory() as tmp:
        subprocess.run(["gcc", "-m64", "-O1", "-static", "-s", "-pthread", "-o", f"{tmp}/actor", HERE / "actor.c"], check=True)
        return Path(tmp, "actor").read_bytes()


def archive(path, data):
    """One executable file as a compressed cpio archive, which the kernel unpacks after the one before it."""
    with tempfile.TemporaryDirectory() as tmp:
        Path(tmp, path).parent.mkdir(parents=True)
        Path(tmp, path).write_bytes(data)
        Path(tmp, path).chmod(0o755)
        busybox = CACHE / "busybox/amd64/bin/busybox"
        cpio = subprocess.run([busybox, "cpio", "-o", "-H", "newc"], input=f"{path}\n".encode(), cwd=tmp, capture_output=True, check=True)
        return gzip.compress(cpio.stdout, 1, mtime=0)


class Live(Guest):
    """A guest that is booted without writing the truth, and ends with this process."""

    def __init__(self, directory, kernel=KERNEL):
        have_kernel(kernel)
        self.name, self.kernel, self.dir = "live", kernel, directory
        self.kdir = CACHE / "kernels" / kernel
        if (self.kdir / "arch").read_text().strip() != "amd64":
            raise Missing(f"the kernel {kernel} is not of amd64, and the program actor is")
        self.qemu = None

    def initramfs(self):
        return super().initramfs() + archive("bin/actor", actor())

    def kernel_files(self, append=""):
        """What a guest boots: paths of the kernel and the initramfs, and the command line."""
        (self.dir / "initramfs.gz").write_bytes(self.initramfs())
        # a busy host is late with the timer's interrupts; balancing would move pages that tests know by their physical address
        append = f"console=ttyS0 panic=-1 quiet no_timer_check numa_balancing=disable {append}".strip()
        return (self.kdir / "vmlinuz").resolve(), self.dir / "initramfs.gz", append

    def memory(self, kind, sizes):
        """Options for the RAM, and what the JSON says of it."""
        options, rows = [], []
        if kind == "private" and len(sizes) == 1:
            return options, [{"id": None, "mib": sizes[0], "shared": False, "path": None}]
        for number, size in enumerate(sizes):
            name = f"ram{number}"
            path = str(self.dir / name) if kind == "file" else None
            properties = {"file": f",mem-path={path},share=on", "memfd": ",share=on", "huge": ",share=on,hugetlb=on,hugetlbsize=2M",
                          "private": ""}[kind]
            options += ["-object", f"{MEMORY[kind]},id={name},size={size}M{properties}"]
            options += ["-machine", "memory-backend=ram0"] if len(sizes) == 1 else ["-numa", f"node,nodeid={number},memdev={name}"]
            rows.append({"id": name, "mib": size, "shared": kind != "private", "path": path})
        return options, rows

    def boot(self, which, shape, kind, more="", devices=()):
        """Boot, with more of the kernel's command line and of QEMU's; return what the JSON says."""
        command = qemu_command(which)
        sizes, options = SHAPES[shape]
        memory, rows = self.memory(kind, sizes)
        vmlinuz, initramfs, append = self.kernel_files(more)

        def server(name, wait="off"):
            return f"unix:{self.dir}/{name}.sock,server=on,wait={wait}"

        argv = [
            command, "-name", self.dir.name, "-accel", ACCEL, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-cpu", "max,-la57", "-m", f"{sum(sizes)}M" + (",slots=4,maxmem=2G" if shape == "dimm" else ""),
            *options, *memory, *devices, "-device", "vmcoreinfo",
            "-serial", f"file:{self.dir}/console.log", "-serial", server("cmd", wait="on"),
            "-qmp", server("qmp"), "-qmp", server("qmp2"), "-gdb", server("gdb"),
            "-kernel", str(vmlinuz), "-initrd", str(initramfs), "-append", append,
        ]
        began = time.monotonic()
        with open(self.dir / "qemu.log", "wb") as log:
            self.qemu = subprocess.Popen(argv, cwd=self.dir, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent)
        # a QEMU that a test kills is to be gone, and no zombie
        threading.Thread(target=self.qemu.wait, daemon=True).start()
        self.wait_connected()
        self.wait_ready()
        return {
            "pid": self.qemu.pid, "directory": str(self.dir), "memory": rows, "append": append, "command": argv,
            **{name: str(self.dir / f"{name}.sock") for name in ("qmp", "qmp2", "gdb", "cmd")},
            "qemu": subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0],
            "release": (self.kdir / "release").read_text().strip(),
            "actor": self.start_actor(), "boot_seconds": round(time.monotonic() - began, 2),
        }

    def wait_connected(self):
        """Until QEMU is there, which waits for the one that connects: what the guest says before that would be lost."""
        while True:
            try:
                return self.connect()
            except (FileNotFoundError, ConnectionRefusedError):
                if self.qemu.returncode is not None:
                    raise GuestDied(f"QEMU did not start: {self.said('qemu.log')}") from None
                time.sleep(0.02)

    def wait_ready(self):
        """Until process 1 reads commands."""
        self.wait_for(b"@@ready\n", BOOT_SECONDS)

    def start_actor(self):
        """Start `actor page` and return its facts; the serial line is free after that."""
        self.eval("echo online > /sys/devices/system/memory/auto_online_blocks")
        self.eval("{ actor page > /data/actor & }; until grep -q ^ready /data/actor; do usleep 20000; done")
        words = (line.split() for line in self.eval("cat /data/actor").decode().splitlines() if line)
        facts = {name: int(value, 0) for name, value in words}
        self.cmd.close()
        return facts

    def stop(self):
        if self.qemu:
            self.qemu.kill()
            self.qemu.wait()


def serve(given):
    pages = huge_pages(sum(SHAPES[given.shape][0])) if given.memory == "huge" else contextlib.nullcontext()
    with pages, Scratch() as directory, Live(directory, given.kernel) as guest:
        print(json.dumps(guest.boot(given.qemu, given.shape, given.memory, given.append)), flush=True)
        until_eof()


def prepare():
    """Fetch, and count."""
    passed, failed, skipped = 0, 0, 0
    held = lab.lock()
    if trouble := lab.fetch(KERNEL):
        print(f"FAILED: no kernel {KERNEL}: {trouble}")
        failed += 1
    else:
        passed += 1
    done = subprocess.run([HERE / "qemu.sh"], capture_output=True, text=True)
    if done.returncode:
        print(f"skipped: QEMU 10.0: {(done.stderr.strip() or 'unknown error').splitlines()[-1]}")
        skipped += 1
    else:
        passed += 1
    held.close()
    print(f"live: {passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


def run(main, *arguments):
    """Run what a script of the lab does; why a guest died is its last word."""
    try:
        sys.exit(main(*arguments))
    except BrokenPipeError:  # whoever started this died meanwhile
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except GuestDied as error:
        sys.exit(str(error))


def main():
    parser = argparse.ArgumentParser(prog="live.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("prepare")
    options = verbs.add_parser("serve")
    options.add_argument("--qemu", choices=["own", "10.0"], default="own", help="the machine's own, or 10.0")
    options.add_argument("--shape", choices=SHAPES, default="one")
    options.add_argument("--memory", choices=MEMORY, default="file")
    options.add_argument("--kernel", default=KERNEL, help="of kernels.tsv")
    options.add_argument("--append", default="", help="more of the kernel's command line")
    given = parser.parse_args()
    end_by_exception()
    if given.verb == "prepare":
        return prepare()
    try:
        serve(given)
    except Missing as missing:
        print(json.dumps({"skipped": str(missing)}), flush=True)
    return 0


if __name__ == "__main__":
    run(main)
