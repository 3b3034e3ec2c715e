"""Synthetic NT layout: a machine that `nt-machine --out DIR` wrote, where VMI_NT_MACHINE names the directory."""

import datetime
import json
import os
from pathlib import Path

import pytest
import vmi

TYPES = {1: "REG_SZ", 2: "REG_EXPAND_SZ", 3: "REG_BINARY", 4: "REG_DWORD", 6: "REG_LINK", 7: "REG_MULTI_SZ", 11: "REG_QWORD"}


@pytest.fixture(scope="module")
def directory():
    if "VMI_NT_MACHINE" not in os.environ:
        pytest.skip("VMI_NT_MACHINE names no directory of nt-machine")
    return Path(os.environ["VMI_NT_MACHINE"])


@pytest.fixture(scope="module")
def guest(directory):
    with vmi.open(directory / "memory.raw") as machine:
        yield machine.attach(symbols=[directory / "symbols/windows"])


@pytest.fixture(scope="module")
def windows(guest):
    assert guest.windows is not None
    return guest.windows


@pytest.fixture(scope="module")
def all_truth(directory):
    return json.loads((directory / "truth.json").read_text())


@pytest.fixture(scope="module")
def contents(guest, all_truth):
    """Each process that is listed, with what was placed in it."""
    placed = {process["pid"]: process for process in all_truth["system"]["processes"]}
    return [(process, placed[process.pid]) for process in guest.processes()]


def test_processes_are_those_of_the_machine(guest, all_truth):
    assert guest.system == "windows" and guest.version.startswith("Windows")
    rows = {(p.pid, p.parent_pid, p.name[:14]) for p in guest.processes()}
    assert rows == {(p["pid"], p["parent"], p["name"][:14]) for p in all_truth["processes"] if p["linked"]}


def test_processes_by_view(guest, all_truth):
    seen = {p.pid: p for p in guest.survey_processes(on_error=lambda error: None)}
    assert all(set(p.views) == {"list", "id_table", "threads", "subsystem", "pool"} for p in seen.values())
    assert {pid for pid, p in seen.items() if p.views["list"]} == {p["pid"] for p in all_truth["processes"] if p["linked"]}


def test_structures_and_fields_of_windows(guest):
    for process in guest.processes():
        task = process.struct
        assert task.type_ == "struct _EPROCESS" and int(task.UniqueProcessId) == process.pid
        process.executable()
        try:
            process.environment()
        except vmi.AbsentError:
            pass
    assert guest.symbols["PsActiveProcessHead"] and vmi.to_dicts(guest.modules())


