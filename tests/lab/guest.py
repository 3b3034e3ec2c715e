#!/usr/bin/env python3
"""Boot the lab's guests (guests.tsv) and record what is true inside them.

    guest.py list
    guest.py start GUEST          boot, wait, write the ground truth; the guest goes on running
    guest.py exec GUEST COMMAND   run a shell command inside
    guest.py stop GUEST

A running guest has a directory $VMI_LAB_CACHE/run/GUEST with its sockets (qmp.sock,
gdb.sock, cmd.sock), its RAM as a file to map (ram), console.log and truth/.
"""
import gzip
import io
import json
import lzma
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("VMI_LAB_CACHE") or Path.home() / ".cache/vmi-lab").absolute()
ACCEL = os.environ.get("VMI_LAB_ACCEL", "tcg")
QEMU = os.environ.get("VMI_LAB_QEMU", "qemu-system-x86_64")
APPLETS = """cat dd dmesg grep gzip head hostname insmod ip ls mount rm rmmod sh sleep stty
    mkfifo sync tail tr umount unshare usleep uname kill echo mkdir""".split()
MODULES = ["llc", "stp", "dummy", "loop", "qemu_fw_cfg"]
# Process 1 runs these itself, without a fork, so that listing changes nothing.
LIST_TASKS = 'for f in /proc/[0-9]*/task/*/stat; do read -r l < $f; echo "$l"; done'
LIST_NAMES = 'for f in /proc/[0-9]*/task/*/sched; do [ ! -e $f ] || { read -r l < $f; echo "$l"; }; done'


class GuestDied(RuntimeError):
    """The guest ended, or says nothing any more."""


def table(name):
    """The rows of a table of the lab, by their first column."""
    lines = (HERE / name).read_text().splitlines()
    return {row[0]: row for row in (line.split("\t") for line in lines if line and line[0] != "#")}


