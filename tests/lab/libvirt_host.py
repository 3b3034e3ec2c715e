#!/usr/bin/env python3
"""A libvirtd of its own with running domains, for the tests of libvirt.

    libvirt_host.py serve MEMORY...   start libvirtd and a domain for each kind of memory (file, memfd, private), print one line of JSON
                                      that says how to reach them, and keep them until standard input ends; then nothing of it is left
    libvirt_host.py images PACKING... start them with one domain and suspend it; take a snapshot in its disk, save and dump it plain, in each
                                      packing and format, and print a line of JSON with the files, what QEMU says of the moment, and the
                                      guest's own list of processes

The daemon runs in mount and network namespaces of its own, where its directories are private ones: neither /etc nor /run nor /var of the
machine is written, and a libvirtd of the machine is not disturbed. Needs root, and no systemd. The line has the uri by which a client
reaches it, and of each domain its name, uuid, QEMU's process id, the socket of process 1's shell (cmd) and the facts of the process `actor`.
Where something is missing on this machine, it is {"skipped": why}.
"""
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from xml.sax.saxutils import quoteattr

from guest import QEMU, GuestDied
from live import Live, Missing, run
from scratch import Scratch, die_with_parent, end_by_exception, until_eof

MIB = 128
START_SECONDS = 30
PRIVATE = ["/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt"]
QEMU_CONF = """user = "root"
group = "root"
dynamic_ownership = 0
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
memory_backing_dir = "{ram}"
save_image_format = "{packing}"
dump_image_format = "{packing}"
"""
PACKINGS = ["lzop", "gzip", "bzip2", "xz", "zstd"]
DUMPS = ["elf", "kdump-zlib", "kdump-lzo", "kdump-snappy"]
LIBVIRTD_CONF = 'auth_unix_ro = "none"\nauth_unix_rw = "none"\n'
START = """set -e
mount --make-rprivate /
mkdir -p "$0/run"
mount --bind "$0/run" /run
for directory; do
    mkdir -p "$0$directory"
    [ ! -d "$directory" ] || mount --bind "$0$directory" "$directory"
done
exec libvirtd --config /etc/libvirt/libvirtd.conf --pid-file /run/libvirtd.pid
"""
SHARED = "<memoryBacking><source type='{source}'/><access mode='shared'/></memoryBacking>"
DISK = "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file={file}/><target dev='vda' bus='virtio'/></disk>"
DOMAIN = """<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>{mib}</memory>
  {memory}
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initramfs}</initrd>
    <cmdline>{append}</cmdline>
  </os>
  <features><acpi/><vmcoreinfo state='on'/></features>
  <cpu mode='maximum'><feature policy='disable' name='la57'/></cpu>
  <on_reboot>destroy</on_reboot>
  <devices>
    <emulator>{qemu}</emulator>
    <serial type='file'><source path={console}/></serial>
    <serial type='unix'><source mode='bind' path={cmd}/></serial>
    <memballoon model='none'/>
    {disk}
  </devices>
</domain>
"""


def needs():
    """What only this part needs."""
    for program, package in {"libvirtd": "libvirt-daemon-system", "virsh": "libvirt-clients", "unshare": "util-linux"}.items():
        if not shutil.which(program):
            raise Missing(f"no {program}: apt-get install {package}")
    if os.getuid() != 0:
        raise Missing("only root can start a libvirtd in namespaces of its own")
    if tried := subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True, text=True).stderr.strip():
        raise Missing(tried)


class Libvirtd:
    """The daemon; ends with the `with`, and its domains before it."""

    def __init__(self, directory):
        self.dir = directory
        self.uri = f"qemu:///system?socket={directory}/run/libvirt/libvirt-sock"
        self.domains = {}

    def __enter__(self):
        self.run("raw")
        return self

    def run(self, packing):
        """Start the daemon, which packs what it saves so. Domains of the one before go on."""
        etc, ram = self.dir / "etc/libvirt", self.dir / "ram"
        etc.mkdir(parents=True, exist_ok=True)
        ram.mkdir(exist_ok=True)
        (etc / "qemu.conf").write_text(QEMU_CONF.format(ram=ram, packing=packing))
        (etc / "libvirtd.conf").write_text(LIBVIRTD_CONF)
        with open(self.dir / "libvirtd.log", "wb") as log:
            self.daemon = subprocess.Popen(
                ["unshare", "--mount", "--net", "sh", "-c", START, self.dir, *PRIVATE],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent)
        deadline = time.monotonic() + START_SECONDS
        while (listed := self.virsh("list", check=False)).returncode:
            if self.daemon.poll() is not None or time.monotonic() > deadline:
                self.daemon.kill()
                raise GuestDied(f"libvirtd did not start: {listed.stderr.strip()}; {(self.dir / 'libvirtd.log').read_text()}")
            time.sleep(0.05)

    def __exit__(self, *_):
        for name, pid in self.domains.items():
            self.virsh("destroy", name, check=False)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.end()

    def end(self):
        """End the daemon."""
        self.daemon.terminate()
        try:
            self.daemon.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            self.daemon.kill()

    def virsh(self, *arguments, check=True):
        done = subprocess.run(["virsh", "--quiet", "--connect", self.uri, *arguments], capture_output=True, text=True)
        if check and done.returncode:
            raise GuestDied(f"virsh {' '.join(arguments)}: {done.stderr.strip()}")
        return done

    def start(self, memory, disk=None):
        """Start a domain, with a disk if one is given; return its guest, whose serial line is connected, and what the JSON says of it."""
        name = f"vmi-{memory}"
        directory = self.dir / name
        directory.mkdir()
        guest = Live(directory)
        kernel, initramfs, append = guest.kernel_files()
        xml = DOMAIN.format(
            name=name, mib=MIB, kernel=kernel, initramfs=initramfs, append=append, qemu=shutil.which(QEMU),
            disk=DISK.format(file=quoteattr(str(disk))) if disk else "", memory="" if memory == "private" else SHARED.format(source={"file": "file", "memfd": "memfd"}[memory]),
            console=quoteattr(f"{directory}/console.log"), cmd=quoteattr(f"{directory}/cmd.sock"))
        (directory / "domain.xml").write_text(xml)
        # what a guest says while nobody is connected is lost, so it runs when somebody is
        self.virsh("create", "--paused", str(directory / "domain.xml"))
        self.domains[name] = int((self.dir / f"run/libvirt/qemu/{name}.pid").read_text())
        guest.connect()
        self.virsh("resume", name)
        return guest, {
            "name": name, "uuid": self.virsh("domuuid", name).stdout.strip(), "pid": self.domains[name], "cmd": f"{directory}/cmd.sock",
            "memory": memory, "mib": MIB,
        }


