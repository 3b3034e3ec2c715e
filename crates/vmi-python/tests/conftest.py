"""What the tests share: the demo image, its truth, and a live guest where VMI_LAB_LIVE=1."""

import contextlib
import csv
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import vmi

# What a user has fetched before is not to be found here, nor what these tests read kept.
_cache = tempfile.TemporaryDirectory(prefix="vmi-cache-")
os.environ |= {"XDG_CACHE_HOME": _cache.name, "_NT_SYMBOL_PATH": ""}

ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "demo/debian-6.12.raw.zst"


def pytest_collection_modifyitems(items):
    """The test that ends the guest comes last: others have more questions to it."""
    items.sort(key=lambda item: item.name == "test_a_guest_that_ended")


@pytest.fixture(scope="session")
def machine():
    with vmi.open(DEMO) as machine:
        yield machine


@pytest.fixture(scope="session")
def guest(machine):
    return machine.attach()


@pytest.fixture(scope="session")
def truth():
    """What the guest's own /proc said of its processes."""
    with open(ROOT / "demo/processes.tsv", newline="") as file:
        return [
            (int(row["pid"]), int(row["parent"]), row["comm"], row["state"], int(row["uid"]))
            for row in csv.DictReader(file, delimiter="\t")
        ]


class Live:
    """A guest of tests/lab, and the shell of its process 1."""

    def __init__(self, facts):
        self.facts = facts
        self.target = f"qemu:{facts['qmp']}"
        self.page = 0x40000000  # PAGE of tests/lab/actor.c
        self.shell = socket.socket(socket.AF_UNIX)
        self.shell.connect(facts["cmd"])

    def sh(self, line, timeout=60):
        mark = f"@@{time.monotonic_ns():x}"
        self.shell.settimeout(timeout)
        self.shell.sendall(f"{line}\necho; echo '{mark}'\n".encode())
        got = b""
        while not got.endswith(f"\n{mark}\n".encode()):
            block = self.shell.recv(1 << 16)
            assert block, "the guest ended"
            got += block
        return got[: -len(mark) - 2].decode().rstrip("\n")


class Qmp:
    """QEMU's monitor (QMP): one command at a time."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(path)
        self.lines = self.socket.makefile("rb")
        self.lines.readline()
        self("qmp_capabilities")

    def __call__(self, command, **arguments):
        self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            said = json.loads(self.lines.readline())
            if "error" in said:
                raise RuntimeError(f"{command}: {said['error']['desc']}")
            if "return" in said:
                return said["return"]


@contextlib.contextmanager
def boot(*options):
    """A guest of tests/lab, or the test is skipped."""
    if os.environ.get("VMI_LAB_LIVE") != "1":
        pytest.skip("live guests are booted where VMI_LAB_LIVE=1")
    command = ["python3", "-B", str(ROOT / "tests/lab/live.py"), "serve", *options]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        facts = json.loads(server.stdout.readline() or '{"skipped": "live.py failed"}')
        if "skipped" in facts:
            pytest.skip(facts["skipped"])
        print(facts["release"], file=sys.stderr)
        yield Live(facts)
    finally:
        server.stdin.close()
        server.wait(60)


@pytest.fixture(scope="session")
def live():
    with boot() as guest:
        yield guest
