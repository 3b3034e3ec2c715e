"""What MemProcFS finds in an image, without symbols and without the network, as JSON: processes, modules, address descriptors, handles.

    windows_memprocfs.py IMAGE [PID:ADDRESS...]

Of the addresses it gives the eight bytes there as a number.

It finds the structures of processes by their shape. Types of handles, threads and the registry it reads only with Microsoft's symbols.
"""

import json
import sys

import memprocfs


def attempt(question):
    """What it answers, `None` if it raises: a process without a PEB has no command line."""
    try:
        return question()
    except RuntimeError:
        return None


def main(image, *places):
    machine = memprocfs.Vmm(["-device", image, "-disable-symbolserver", "-disable-infodb", "-norefresh", "-loglevel", "1"])
    processes = []
    for process in machine.process_list():
        # The flag for a 32-bit module is in bit 32 of the size.
        modules = attempt(process.module_list) or []
        handles = attempt(process.maps.handle) or []
        processes.append({
            "pid": process.pid, "parent": process.ppid, "name": process.name, "eprocess": process.eprocess, "dtb": process.dtb,
            "state": process.state, "wow64": process.is_wow64, "kernel_path": attempt(lambda: process.pathkernel),
            "path": attempt(lambda: process.pathuser), "command_line": attempt(lambda: process.cmdline),
            "modules": [[module.base, module.image_size & 0xFFFF_FFFF, module.name, module.fullname] for module in modules],
            "regions": [[vad["start"], vad["end"], vad["type"].strip(), vad["protection"]] for vad in attempt(process.maps.vad) or []],
            "handles": [[handle["handle"], handle["access"], handle["tag"]] for handle in handles],
        })
    pages = []
    for pid, address in (map(int, place.split(":")) for place in places):
        found = attempt(lambda: machine.process(pid).memory.read(address, 8))
        pages.append([pid, address, found and int.from_bytes(found, "little")])
    json.dump({"build": machine.kernel.build, "processes": processes, "pages": pages}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
