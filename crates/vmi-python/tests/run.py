#!/usr/bin/env python3
"""Builds the wheels, installs them into a fresh virtual environment and runs pytest and mypy --strict there.

    run.py [--release] [--keep DIRECTORY] [--only-environment] [arguments of pytest]

A live guest is tested where VMI_LAB_LIVE=1, as the live tests of the workspace; a synthetic Windows machine where VMI_NT_MACHINE names the directory that
nt-machine wrote. Volatility 3 is fetched once and kept in the user's cache directory; where it cannot be had, its tests are skipped and say so.
Exit code: 0 if all passed.
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
TOOLS = ["maturin>=1.9,<2", "pytest>=8", "mypy>=1.11", "numpy>=2", "hatchling>=1.24,<2"]
VOLATILITY = "volatility3==2.28.2"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmi-python"


def run(*command, **options):
    subprocess.run([str(part) for part in command], cwd=CRATE, check=True, **options)


def install_volatility(python):
    """Volatility 3 out of the cache, which is filled if it is not there. What hinders it, or an empty string."""
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    wheels = CACHE / f"volatility-cp{sys.version_info.major}{sys.version_info.minor}"
    from_cache = [*pip, "install", "--quiet", "--no-index", "--find-links", wheels, VOLATILITY]
    try:
        try:
            run(*from_cache, capture_output=True)
        except subprocess.CalledProcessError:
            run(*pip, "download", "--quiet", "--dest", wheels, VOLATILITY, capture_output=True, timeout=600)
            run(*from_cache, capture_output=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as failed:
        said = (failed.stderr or b"").decode(errors="replace").strip().splitlines()
        return f"{VOLATILITY} cannot be had: {said[-1] if said else failed}"
    return ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", action="store_true", help="build the wheel with optimisation")
    parser.add_argument("--keep", type=Path, help="use and keep this directory for the environment and the wheels")
    parser.add_argument("--only-environment", action="store_true", help="run nothing there")
    given, pytest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch:
        where = (given.keep or Path(scratch)).resolve()
        python = where / "venv/bin/python"
        venv.create(where / "venv", with_pip=True, clear=True)
        run(python, "-m", "pip", "install", "--quiet", *TOOLS)
        for old in where.glob("wheels/*.whl"):
            old.unlink()
        profile = ["--release"] if given.release else []
        path = {"PATH": f"{where}/venv/bin:{os.environ['PATH']}"}
        run(where / "venv/bin/maturin", "build", "--quiet", "--out", where / "wheels", *profile, env={**os.environ, **path})
        run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", where / "wheels", CRATE / "volatility")
        wheels = sorted(where.glob("wheels/*.whl"))
        print(*(wheel.name for wheel in wheels), flush=True)
        why = install_volatility(python)
        run(python, "-m", "pip", "install", "--quiet", "--no-index", *(wheels if not why else [w for w in wheels if "volatility" not in w.name]))
        if given.only_environment:
            sys.exit(why)
        run(python, "-m", "mypy", "--strict", "--cache-dir=/dev/null", HERE / "sample.py")
        run(python, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", HERE, *pytest, env={**os.environ, "VMI_NO_VOLATILITY": why})


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as failed:
        sys.exit(f"failed: {' '.join(str(part) for part in failed.cmd)}")
