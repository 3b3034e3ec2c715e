#!/usr/bin/env python3
"""Every Linux plugin of Volatility through our layer, as the table of docs/volatility.md.

    volatility_plugins.py --python PYTHON [--only PLUGIN,...] [GUEST|LOCATION...]    x64-5.10, x64-6.1, x64-6.12 and x64-sid if none is named

PYTHON is the interpreter of an environment with volatility3, vmi and vmi-volatility3: `crates/vmi-python/tests/run.py --release --keep DIR` leaves one in DIR/venv. A GUEST is
an image of the lab; a LOCATION is what stands behind vmi:, a file or a running guest. The symbol file is made from the guest's own memory.

Prints, in Markdown, the rows of each plugin for each guest, and behind that why those failed that did. Of the seven plugins that have something to be compared with, /proc of the
lab's guests, a cell says so if they differ. Left out are plugins that write files, need an argument, or are there twice under an old name: plugins.py says which.

Exit code 1 if one of the seven differs or does not run.
"""

import argparse
import os
import pathlib
import sys
import tempfile

import volatility
from peers import CACHE, PEERS


def column(python, name, only, scratch):
    """What each plugin gives on one target: its name, a cell, why it failed or an empty string, and whether that is a failure of ours."""
    directory = CACHE / "images" / name
    location, truth = (f"{directory}/memory.raw", volatility.Truth(directory / "truth")) if directory.is_dir() else (name, None)
    os.environ["XDG_CACHE_HOME"] = str(scratch)
    symbols = scratch / "none"
    (symbols / "linux").mkdir(parents=True)
    for plugin, (rows, error), _ in volatility.plugins(python, symbols, scratch / "volatility3", f"vmi:{location}", only):
        check = volatility.CHECKS.get(plugin)
        if rows is None:
            yield plugin, "fails", error, check is not None
            continue
        difference = check(truth, rows) if check and truth else ""
        yield plugin, f"{len(rows)}, unlike /proc" if difference else str(len(rows)), difference, bool(difference)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=pathlib.Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("targets", nargs="*", default=volatility.GUESTS)
    given = parser.parse_args()
    PEERS.mkdir(parents=True, exist_ok=True)
    cells, reasons, failed = {}, {}, False
    for target in given.targets:
        with tempfile.TemporaryDirectory(dir=PEERS) as scratch:
            for plugin, cell, why, bad in column(given.python, target, [word for word in given.only.split(",") if word], pathlib.Path(scratch)):
                print(f"{target} {plugin}: {cell}", file=sys.stderr, flush=True)
                cells.setdefault(plugin, {})[target] = cell
                if why:
                    reasons.setdefault((plugin, why), []).append(target)
                failed |= bad
    if not cells:
        print("no plugin ran", file=sys.stderr)
        return 1
    print(f"| plugin | {' | '.join(given.targets)} |\n|---|{'---|' * len(given.targets)}")
    for plugin in sorted(cells):
        mark = " *" if plugin in volatility.CHECKS else ""
        print(f"| `{plugin.removeprefix('linux.')}`{mark} | {' | '.join(cells[plugin].get(target, '-') for target in given.targets)} |")
    if reasons:
        print("\n| plugin that fails | where | why |\n|---|---|---|")
    for (plugin, why), where in sorted(reasons.items()):
        print(f"| `{plugin.removeprefix('linux.')}` | {', '.join(where)} | {why.replace('|', '/')[:300]} |")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
