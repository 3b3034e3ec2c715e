#!/usr/bin/env python3
"""Boot one guest, save an image of it, check it, stop it: image.py GUEST DIRECTORY KEY FORMAT...

The image is made beside DIRECTORY and moved there when it is complete; its file "stamp"
holds KEY. A guest that dies is started again: a 32-bit kernel with little low memory
sometimes chooses a random place where it cannot boot.
"""
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import check
import snapshot
from guest import Guest, GuestDied

ATTEMPTS = 5


def take(name, directory, formats):
    with Guest(name) as guest:
        facts = guest.start()
        facts["image_seconds"] = snapshot.save(guest, directory, formats)
    facts["pages"] = check.check(directory)
    for path in directory.glob("memory.*"):
        if path.suffix[1:] not in formats:
            path.unlink()
    return facts


def main(name, directory, key, *formats):
    directory = Path(directory).absolute()
    part = directory.with_name(f".{directory.name}.part")
    for attempt in range(1, ATTEMPTS + 1):
        shutil.rmtree(part, ignore_errors=True)
        try:
            facts = take(name, part, formats)
            break
        except GuestDied as error:
            if attempt == ATTEMPTS:
                raise
            print(f"{name}: {error}\n{name}: starting it again", file=sys.stderr)
    (part / "stamp").write_text(key + "\n")
    for interruption in signal.SIGTERM, signal.SIGINT:  # not between the two renames
        signal.signal(interruption, signal.SIG_IGN)
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        os.rename(directory, old)
    os.rename(part, directory)
    shutil.rmtree(old, ignore_errors=True)
    print(json.dumps(facts))


if __name__ == "__main__":
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    for interruption in signal.SIGTERM, signal.SIGINT:
        signal.signal(interruption, lambda number, _: sys.exit(128 + number))
    try:
        main(*sys.argv[1:])
    except (GuestDied, AssertionError, RuntimeError) as error:
        sys.exit(f"{sys.argv[1]}: {error}")
