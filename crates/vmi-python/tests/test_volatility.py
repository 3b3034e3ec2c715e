"""Volatility 3 through the package vmi-volatility3: on the demo image in several formats, a synthetic Windows machine, a live guest.

Needs volatility3, which run.py installs where it can be had.
"""

import io
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import vmi
from conftest import DEMO, Qmp, boot

pytest.importorskip("volatility3", reason=os.environ.get("VMI_NO_VOLATILITY", "no package volatility3"))

from volatility3.framework import contexts, exceptions  # noqa: E402
from vmi_volatility3 import Location, close_all, layers, opened, urls  # noqa: E402

VOL = Path(sys.executable).with_name("vol")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A user's cache directory, empty at first."""
    return tmp_path_factory.mktemp("cache")


def vol(cache, location, plugin, *options):
    """The rows of a plugin, and what was said besides. The process is one of its own, as a user runs it."""
    command = [VOL, "-q", "--offline", "-r", "json", *options, "-f", location, plugin]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment, timeout=300)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout), done.stderr


def symbol_files(cache):
    return {path: path.stat().st_mtime_ns for path in cache.rglob("*.json.xz")}


def processes(rows):
    return sorted((row["PID"], row["PPID"], row["COMM"], row["UID"]) for row in rows)


def listed(truth):
    """What Volatility lists: no zombies."""
    return sorted((pid, parent, name, uid) for pid, parent, name, state, uid in truth if state != "Z")


def test_processes_of_an_image_that_volatility_cannot_read(cache, truth):
    """Without any symbol file: one is made, once."""
    rows, _ = vol(cache, f"vmi:{DEMO}", "linux.pslist.PsList")
    assert processes(rows) == listed(truth)
    [made] = before = symbol_files(cache)
    assert made.parent.name == "linux" and "6.12.117" in made.name
    modules, _ = vol(cache, f"vmi+snapshot:{DEMO}", "linux.lsmod.Lsmod")
    assert {row["Module Name"] for row in modules} == modules_of_the_demo()
    assert symbol_files(cache) == before


def modules_of_the_demo():
    with vmi.open(DEMO) as machine:
        return {module.name for module in machine.attach().modules()}


@pytest.mark.parametrize("format", ["kdump", "avml", "raw.xz"])
def test_other_formats(cache, machine, truth, tmp_path, format):
    if format == "raw.xz":
        # Not to be unpacked a second time, whatever Volatility thinks of the name.
        machine.write_image(tmp_path / "guest.raw", "raw")
        subprocess.run(["xz", "-0", "-T0", tmp_path / "guest.raw"], check=True)
    else:
        machine.write_image(tmp_path / f"guest.{format}", format)
    rows, _ = vol(cache, f"vmi:{tmp_path}/guest.{format}", "linux.pslist.PsList")
    assert processes(rows) == listed(truth)


def test_no_symbol_file_where_none_is_wanted(tmp_path):
    with pytest.raises(RuntimeError, match="symbol_table_name"):
        vol(tmp_path, f"vmi+nosymbols:{DEMO}", "linux.pslist.PsList")
    assert symbol_files(tmp_path) == {}


def test_what_cannot_be_opened_is_said(cache):
    with pytest.raises(RuntimeError, match="/no/such: cannot open"):
        vol(cache, "vmi:/no/such", "linux.pslist.PsList")
    with pytest.raises(RuntimeError, match="no option `swapshot`; there are snapshot, nosymbols"):
        vol(cache, f"vmi+swapshot:{DEMO}", "linux.pslist.PsList")
    with pytest.raises(RuntimeError, match="cannot connect"):
        vol(cache, "vmi:qemu:/no/such.qmp", "linux.pslist.PsList")


def test_processes_of_a_windows_machine(cache):
    if "VMI_NT_MACHINE" not in os.environ:
        pytest.skip("VMI_NT_MACHINE names no directory of nt-machine")
    directory = Path(os.environ["VMI_NT_MACHINE"])
    truth = json.loads((directory / "truth.json").read_text())
    for location in (f"vmi:{directory}/memory.raw", f"vmi+snapshot:{directory}/memory.raw"):
        rows, _ = vol(cache, location, "windows.pslist.PsList", "-s", directory / "symbols")
        found = {(row["PID"], row["PPID"], row["ImageFileName"]) for row in rows}
        assert found == {(p["pid"], p["parent"], p["name"][:14]) for p in truth["processes"] if p["linked"]}
    rows, _ = vol(cache, location, "windows.modules.Modules", "-s", directory / "symbols")
    assert {row["Name"] for row in rows} >= {"ntoskrnl.exe"}


def test_a_live_guest(cache, live):
    said = by_own_account(live)
    modules = {line.split()[0] for line in live.sh("cat /proc/modules").splitlines()}
    for scheme in ("vmi", "vmi+snapshot"):
        rows, _ = vol(cache, f"{scheme}:{live.target}", "linux.pslist.PsList")
        assert as_the_guest_says(rows, said, live.facts["actor"]["pid"])
        rows, _ = vol(cache, f"{scheme}:{live.target}", "linux.lsmod.Lsmod")
        assert {row["Module Name"] for row in rows} == modules
    assert live.sh("echo still here") == "still here"


def by_own_account(guest):
    """The processes as a guest's own /proc has them: id and name."""
    said = guest.sh("for d in /proc/[0-9]*; do echo ${d#/proc/} $(sed -n 's/^Name:.//p' $d/status); done")
    return dict(line.split(" ", 1) for line in said.splitlines())


