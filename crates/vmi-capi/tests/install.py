#!/usr/bin/env python3
"""Builds the C library and installs it: install.py PREFIX [--libdir DIRECTORY] [--profile PROFILE] [--features download libvirt xen]

    PREFIX/lib/libvmi_capi.so, .so.SONAME, .so.VERSION, libvmi_capi.a
    PREFIX/include/vmi.h
    PREFIX/lib/pkgconfig/vmi-capi.pc

For packages, DESTDIR in the environment is put before each path, and is not part of what the pkg-config file says.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

CRATE = Path(__file__).resolve().parents[1]
# What Rust's standard library needs of the system (`rustc --print native-static-libs` on x86-64 Linux), for static linking.
PRIVATE = "-lgcc_s -lutil -lrt -lpthread -lm -ldl -lc"

PKG_CONFIG = """\
prefix={prefix}
libdir={libdir}
includedir=${{prefix}}/include

Name: vmi-capi
Description: Virtual machine introspection: look into running virtual machines and memory images from outside
Version: {version}
Cflags: -I${{includedir}}
Libs: -L${{libdir}} -lvmi_capi
Libs.private: {private}
"""


def build(profile, features, target):
    """Builds, and returns the paths of the libraries and the version."""
    command = ["cargo", "build", "--package", "vmi-capi", "--message-format", "json-render-diagnostics", "--profile", profile]
    if target:
        command += ["--target", target]
    if features:
        command += ["--features", ",".join(f"vmi-capi/{feature}" for feature in features)]
    done = subprocess.run(command, cwd=CRATE, check=True, stdout=subprocess.PIPE, text=True)
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message["reason"] == "compiler-artifact" and message["target"]["name"] == "vmi_capi":
            files = [Path(name) for name in message["filenames"]]
            version = message["package_id"].rsplit("@", 1)[-1].rsplit("#", 1)[-1]
            return next(f for f in files if f.suffix == ".so"), next(f for f in files if f.suffix == ".a"), version
    sys.exit("cargo built no library")


def soname(version):
    """As build.rs names it."""
    major, minor, _ = version.split(".")
    return f"libvmi_capi.so.0.{minor}" if major == "0" else f"libvmi_capi.so.{major}"


def install(prefix, libdir=None, profile="release", features=(), target=None):
    shared, static, version = build(profile, features, target)
    prefix = Path(prefix).absolute()
    libdir = Path(libdir).absolute() if libdir else prefix / "lib"
    under = lambda path: Path(os.environ.get("DESTDIR", "") + str(path))
    for directory in [libdir / "pkgconfig", prefix / "include"]:
        under(directory).mkdir(parents=True, exist_ok=True)
    real = f"libvmi_capi.so.{version}"
    shutil.copy(shared, under(libdir / real))
    shutil.copy(static, under(libdir / "libvmi_capi.a"))
    for link in [soname(version), "libvmi_capi.so"]:
        under(libdir / link).unlink(missing_ok=True)
        under(libdir / link).symlink_to(real)
    shutil.copy(CRATE / "include/vmi.h", under(prefix / "include/vmi.h"))
    private = f"{PRIVATE} -lvirt -lvirt-qemu" if "libvirt" in features else PRIVATE
    text = PKG_CONFIG.format(prefix=prefix, libdir=libdir, version=version, private=private)
    under(libdir / "pkgconfig/vmi-capi.pc").write_text(text)
    return under(libdir)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefix")
    parser.add_argument("--libdir")
    parser.add_argument("--profile", default="release", help="cargo's, such as dev")
    parser.add_argument("--features", nargs="*", default=[], choices=["download", "libvirt", "xen"])
    given = parser.parse_args()
    try:
        print(install(given.prefix, given.libdir, given.profile, given.features))
    except subprocess.CalledProcessError as failed:
        sys.exit(f"failed: {' '.join(map(str, failed.cmd))}")
