#!/usr/bin/env python3
"""Fetch kernels, boot guests and keep an image of each with the truth of what was inside.

Images go to $VMI_LAB_CACHE/images/GUEST (default ~/.cache/vmi-lab). One that is complete,
and was made by the same scripts from the same kernel and QEMU, is kept as it is.
"""
import argparse
import concurrent.futures
import fcntl
import fnmatch
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

from guest import ACCEL, CACHE, HERE, QEMU, qemu_version, table

FORMATS = ["raw", "elf", "lime", "paging", "kdump-zlib"]
TOOLS = {QEMU: "qemu-system-x86", "gcc": "gcc", "apt-get": "apt", "dpkg-deb": "dpkg", "awk": "mawk"}
MOVING = ("sid", "experimental", "ubuntu:*")  # suites whose kernel may be missing for a while, or whose mirror may be out of reach
FETCH_ATTEMPTS = 3
running = []
stopping = False


def arguments():
    parser = argparse.ArgumentParser(prog="lab.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("guests", nargs="*", metavar="GUEST", help="names or patterns of guests.tsv (default: the set base)")
    parser.add_argument("--all", action="store_true", help="the guests of every set")
    parser.add_argument("--list", action="store_true", help="list the guests and whether their images are there")
    parser.add_argument("--force", action="store_true", help="make images anew")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="guests at a time (default: one a processor)")
    parser.add_argument("--formats", default="raw,elf,lime", help=f"raw and any of {','.join(FORMATS[1:])} (default: %(default)s)")
    given = parser.parse_args()
    rows = table("guests.tsv")
    names = [n for n, row in rows.items() if given.all or (row[1] == "base" and not given.guests)]
    for pattern in given.guests:
        found = fnmatch.filter(rows, pattern)
        if not found:
            parser.error(f"no guest {pattern!r}; lab.py --list names them")
        names += [n for n in found if n not in names]
    formats = sorted({"raw", *given.formats.split(",")})
    if unknown := set(formats) - set(FORMATS):
        parser.error(f"no format {unknown.pop()!r}")
    return given, [rows[n] for n in names], formats


def say(text):
    print(text, flush=True)


def lock():
    """Two labs on one cache would boot the same guests: wait for the other one to end."""
    CACHE.mkdir(parents=True, exist_ok=True)
    file = open(CACHE / "lock", "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"waiting for another run of the lab in {CACHE}")
        fcntl.flock(file, fcntl.LOCK_EX)
    return file


def key(row, formats, qemu):
    """What an image depends on, as one hash."""
    kernel = CACHE / "kernels" / row[2]
    if not (kernel / "release").exists():
        return None
    arch = (kernel / "arch").read_text().strip()
    digest = hashlib.sha256("\0".join([*row, *formats, qemu, ACCEL]).encode())
    for path in [HERE / "guest.py", HERE / "snapshot.py", HERE / "init", HERE / "witness.c",
                 kernel / "packages", CACHE / "busybox" / arch / "packages"]:
        digest.update(b"\0" + path.read_bytes())
    return digest.hexdigest()


def up_to_date(row, formats, qemu):
    stamp = CACHE / "images" / row[0] / "stamp"
    return stamp.exists() and stamp.read_text().strip() == key(row, formats, qemu)


def fetch(kernel):
    """Fetch a kernel if it is not there; return what went wrong, if anything."""
    if (CACHE / "kernels" / kernel / "release").exists():
        arch = (CACHE / "kernels" / kernel / "arch").read_text().strip()
        if (CACHE / "busybox" / arch / "packages").exists():
            return None
    say(f"{kernel}: fetching")
    for attempt in range(FETCH_ATTEMPTS):
        if stopping:
            return "interrupted"
        if attempt:  # a mirror is inconsistent for minutes while it is brought up to date
            time.sleep(20)
        done = subprocess.run([HERE / "kernels.sh", kernel], capture_output=True, text=True)
        if done.returncode == 0:
            return None
    trouble = (done.stderr.strip() or "unknown error").splitlines()[-1]
    say(f"{kernel}: {trouble}")
    return trouble


def image(row, formats, qemu):
    """Boot one guest and take its image; return its line of the report and whether it went well."""
    name = row[0]
    began = time.monotonic()
    if stopping:
        return f"{name}: not started", False
    child = subprocess.Popen(
        [sys.executable, HERE / "image.py", name, CACHE / "images" / name, key(row, formats, qemu), *formats],
        stdout=subprocess.PIPE, text=True)
    running.append(child)
    out, _ = child.communicate()
    running.remove(child)
    if child.returncode:
        return f"{name}: FAILED", False
    facts = json.loads(out)
    return (f"{name}: {facts['release']}, booted in {facts['boot_seconds']} s, truth {facts['record_seconds']} s, "
            f"image {facts['image_seconds']} s, {facts['pages']} known pages, {time.monotonic() - began:.0f} s in all"), True


def stop(*_):
    """End what was started: each image.py stops its guest. The pool then has nothing left to do."""
    global stopping
    stopping = True
    for child in running:
        child.terminate()


def main():
    given, rows, formats = arguments()
    missing = {package for tool, package in TOOLS.items() if not shutil.which(tool)}
    if missing and not given.list:
        say(f"the lab needs: apt-get install {' '.join(sorted(missing))}")
        return 3
    qemu = "" if missing else qemu_version()
    if given.list:
        for row in table("guests.tsv").values():
            print(row[0], row[1], "image" if up_to_date(row, formats, qemu) else "-", *row[2:], sep="\t")
        return 0
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    held = lock()
    for left in (CACHE / "images").glob(".*"):  # of a run that was killed
        shutil.rmtree(left)
    passed, failed, skipped = 0, 0, 0
    troubles = {kernel: fetch(kernel) for kernel in dict.fromkeys(row[2] for row in rows)}
    wanted = []
    for row in rows:
        if trouble := troubles[row[2]]:
            moving = any(fnmatch.fnmatch(table("kernels.tsv")[row[2]][2], suite) for suite in MOVING)
            say(f"{'skipped' if moving else 'FAILED'}: {row[0]}: no kernel {row[2]}: {trouble}")
            skipped, failed = skipped + moving, failed + (not moving)
        elif not given.force and up_to_date(row, formats, qemu):
            passed += 1
        else:
            wanted.append(row)
    if passed:
        say(f"{passed} images are there already")
    with concurrent.futures.ThreadPoolExecutor(max(1, given.jobs)) as pool:
        jobs = [pool.submit(image, row, formats, qemu) for row in wanted]
        for number, job in enumerate(concurrent.futures.as_completed(jobs), 1):
            text, good = job.result()
            say(f"[{number}/{len(wanted)}] {text}")
            passed, failed = passed + good, failed + (not good)
    held.close()
    say(f"lab: {passed} passed, {failed} failed, {skipped} skipped")
    return 130 if stopping else 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