def as_the_guest_says(rows, said, actor):
    """Whether a list has the guest's processes. Whoever took the list in the guest is gone, and the names of workers end with what they do."""
    found = {str(row["PID"]): row["COMM"] for row in rows}
    few = len(found.keys() ^ said.keys()) <= 4 and str(actor) in found
    return few and all(said[pid].startswith(name) for pid, name in found.items() if pid in said)


def test_what_qemu_writes(cache, tmp_path):
    """mapped-ram (since QEMU 9.0) and QEMU's own kdump, neither of which Volatility reads by itself."""
    with boot("--qemu", "10.0") as guest:
        said, actor, qmp = by_own_account(guest), guest.facts["actor"]["pid"], Qmp(guest.facts["qmp2"])
        qmp("dump-guest-memory", paging=False, protocol=f"file:{tmp_path}/guest.kdump", format="kdump-zlib")
        qmp("migrate-set-capabilities", capabilities=[{"capability": "mapped-ram", "state": True}])
        qmp("migrate", uri=f"file:{tmp_path}/guest.mapped")
        deadline = time.monotonic() + 120
        while qmp("query-migrate")["status"] != "completed":
            assert time.monotonic() < deadline
            time.sleep(0.1)
    for image in ("guest.kdump", "guest.mapped"):
        rows, _ = vol(cache, f"vmi:{tmp_path}/{image}", "linux.pslist.PsList")
        assert as_the_guest_says(rows, said, actor), image
        # By itself Volatility fails or lists nothing. The symbol file is there: it is the image that is not read.
        symbols = next(iter(symbol_files(cache))).parents[1]
        try:
            rows, _ = vol(cache, f"{tmp_path}/{image}", "linux.pslist.PsList", "-s", symbols)
        except RuntimeError:
            rows = []
        assert rows == [], image


def test_locations():
    assert Location.parse("vmi:guest.lime") == Location("guest.lime")
    assert Location.parse("vmi+snapshot:qemu:/run/g.qmp") == Location("qemu:/run/g.qmp", snapshot=True)
    assert Location.parse("VMI+nosymbols+snapshot:/a b?c#d%20.xz") == Location("/a b?c#d%20.xz", snapshot=True, symbols=False)
    for other in ("file:///guest.lime", "vmix:guest", "guest.lime", "", "xvmi:guest"):
        assert Location.parse(other) is None
    for wrong in ("vmi:", "vmi+:guest", "vmi+snapshots:guest", "vmi+snapshot:"):
        with pytest.raises(ValueError, match=r"names no target|no option"):
            Location.parse(wrong)
    for location in (Location("a.xz"), Location("qemu:1", snapshot=True), Location("/x:y", snapshot=True, symbols=False)):
        assert Location.parse(location.url) == location and not location.url.endswith(".xz")
        assert location.url.split(":")[0] in urls.schemes()


@pytest.fixture
def with_hole(tmp_path):
    """A LiME image (version 1, kernel module LiME, lime.h) of two ranges with a hole in between, of which the third starts where the second ends."""
    path = tmp_path / "hole.lime"
    with open(path, "wb") as file:
        for start, byte in ((0x1000, b"a"), (0x5000, b"b"), (0x6000, b"c")):
            file.write(struct.pack("<4sIQQ8x", b"EMiL", 1, start, start + 0xFFF) + byte * 0x1000)
    yield path
    close_all()


def test_memory_as_a_file(with_hole):
    with io.BufferedReader(urls.MemoryFile(opened(Location(str(with_hole))))) as file:
        assert file.seek(0, io.SEEK_END) == 0x7000 and file.read(1) == b""
        assert file.seek(0x1FFE) and file.read(4) == b"aa\0\0"
        file.seek(0)
        assert file.read() == bytes(0x1000) + b"a" * 0x1000 + bytes(0x3000) + b"b" * 0x1000 + b"c" * 0x1000
        file.seek(1 << 40)
        assert file.read(5) == b""
        with pytest.raises(ValueError):
            file.seek(-1)


class Scanner:
    """What Volatility asks of a scanner."""

    thread_safe, chunk_size, overlap, version = False, 0x1800, 0x100, (1, 0, 0)

    def __call__(self, data, offset):
        yield offset, data


def test_a_layer_with_holes(with_hole):
    context = contexts.Context()
    context.config["test.location"] = f"vmi:{with_hole}"
    layer = layers.MachineLayer(context, "test", "memory")
    context.add_layer(layer)
    assert (layer.minimum_address, layer.maximum_address) == (0x1000, 0x6FFF)
    valid = [(0x1000, 0x1000), (0x5000, 0x2000), (0x5FFF, 2), (0x6FFF, 1)]
    wrong = [(0xFFF, 1), (0xFFF, 2), (0x1FFF, 2), (0x1000, 0x5000), (0x2000, 1), (0x6FFF, 2), (0x7000, 1), (-1, 1), (1 << 70, 1)]
    assert all(layer.is_valid(*place) for place in valid) and not any(layer.is_valid(*place) for place in wrong)
    assert layer.read(0x5FFF, 2) == b"bc"
    assert layer.read(0x1FFF, 3, pad=True) == b"a\0\0"
    for place in wrong:
        with pytest.raises(exceptions.InvalidAddressException):
            layer.read(*place)
    with pytest.raises(NotImplementedError):
        layer.write(0x1000, b"x")
    # Every byte that is there is scanned, for all that a chunk of memory without holes would span the hole.
    scanned = list(layer.scan(context, Scanner()))
    seen = {offset + index for offset, data in scanned for index in range(len(data))}
    assert seen == {*range(0x1000, 0x2000), *range(0x5000, 0x6FFF)}
    # Contexts are copied.
    copy = context.clone().layers["memory"]
    assert copy.read(0x1000, 1) == b"a" and copy.machine is layer.machine