def empty_disk(path):
    """Write a qcow2 image of a disk of 16 MiB (QEMU, docs/interop/qcow2.txt): header, table and block of reference counts, table of clusters."""
    cluster = 1 << 16
    header = struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 16, 16 << 20, 0, 1, 3 * cluster, cluster, 1, 0, 0, 0, 0, 0, 4, 104)
    parts = [header, struct.pack(">Q", 2 * cluster), struct.pack(">4H", 1, 1, 1, 1), bytes(8)]
    path.write_bytes(b"".join(part.ljust(cluster, b"\0") for part in parts))


def images(host, directory, packings):
    """What the JSON says of the images of one domain. It is destroyed by a save, and restored from it."""
    disk = directory / "disk.qcow2"
    empty_disk(disk)
    guest, row = host.start("private", disk)
    guest.wait_ready()
    name, rows = row["name"], []
    list_processes = 'for f in /proc/[0-9]*/stat; do read -r l < $f && echo "$l"; done'
    processes = guest.eval(list_processes).decode()
    host.virsh("suspend", name)
    memory = directory / "memory"
    # without quotes a path would be read as a division
    host.virsh("qemu-monitor-command", name, "--hmp", f'pmemsave 0 {MIB << 20:#x} "{memory}"')
    told = {verb: host.virsh("qemu-monitor-command", name, "--hmp", verb).stdout for verb in ("info mtree -f", "info registers -a")}

    def take(what, *arguments):
        path = directory / what.replace(" ", "-")
        done = host.virsh(*(str(path) if argument is None else argument for argument in arguments), check=False)
        rows.append({"what": what, "path": str(path), "error": done.stderr.strip() if done.returncode else None})
        return path

    taken = host.virsh("snapshot-create-as", name, "moment", check=False)
    rows.append({"what": "snapshot", "path": str(disk), "error": taken.stderr.strip() if taken.returncode else None})
    for form in DUMPS:
        take(f"dump {form}", "dump", name, None, "--memory-only", "--format", form)
    def restore(saved):
        host.virsh("restore", str(saved), "--paused")
        host.domains[name] = int((host.dir / f"run/libvirt/qemu/{name}.pid").read_text())

    # a domain is migrated but once without running it between, and a daemon reads its configuration when it starts
    first = take("save raw", "save", name, None)
    restore(first)
    take("dump raw", "dump", name, None)
    host.virsh("destroy", name)
    for packing in packings:
        if not shutil.which(packing):
            rows.append({"what": f"save {packing}", "path": "", "error": f"no {packing}: apt-get install {packing}"})
            continue
        host.end()
        host.run(packing)
        restore(first)
        take(f"save {packing}", "save", name, None)
        if rows[-1]["error"]:
            host.virsh("destroy", name)
            continue
        restore(first)
        take(f"dump {packing}", "dump", name, None)
        host.virsh("destroy", name)
    host.domains.clear()
    return {"images": rows, "memory": str(memory), "tree": told["info mtree -f"], "registers": told["info registers -a"], "processes": processes}


def serve_images(packings):
    with Scratch() as directory, Libvirtd(directory) as host:
        print(json.dumps(images(host, directory, packings)), flush=True)
        until_eof()


def main(verb=None, *memories):
    if verb == "images":
        if set(memories) - set(PACKINGS):
            sys.exit(__doc__)
    elif verb != "serve" or not memories or set(memories) - {"file", "memfd", "private"}:
        sys.exit(__doc__)
    end_by_exception()
    try:
        needs()
        if verb == "images":
            return serve_images(memories or ["lzop"])
        with Scratch() as directory, Libvirtd(directory) as host:
            started = [host.start(memory) for memory in memories]
            for guest, row in started:
                guest.wait_ready()
                row["actor"] = guest.start_actor()
            version = host.virsh("--version=long").stdout.splitlines()[0]
            print(json.dumps({"uri": host.uri, "version": version, "domains": [row for _, row in started]}), flush=True)
            until_eof()
    except Missing as missing:
        print(json.dumps({"skipped": str(missing)}), flush=True)


if __name__ == "__main__":
    run(main, *sys.argv[1:])