def qemu_version():
    return subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def connect(directory, name):
    """Connect to a socket; by way of /proc, because the path of a socket has at most 107 bytes."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(f"/proc/self/fd/{fd}/{name}")
        return sock
    finally:
        os.close(fd)


def unpacked(path):
    """The content of a kernel module, which distributions compress in several ways."""
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dc", path], capture_output=True, check=True).stdout
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


class Qmp:
    """Just enough of the QEMU Machine Protocol; events are passed over."""

    def __init__(self, directory):
        self.sock = connect(directory, "qmp.sock")
        self.sock.settimeout(120)
        self.file = self.sock.makefile("rw")
        json.loads(self.file.readline())
        self("qmp_capabilities")

    def __call__(self, command, **arguments):
        json.dump({"execute": command, "arguments": arguments}, self.file)
        self.file.flush()
        while True:
            line = self.file.readline()
            if not line:
                raise GuestDied(f"QEMU ended during {command}")
            reply = json.loads(line)
            if "return" in reply:
                return reply["return"]
            if "error" in reply:
                raise RuntimeError(f"{command}: {reply['error']['desc']}")

    def monitor(self, line):
        return self("human-monitor-command", **{"command-line": line})


class Guest:
    """One row of guests.tsv. As a context manager it is stopped at the end."""

    def __init__(self, name):
        rows = table("guests.tsv")
        if name not in rows:
            sys.exit(f"no guest {name!r}: guest.py list names them")
        _, self.set, self.kernel, self.options, self.append = rows[name]
        self.name = name
        self.dir = CACHE / "run" / name
        self.kdir = CACHE / "kernels" / self.kernel
        self.truth = self.dir / "truth"
        self.qemu = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    # -- the initramfs ---------------------------------------------------------------

    def initramfs(self):
        out, inode = io.BytesIO(), 0

        def entry(path, mode, data=b"", rdev=(0, 0)):
            nonlocal inode
            inode += 1
            name = path.encode() + b"\0"
            fields = [inode, mode, 0, 0, 1, 0, len(data), 0, 0, *rdev, len(name), 0]
            out.write(b"070701" + b"".join(b"%08X" % f for f in fields) + name)
            out.write(bytes(-out.tell() % 4) + data)
            out.write(bytes(-out.tell() % 4))

        arch = (self.kdir / "arch").read_text().strip()
        for d in "bin dev proc sys data mnt modules".split():
            entry(d, 0o040755)
        entry("dev/console", 0o020600, rdev=(5, 1))
        entry("bin/busybox", 0o100755, (CACHE / "busybox" / arch / "bin/busybox").read_bytes())
        for applet in APPLETS:
            entry(f"bin/{applet}", 0o120777, b"busybox")
        entry("init", 0o100755, (HERE / "init").read_bytes())
        with tempfile.TemporaryDirectory() as tmp:
            subprocess.run(
                ["gcc", "-m32" if arch == "i386" else "-m64", "-O1", "-static", "-nostdlib", "-s",
                 "-ffreestanding", "-fno-pie", "-no-pie", "-fno-stack-protector", "-mno-sse",
                 "-o", f"{tmp}/witness", HERE / "witness.c"], check=True)
            entry("bin/witness", 0o100755, Path(tmp, "witness").read_bytes())
        order = []
        for module in MODULES:
            for path in (self.kdir / "modules").resolve().rglob(f"{module}.ko*"):
                entry(f"modules/{module}", 0o100644, unpacked(path))
                order.append(module)
        entry("modules/order", 0o100644, "".join(m + "\n" for m in order).encode())
        entry("TRAILER!!!", 0)
        return gzip.compress(out.getvalue(), 6, mtime=0)

    # -- starting and stopping -------------------------------------------------------

    def start(self, detached=False):
        """Boot and write the truth; a guest that is not detached ends with this process."""
        self.stop()
        self.truth.mkdir(parents=True)
        (self.dir / "initramfs.gz").write_bytes(self.initramfs())
        size = re.search(r"-m (\d+)M", self.options)[1]
        shm = Path("/dev/shm")
        roomy = os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > int(size) << 21
        fd, ram = tempfile.mkstemp(prefix=f"vmi-lab-{self.name}-", suffix=".ram", dir=shm if roomy else self.dir)
        os.close(fd)
        (self.dir / "ram").symlink_to(ram)
        # a busy host is late with the timer's interrupts, which the kernel would take for broken wiring
        append = f"console=ttyS0 panic=-1 quiet no_timer_check {self.append}".strip()

        def server(name):
            return f"unix:{name}.sock,server=on,wait=off"

        argv = [
            QEMU, "-accel", ACCEL, "-nodefaults", "-no-user-config",
            "-display", "none", "-no-reboot", "-rtc", "base=2024-01-01T00:00:00",
            *shlex.split(self.options),
            "-object", f"memory-backend-file,id=ram,size={size}M,share=on,mem-path={ram}",
            "-machine", "memory-backend=ram", "-device", "vmcoreinfo",
            "-serial", "file:console.log", "-serial", server("cmd"),
            "-qmp", server("qmp"), "-gdb", server("gdb"),
            "-kernel", str((self.kdir / "vmlinuz").resolve()), "-initrd", "initramfs.gz",
            "-append", append, "-pidfile", "pid", "-S",
        ]
        if detached:
            argv.append("-daemonize")
        elif shutil.which("setpriv"):  # even a killed lab leaves no guest behind
            argv = ["setpriv", "--pdeathsig", "KILL", *argv]
        began = time.monotonic()
        with open(self.dir / "qemu.log", "wb") as log:
            self.qemu = subprocess.Popen(argv, cwd=self.dir, stdin=subprocess.DEVNULL, stderr=log)
        if detached and self.qemu.wait():
            raise RuntimeError(f"{QEMU} did not start: {self.said('qemu.log')}")
        while True:
            try:
                monitor = Qmp(self.dir)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if self.qemu.poll():
                    raise RuntimeError(f"{QEMU} did not start: {self.said('qemu.log')}") from None
                time.sleep(0.02)
        self.connect()
        monitor("cont")  # only now: what a guest says while nobody is connected is lost
        self.wait_for(b"@@ready\n", 180)
        booted = time.monotonic() - began
        self.record()
        facts = {
            "guest": self.name, "release": (self.kdir / "release").read_text().strip(),
            "arch": (self.kdir / "arch").read_text().strip(), "append": append, "options": self.options,
            "packages": (self.kdir / "packages").read_text().split(), "qemu": qemu_version(),
            "boot_seconds": round(booted, 1),
            "record_seconds": round(time.monotonic() - began - booted, 1),
        }
        (self.truth / "guest.json").write_text(json.dumps(facts, indent=1) + "\n")
        return facts

    def stop(self):
        """End the guest, whoever started it, and remove what it left."""
        ram = self.dir / "ram"
        if ram.is_symlink():
            target = os.readlink(ram)
            try:
                pid = int((self.dir / "pid").read_text())
                if target.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    while target.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                        time.sleep(0.02)
            except (FileNotFoundError, ProcessLookupError, ValueError):
                pass
            Path(target).unlink(missing_ok=True)
        if self.qemu:
            self.qemu.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

    # -- talking to process 1 over ttyS1 ---------------------------------------------

    def connect(self):
        self.cmd = connect(self.dir, "cmd.sock")

    def wait_for(self, end, timeout):
        deadline = time.monotonic() + timeout
        got = bytearray()
        while not got.endswith(end):
            self.cmd.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                block = self.cmd.recv(1 << 16)
            except socket.timeout:
                raise GuestDied(f"silent for {timeout} s; its console's last words: {self.said('console.log')}") from None
            if not block:
                raise GuestDied(f"the guest ended; its console's last words: {self.said('console.log')}")
            got += block
        return bytes(got[:-len(end)])

    def said(self, log):
        """The line that says most about an end: of the kernel's panic, or the last one."""
        lines = (self.dir / log).read_text(errors="replace").splitlines() or ["(nothing)"]
        return next((line for line in lines if "panic" in line), lines[-1]).strip()

    def eval(self, line, timeout=120):
        """Have process 1 itself run a line; it forks only where the line makes it."""
        nonce = secrets.token_hex(8)
        self.cmd.sendall(f"{line}; echo; echo @@{nonce}\n".encode())
        return self.wait_for(f"\n@@{nonce}\n".encode(), timeout)

    # -- the ground truth ------------------------------------------------------------

    def record(self):
        def save(name, line):
            (self.truth / name).write_bytes(self.eval(line))

        if "lab.tidy" in self.append.split():
            # Fill what is free with zeros, so that the image compresses. Before anything is noted: the kernel moves pages to make room.
            self.eval("free=$(grep MemAvailable /proc/meminfo | tr -dc 0-9); mount -t tmpfs -o"
                      " size=$((free - 10240))k fill /mnt; cat /dev/zero > /mnt/zero 2>/dev/null;"
                      " umount /mnt; echo 3 > /proc/sys/vm/drop_caches")
            if b"Out of memory" in self.eval("dmesg"):
                raise GuestDied("filling its free memory has ended one of its processes")

        btf = self.kdir / "vmlinux.btf.gz"  # the same at every boot, and slow to get out
        if not btf.exists():
            part = btf.with_name(f"btf.{os.getpid()}")
            part.write_bytes(self.eval("[ ! -e /sys/kernel/btf/vmlinux ] || gzip -1c /sys/kernel/btf/vmlinux"))
            part.rename(btf)
        if btf.stat().st_size:  # i386 kernels have none
            shutil.copy(btf, self.truth)
        if symbols := self.eval("[ ! -e /proc/kallsyms ] || gzip -1c /proc/kallsyms"):
            (self.truth / "kallsyms.gz").write_bytes(symbols)
        for name, path in {
            "cmdline": "cmdline", "version": "version", "cpuinfo": "cpuinfo", "iomem": "iomem", "stat": "stat",
            "modules": "modules", "mountinfo": "self/mountinfo", "tcp": "net/tcp", "udp": "net/udp",
            "unix": "net/unix", "net_dev": "net/dev", "meminfo": "meminfo", "uptime": "uptime",
        }.items():
            save(name, f"cat /proc/{path}")
        save("facts", "cat /data/facts")
        save("dmesg", "dmesg")
        save("btf", "ls -l /sys/kernel/btf")
        save("vmcoreinfo", "cat /sys/kernel/vmcoreinfo")
        save("notes", "cat /sys/kernel/notes")
        save("sections", "grep -H . /sys/module/*/sections/.*")
        save("kcore-headers", "head -c 8192 /proc/kcore")
        save("pagemap", "; ".join(  # of every known page: what /proc says of its frame
            f"dd if=/proc/{self.facts('witness')[0]}/pagemap bs=8 count=1 skip={at // 4096} 2>/dev/null"
            for at in self.facts("page")))
        for name in "cmdline", "environ", "maps":
            save(f"tasks.{name}", f"tail -n +1 /proc/[0-9]*/{name}")
        save("tasks.status", 'grep -H "" /proc/[0-9]*/status')
        save("tasks.links", "ls -ld /proc/[0-9]*/exe /proc/[0-9]*/cwd /proc/[0-9]*/root /proc/[0-9]*/ns/* /proc/[0-9]*/fd/*")
        # last and without a fork: nothing that is listed here goes away before the image is taken
        save("tasks.comm", LIST_NAMES)
        save("tasks.stat", LIST_TASKS)

    def facts(self, kind):
        lines = (self.truth / "facts").read_text().splitlines()
        return [int(line.rsplit("0x")[-1], 16) for line in lines if line.startswith(kind)]


def main(verb="list", name=None, *rest):
    if verb == "list":
        for row in table("guests.tsv").values():
            print(*row, sep="\t")
        return
    if verb not in ("start", "exec", "stop") or not name:
        sys.exit(__doc__)
    guest = Guest(name)
    if verb == "start":
        facts = guest.start(detached=True)
        print(f"{name}: {facts['release']} up in {facts['boot_seconds']} s, in {guest.dir}")
    elif verb == "exec":
        guest.connect()
        sys.stdout.buffer.write(guest.eval(f"sh -c {shlex.quote(' '.join(rest))}"))
    else:
        guest.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
