"""A Volatility symbol file (ISF 6.2.0) of a kernel from its debug information, read by drgn.

Holds the types that Volatility's Linux plugins start from and all that these lead to, under the names that gcc gives to basic types.

    isf.py VMLINUX CORE BANNER OUTPUT.json.xz

CORE is any dump of the same kernel: drgn takes debug information only for a kernel that it sees.
"""

import base64
import json
import lzma
import subprocess
import sys

import drgn
from drgn import TypeKind

ROOTS = """address_space bin_attribute bpf_prog bpf_prog_aux cred dentry elf64_sym file file_system_type files_struct fs_struct hlist_head idr
inet_sock inode kernel_symbol kobject kset latch_tree_root list_head maple_node maple_tree mm_struct mnt_namespace module module_kobject
module_sect_attr mount net net_device netlink_sock new_utsname nsproxy packet_sock page path pid pid_namespace qstr rb_node rb_root
scatterlist signal_struct sock socket super_block task_struct timespec64 unix_sock upid user_namespace uts_namespace vfsmount
vm_area_struct vsock_sock xdp_sock""".split()
TYPED_SYMBOLS = """init_files init_mm init_pid_ns init_task init_uts_ns iomem_resource linux_banner module_kset modules net_namespace_list
prb tk_core""".split()
GCC_NAMES = {
    "long": "long int",
    "long long": "long long int",
    "short": "short int",
    "unsigned long": "long unsigned int",
    "unsigned long long": "long long unsigned int",
    "unsigned short": "short unsigned int",
}
KINDS = {TypeKind.INT: "int", TypeKind.BOOL: "bool", TypeKind.FLOAT: "float"}


class Isf:
    def __init__(self, program):
        self.program = program
        self.base = {"pointer": {"size": 8, "signed": False, "kind": "int", "endian": "little"}}
        self.enums = {}
        self.user = {}
        self.unnamed = []
        self.todo = []
        self.seen = set()

    def name(self, kind):
        if kind.tag:
            return kind.tag
        for known, name in self.unnamed:
            if known == kind:
                return name
        self.unnamed.append((kind, f"unnamed_{len(self.unnamed):x}"))
        return self.unnamed[-1][1]

    def base_type(self, name, size, signed, kind):
        name = GCC_NAMES.get(name, name)
        self.base.setdefault(name, {"size": size, "signed": signed, "kind": kind, "endian": "little"})
        return {"kind": "base", "name": name}

    def reference(self, kind):
        """What stands for a type where it is used."""
        match kind.kind:
            case TypeKind.TYPEDEF:
                return self.reference(kind.type)
            case TypeKind.VOID:
                return self.base_type("void", 0, False, "void")
            case TypeKind.INT | TypeKind.BOOL | TypeKind.FLOAT:
                signed = kind.kind == TypeKind.FLOAT or kind.kind == TypeKind.INT and kind.is_signed
                return self.base_type(kind.name, kind.size, signed, "char" if "char" in kind.name else KINDS[kind.kind])
            case TypeKind.POINTER:
                return {"kind": "pointer", "subtype": self.reference(kind.type)}
            case TypeKind.ARRAY:
                return {"kind": "array", "count": kind.length or 0, "subtype": self.reference(kind.type)}
            case TypeKind.FUNCTION:
                return {"kind": "function"}
            case TypeKind.ENUM:
                name = self.name(kind)
                if name not in self.enums and kind.enumerators is not None:
                    constants = {value.name: value.value for value in kind.enumerators}
                    base = self.reference(kind.type)["name"]
                    self.enums[name] = {"size": drgn.sizeof(kind.type), "base": base, "constants": constants}
                return {"kind": "enum", "name": name}
            case _:
                name = self.name(kind)
                if name not in self.seen:
                    self.seen.add(name)
                    self.todo.append((name, kind))
                return {"kind": keyword(kind), "name": name}

    def define(self, name, kind):
        if kind.members is None:
            # A declaration; its definition may be elsewhere.
            kind = self.lookup(f"{keyword(kind)} {name}")
            if kind is None or kind.members is None:
                return
        fields = {}
        for index, member in enumerate(kind.members):
            field = {"type": self.reference(member.type), "offset": member.bit_offset // 8}
            if member.bit_field_size:
                size = drgn.sizeof(member.type)
                field["offset"] = member.bit_offset // (8 * size) * size
                position = member.bit_offset - 8 * field["offset"]
                bits = {"kind": "bitfield", "bit_position": position, "bit_length": member.bit_field_size}
                field["type"] = bits | {"type": field["type"]}
            if not member.name:
                field["anonymous"] = True
            fields[member.name or f"unnamed_field_{index:x}"] = field
        self.user[name] = {"size": kind.size, "fields": fields, "kind": keyword(kind)}

    def lookup(self, name):
        try:
            return self.program.type(name)
        except LookupError:
            return None

    def define_all(self):
        while self.todo:
            self.define(*self.todo.pop())


def keyword(kind):
    return "union" if kind.kind == TypeKind.UNION else "struct"


def symbols(isf, vmlinux, banner):
    found = {}
    for line in subprocess.run(["nm", vmlinux], capture_output=True, text=True, check=True).stdout.splitlines():
        fields = line.split()
        if len(fields) == 3:
            found.setdefault(fields[2], {"address": int(fields[0], 16)})
    for name in TYPED_SYMBOLS:
        try:
            found[name]["type"] = isf.reference(isf.program.variable(name).type_)
        except LookupError:
            pass
    found["linux_banner"]["constant_data"] = base64.b64encode(banner.encode() + b"\0").decode()
    return found


def main(vmlinux, core, banner, output):
    program = drgn.Program()
    program.set_core_dump(core)
    program.load_debug_info([vmlinux])
    isf = Isf(program)
    for root in ROOTS:
        if (kind := isf.lookup(f"struct {root}")) is not None:
            isf.reference(kind)
    table = symbols(isf, vmlinux, banner)
    isf.define_all()
    metadata = {"format": "6.2.0", "producer": {"name": "drgn", "version": drgn.__version__}, "linux": {"symbols": [], "types": []}}
    document = {"metadata": metadata, "base_types": isf.base, "user_types": isf.user, "enums": isf.enums, "symbols": table}
    with lzma.open(output, "wt", preset=1) as file:
        json.dump(document, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
