"""Synthetic NT layout: a machine that `nt-machine --out DIR` wrote, where VMI_NT_MACHINE names the directory."""

import json
import os
from pathlib import Path

import pytest
import vmi


@pytest.fixture(scope="module")
def directory():
    if "VMI_NT_MACHINE" not in os.environ:
        pytest.skip("VMI_NT_MACHINE names no directory of nt-machine")
    return Path(os.environ["VMI_NT_MACHINE"])


@pytest.fixture(scope="module")
def guest(directory):
    with vmi.open(directory / "memory.raw") as machine:
        yield machine.attach(symbols=[directory / "symbols/windows"])


def test_processes_are_those_of_the_machine(guest, directory):
    truth = json.loads((directory / "truth.json").read_text())
    assert guest.system == "windows" and guest.version.startswith("Windows")
    rows = {(p.pid, p.name[:14]) for p in guest.processes()}
    listed = {(p["pid"], p["name"][:14]) for p in truth["processes"]}
    assert rows <= listed and len(rows) > 2


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
