#!/usr/bin/env python3
"""Writes offsets.txt, the built-in table of Windows structure offsets, from a collection of offsets in JSON.

    generate.py OFFSETS.json > offsets.txt

The JSON maps names of kernels to {os, arch, source, types: {structure: {member: offset, _size: bytes}}} and, for exactly known kernels,
`pdb` ("ntkrnlmp.pdb KEY") and `symbols` (names to offsets within the image). The numbers are facts; `source` says of each kernel where they come from:
type tables of Volatility 2 (vtypes), or symbol files that were made from Microsoft's public program databases (JPCERTCC/Windows-Symbol-Tables).
"""

import json
import re
import sys

HEADER = """\
# Offsets of members of Windows kernel structures: a table of facts. Made by generate.py; do not edit.
#
#   @NAME arch=x86|x64 build=N [revision=N] [pdb=NAME/KEY] [like=OTHER] source=...      a kernel (source: the rest of the line)
#   STRUCTURE [size=BYTES] MEMBER=OFFSET ...                                            a structure of it, complete
#   - STRUCTURE                                                                         a structure that OTHER has and it has not
#   ! SYMBOL=OFFSET ...                                                                 symbols of exactly this kernel, from the start of its image
#
# A kernel has the structures of the kernel that `like` names, which stands before it, except for those that follow its own line.
# Offsets are bytes; a bitfield has the offset of the number that holds it. Numbers with 0x are hexadecimal, others decimal.
# revision is the servicing level (19041.804: build 19041, revision 804) where the source names it.
#
# vol2: volatilityfoundation/volatility@328a178edeecaf8d2abf96618ecfcb14a7b0c860 volatility/plugins/overlays/windows/*_vtypes.py
# isf: JPCERTCC/Windows-Symbol-Tables@11ad856cd9fb1dea9a007f6c56fb33b8c7e6e3e1 symbols/windows/ntkrnlmp.pdb/*.json.xz
"""

# Two files of the source are labelled 18326, a preview build. Their servicing levels are those of 18362 (.535: December 2019, .778: April 2020), and so are
# all their structures.
MISLABELLED = {18326: 18362}

# Those whose name does not hold the build number.
BUILDS = {
    "xp_sp2_x86": 2600, "xp_sp3_x86": 2600, "win2003": 3790, "vista_sp0": 6000, "vista_sp1": 6001, "vista_sp2": 6002,
    "win7_sp0": 7600, "win7_sp1": 7601, "win8_sp0": 9200, "win8_sp1": 9600, "win81_u1": 9600, "win10_x86_44B89EEA": 10586,
    "win10_x86_9619274A": 14393, "win10_x64_1AC738FB": 10586, "win10_x64_DD08DD42": 14393,
}


def build_of(name):
    """(build, revision or None)"""
    exact = re.match(r"isf_x64_\d+\.\d+\.(\d+)\.(\d+)$", name)
    if exact:
        build = int(exact[1])
        return MISLABELLED.get(build, build), int(exact[2])
    if name == "win10_x86_10240_17770" or name == "win10_x64_10240_17770":
        return 10240, 17770
    if name in ("win10_x86", "win10_x64"):
        return 10240, None
    # Named after the first kernels with shadows of page tables, 7601.24000: those from there on.
    for prefix, build in BUILDS.items():
        if name.startswith(prefix):
            return build, 24000 if name.endswith("_24000") else None
    return int(re.search(r"_(\d{5})$", name)[1]), None


def source_of(entry):
    source = entry["source"]
    vol2 = re.search(r"/([a-z0-9A-Z_]+_vtypes\.py)$", source)
    if vol2:
        return "vol2 " + vol2[1]
    isf = re.search(r"/([0-9A-F]{32}-\d+\.json\.xz)$", source)
    if isf:
        return "isf " + isf[1]
    # Listings in public repositories; the numbers are those of an index of public source code.
    listings = re.findall(r"id (\d+)|ids (\d+) and (\d+)", source)
    return "public listings of the structure (" + ", ".join(i for ids in listings for i in ids if i) + ")"


def line(structure, members):
    members = dict(members)
    size = members.pop("_size", None)
    words = [structure] + ([f"size={size:#x}"] if size is not None else [])
    return " ".join(words + [f"{m}={o:#x}" for m, o in sorted(members.items(), key=lambda mo: (mo[1], mo[0]))])


def difference(entry, other):
    """The lines that make `entry` of `other`."""
    lines = [line(s, m) for s, m in entry["types"].items() if other is None or other["types"].get(s) != m]
    return lines + [f"- {s}" for s in (other["types"] if other else {}) if s not in entry["types"]]


def main(path):
    entries = json.load(open(path))["entries"]
    # Without a revision it is the first release of its build, or unknown: before the others.
    order = sorted(entries, key=lambda n: (entries[n]["arch"], build_of(n)[0], build_of(n)[1] or -1, n))
    print(HEADER, end="")
    done = []
    for name in order:
        entry = entries[name]
        build, revision = build_of(name)
        candidates = [None] + [other for other in done if entries[other]["arch"] == entry["arch"]]
        size = lambda other: sum(map(len, difference(entry, entries[other] if other else None)))
        like = min(candidates, key=size)
        words = [f"@{name}", f"arch={entry['arch']}", f"build={build}"]
        words += [f"revision={revision}"] if revision is not None else []
        words += ["pdb=" + "/".join(entry["pdb"].split())] if "pdb" in entry else []
        words += [f"like={like}"] if like else []
        print("\n" + " ".join(words), "source=" + source_of(entry))
        for text in difference(entry, entries[like] if like else None):
            print(text)
        if "symbols" in entry:
            print("!", " ".join(f"{s}={o:#x}" for s, o in sorted(entry["symbols"].items(), key=lambda so: so[1])))
        done.append(name)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
