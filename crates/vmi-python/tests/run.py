#!/usr/bin/env python3
"""Builds the wheel, installs it into a fresh virtual environment and runs pytest and mypy --strict there.

    run.py [--release] [--keep DIRECTORY] [arguments of pytest]

A live guest is tested where VMI_LAB_LIVE=1, as the live tests of the workspace. Exit code: 0 if all passed.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
CRATE = HERE.parent
TOOLS = ["maturin>=1.9,<2", "pytest>=8", "mypy>=1.11", "numpy>=2"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", action="store_true", help="build the wheel with optimisation")
    parser.add_argument("--keep", type=Path, help="use and keep this directory for the environment and the wheel")
    given, pytest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch:
        where = given.keep or Path(scratch)
        python = where / "venv/bin/python"
        venv.create(where / "venv", with_pip=True, clear=True)
        run = lambda *command: subprocess.run([str(part) for part in command], cwd=CRATE, check=True)
        run(python, "-m", "pip", "install", "--quiet", *TOOLS)
        for old in where.glob("wheels/*.whl"):
            old.unlink()
        profile = ["--release"] if given.release else []
        env = f"{where}/venv/bin:{os.environ['PATH']}"
        subprocess.run([where / "venv/bin/maturin", "build", "--quiet", "--out", where / "wheels", *profile],
                       cwd=CRATE, check=True, env={**os.environ, "PATH": env})
        [wheel] = where.glob("wheels/*.whl")
        print(wheel.name, flush=True)
        run(python, "-m", "pip", "install", "--quiet", "--no-index", wheel)
        run(python, "-m", "mypy", "--strict", "--cache-dir=/dev/null", HERE / "sample.py")
        run(python, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", HERE, *pytest)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as failed:
        sys.exit(f"failed: {' '.join(str(part) for part in failed.cmd)}")