def test_the_kernel_itself(guest, all_truth, tmp_path):
    system = next(process for process in all_truth["processes"] if process["pid"] == 4)
    assert guest.page_table == system["dtb"] and guest.paging_mode == "4-level" and guest.slide is None
    with pytest.raises(vmi.WriteIsfError, match="program database"):
        guest.write_isf(tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []


def test_handles(windows, contents):
    for process, placed in contents:
        rows = list(windows.handles(process))
        assert [(h.value, h.object, h.kind, h.access) for h in rows] == [
            (h["value"], h["object"], h["type"], h["access"]) for h in placed["handles"]
        ]
        named = {h["value"]: h["name"] for h in placed["handles"] if h["name"] and h["type"] not in ("Process", "Thread")}
        assert {h.value: h.name for h in rows if h.value in named} == named
    assert sum(len(placed["handles"]) for _, placed in contents) > 50


def test_address_descriptors(windows, contents):
    protections = {1: "READONLY", 4: "READWRITE", 6: "EXECUTE_READWRITE", 7: "EXECUTE_WRITECOPY"}
    for process, placed in contents:
        rows = list(windows.vads(process))
        assert [(v.start, v.end, v.object, v.file or "") for v in rows] == [
            (v["start"], v["end"] + 1, v["node"], v["file"]) for v in placed["regions"]
        ]
        for row, region in zip(rows, placed["regions"], strict=True):
            assert row.protection == protections[region["protection"]] and row.private == (region["kind"] == "private")
            assert (row.kind == "Image") == (region["kind"] == "image")
        areas = [(area.start, area.end) for area in process.memory_areas()]
        assert areas == [(row.start, row.end) for row in rows]


def test_tokens(windows, contents):
    for process, placed in contents:
        token = windows.token(process)
        levels = [sid for sid in placed["groups"] if sid.startswith("S-1-16-")]
        assert token.user == placed["user"] and {sid for sid, _ in token.groups} == set(placed["groups"])
        assert token.integrity == (levels[0] if levels else None)
        present, enabled = placed["privileges"]
        assert len(token.privileges) == present.bit_count()
        assert sum(on for _, on in token.privileges) == (present & enabled).bit_count()
        assert token.to_dict()["object"] == token.object
    names = dict(windows.token(contents[0][0]).privileges)
    assert contents[0][0].pid == 4 and "SeDebugPrivilege" in names and windows.token(contents[0][0]).user_name == "SYSTEM"


def test_system_services(windows, all_truth):
    rows = list(windows.system_services())
    placed = all_truth["system"]["services"]
    assert [(row.number, row.target, row.outside) for row in rows] == [(s["number"], s["function"], s["hooked"]) for s in placed]
    assert any(row.outside for row in rows) and all(row.module == "ntoskrnl.exe" for row in rows if not row.outside)


def test_hives(windows, all_truth):
    rows = list(windows.hives())
    assert [(h.object, h.root_path, h.file or "") for h in rows] == [
        (h["address"], h["path"], h["file"]) for h in all_truth["system"]["hives"]
    ]


def compare(key, placed):
    """A key with what was placed, and all that is below it. How many values that is."""
    assert [value.name for value in key.values()] == [value["name"] for value in placed["values"]]
    for value, wanted in zip(key.values(), placed["values"], strict=True):
        data = bytes.fromhex(wanted["data"])
        assert value.kind == TYPES[wanted["type"]]
        match value.data:
            case bytes():
                assert value.data == data
            case int():
                assert value.data == int.from_bytes(data, "little")
            case str():
                assert value.data == data.decode("utf-16-le").split("\0")[0]
            case list():
                assert "\0".join(value.data) + "\0\0" == data.decode("utf-16-le")
    written = datetime.datetime(1601, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(microseconds=placed["written"] // 10)
    assert key.last_write == written
    assert sorted(key.subkeys()) == sorted(child["name"] for child in placed["keys"])
    count = len(placed["values"])
    for child in placed["keys"]:
        if not any(value["type"] == 6 for value in child["values"]):  # links are followed
            count += compare(key.subkey(child["name"]), child)
    return count


def test_the_registry(windows, all_truth):
    for hive in all_truth["system"]["hives"]:
        key = windows.registry_key(hive["path"])
        assert key.name == hive["root"]["name"] and key.to_dict()["path"] == hive["path"]
        assert compare(key, hive["root"]) > 0
    current = windows.registry_key(r"\REGISTRY\MACHINE\SYSTEM\CurrentControlSet\Services\Tcpip\Parameters")
    assert {value.name: value.data for value in current.values()}["Hostname"] == "ADA-PC"
    with pytest.raises(vmi.NoObjectError, match="no_such"):
        current.subkey("no_such")
    with pytest.raises(vmi.NoObjectError, match="NOWHERE"):
        windows.registry_key(r"\NOWHERE")


def test_wrong_arguments_and_closed_machines(directory, windows, guest):
    for wrong in (None, 4, "System", object()):
        for method in (windows.handles, windows.vads, windows.token):
            with pytest.raises(TypeError):
                method(wrong)
    with pytest.raises(TypeError):
        vmi.Windows()
    with vmi.open(directory / "memory.raw") as machine:
        other = machine.attach(symbols=[directory / "symbols/windows"])
        inner, process = other.windows, next(other.processes())
        key = inner.registry_key(r"\REGISTRY\MACHINE\SYSTEM")
        # A process of another machine is looked for where it is there: the same memory here.
        assert windows.token(process).user == "S-1-5-18"
    for call in (
        lambda: other.windows, lambda: inner.handles(process), lambda: inner.token(process), lambda: inner.hives(),
        lambda: inner.system_services(), lambda: inner.registry_key("\\"), lambda: key.subkeys(), lambda: key.values(),
        lambda: key.subkey("Select"), lambda: other.page_table, lambda: other.slide, lambda: other.paging_mode,
    ):
        with pytest.raises(vmi.ClosedError):
            call()
    assert key.name == "ROOT"
