#!/usr/bin/env python3
"""Two symbol files of Volatility of the same kernel: do they give the structures that both hold the same size and members?

    agree.py OURS.json.xz THEIRS.json.xz

Members are compared by name, offset in bits, width and type, those of anonymous members as the outer structure's. What has no tag is compared
where it is used. Exit code 1 if anything differs.
"""

import json
import lzma
import sys


def load(path):
    opener = lzma.open if str(path).endswith(".xz") else open
    with opener(path, "rt") as file:
        return json.load(file)


def flat(kind):
    """The number of elements of an array, those of arrays in it counted instead of these, and their type."""
    count = 1
    while kind["kind"] == "array":
        count, kind = count * kind["count"], kind["subtype"]
    return count, kind


class Types:
    def __init__(self, document):
        self.base, self.user, self.enums = document["base_types"], document["user_types"], document["enums"]

    def members(self, name, at=0, depth=0):
        """Name, offset in bits and type of the members."""
        for member, field in sorted(self.user[name]["fields"].items(), key=lambda item: item[1]["offset"]):
            offset, kind = at + 8 * field["offset"], field["type"]
            if kind["kind"] == "bitfield":
                offset += kind["bit_position"]
            if field.get("anonymous") and depth < 32:
                yield from self.members(kind["name"], offset, depth + 1)
            else:
                yield member, offset, kind

    def same(self, kind, other, its, seen):
        """Whether two types are the same, as far as both files describe them."""
        if other.get("kind") == "base" and other["name"] == "void" or kind.get("kind") == "base" and kind["name"] == "void":
            # One file does not say what a pointer points at: a declaration.
            return True
        if kind["kind"] != other["kind"]:
            return False
        match kind["kind"]:
            case "base":
                mine, theirs = self.base[kind["name"]], its.base[other["name"]]
                return (mine["size"], mine["kind"]) == (theirs["size"], theirs["kind"])
            case "pointer":
                return self.same(kind["subtype"], other["subtype"], its, seen)
            case "array":
                # BTF has arrays of arrays as one array (Documentation/bpf/btf.rst), which does not move anything. 0 is an unknown length.
                (count, kind), (its_count, other) = flat(kind), flat(other)
                return (count == its_count or 0 in (count, its_count)) and self.same(kind, other, its, seen)
            case "bitfield":
                return kind["bit_length"] == other["bit_length"] and self.same(kind["type"], other["type"], its, seen)
            case "enum":
                mine, theirs = self.enums.get(kind["name"]), its.enums.get(other["name"])
                return not mine or not theirs or (mine["size"], mine["constants"]) == (theirs["size"], theirs["constants"])
            case "function":
                return True
        unnamed = kind["name"].startswith("unnamed_"), other["name"].startswith("unnamed_")
        if unnamed == (True, True):
            return not self.unlike(kind["name"], other["name"], its, seen)
        return kind["name"] == other["name"] or any(unnamed)

    def unlike(self, name, other, its, seen):
        """What differs of two structures, one sentence each."""
        if (name, other) in seen or name not in self.user or other not in its.user:
            return []
        seen.add((name, other))
        mine, theirs = self.user[name], its.user[other]
        found = []
        if mine["size"] != theirs["size"]:
            found.append(f"{name}: {mine['size']} and {theirs['size']} bytes")
        plain = lambda members: {member: (offset, kind) for member, offset, kind in members if not member.startswith("unnamed_field_")}
        mine, theirs = plain(self.members(name)), plain(its.members(other))
        for member in sorted(mine.keys() ^ theirs.keys()):
            found.append(f"{name}.{member}: only in {'the first' if member in mine else 'the second'}")
        for member in sorted(mine.keys() & theirs.keys()):
            (at, kind), (its_at, its_kind) = mine[member], theirs[member]
            if at != its_at:
                found.append(f"{name}.{member}: at bit {at} and {its_at}")
            if not self.same(kind, its_kind, its, seen):
                found.append(f"{name}.{member}: {json.dumps(kind)[:80]} and {json.dumps(its_kind)[:80]}")
        return found


def report(ours, theirs):
    """Lines to print, and whether anything differs."""
    first, second = load(ours), load(theirs)
    mine, its = Types(first), Types(second)
    named = lambda types: {name for name in types.user if not name.startswith("unnamed_")}
    both = named(mine) & named(its)
    members, differing = 0, []
    seen = set()
    for name in sorted(both):
        members += sum(1 for _ in its.members(name))
        differing += mine.unlike(name, name, its, seen)
    lines = [
        f"structures with a tag: {len(named(mine))} and {len(named(its))}, in both {len(both)} with {members} members: {len(differing)} differences",
        f"only in the second: {', '.join(sorted(named(its) - named(mine))) or 'none'}",
    ]
    # Names of several symbols (static functions and variables) stand for one of them, and the files need not choose the same.
    symbols, its_symbols = first["symbols"], second["symbols"]
    common = symbols.keys() & its_symbols.keys()
    differ = sum(symbols[name]["address"] != its_symbols[name]["address"] for name in common)
    lines.append(f"symbols: {len(symbols)} and {len(its_symbols)}, in both {len(common)}, of these at another address {differ}")
    typed = [name for name in common if its_symbols[name].get("type")]
    void = [name for name in typed if symbols[name]["type"] == {"kind": "base", "name": "void"}]
    wrong = [name for name in typed if name not in void and not mine.same(symbols[name]["type"], its_symbols[name]["type"], its, set())]
    lines.append(f"variables with a type in the second: {len(typed)}; without in the first: {sorted(void)}; of another type: {sorted(wrong)}")
    return lines + [f"  {difference}" for difference in differing[:40]], bool(differing)


if __name__ == "__main__":
    lines, differ = report(*sys.argv[1:3])
    print("\n".join(lines))
    sys.exit(differ)
