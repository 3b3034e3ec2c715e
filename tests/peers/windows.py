#!/usr/bin/env python3
"""Synthetic NT machines in front of tools that read Windows memory: do these tools find what the builder placed, and do ours?

    windows.py [--ours DIRECTORY] [--keep DIRECTORY] [--location vmi:] [BUILD...]

Writes a typical machine of each build (all with a symbol file in `$VMI_SHARED_DATA/windows/isf` if none is named, and others for MemProcFS alone) by the program
`nt-machine`, runs the plugins of volatility3 (`--offline`, with Microsoft's symbols of that very kernel, unchanged) and MemProcFS (without any symbols) on the
image, and compares what they print with `truth.json`. With `--ours`, a directory with the built examples, `process-list --json` and its siblings are compared
too. This proves the builder: where a tool that has seen real memory reads something else, the machine is not what Windows looks like.

With `--location vmi:` volatility3 reads the image through vmi-volatility3, which must be installed beside it.

`VMI_PEER_PYTHON` names an interpreter with the packages volatility3 and memprocfs; an environment of its own is made in the lab's cache if it is not set.
Proof of the tier "synthetic NT layout".
"""

import argparse
import datetime
import json
import lzma
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or HERE.parent.parent / "target")
CACHE = pathlib.Path(os.environ.get("VMI_LAB_CACHE") or pathlib.Path.home() / ".cache/vmi-lab")
SYMBOLS = {  # The build of the builder, the key of the kernel whose symbol file it fits to.
    "win81_x64": "BF87AC1D6A9A4A8590D3C22FA1E2786A-1",
    "win10_x64_14393": "0CAACB712FFE4D31BDD72EE6BB55F193-1",
    "win10_x64_19041": "5278AFF86C341677D7D7835C85B7B844-1",
    "win11_x64_22000": "9AA3518467E0D28B53CB63E0A57118DE-1",
}
WITHOUT_SYMBOLS = ["win7_sp1_x86", "win7_sp1_x64", "win10_x64_10240", "win10_x64_17763", "win10_x86_19041", "win11_x64_26100"]
# volatility3 prints addresses of the kernel without their upper 16 bits.
SHORT = 0xFFFF_FFFF_FFFF
VOLUME = "\\Device\\HarddiskVolume2"
TYPES = {1: "REG_SZ", 2: "REG_EXPAND_SZ", 3: "REG_BINARY", 4: "REG_DWORD", 6: "REG_LINK", 11: "REG_QWORD"}
READABLE = {"Present", "Transition", "PrototypeValid", "PrototypeTransition", "VadPrototype"}
PROTECTIONS = {1: "PAGE_READONLY", 4: "PAGE_READWRITE", 6: "PAGE_EXECUTE_READWRITE", 7: "PAGE_EXECUTE_WRITECOPY"}


