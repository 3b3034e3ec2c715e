"""The programs of the README and of the guide: their types hold, and the ten lines list processes of every kind of target."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DEMO, ROOT

README = ROOT / "crates/vmi-python/README.md"
GUIDE = ROOT / "docs/python.md"


def programs(document):
    return re.findall(r"^```python\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)


def ten_lines(target):
    """What the README's program prints of a target."""
    [program] = programs(README)
    assert len(program.splitlines()) <= 10 and program.count('"guest.lime"') == 1
    program = program.replace('"guest.lime"', repr(str(target)))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_types_of_all_programs(tmp_path):
    files = []
    for document in (README, GUIDE):
        for number, program in enumerate(programs(document)):
            files.append(tmp_path / f"{document.stem.lower()}_{document.parent.name.replace('-', '_')}_{number}.py")
            prefix = "" if "import vmi" in program else "import vmi\n"
            files[-1].write_text(prefix + program)
    assert len(files) >= 3
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_ten_lines_on_the_demo(truth):
    first, *rows, last = ten_lines(DEMO)
    assert sorted(rows) == sorted(f"{pid} {parent} {name}" for pid, parent, name, _, _ in truth)
    assert first.startswith("Linux 6.12.117") and last.startswith("struct task_struct 0xffff") and last.endswith("/bin/busybox")


def test_ten_lines_on_a_live_guest(live):
    first, *rows, _ = ten_lines(live.target)
    said = live.sh("for d in /proc/[0-9]*; do echo ${d#/proc/}; done").split()
    assert len({row.split()[0] for row in rows} ^ set(said)) <= 4 and live.facts["release"] in first


def test_ten_lines_on_a_windows_machine():
    if "VMI_NT_MACHINE" not in os.environ:
        pytest.skip("VMI_NT_MACHINE names no directory of nt-machine")
    directory = Path(os.environ["VMI_NT_MACHINE"])
    truth = json.loads((directory / "truth.json").read_text())
    first, *rows, last = ten_lines(directory / "memory.raw")
    assert rows == [f"{p['pid']} {p['parent']} {p['name'][:15]}" for p in truth["processes"] if p["linked"]]
    assert first.startswith("Windows 10 19041") and last.startswith("struct _EPROCESS 0xffff")