def run(*command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


def interpreter():
    if "VMI_PEER_PYTHON" in os.environ:
        return pathlib.Path(os.environ["VMI_PEER_PYTHON"])
    python = CACHE / "peers/windows/bin/python"
    if not python.exists():
        python.parent.parent.parent.mkdir(parents=True, exist_ok=True)
        run(sys.executable, "-m", "venv", python.parent.parent)
        run(python, "-m", "pip", "install", "--quiet", "volatility3", "memprocfs", "capstone", "pefile", "pycryptodome")
    return python


def time_of(filetime):
    """As volatility3 prints a FILETIME: to the second here."""
    if not filetime:
        return None
    moment = datetime.datetime(1601, 1, 1) + datetime.timedelta(microseconds=filetime // 10)
    return moment.replace(microsecond=0).isoformat()


def printed_time(text):
    return text and text[:19]


class Truth:
    def __init__(self, truth):
        self.all = truth
        self.system = truth["system"]
        self.processes = truth["processes"]
        self.listed = [process for process in self.processes if process["linked"]]
        self.contents = {contents["pid"]: contents for contents in self.system["processes"]}
        self.is_new = truth["build_number"] >= 9200

    def of_listed(self, kind):
        for process in self.listed:
            for row in self.contents[process["pid"]][kind]:
                yield process["pid"], row

    def process(self, eprocess):
        return next(process for process in self.processes if process["eprocess"] == eprocess)

    def encoded_index(self, handle):
        """The type's index as the header of the handle's object holds it."""
        index = next(kind["index"] for kind in self.system["types"] if kind["name"] == handle["type"])
        cookie = self.system["cookie"]
        return index if cookie is None else index ^ cookie ^ ((handle["object"] - 0x30) >> 8 & 0xFF)

    def handle_name(self, handle):
        """The name as volatility3 prints it: of named objects the last part, of keys the path below `\\REGISTRY`."""
        match handle["type"]:
            case "Process":
                process = self.process(handle["object"])
                return f"{process['name']} Pid {process['pid']}"
            case "Thread":
                for process in self.processes:
                    for thread in process["threads"]:
                        if thread["ethread"] == handle["object"]:
                            return f"Tid {thread['tid']} Pid {process['pid']}"
            case "Key":
                return handle["name"].removeprefix("\\REGISTRY\\")
            case "File":
                return handle["name"]
        return handle["name"].rpartition("\\")[2] or None

    def keys(self):
        """Rows of all keys and values: path of the hive, of the key, name, type."""
        def below(hive, path, key):
            for value in key["values"]:
                yield hive, path, value["name"] or "(Default)", TYPES[value["type"]]
            for child in key["keys"]:
                # Lists without hashes (`li`) it does not know: it passes over the keys in them.
                if key["list"] == "Li" and not child["volatile"]:
                    continue
                yield hive, path, child["name"], "Key"
                yield from below(hive, f"{path}\\{child['name']}", child)
        for hive in self.system["hives"]:
            name = hive["file"] or hive["path"]
            yield from below(hive["address"] & SHORT, name, hive["root"])


# What each plugin of volatility3 must print: columns to a row, and the rows from the truth.

def pslist_row(row):
    return (row["PID"], row["PPID"], row["ImageFileName"], row["Offset(V)"], row["Threads"], row["SessionId"], row["Wow64"],
            printed_time(row["CreateTime"]), printed_time(row["ExitTime"]))


def scanned(row):
    """Rows of scans without the offset: before Windows 10 it is physical."""
    return lambda printed: row(printed | {name: None for name in printed if name.startswith("Offset")})


def pslist_rows(truth, processes):
    for process in processes:
        threads = truth.contents[process["pid"]]["threads"]
        yield (process["pid"], process["parent"], process["name"], process["eprocess"] & SHORT, len(threads), process["session"],
               bool(process["wow64_peb"]), time_of(process["create_time"]), time_of(process["exit_time"]))


def dlls(truth):
    for pid, module in truth.of_listed("modules"):
        # Of a 32-bit process both lists are printed: the executable is in both.
        if module["load"]:
            yield pid, module["base"], module["size"], module["name"], module["path"]


def mapped_modules(truth):
    for pid, module in truth.of_listed("modules"):
        yield pid, module["base"], module["load"], module["initialization"], module["memory"], module["file"]


def threads(truth, pids):
    for pid in pids:
        for thread in truth.contents[pid]["threads"]:
            yield (pid, thread["tid"], thread["ethread"] & SHORT, thread["start"] & SHORT, thread["win32_start"], time_of(thread["create_time"]))


def thread_row(row):
    return row["PID"], row["TID"], row["Offset"], row["StartAddress"], row["Win32StartAddress"], printed_time(row["CreateTime"])


def handles(truth):
    for pid, handle in truth.of_listed("handles"):
        # A table of three levels is numbered wrongly by volatility3: it does not carry the count of pages over to the next middle table.
        if truth.contents[pid]["handle_level"] == 2 and handle["value"] >= 0x400:
            continue
        yield pid, handle["value"], handle["type"], handle["access"], truth.handle_name(handle)


def handle_row(row):
    if row["PID"] == 640 and row["HandleValue"] >= 0x400:
        return None
    return row["PID"], row["HandleValue"], row["Type"], row["GrantedAccess"], row["Name"]


def zero_index(truth):
    """Handles that volatility3 drops: their object's encoded type index happens to be zero, which it takes for a free entry."""
    return {(pid, handle["value"]) for pid, handle in truth.of_listed("handles") if truth.encoded_index(handle) == 0}


def descriptors(truth):
    for pid, region in truth.of_listed("regions"):
        file = region["file"].removeprefix(VOLUME) or None
        private = int(region["kind"] == "private")
        yield pid, region["start"], region["end"], PROTECTIONS[region["protection"]], region["commit"], private, file


def services(truth):
    for service in truth.system["services"]:
        # What lies in no module is not printed.
        if not service["hooked"]:
            yield service["number"], service["function"] & SHORT


def flat(rows):
    for row in rows:
        yield row
        yield from flat(row["__children"])


def views(truth):
    for process in truth.processes:
        found = bool(truth.contents[process["pid"]]["threads"])
        # Names with digits in them it takes for rubbish.
        if any(letter.isdigit() for letter in process["name"]):
            continue
        yield process["pid"], process["linked"], True, found


PLUGINS = {
    "windows.pslist": (pslist_row, lambda t: pslist_rows(t, t.listed)),
    "windows.psscan": (scanned(pslist_row), lambda t: (row[:3] + (None,) + row[4:] for row in pslist_rows(t, t.processes))),
    "windows.pstree": (lambda row: (row["PID"], row["Audit"]), lambda t: ((p["pid"], p["image_path"] or None) for p in t.listed)),
    "windows.cmdline": (lambda row: (row["PID"], row["Args"]), lambda t: ((p["pid"], t.contents[p["pid"]]["command_line"] or None) for p in t.listed)),
    "windows.envars": (lambda row: (row["PID"], row["Variable"], row["Value"]), lambda t: ((pid, *pair) for pid, pair in t.of_listed("environment"))),
    "windows.dlllist": (lambda row: (row["PID"], row["Base"], row["Size"], row["Name"], row["Path"]), dlls),
    "windows.ldrmodules": (lambda row: (row["Pid"], row["Base"], row["InLoad"], row["InInit"], row["InMem"], row["MappedPath"]), mapped_modules),
    "windows.getsids": (lambda row: (row["PID"], row["SID"]),
                        lambda t: ((p["pid"], sid) for p in t.listed for c in [t.contents[p["pid"]]] for sid in [c["user"], *c["groups"]])),
    "windows.sessions": (lambda row: (row["Process ID"], row["Session ID"]), lambda t: ((p["pid"], p["session"]) for p in t.listed)),
    "windows.threads": (thread_row, lambda t: threads(t, [p["pid"] for p in t.listed])),
    "windows.thrdscan": (scanned(thread_row), lambda t: (row[:2] + (None,) + row[3:] for row in threads(t, [p["pid"] for p in t.processes]))),
    "windows.handles": (handle_row, handles),
    "windows.vadinfo": (lambda row: (row["PID"], row["Start VPN"], row["End VPN"], row["Protection"], row["CommitCharge"], row["PrivateMemory"], row["File"]),
                        descriptors),
    "windows.modules": (lambda row: (row["Base"], row["Size"], row["Name"], row["Path"]),
                        lambda t: ((m["base"] & SHORT, m["size"], m["name"], m["path"]) for m in t.all["modules"])),
    "windows.driverscan": (lambda row: (row["Start"], row["Name"]),
                           lambda t: ((m["base"] & SHORT, "\\Driver\\" + m["name"].partition(".")[0].replace("tcpip", "Tcpip")) for m in t.all["modules"][2:])),
    "windows.unloadedmodules": (lambda row: (row["Name"], row["StartAddress"], row["EndAddress"], printed_time(row["Time"])),
                                lambda t: ((d["name"], d["start"] & SHORT, d["end"] & SHORT, time_of(d["time"])) for d in t.system["unloaded"])),
    "windows.ssdt": (lambda row: (row["Index"], row["Address"]), services),
    "windows.callbacks": (lambda row: (row["Type"], row["Callback"]) if row["Type"].startswith("Psp") else None,
                          lambda t: (("PspCreateProcessNotifyRoutine", function & SHORT) for function in t.system["callbacks"])),
    "windows.symlinkscan": (lambda row: (row["From Name"], row["To Name"]), lambda t: ((path.rpartition("\\")[2], to) for path, to in t.system["links"])),
    "windows.psxview": (lambda row: (row["PID"], row["pslist"], row["psscan"], row["thrdscan"]), views),
    "windows.malfind": (lambda row: (row["PID"], row["Start VPN"], row["End VPN"]),
                        lambda t: ((pid, r["start"], r["end"]) for pid, r in t.of_listed("regions") if r["protection"] == 6)),
    "windows.registry.hivelist": (lambda row: (row["Offset"], row["FileFullPath"]),
                                  lambda t: ((h["address"] & SHORT, h["file"] or h["path"]) for h in t.system["hives"])),
    "windows.registry.printkey --recurse": (lambda row: (row["Hive Offset"], row["Key"], row["Name"], row["Type"]), lambda t: t.keys()),
}


def volatility(python, symbols, image, plugin):
    # A cache of its own: what it remembers of symbol files in other places leads it astray.
    environment = dict(os.environ, XDG_CACHE_HOME=str(symbols.parent / "cache"))
    text = run(python.with_name("vol"), "-q", "--offline", "-r", "json", "-s", symbols, "-f", image, *plugin.split(), env=environment)
    return list(flat(json.loads(text[text.index("["):])))


class Table:
    def __init__(self):
        self.failed = False

    def row(self, tool, what, found, wanted, excused=frozenset(), note=""):
        found, wanted = set(found) - {None}, set(wanted)
        missing, extra = wanted - found, found - wanted
        forgiven = {row for row in missing if row[:2] in excused}
        missing -= forgiven
        verdict = "agrees" if found and not missing and not extra else "DIFFERS" if found else "printed nothing"
        if not wanted and not found:
            verdict = "nothing to print"
        if forgiven:
            note += f" {len(forgiven)} that it drops"
        self.failed |= verdict in ("DIFFERS", "printed nothing")
        print(f"{tool:12} {what:38} {len(found & wanted):6} of {len(wanted):6}  {verdict}{note}", flush=True)
        for sign, rows in (("-", missing), ("+", extra)):
            for row in sorted(rows, key=repr)[:4]:
                print(f"             {sign} {row}")

    def unread(self, tool, what, error):
        self.failed = True
        print(f"{tool:12} {what:38} not read: {error}", flush=True)


def memprocfs(python, image, truth, table):
    try:
        # The array of prototype entries of a descriptor it does not read in 32-bit systems since Windows 8 (measured).
        narrow = not truth.all["is_64_bit"] and truth.is_new
        readable = READABLE - {"VadPrototype"} if narrow else READABLE
        pages = [(pid, page) for pid, region in truth.of_listed("regions") for page in region["pages"] if page["state"] in readable]
        answer = json.loads(run(python, HERE / "windows_memprocfs.py", image, *(f"{pid}:{page['address']}" for pid, page in pages)))
    except RuntimeError as error:
        if truth.all["build"] in ("win81_x64", "win10_x64_14393") and "Initialization of vmm failed" in str(error):
            # Since an update of these systems ExitStatus is behind VadRoot, where it does not look for it.
            print("MemProcFS    does not know the structures of this kernel without symbols: expected")
        else:
            table.unread("MemProcFS", "", error)
        return
    found = {process["pid"]: process for process in answer["processes"]}
    alive = [process for process in truth.listed if not process["exit_time"]]
    table.row("MemProcFS", "processes", ((p["pid"], p["parent"], p["name"], p["eprocess"], p["dtb"], p["wow64"]) for p in found.values() if not p["state"]),
              ((p["pid"], p["parent"], p["name"], p["eprocess"], p["dtb"], bool(p["wow64_peb"])) for p in alive))
    with_peb = [p["pid"] for p in alive if p["peb"]]
    table.row("MemProcFS", "command lines", ((pid, found[pid]["path"], found[pid]["command_line"]) for pid in with_peb),
              ((pid, truth.contents[pid]["image_path"], truth.contents[pid]["command_line"]) for pid in with_peb))
    table.row("MemProcFS", "kernel's paths", ((pid, found[pid]["kernel_path"]) for pid in with_peb), ((p["pid"], p["image_path"]) for p in alive if p["peb"]))
    user = lambda address: address < (1 << 47 if truth.all["is_64_bit"] else 1 << 31)
    # Images in no list it names after their headers or not at all.
    table.row("MemProcFS", "modules", ((pid, *module[:2], module[3].lower()) for pid in with_peb for module in found[pid]["modules"]
                                       if user(module[0]) and ":" in module[3]),
              ((pid, m["base"], m["size"], m["path"].lower()) for pid in with_peb for m in truth.contents[pid]["modules"] if m["load"] or m["memory"]))
    listed = [(base, size, name) for base, size, name, _ in found[4]["modules"] if not user(base)]
    if listed or truth.all["is_64_bit"] and not 9200 <= truth.all["build_number"] < 10240:
        table.row("MemProcFS", "kernel modules", listed, ((m["base"], m["size"], m["name"]) for m in truth.all["modules"]))
    else:
        # Not exported, and the debugger's block is encoded or not looked for.
        print("MemProcFS    kernel modules: it does not find their list in this kernel without symbols: expected")
    kinds = {"private": "", "shared": "Pf", "file": "File", "image": "Image"}
    regions = lambda pids: [(pid, r["start"], r["end"], kinds[r["kind"]]) for pid in pids for r in truth.contents[pid]["regions"]]
    table.row("MemProcFS", "address descriptors", ((pid, *region[:3]) for pid in with_peb for region in found[pid]["regions"]), regions(with_peb))
    table.row("MemProcFS", "pages in memory by any entry", map(tuple, answer["pages"]), ((pid, page["address"], page["marker"]) for pid, page in pages))
    table.row("MemProcFS", "handles", ((p["pid"], *handle[:2]) for p in found.values() for handle in p["handles"]),
              # Of a table of three levels it reads the first 512 pages (measured).
              ((p["pid"], h["value"], h["access"]) for p in alive for h in truth.contents[p["pid"]]["handles"] if h["value"] < 0x80000))


def ours(examples, symbols, image, truth, table):
    address = lambda text: int(text, 16)
    alive = [process for process in truth.listed if not process["exit_time"]]
    handles = [(p["pid"], h) for p in alive for h in truth.contents[p["pid"]]["handles"]]
    for tool, row, wanted in [
        ("process-list", lambda r: (r["pid"], r["parent_pid"], r["name"], address(r["object"])),
         ((p["pid"], p["parent"], p["name"], p["eprocess"]) for p in truth.listed)),
        ("module-list", lambda r: (r["name"], address(r["base"]), r["size"]), ((m["name"], m["base"], m["size"]) for m in truth.all["modules"])),
        ("handle-list", lambda r: (r["pid"], r["handle"], r["type"], r["granted_access"], address(r["object"])),
         ((pid, h["value"], h["type"], h["access"], h["object"]) for pid, h in handles)),
        ("process-views", lambda r: (r["pid"], r["hidden"], r["exited"], r["list"]),
         ((p["pid"], not p["linked"], bool(p["exit_time"]), p["linked"]) for p in truth.processes)),
        ("registry-list", lambda r: (address(r["object"]), r["file"]), ((h["address"], h["file"] or None) for h in truth.system["hives"])),
    ]:
        if not (examples / tool).exists():
            print(f"{'ours':12} {tool:38} skipped: not built")
            continue
        if tool == "registry-list" and not truth.system["hives"]:
            continue
        if tool != "process-list" and truth.all["build"] == "win11_x64_26100":
            # Of 24H2 nothing but the process is known publicly; the machine's symbol file has no more.
            continue
        try:
            # Not the user's cache: an older machine of the same identity may be in it.
            environment = {**os.environ, "XDG_CACHE_HOME": str(symbols.parent / "cache")}
            answer = json.loads(run(examples / tool, "--json", "--symbols", symbols, image, env=environment))
            table.row("ours", tool, map(row, answer), wanted)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            table.unread("ours", tool, error)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--ours", type=pathlib.Path, help="directory with the built examples")
    arguments.add_argument("--keep", type=pathlib.Path, help="where images go; else to a temporary directory")
    arguments.add_argument("--no-peers", action="store_true", help="only ours")
    arguments.add_argument("--plugins", default="", help="only plugins of volatility3 with this in their names")
    arguments.add_argument("--location", default="", help="what stands before the image's path for volatility3")
    arguments.add_argument("builds", nargs="*")
    options = arguments.parse_args()
    shared = os.environ.get("VMI_SHARED_DATA")
    python = None if options.no_peers else interpreter()
    program = next((TARGET / profile / "nt-machine" for profile in ("release", "debug") if (TARGET / profile / "nt-machine").exists()), None)
    if program is None:
        raise SystemExit(f"no nt-machine in {TARGET}: cargo build -p nt-machine")
    table = Table()
    with tempfile.TemporaryDirectory() as temporary:
        for build in options.builds or [*SYMBOLS, *WITHOUT_SYMBOLS]:
            directory = (options.keep or pathlib.Path(temporary)) / build
            directory.mkdir(parents=True, exist_ok=True)
            command = [program, "--build", build, "--typical", "--memory", "128", "--out", directory]
            key = SYMBOLS.get(build)
            packed = shared and key and pathlib.Path(shared) / "windows/isf" / f"{key}.json.xz"
            if packed and packed.exists():
                (directory / "real.json").write_bytes(lzma.decompress(packed.read_bytes()))
                command += ["--isf", directory / "real.json"]
            run(*command)
            image, truth = directory / "memory.raw", Truth(json.loads((directory / "truth.json").read_text()))
            print(f"\n== {build}: {len(truth.processes)} processes")
            if options.no_peers:
                pass
            elif packed and packed.exists():
                symbols = directory / "real/windows/ntkrnlmp.pdb"
                symbols.mkdir(parents=True, exist_ok=True)
                (symbols / packed.name).write_bytes(packed.read_bytes())
                for plugin, (row, wanted) in PLUGINS.items():
                    # Before Windows 10 it takes physical offsets for virtual ones and shows each process twice.
                    if options.plugins not in plugin or plugin == "windows.psxview" and truth.all["build_number"] < 10000:
                        continue
                    try:
                        rows = volatility(python, directory / "real", f"{options.location}{image}", plugin)
                    except (RuntimeError, ValueError) as error:
                        table.unread("volatility3", plugin, error)
                        continue
                    excused = zero_index(truth) if plugin == "windows.handles" else frozenset()
                    table.row("volatility3", plugin, map(row, rows), wanted(truth), excused)
            else:
                print("volatility3  skipped: no symbol file of Microsoft's of this kernel")
            if not options.no_peers:
                memprocfs(python, image, truth, table)
            if options.ours:
                ours(options.ours, directory / "symbols", image, truth, table)
            if not options.keep:
                image.unlink()
    return 1 if table.failed else 0


if __name__ == "__main__":
    sys.exit(main())
