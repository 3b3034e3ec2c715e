#!/usr/bin/env python3
"""Writes the seeds of the fuzz targets into fuzz/corpus: small inputs that reach deep into each parser.

Each is made from the description of its format, without the workspace's code. What a target must accept has a name that does not
begin with `bad-`; a test checks that. Inputs that once made a target fail are kept by hand as `bad-...` or under a name of their
own; this script leaves them alone. It needs gcc and objcopy for the ELF files with DWARF, and zstd.
"""

import bz2
import gzip
import json
import lzma
import pathlib
import struct
import subprocess
import tempfile
import zlib

CORPUS = pathlib.Path(__file__).parent / "corpus"


def put(target, name, data):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def pad(data, to):
    return data + bytes(-len(data) % to)


def u16(*values):
    return struct.pack(f"<{len(values)}H", *values)


def u32(*values):
    return struct.pack(f"<{len(values)}I", *(value & 0xFFFFFFFF for value in values))


def u64(*values):
    return struct.pack(f"<{len(values)}Q", *(value & 0xFFFFFFFFFFFFFFFF for value in values))


# Page tables: mode 0 to 3 is 32-bit, PAE, 4-level, 5-level.

WALKS = {  # name: mode, root, address, {place in memory: entry}, size of memory
    "4-level-4k": (2, 0, 0x8080604567, {8: 0x7, 16: 0x7, 24: 0x7, 32: 0x1007}, 0x2000),
    "4-level-self": (2, 0, 0xFFFFFFFFFFFFF000, {0: 0x7, 0xFF8: 0x8000000000000003}, 0x1000),
    "4-level-2m": (2, 0x1000, 0x200123, {0x1000: 0x2007, 0x2000: 0x3007, 0x3008: 0x2000E7}, 0x4000),
    "4-level-1g": (2, 0x1018, 0xFFFFFFFF80000123, {0x1FF8: 0x2063, 0x2FF0: 0xE3}, 0x3000),
    "5-level-4k": (3, 0, 0x10, {0: 0x7}, 0x1000),
    "5-level-self": (3, 0, 0xFFFFFFFFFFFFF000, {0: 0x7, 0xFF8: 0x3, 0x800: 0x83}, 0x1000),
    "pae-4k": (1, 0x20, 0x12, {0x20: 0x1, 0: 0x7}, 0x200),
    "pae-2m": (1, 0x20, 0xC0012345, {0x38: 0x1001, 0x1000: 0x2000E3, 0x1008: 0x1023}, 0x2000),
    "32-bit-4k": (0, 0, 0x12, {0: 0x7, 4: 0x1007}, 0x200),
    "32-bit-4m": (0, 0, 0xC0012345, {0xC00: 0x20E3, 0xC04: 0x3, 0: 0x3}, 0x1000),
}


def machine(mode, root, at, entries, size):
    memory = bytearray(size)
    for place, entry in entries.items():
        value = u64(entry) if mode else u32(entry)
        memory[place : place + len(value)] = value
    return bytes([mode]) + u64(root, at), bytes(memory)


def paging():
    for name, walk in WALKS.items():
        head, memory = machine(*walk)
        put("page_walk", name, head + memory)
        put("mappings", name, head[:9] + u64(0) + memory)
    put("mappings", "4-level-all-self", bytes([2]) + u64(0, 0) + u64(*[0x7] * 512))
    put("mappings", "32-bit-all-large", bytes([0]) + u64(0, 0) + u32(*[0xE7 + (at << 22) for at in range(1024)]))


def descriptors():
    table = u64(0, 0x00AF9A000000FFFF, 0x00CF92000000FFFF, 0x00AFFA000000FFFF, 0x00008B0000100067, 0xFFFFFF00, 0x0000820000200007, 0)
    gates = b"".join(u16(0x1234, 0x10, 0x8E00 + (at % 8), 0xFFFF) + u32(0xFFFFFFFF, 0) for at in range(8))
    gates32 = b"".join(u16(0x1234, 0x10, 0xEE00 + (at % 16 << 8), 0xC000) for at in range(8))
    for mode, name, content in [(2, "gdt", table), (2, "idt", gates), (0, "gdt-32", table), (1, "idt-32", gates32), (3, "idt-la57", gates)]:
        head, memory = machine(mode, 0, 0x80, {0: 0x1}, 0x80)
        put("descriptors", name, u16(len(content) - 1) + head + memory + content)


# Images.


def lime(start, data):
    return b"EMiL" + u32(1) + u64(start, start + len(data) - 1, 0) + data


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def avml(start, data):
    """A range of version 2; its chunks are stored, but for runs of one byte."""
    stream = b"\xff\x06\0\0sNaPpY"
    for at in range(0, len(data), 300):
        chunk = data[at : at + 300]
        crc = crc32c(chunk)
        masked = u32(((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
        if len(set(chunk)) == 1 and len(chunk) > 66:
            # The length, one literal byte, copies of up to 64 bytes from one byte before.
            packed, left = bytes([len(chunk) & 0x7F | 0x80, len(chunk) >> 7, 0, chunk[0]]), len(chunk) - 1
            while left:
                count = min(left, 64)
                packed += bytes([(count - 1) << 2 | 2, 1, 0])
                left -= count
            body, kind = masked + packed, 0
        else:
            body, kind = masked + chunk, 1
        stream += bytes([kind]) + len(body).to_bytes(3, "little") + body
    return u32(0x4C4D5641, 2) + u64(start, start + len(data) - 1, 0) + stream + u64(len(stream))


def note(name, kind, data):
    return u32(len(name) + 1, len(data), kind) + pad(name + b"\0", 4) + pad(data, 4)


def elf(segments, wide=True, machine=62, extended=False):
    """Segments are (kind, physical address, data, bytes in memory)."""
    word = u64 if wide else u32
    header_len, segment_len, section_len = (64, 56, 64) if wide else (52, 32, 40)
    segments_at = header_len + (section_len if extended else 0)
    out = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9) + u16(4, machine) + u32(1)
    out += word(0, segments_at, header_len if extended else 0) + u32(0)
    out += u16(header_len, segment_len, 0xFFFF if extended else len(segments), section_len, int(extended), 0)
    if extended:
        # sh_info of the first section holds the number of segments.
        info = 44 if wide else 28
        out += bytes(info) + u32(len(segments)) + bytes(section_len - info - 4)
    at = segments_at + segment_len * len(segments)
    for kind, address, data, memory_len in segments:
        sizes = word(at, address, address, len(data), memory_len or len(data))
        out += u32(kind) + (u32(7) if wide else b"") + sizes + (b"" if wide else u32(7)) + word(0)
        at += len(data)
    return out + b"".join(segment[2] for segment in segments)


def kdump(pages, wide=True, notes=b"", max_page=16, part=None):
    """Pages are {number: (flags, packed)}. A part of a split dump has those from one number to before another; its bitmap tells of all."""
    word = u64 if wide else u32
    names = b"".join(name.ljust(65, b"\0") for name in [b"Linux", b"", b"6.1", b"", b"x86_64" if wide else b"i686", b""])
    head = (b"KDUMP   " + u32(6) + names).ljust(424 if wide else 412, b"\0") + u32(1, 4096, 1, 2, max_page, 0, 0, 0, 0, 1)
    at = 4096 + 200
    start, end = part or (0, 0)
    sub = word(0) + u32(0, part is not None) + word(start, end) + u64(0) + word(0) + u64(at) + word(len(notes)) + u64(0) + word(0) + u64(start, end, max_page)
    out = pad(head, 4096) + pad(sub.ljust(200, b"\0") + notes, 4096) + pad(b"\xff\xff", 4096)
    out += pad(sum(1 << page for page in pages).to_bytes(2, "little"), 4096)
    pages = pages if part is None else {page: pages[page] for page in pages if start <= page < end}
    at = len(out) + 24 * len(pages)
    table = b""
    for page in sorted(pages):
        table += u64(at) + u32(len(pages[page][1]), pages[page][0]) + u64(0)
        at += len(pages[page][1])
    return out + table + b"".join(pages[page][1] for page in sorted(pages))


def flat(segments):
    s64 = lambda *values: struct.pack(f">{len(values)}q", *values)
    out = pad(b"makedumpfile".ljust(16, b"\0") + s64(1, 1), 4096)
    return out + b"".join(s64(at, len(data)) + data for at, data in segments) + s64(-1, -1)


def qemu_cpu():
    segment = u32(0x10, 0xFFFFF, 0xA09B00, 0) + u64(0)
    state = u64(*range(18)) + segment * 8 + (u32(0, 0x7F, 0, 0) + u64(0xFFFFFE0000001000)) * 2
    state += u64(0x80050033, 0, 0, 0x2A10001, 0x6F0)
    return u32(1, 8 + len(state) + 8) + state + u64(0xFFFF888000000000)


def virtualbox_cpu():
    selector = u64(0) + u32(0xFFFFFFFF, 0xA09B) + u16(0x10, 0, 0, 0)
    table = u64(0xFFFFFE0000001000) + u32(0x7F, 0)
    return u64(*range(18)) + selector * 6 + u64(0x80050033, 0, 0x1000, 0x6F0) + u64(*[0] * 8) + table * 2 + selector * 2 + u64(*range(10))


def images():
    page = bytes(range(1, 65)) * 4
    vmcoreinfo = note(b"VMCOREINFO", 0, b"OSRELEASE=6.1\nSYMBOL(swapper_pg_dir)=ffffffff82a10000\nNUMBER(phys_base)=0\n")
    cores = {
        "qemu": elf([(4, 0, note(b"CORE", 1, bytes(336)) + note(b"QEMU", 0, qemu_cpu()) * 2 + vmcoreinfo, 0), (1, 0, page, 0)]),
        "virtualbox": elf([(4, 0, note(b"VBCORE", 0xB00, bytes(24)) + note(b"VBCPU", 0xB01, virtualbox_cpu()), 0), (1, 0x1000, page, 0)]),
        "kdump": elf([(4, 0, note(b"CORE", 1, bytes(336)) + vmcoreinfo + bytes(12), 0), (1, 0x1000, page, 0), (1, 0x1010, page, 0)]),
        "many-segments": elf([(1, 0x1000 * at, page[:16], 0) for at in range(1, 20)], extended=True),
        "zero-tail": elf([(1, 0x1000, page, 0x100000), (1, 0x100000000, page, 0x2000)]),
        "i386": elf([(4, 0, note(b"CORE", 1, bytes(144)), 0), (1, 0x1000, page, 0x1000)], wide=False, machine=3),
        "i386-wide": elf([(4, 0, note(b"QEMU", 0, qemu_cpu()), 0), (1, 0x1000, page, 0)], machine=3),
    }
    block = bytes(range(16))
    lzo = b"\x21" + block + b"\x20" + bytes(15) + b"\xde\x3c\0\x11\0\0"
    # Snappy: the length, 16 literals, copies of 64 bytes at most.
    snappy = b"\x80\x20\x3c" + block + b"\xfe\x10\0" * 63 + b"\xbe\x10\0"
    zstd = subprocess.run(["zstd", "-c"], input=block * 256, stdout=subprocess.PIPE, check=True).stdout
    pages = {1: (1, zlib.compress(block * 256)), 2: (2, lzo), 3: (4, snappy), 9: (0x20, zstd)}
    dumps = {
        "all-packings": kdump(pages),
        "notes": kdump({0: (1, zlib.compress(bytes(4096)))}, notes=note(b"CORE", 1, bytes(336)) + note(b"QEMU", 0, qemu_cpu()) + vmcoreinfo),
        "i386": kdump(pages, wide=False, notes=note(b"CORE", 1, bytes(144)) + vmcoreinfo),
    }
    for name, dump in dumps.items():
        put("kdump", name, dump)

    def split(name, first, second):
        put("kdump_split", name, u32(len(first)) + first + second)

    low, high = kdump(pages, part=(0, 3)), kdump(pages, part=(3, 16))
    split("two", low, high)
    split("other-order", high, low)
    split("alone", dumps["all-packings"], b"")
    split("bad-same", low, low)
    split("bad-gap", kdump(pages, part=(0, 2)), high)
    split("bad-lap", kdump(pages, part=(0, 4)), high)
    split("bad-range", low, kdump(pages, part=(3, 2**40)))
    dump = dumps["all-packings"]
    put("flattened", "kdump", flat([(0, bytes(464)), (4096, dump[4096:])] + [(0, dump[:464])]))
    put("flattened", "elf", flat([(0, cores["zero-tail"][:100]), (50, bytes(100)), (50, cores["zero-tail"][50:])]))
    put("flattened", "bad-cut", flat([(0, dump)])[:-20])
    for name, core in cores.items():
        put("elf", name, core)
    ranges = lime(0x1000, page) + lime(0, page[:100]) + lime(0x100000000, page)
    put("lime", "ranges", ranges)
    put("lime", "padded", ranges + bytes(500))
    put("lime", "bad-overlap", lime(0x1000, page) + lime(0x1010, page))
    packed = avml(0x1000, page * 2 + bytes(300)) + avml(0x100000000, page)
    put("avml", "ranges", packed)
    put("avml", "mixed", packed + lime(0, page) + avml(0x2000, page))
    put("avml", "bad-cut", packed[:-100])
    put("raw", "mapped", b"0x0-0x100,0x2000-0x2100\n" + page * 2)
    put("raw", "one", b"0x100000000-0x100000100\n" + page)
    zstd = lambda data, *options: subprocess.run(["zstd", "-c", *options], input=data, stdout=subprocess.PIPE, check=True).stdout
    tail = cores["zero-tail"] + bytes(9000)
    put("packed", "gzip-elf", gzip.compress(cores["qemu"], mtime=0))
    put("packed", "gzip-members", gzip.compress(ranges[:50], mtime=0) + gzip.compress(ranges[50:], 1, mtime=0))
    put("packed", "gzip-stored", gzip.compress(ranges, 0, mtime=0))
    put("packed", "zstd-elf", zstd(cores["qemu"], "-19"))
    put("packed", "zstd-frames", u32(0x184D2A51, 4) + b"skip" + zstd(ranges[:50]) + zstd(ranges[50:], "-1", "--no-check"))
    put("packed", "zstd-text", zstd(elf([(1, 0, (CORPUS.parent / "corpus.py").read_bytes()[:6000], 0)]), "-9"))
    put("packed", "zstd-zeros", zstd(tail, "-3"))
    frames = [zstd(ranges[:300]), zstd(ranges[300:])]
    table = b"".join(u32(len(frame), len(content)) for frame, content in zip(frames, (ranges[:300], ranges[300:]))) + u32(2) + b"\0" + u32(0x8F92EAB1)
    put("packed", "zstd-seekable", b"".join(frames) + u32(0x184D2A5E, len(table)) + table)
    members = b""
    for content in (ranges[:300], ranges[300:], b""):
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
        body = deflate.compress(content) + deflate.flush()
        members += b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff\x06\0BC\x02\0" + u16(len(body) + 25) + body + u32(zlib.crc32(content), len(content))
    put("packed", "gzip-blocks", members)
    xz = lambda data, *options: subprocess.run(["xz", "-c", *options], input=data, stdout=subprocess.PIPE, check=True).stdout
    put("packed", "xz-elf", xz(cores["qemu"], "-9"))
    put("packed", "xz-blocks", xz(ranges, "-0", "-T1", "--block-size=200", "--check=crc32"))
    put("packed", "xz-streams", xz(ranges[:300], "-0") + bytes(8) + xz(ranges[300:], "--block-size=100", "--check=sha256"))
    lz4 = lambda data, *options: subprocess.run(["lz4", "-c", *options], input=data, stdout=subprocess.PIPE, check=True).stdout
    put("packed", "lz4-elf", lz4(cores["qemu"], "-9", "-BD", "--content-size"))
    put("packed", "lz4-frames", lz4(ranges[:300]) + u32(0x184D2A51, 4) + b"skip" + lz4(ranges[300:], "-BX"))
    put("packed", "bzip2-elf", bz2.compress(cores["qemu"]) + bz2.compress(bytes(5000)))


# Snapshots of hypervisors.


def vmware():
    def tag(name, indices, value, size=None):
        return bytes([len(indices) << 6 | (len(value) if size is None else size), len(name)]) + name + u32(*indices) + value

    def block(name, indices, data, wide=True, size=63):
        return tag(name, indices, (u64 if wide else u32)(len(data), len(data)) + u16(2) + b".." + data, size)

    def state(magic, groups):
        at, head = 12 + 80 * len(groups), u32(magic, 8, len(groups))
        for name, tags in groups:
            head += name.ljust(64, b"\0") + u64(at, len(tags) + 2)
            at += len(tags) + 2
        return head + b"".join(tags + b"\0\0" for _, tags in groups)

    regions = tag(b"regionsCount", [], u32(2))
    for index, (first, page, pages) in enumerate([(0, 0, 2), (0x100000, 2, 2)]):
        regions += tag(b"regionPPN", [index], u32(first)) + tag(b"regionPageNum", [index], u32(page)) + tag(b"regionSize", [index], u32(pages))
    one = tag(b"regionsCount", [], u32(0))
    cpu = tag(b"rip", [0], u64(1)) + block(b"gpregs", [0], u64(*range(16))) + block(b"CR64", [0], u64(*range(9)))
    cpu += block(b"IDTR", [0], bytes(10)) + tag(b"eflags", [0], u32(2)) + tag(b"S.base64", [0, 5], u64(7)) + tag(b"CR64", [0, 3], u64(9))
    memory = bytes(range(256)) * 4
    put("vmware", "beside", state(0xBED2BED2, [(b"memory", regions), (b"cpu", cpu)]))
    put("vmware", "inside", state(0xBED3BED3, [(b"cpu", cpu), (b"memory", one + block(b"Memory", [], memory))]))
    put("vmware", "narrow", state(0xBED2BED0, [(b"memory", one + block(b"Memory", [], memory, wide=False))]))
    put("vmware", "bad-compressed", state(0xBED2BED2, [(b"memory", one + block(b"Memory", [], memory, size=62))]))


def xen_core():
    def core(numbers, paravirtual):
        def xen(kind, desc):
            return note(b"Xen", kind, desc)

        notes = xen(0x2000000, b"") + xen(0x2000001, u64(0xF00FEBED + (not paravirtual), 1, len(numbers), 4096))
        table = b"".join(u64(number, number + 9) if paravirtual else u64(number) for number in numbers)
        pages = b"".join(bytes([index + 1]) * 4096 for index in range(len(numbers)))
        sections = [("", b""), (".shstrtab", None), (".note.Xen", notes), (".xen_prstatus", bytes(5168)), (".xen_pages", pages)]
        sections.append((".xen_p2m" if paravirtual else ".xen_pfn", table))
        names = b"\0".join(name.encode() for name, _ in sections) + b"\0"
        at, headers = 64 + 64 * len(sections), b""
        for index, (name, data) in enumerate(sections):
            data = names if data is None else data
            sections[index] = (name, data)
            headers += u32(names.index(name.encode() + b"\0"), 1) + u64(0, 0, at, len(data), 0, 8, 0)
            at += len(data)
        head = b"\x7fELF\2\1\1".ljust(16, b"\0") + u16(4, 62) + u32(1) + u64(0, 0, 64) + u32(0) + u16(64, 0, 0, 64, len(sections), 1)
        return head + headers + b"".join(data for _, data in sections)

    put("xen_core", "hvm", core([0, 1, 5, 2**64 - 1, 0x100000], False))
    put("xen_core", "pv", core([3, 2, 1], True))
    put("xen_core", "bad-number", core([2**50], False))


def firecracker():
    text = lambda data: u64(len(data)) + data
    magic, regions = 0x710198486640000, [(0, 1 << 20, 0), (1 << 32, 1 << 20, 1 << 20)]
    segment = u64(5) + u32(0xFFFFF) + u16(8) + bytes([11, 1, 0, 0, 1, 1, 1, 0, 0, 0])
    vcpu = u64(*range(18)) + segment * 8 + u64(1, 127) * 2 + u64(1, 2, 3, 4, 5, 0xD01, 0xFEE00900, 0, 0, 0, 0)
    info = u64(2) + bytes(5) + text(b"/vmlinux") + b"\0\1" + text(b"console=ttyS0") + u32(0) + u64(0, len(regions))
    offsets = b"".join(u64(*region) for region in regions)
    slots = b"".join(u64(*region[:2]) + u32(0) + u64(1) + b"\1" for region in regions)
    put("firecracker", "versionize", u64(magic | 1) + u16(5) + info + offsets + bytes(99) + vcpu + bytes(8))
    put("firecracker", "bincode", u64(magic) + text(b"1.0.0") + info + b"".join(u64(*region[:2]) for region in regions) + vcpu * 2)
    put("firecracker", "slots", u64(magic) + text(b"7.0.0") + info + slots + vcpu)
    put("firecracker", "bitcode", b"\0" + u64(magic) + b"\x059.0.0" + b"\6\2" + bytes(99))


def cloud_hypervisor():
    segment = {name: 1 for name in "base limit selector type_ present dpl db s l g avl unusable".split()}
    special = {name: segment for name in "cs ds es fs gs ss tr ldt".split()} | {name: {"base": 1, "limit": 2} for name in ("gdt", "idt")}
    special |= {name: 3 for name in "cr0 cr2 cr3 cr4 cr8 efer".split()} | {"apic_base": 0xFEE00900}
    names = "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags".split()
    ranges = [{"gpa": 0, "length": 0x3000}, {"gpa": 1 << 32, "length": 0x3000}]
    manager = json.dumps({"memory_ranges": {"data": ranges}, "boot_ram": 1})

    def state(general, memory):
        vcpu = {"snapshot_data": {"state": json.dumps({"Kvm": {"regs": general, "sregs": special}})}, "snapshots": {}}
        nodes = {"cpu-manager": {"snapshots": {"0": vcpu}}, "memory-manager": {"snapshots": {}, "snapshot_data": memory}}
        return json.dumps({"snapshots": nodes, "snapshot_data": None}).encode()

    section = lambda data: {"memory-manager-section": {"id": "memory-manager-section", "snapshot": list(data)}}
    put("cloud_hypervisor", "text", state({name: 1 for name in names}, {"state": manager}))
    put("cloud_hypervisor", "bytes", state({"Kvm": list(range(144))}, section(manager.encode())))
    put("cloud_hypervisor", "binary", state({}, section(u64(2, 0, 0x3000, 1 << 32, 0x3000))))
    put("cloud_hypervisor", "bad-length", state({}, {"state": manager.replace("12288", "99999999999")}))


# Images of Windows.


def windows_header(wide, kind):
    out = bytearray((b"PAGEDU64" if wide else b"PAGEDUMP") + b"PAGE" * (0x7FE if wide else 0x3FE))

    def set(at, data):
        out[at : at + len(data)] = data

    pointers = [0x1AD000] + [0xFFFFF80412340000 + 0x1000 * at for at in range(3)]
    set(8, u32(15, 19041) + (u64 if wide else u32)(*pointers) + u32(0x8664 if wide else 0x14C, 2, 0x7E))
    set(0xF98 if wide else 0xF88, u32(kind))
    if wide:
        set(0x80, u64(0xFFFFF80412345000))
        set(0x348, bytes(0x30) + u32(0x10001F, 0) + u16(16, 43, 43, 83, 43, 24) + u32(0x246) + u64(*range(23)))
    else:
        out[0x5C] = 1
        set(0x60, u32(0x80123000))
        set(0x320, u32(0x10017) + bytes(0x88) + u32(*range(1, 17)))
    return out


def windows_dumps():
    page = bytes(range(1, 65)) * 64
    for name, wide in (("64", True), ("32", False)):
        full, word = windows_header(wide, 1), u64 if wide else u32
        runs = (u32(2, 0) if wide else u32(2)) + word(3, 1, 1, 0x100000, 2)
        at = 0x88 if wide else 0x64
        full[at : at + len(runs)] = runs
        put("windows_dump", "full-" + name, bytes(full) + page + page * 2)
        start = 0x2000 if wide else 0x1000
        bitmap = b"FDMPDUMP" + bytes(24) + u64(start + 0x40, 3, 60) + b"\x21\0\0\0\0\0\0\x04"
        put("windows_dump", "bitmap-" + name, bytes(windows_header(wide, 5)) + bitmap + page * 3)
    table = u32(0x40) + b"RDMPDUMP" + u32(0) + u64(0x40, 0x2060, 2, 2) + u64(1, 1, 0x100000, 1, 0, 0)
    put("windows_dump", "live", bytes(windows_header(True, 8)) + table + page * 2)
    blocks = [(0xFFFFF8047BA00000, page[:300]), (0xFFFFF8047BA00F00, page[:600]), (0x7FF600000FF0, page[:32])]
    at, parts = 0x2080 + 16 * len(blocks), (b"", b"")
    for address, data in blocks:
        parts = parts[0] + u64(address) + u32(at, len(data)), parts[1] + data
        at += len(data)
    head = u32(0, at, at - 4, 0x348, 0xF00, 0, 0, 0x2080, 0x2090, 0x20A0, 0x20B0, 64, 0x20C0, 1, 0, 0, 0, 0)
    head += u64(0xFFFF850429890EE8, 0, 0, 0) + u32(0, 0, 0x20D0, 64, 0x2080, len(blocks))
    put("windows_dump", "triage", bytes(windows_header(True, 4)) + head + parts[0] + parts[1])
    put("windows_dump", "bad-type", bytes(windows_header(True, 3)))


def hibernation():
    page = bytes(range(1, 65)) * 64
    # Xpress: literals, then a match over the rest: a page and three pages.
    one = u32(0x0FFFFFFF) + b"abcd" + u16(3 << 3 | 7) + b"\x0f\xff" + u16(4096 - 4 - 3)
    three = u32(0x3FFFFFFF) + b"ab" + u16(1 << 3 | 7) + b"\x0f\xff" + u16(3 * 4096 - 2 - 3)
    # Huffman codes: one bit for a zero, nine for 1, ten for all others; a zero, and a match of distance 1 over the rest.
    table = bytes([9 << 4 | 1] + [0xAA] * 255)
    order = [0, 1] + [symbol for symbol in range(512) if symbol > 1]
    code = {symbol: (1 << 9) + at for at, symbol in enumerate(order[2:], 2)}
    word = code[256 + 15] << 5
    huffman = table + u16(word & 0xFFFF, 0) + b"\xff" + u16(4096 - 1 - 3) + bytes(8)
    for name, length, wide in (("64", 0x3E0, True), ("8", 0x360, True), ("32", 0x340, False)):
        run, head = u64 if wide else u32, bytearray(0x1000)
        head[0:16] = b"HIBR" + u32(0, 0, length)
        fields = {0x3E0: (0x18, 0x58, 0x68, 0x230), 0x360: (0x18, 0x58, 0x60, 0x1C8), 0x340: (0x14, 0x48, 0x50, 0x210)}[length]
        for at, data in zip(fields, (u32(4096), u64(1), run(1, 2), u64(6))):
            head[at : at + len(data)] = data
        boot = u32(1 | len(one) << 8) + run(5 << 4) + one
        kernel = u32(2 | len(three) << 8) + run(0x100000 << 4 | 1, 5 << 4) + three
        kernel += u32(1 | 4096 << 8) + run(7 << 4) + page
        kernel += u32(1 | len(huffman) << 8 | 1 << 30) + run(9 << 4) + huffman
        kernel += u32(1 | len(one) << 8) + run(0x20 << 4) + one
        put("hiberfil", name, bytes(head) + pad(boot, 4096) + kernel)
    put("hiberfil", "bad-wiped", b"WAKE" + bytes(0x1000))


# QEMU's migration stream, and libvirt's file around it.


def be(size, *values):
    return b"".join(value.to_bytes(size, "big") for value in values)


def short(text):
    return bytes([len(text)]) + text


def stream(mapped=False, machine=b"pc-q35-10.0"):
    page, pages = bytes(range(1, 65)) * 64, 3
    out = b"QEVM" + be(4, 3) + b"\x07" + be(4, len(machine)) + machine
    if mapped:
        out += b"\x05" + short(b"configuration/capabilities") + be(4, 1, 1) + short(b"mapped-ram")
    footer = b"\x7e" + be(4, 2)
    out += b"\x01" + be(4, 2) + short(b"ram") + be(4, 0, 4) + be(8, pages * 4096 | 4) + short(b"pc.ram") + be(8, pages * 4096)
    if mapped:
        # The real offset is a multiple of 1 MiB, which would make seeds large; a reader takes what the header says.
        bitmap = len(out) + 28
        at = bitmap + 8
        out += be(4, 1) + be(8, 4096, bitmap, at) + u64(0b101) + page + bytes(4096) + page
    out += be(8, 0x10) + footer + b"\x03" + be(4, 2)
    if not mapped:
        out += be(8, 0x08) + short(b"pc.ram") + page + be(8, 0x1022) + b"\0" + be(8, 0x2028) + page + be(8, 0x0028) + page[::-1]
    out += be(8, 0x10) + footer
    fields = [("env.regs", 8, 16), ("env.eip", 8, 1), ("env.eflags", 8, 1), ("env.segs", 20, 6), ("env.cr[3]", 8, 1), ("env.efer", 8, 1)]
    out += b"\x04" + be(4, 5) + short(b"cpu") + be(4, 0, 12) + b"".join(bytes([7]) * size * count for _, size, count in fields) + b"\x7e" + be(4, 5)
    described = [{"name": name, "type": "x", "size": size} | ({"array_len": count} if count > 1 else {}) for name, size, count in fields]
    text = json.dumps({"page_size": 4096, "devices": [{"name": "cpu", "instance_id": 0, "version": 12, "fields": described}]}).encode()
    return out + b"\0\x06" + be(4, len(text)) + text


def qcow2(states, bits=9, extended=False, version=3, size=1 << 20):
    """A disk image with a snapshot of each state, whose clusters are in the opposite order."""
    cluster, entry = 1 << bits, 16 if extended else 8
    out, table = bytearray(cluster), b""
    for number, state in enumerate(states, 1):
        parts = [state[at : at + cluster] for at in range(0, len(state), cluster)]
        places = {}
        for part in reversed(range(len(parts))):
            places[part] = len(out)
            out += parts[part].ljust(cluster, b"\0")
        entries = b"".join(be(8, 1 << 63 | places[part], *([0xFFFFFFFE00000001] if extended and not any(parts[part][cluster // 32 :]) else [0xFFFFFFFF] if extended else []))
                           for part in range(len(parts)))
        l1 = bytes(8 * -(-size // (cluster // entry * cluster)))
        for at in range(0, len(entries), cluster):
            l1 += be(8, 1 << 63 | len(out))
            out += entries[at : at + cluster].ljust(cluster, b"\0")
        name = short(b"moment")[1:] + be(1, 0x30 + number)
        extra = be(8, len(state), size, 0) if version > 2 else b""
        table += be(8, len(out)) + be(4, len(l1) // 8) + be(2, 1, len(name)) + be(4, number, 0) + be(8, 0)
        table += be(4, 0 if extra else len(state), len(extra)) + extra
        table = pad(table + be(1, 0x30 + number) + name, 8)
        out += pad(l1, cluster)
    header = b"QFI\xfb" + be(4, version) + bytes(12) + be(4, bits) + be(8, size) + bytes(28) + be(4, len(states)) + be(8, len(out))
    header += be(8, 16 if extended else 0) + bytes(16) + be(4, 4, 104) if version > 2 else b""
    out[: len(header)] = header
    return bytes(out) + table


def libvirt(content, packing):
    xml = b"<domain type='kvm'><name>a</name></domain>\0"
    return b"LibvirtQemudSave" + u32(2, len(xml), 1, packing, 0) + bytes(56) + xml + content


def lzop(content):
    header = bytes.fromhex("104020a009400105") + be(4, 0x03000001, 0x81A4, 0, 0) + short(b"a")
    block = be(4, len(content), len(content), zlib.adler32(content)) + content
    return b"\x89LZO\0\r\n\x1a\n" + header + be(4, zlib.adler32(header)) + block + bytes(4)


def streams():
    put("qemu_stream", "rounds", stream())
    put("qemu_stream", "bad-xbzrle", stream().replace(be(8, 0x1022), be(8, 0x1060)))
    put("mapped_ram", "pages", stream(True))
    put("qcow2", "one", qcow2([stream()]))
    put("qcow2", "two", qcow2([stream(machine=b"pc-i440fx-7.2"), stream()], version=2))
    put("qcow2", "subclusters", qcow2([stream()], bits=14, extended=True))
    put("qcow2", "bad-no-memory", qcow2([b""]))
    put("libvirt_save", "raw", libvirt(stream(), 0))
    put("libvirt_save", "gzip", libvirt(gzip.compress(stream(), mtime=0), 1))
    put("libvirt_save", "lzop", libvirt(lzop(stream()), 4))
    put("libvirt_save", "bad-part", libvirt(stream(), 0).replace(b"Save", b"Part"))
    put("lzop", "lime", lzop(lime(0x1000, bytes(range(1, 65)) * 4)))
    put("lzop", "bad-sum", lzop(bytes(5000))[:-9] + bytes(9))


# kallsyms, as scripts/kallsyms.c of the kernel writes it.

LAYOUTS = {  # order, addresses, pointer, marker, alignment, two-byte lengths
    "4.5": ("addresses", "absolute", 8, 8, 8, False),
    "4.6": ("addresses", "percpu", 8, 8, 8, False),
    "4.20": ("addresses", "percpu", 8, 4, 8, False),
    "4.5-32": ("addresses", "absolute", 4, 4, 4, False),
    "4.9-32": ("addresses", "base", 4, 4, 4, False),
    "6.2": ("seqs-between", "percpu", 8, 4, 8, True),
    "6.4": ("names", "percpu", 8, 4, 8, True),
    "6.4-32": ("names", "base", 4, 4, 4, True),
    "6.15": ("names", "base", 8, 4, 8, True),
    "7.0": ("names", "place", 8, 4, 4, True),
}


def kallsyms():
    tokens = [bytes([code]) if 33 <= code < 127 else b"" for code in range(256)]
    tokens[1], tokens[2], tokens[128], tokens[254] = b"Ta", b"ddb_", b"sys_long_token_string", b"\xc3\xa9"
    for name, (order, kind, pointer, marker, align, two_bytes) in LAYOUTS.items():
        kernel = 0xFFFFFFFF81000000 if pointer == 8 else 0xC1000000
        start, count = kernel + 0x800000, 770
        addresses = [at * 8 for at in range(8)] if kind == "percpu" else []
        addresses += [kernel + 64 * at for at in range(count - len(addresses))]
        pack = u64 if pointer == 8 else u32
        tail = lambda out: pad(out + (pack(kernel) if kind in ("percpu", "base") else b""), align)

        def places(out):
            out = pad(out, align)
            for address in addresses:
                if kind == "absolute":
                    out += pack(address)
                elif kind == "place":
                    out += u32(address - start - len(out))
                elif kind == "base":
                    out += u32(address - kernel)
                else:
                    out += u32(address if address < kernel else kernel - 1 - address)
            return tail(pad(out, align) if kind != "absolute" else out)

        seqs = b"".join(at.to_bytes(3, "big") for at in range(count))
        out = places(b"") if order != "names" else b""
        out = pad(pad(out, align) + count.to_bytes(marker, "little"), align)
        names_at, markers = len(out), []
        for at in range(count):
            if at % 256 == 0:
                markers.append(len(out) - names_at)
            entry = bytes([1, 48 + at % 10]) if at % 100 else b"t" + bytes([128, 95]) * (80 if two_bytes else 8)
            out += (bytes([0x80 | len(entry) & 0x7F, len(entry) >> 7]) if len(entry) > 127 else bytes([len(entry)])) + entry
        out = pad(out, align) + b"".join(at.to_bytes(marker, "little") for at in markers)
        out = pad(out, align)
        if order == "seqs-between":
            out = pad(out + seqs, align)
        offsets, table = [], len(out)
        for token in tokens:
            offsets.append(len(out) - table)
            out += token + b"\0"
        out = pad(out, align) + u16(*offsets)
        out = places(out) + seqs if order == "names" else out
        put("kallsyms", name, bytes([0 if pointer == 8 else 1]) + u64(start) + out)


# Types.


def btf(header=24):
    strings, types = bytearray(b"\0"), bytearray()

    def name(text):
        strings.extend(text.encode() + b"\0")
        return len(strings) - 1 - len(text)

    def record(text, kind, count, size, *extra, flag=0):
        types.extend(u32(name(text) if text else 0, flag << 31 | kind << 24 | count, size, *extra))

    record("int", 1, 0, 4, 1 << 24 | 32)  # 1
    record("unsigned long", 1, 0, 8, 64)  # 2
    record("", 2, 0, 6)  # 3: pointer to the structure
    record("", 3, 0, 0, 1, 2, 16)  # 4: array
    record("", 5, 2, 8, name("x"), 1, 0, name("y"), 2, 0)  # 5: anonymous union
    record("list", 4, 4, 88, name("next"), 3, 0, 0, 5, 64, name("bits"), 1, 5 << 24 | 128, name("all"), 4, 192, flag=1)  # 6
    record("colour", 6, 2, 4, name("RED"), 0xFFFFFFFF, name("BLUE"), 1, flag=1)  # 7
    record("elsewhere", 7, 0, 0, flag=1)  # 8
    for kind in (9, 10, 11):  # volatile, const, restrict: 9 to 11
        record("", kind, 0, 6)
    record("list_t", 8, 0, 6)  # 12
    record("", 13, 2, 1, name("a"), 3, 0, 0)  # 13: function of variable arguments
    record("walk", 12, 1, 13)  # 14
    record("cpu_number", 14, 0, 1, 1)  # 15
    record(".data..percpu", 15, 1, 4, 15, 64, 4)  # 16
    record("double", 16, 0, 8)  # 17
    record("tag", 17, 0, 6, 0)  # 18
    record("user", 18, 0, 3)  # 19
    record("wide", 19, 1, 8, name("W"), 5, 6)  # 20
    layouts = b""
    if header == 32:
        layouts = bytes([0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0, 0]) + bytes([0, 12, 0, 0] * 2) + bytes([0, 8, 0, 0]) + bytes(52) + bytes([4, 0, 0, 0])
        record("", 20, 0, 0, 7)
    sections = u32(0, len(types), len(types) + len(layouts), len(strings))
    head = u16(0xEB9F) + bytes([1, 0]) + u32(header) + sections + (u32(len(types), len(layouts)) if header == 32 else b"")
    return head + bytes(types) + layouts + bytes(strings)


def type_files():
    put("btf", "all-kinds", btf())
    put("btf", "header-of-7.1", btf(32))
    number = {"kind": "base", "name": "int"}
    fields = {
        "first": {"offset": 0, "type": number},
        "low": {"offset": 4, "type": {"kind": "bitfield", "bit_position": 0, "bit_length": 3, "type": number}},
        "unnamed": {"offset": 8, "anonymous": True, "type": {"kind": "union", "name": "unnamed_1"}},
        "next": {"offset": 16, "type": {"kind": "pointer", "subtype": {"kind": "struct", "name": "outer"}}},
        "all": {"offset": 24, "type": {"kind": "array", "count": 6, "subtype": {"kind": "array", "count": 2, "subtype": number}}},
        "call": {"offset": 72, "type": {"kind": "pointer", "subtype": {"kind": "function"}}},
    }
    union = {"x": {"offset": 0, "type": number}, "y": {"offset": 0, "type": {"kind": "enum", "name": "colour"}}}
    linux = {
        "metadata": {"format": "6.2.0", "linux": {"symbols": []}},
        "base_types": {
            "int": {"size": 4, "signed": True, "kind": "int", "endian": "little"},
            "pointer": {"size": 8, "signed": False, "kind": "int", "endian": "little"},
        },
        "user_types": {
            "outer": {"size": 80, "kind": "struct", "fields": fields},
            "unnamed_1": {"size": 8, "kind": "union", "fields": union},
        },
        "enums": {"colour": {"size": 4, "base": "int", "constants": {"RED": -1, "BLUE": 2**64 - 1}}},
        "symbols": {
            "init_task": {"address": 18446744071579000000, "type": {"kind": "struct", "name": "outer"}},
            "linux_banner": {"address": 18446744071570000000, "constant_data": "TGludXggdmVyc2lvbiA2LjEKAA=="},
            "cpu_number": {"address": 4096},
        },
    }
    windows = linux | {"metadata": {"format": "4.1.0", "windows": {"pdb": {"GUID": "A" * 32, "age": 1, "database": "ntkrnlmp.pdb", "machine_type": 34404}}}}
    put("isf", "linux", json.dumps(linux, indent=1).encode())
    put("isf", "windows", json.dumps(windows).encode())
    put("isf", "linux-xz", lzma.compress(json.dumps(linux).encode(), check=lzma.CHECK_CRC64))
    put("isf", "linux-xz-crc32", lzma.compress(json.dumps(linux).encode(), check=lzma.CHECK_CRC32, preset=0))
    lines = ["0000000000000000 A fixed_percpu_data", "ffffffff81000000 T _text", "ffffffff82001000 D init_task", "ffffffff83000000 B _end"]
    modules = ["ffffffffc0400000 t init_module\t[dummy]", "ffffffffc0300000 t helper\t[loop]", "ffffffffc0400010 t cleanup_module\t[dummy]"]
    put("system_map", "system.map", "\n".join(lines + [""]).encode())
    put("system_map", "kallsyms", "\r\n".join(lines + modules).encode())
    put("system_map", "32-bit", b"c1000000 T _text\nc1000040 t startup\nc1800000 R linux_banner\n")


PROGRAM = """
struct hidden;
enum colour { RED = -3, GREEN, BLUE = 70000 };
typedef const volatile struct inner { char c; short s[3]; } inner_t;
struct outer {
    inner_t named;
    struct { int x; union { long y; struct { short z0, z1; }; }; };
    unsigned a : 3, b : 7, : 4, c : 12;
    int matrix[4][5];
    enum colour colour;
    struct hidden *hidden;
    struct outer *next, *(*call)(struct outer *, int);
    _Bool flag;
    double number;
    int flexible[];
};
const char linux_banner[] = "Linux version 6.1.0 (fuzz) #1\\n";
struct outer *keep;
inner_t *keep_inner;
"""

BUILDS = {
    "dwarf-2": ["-gdwarf-2", "-gstrict-dwarf"],
    "dwarf-4": ["-gdwarf-4"],
    "dwarf-4-type-units": ["-gdwarf-4", "-fdebug-types-section"],
    "dwarf-5": ["-gdwarf-5"],
    "dwarf-5-packed": ["-gdwarf-5", "-gz"],
    "dwarf-5-32-bit": ["-gdwarf-5", "-m32"],
    "btf": ["-g0"],
}


def programs():
    link = ["-nostdlib", "-static", "-no-pie", "-fno-pie", "-Wl,-e,0,--build-id=none,-z,noseparate-code,-z,max-page-size=16"]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "a.c").write_text(PROGRAM)
        (folder / "btf").write_bytes(btf())
        for name, flags in BUILDS.items():
            subprocess.run(["gcc", *flags, *link, "-o", "out", "a.c"], cwd=folder, check=True)
            if name == "btf":
                subprocess.run(["objcopy", "--add-section", ".BTF=btf", "out"], cwd=folder, check=True)
            put("dwarf", name, (folder / "out").read_bytes())


# The demo image, changed.


def scripts():
    patch = lambda place, offset, data: u16(place, offset) + bytes([len(data)]) + data
    for known in range(4):
        put("attach", f"untouched-{known}", bytes([known]))
        put("shape", f"untouched-{known}", bytes([known]))
    # Objects and tables in their order; more than there are wrap around.
    for first in range(0, 160, 20):
        places = range(first, first + 20)
        for word, value in {"null": u64(0), "self": u64(0xFFFFFFFF82000000), "ones": u64(-1)}.items():
            script = b"".join(patch(place, 8 * (place % 7), value) for place in places)
            put("attach", f"bad-{word}-{first}", bytes([3 - first // 20 % 2 * 2]) + script)
            put("shape", f"bad-{word}-{first}", bytes([first // 20 % 4]) + script)
    put("attach", "without-btf", bytes([1]) + patch(5, 0, bytes(4)))
    put("attach", "bad-banner", bytes([0]) + patch(6, 0, b"Windows"))
    put("attach", "bad-root", bytes([0]) + b"".join(patch(8, 8 * at, u64(-1)) for at in range(512)))


def vmcoreinfo():
    text = b"OSRELEASE=6.1.0\nSYMBOL(swapper_pg_dir)=ffffffff80000000\nNUMBER(phys_base)=%s\nNUMBER(pgtable_l5_enabled)=%s\n"
    tables = u64(*[0] * 511, 0x1003) + u64(*[0] * 510, 0x83, 0)
    note = text % (b"0", b"0")
    put("vmcoreinfo", "4-level", u16(len(note)) + note + tables)
    self_map = u64(*[0x3] * 510, 0x83, 0x3)
    note = text % (b"-0", b"1")
    put("vmcoreinfo", "5-level-self", u16(len(note)) + note + self_map)
    note = b"OSRELEASE=5.10\nSYMBOL(swapper_pg_dir)=c0000000\n"
    put("vmcoreinfo", "32-bit", u16(len(note)) + note + u32(*[0xE3 + (at << 22) for at in range(1024)]))
    note += b"CONFIG_X86_PAE=y\n"
    put("vmcoreinfo", "pae", u16(len(note)) + note + u64(1, 1, 1, 1) + u64(*[0xE3 + (at << 21) for at in range(4, 512)]))


def pmemaccess():
    def talk(name, length, flags, says, at=0x1FFC, piece=255):
        put("pmemaccess", name, u64(at) + length.to_bytes(3, "little") + bytes([piece, flags]) + says)

    talk("read", 4, 0, b"abcd\1\1abcd\1")
    talk("in-pieces", 100, 0, bytes(range(100)) + b"\1", piece=7)
    talk("two-requests", 0x40001, 0, b"a" * 0x40000 + b"\1" + b"b\1")
    talk("page-by-page", 8, 0, bytes(9) + b"abcd\1" + b"efgh\1")
    talk("bad-refused", 4, 0, bytes(5))
    talk("bad-short", 4, 1, b"ab")
    talk("bad-alone", 80, 3, b"\0" + b"\1" * 64, piece=1)
    talk("bad-status", 4, 0, b"abcdx")
    talk("bad-range", 8, 0, b"", at=-4)


# A gdb stub, as QEMU's gdbstub answers.


def gdb():
    packet = lambda text: b"$" + text + b"#%02x" % (sum(text) & 0xFF)
    session = b"+" + packet(b"T02thread:01;") + b"+" + packet(b"PacketSize=1000;qXfer:features:read+;vContSupported+;multiprocess+")
    put("gdb_packets", "session", bytes([7]) + session + b"+" + packet(b"OK") + b"-" + packet(b"53ff00f0" * 8))
    put("gdb_packets", "runs", bytes([255]) + packet(b"0* ") + packet(b"x0*~*~}\x03}\x0a") + b"%" + packet(b"Stop:T05")[1:])
    put("gdb_packets", "cut", bytes([1]) + b"$m0,4" + packet(b"l") + b"\x03junk")
    put("gdb_packets", "bad-checksum", bytes([9]) + b"$OK#00")
    for name, text in {
        "attach": b"T02thread:01;",
        "watch": b"T05thread:p01.02;watch:ffffffff81000000;",
        "other-stub": b"T05swbreak:;06:0*,;thread:p1.a;core:3;",
        "exit": b"W00;process:1",
        "features": b"PacketSize=20020;qXfer:features:read+;QStartNoAckMode+",
        "threads": b"mp01.01,p01.02,3",
        "end": b"l",
        "bad-signal": b"T5",
    }.items():
        put("gdb_replies", name, text)
    head = b'<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd">'
    target = head + b'<target><architecture>i386:x86-64</architecture><xi:include href="a"/></target>'
    registers = b"".join(b'<reg name="%s" bitsize="%d" type="int64"/>' % row for row in [(b"rax", 64), (b"rip", 64), (b"st0", 80), (b"cr3", 64)])
    core = head + b'<feature name="core"><flags id="f" size="4"><field name="X" start="0" end="0"/></flags>%s</feature>' % registers
    put("gdb_description", "two-documents", target + b"\0" + core + b"\0" + b"0011223344556677" * 4)
    put("gdb_description", "numbers", b'<target><reg name="eip" bitsize="32" regnum="8"/><reg name="rax" bitsize="1" regnum="2"/></target>\0xxxx')
    put("gdb_description", "bad-self", target + b"\0" + target + b"\0")
    put("gdb_description", "bad-entities", b'<!DOCTYPE t [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><target>&b;</target>\0')


# QEMU's human monitor, as versions 7.2 and 10.0 print.


def monitor():
    tree = b"""FlatView #0
 AS "memory", root: system
 Root memory region: system
  0000000000000000-00000000000c2fff (prio 0, ram): pc.ram KVM
  00000000000c3000-00000000000e7fff (prio 0, rom): pc.ram @00000000000c3000
  00000000fee00000-00000000feefffff (prio 4096, i/o): apic-msi
  0000000100000000-0000000103ffffff (prio 0, nv-ram): pc.ram @0000000008000000

"""
    put("memory_tree", "pc", tree)
    put("memory_tree", "bad-order", tree.replace(b"00000000fee00000-", b"0000000000000000-"))
    put("memory_tree", "bad-kind", tree.replace(b"nv-ram", b"x"))
    put("memory_tree", "bad-host-address", b"Host virtual address for 0x0 (a) is 0x7f09f7e00000")
    registers = b"CPU#0\nEAX=000f49f6 EBX=0 ECX=2ff EDX=1\nESI=0 EDI=0 EBP=0 ESP=00006c5c\nEIP=000fd09a EFL=00000002 [-------] CPL=0\n"
    registers += b"CS =0008 00000000 ffffffff 00cf9b00 DPL=0 CS32 [-RA]\nGDT=     000f6180 00000037\nCR0=00000011 CR2=0 CR3=0 CR4=0\n"
    registers += b"DR0=0 DR1=0 DR2=0 DR3=0 \nDR6=ffff0ff0 DR7=400\nEFER=0000000000000d01\n"
    put("human_registers", "protected", registers)
    put("human_registers", "two", registers + registers.replace(b"CPU#0", b"CPU#1"))
    put("human_registers", "bad-numbering", registers + registers)


# What Xen tells of a domain (xen/include/public of Xen 4.17).


def xen_registers():
    def save_record(code, instance, content):
        return u16(code, instance) + u32(len(content)) + content

    segments = [(0x10, 0xFFFFFFFF, 0, 0xA9B)] + [(0x18, 0xFFFFFFFF, at << 40, 0xC93) for at in range(5)] + [(0x40, 0x67, 0x4000, 0x8B), (0, 0, 0, 0)]
    cpu = bytes(512) + u64(*range(0x100, 0x110)) + u64(0xFFFFFFFF81000000, 0x246, 0x80050033, 0x7F00DEAD0000, 0x2A000, 0x3506F0)
    cpu += u64(0, 0, 0, 0, 0xFFFF0FF0, 0x400) + u32(*[row[0] for row in segments]) + u32(*[row[1] for row in segments], 0xFFF, 0x7F)
    cpu += u64(*[row[2] for row in segments], 0xFFFFFE0000000000, 0xFFFFFE0000001000) + u32(*[row[3] for row in segments])
    cpu += u64(0x10, 0, 0xFFFFFFFF81800000, 0, 0, 0xFFFFFFFF81800010, 0x23001000000000, 0xFFFFFFFF81800020, 0x47700, 0xD01, 0)
    # The time stamp counter, the event that waits, and flags: the FPU is in use.
    cpu += u64(0) + u32(0, 0) + u32(1, 0)
    header = save_record(1, 0, u32(0x54381286, 2) + u64(0x411) + u32(0x306C3, 0))
    xsave, mtrr = save_record(16, 0, u64(7, 7, 7) + bytes(576)), save_record(14, 0, u64(0x7040600070406, 0xC00) + bytes(100))
    apic = save_record(6, 0, bytes(0x80) + u32(0x20) + bytes(0x37C))
    end = save_record(0, 0, b"")
    whole = header + save_record(2, 0, cpu) + save_record(2, 1, cpu) + apic + mtrr + xsave + end
    put("xen_registers", "hvm", bytes([0]) + whole)
    put("xen_registers", "hvm-second", bytes([2]) + whole)
    put("xen_registers", "hvm-twice", bytes([0]) + header + save_record(2, 0, cpu) + save_record(2, 0, cpu[::-1]) + end)
    put("xen_registers", "bad-offline", bytes([4]) + whole)
    put("xen_registers", "bad-end", bytes([0]) + whole[: -len(end)])
    put("xen_registers", "bad-short", bytes([0]) + header + save_record(2, 0, cpu[:1000]) + end)
    put("xen_registers", "bad-length", bytes([0]) + header + u16(2, 0) + u32(-1) + cpu)
    for name, flags, cs in [("pv-kernel", 0x104, 0xE030), ("pv-user", 0x100, 0xE033)]:
        context = bytes(512) + u64(flags) + u64(*range(0x200, 0x20F)) + u64(0, 0xFFFFFFFF81000000, cs | 0xFF << 32, 0x246, 0xFFFFC90000000000)
        context += u64(0xE02B, 0, 0, 0, 0) + bytes(4096) + bytes(16 + 136) + u64(0xE02B, 0xFFFFC90000000000)
        context += u64(0x80050033, 0x2B000, 0, 0x2A000, 0x660, 0, 0, 0) + u64(0, 0, 0, 0, 0, 0, 0xFFFF0FF0, 0x400) + bytes(24) + u64(0)
        context += u64(0x7F0000000000, 0xFFFF888000000000, 0)
        put("xen_registers", name, bytes([1]) + context)
    put("xen_registers", "bad-context", bytes([1]) + context[:-1])


def xen_event(version, reason, data=b"", flags=1):
    registers = u64(*range(0x100, 0x118)) + u64(0x10, 0, 0, 0xD01, 0, 0) + u64(0xFFFFFE0000001000)
    registers += (u64(0x3000, 0) if version == 7 else b"") + u32(0, 0, 0, 0) + u64(0, 0xFFFF888000000000)
    registers += u32(*[0xA9BFFFFF] * 6) + u64(0) + u16(0x7F, 0x10, 0x18, 0x18, 0x18, 0, 0, 0)
    return u32(version, flags, reason, 1) + u16(2, 0, 0, 0) + data.ljust(32, b"\0") + registers


def xen_events():
    reasons = {
        "unknown": (0, b""), "memory": (1, u64(0x1234, 0xFF8, 0x7F0000001FF8) + u32(0x2B, 0)), "sharing": (2, u64(5) + u32(1, 0)),
        "paging": (3, u64(5) + u32(1, 3)), "register": (4, u32(1, 0) + u64(0x2A000, 0x2B000)), "msr": (5, u64(0xC0000082, 1, 2)),
        "breakpoint": (6, u64(0x1000, 0) + u32(1) + bytes([6, 0, 0, 0])), "step": (7, u64(0x1000)), "request": (8, b""),
        "debug": (9, u64(0x1000, 0x4000) + u32(2) + bytes([3, 0, 0, 0])), "cpuid": (10, u32(2, 0x40000000, 0, 0)), "privileged": (11, b""),
        "interrupt": (12, u32(14, 3, 2, 0) + u64(0x7F0000000000)), "descriptor": (13, u32(7, 0) + u64(1) + bytes([2, 1])),
        "emulation": (14, b""), "exit": (15, u64(48, 1)), "other": (200, b"x" * 32),
    }
    for name, (reason, data) in reasons.items():
        put("xen_events", name, xen_event(7, reason, data, flags=0x81 if name == "memory" else 1))
    put("xen_events", "breakpoint-5", xen_event(5, 6, u64(0x1000) + u32(1) + bytes([6])))
    put("xen_events", "debug-6", xen_event(6, 9, u64(0x1000, 0x4000) + u32(2) + bytes([3])))
    put("xen_events", "flags", xen_event(7, 8, flags=0xFFFFFFFF))
    put("xen_events", "bad-version", xen_event(7, 8).replace(u32(7), u32(8), 1))
    put("xen_events", "bad-short", xen_event(7, 8)[:-4])


def xen_ring():
    def write(place, word):
        return b"\3" + u16(place) + u32(word)

    def entry(index, version=7, words=100, word=8):
        event = xen_event(version, word)
        return b"".join(write(16 + index % 8 * words + at, struct.unpack_from("<I", event, 4 * at)[0]) for at in range(14))

    take, answer = b"\1", b"\2"
    put("xen_ring", "one", b"\0" + entry(0) + write(0, 1) + take + answer + take)
    put("xen_ring", "full", b"\0" + b"".join(map(entry, range(8))) + write(0, 8) + take * 9 + answer * 9)
    put("xen_ring", "around", b"\0" + entry(0) + b"".join(write(0, at + 1) + take + answer for at in range(20)))
    put("xen_ring", "old", b"\1" + entry(0, 6, 96) + entry(1, 6, 96) + write(0, 2) + take + write(0, 2) + take + answer + answer)
    put("xen_ring", "ahead", b"\0" + entry(0) + write(0, 1) + take + write(0, 9) + take + answer + take + write(0, 10) + take + answer)
    put("xen_ring", "back", b"\2" + entry(0, 5, 96) + write(0, 3) + take * 3 + write(0, 1) + take + answer * 2 + take)
    put("xen_ring", "other-indices", b"\0" + entry(0) + write(0, 1) + write(1, -1) + write(2, 77) + write(3, -1) + take + answer + take)
    put("xen_ring", "bad-alone", b"\0" + answer + write(0, -1) + take + answer + write(0, 9) + take)
    put("xen_ring", "bad-entry", b"\0" + write(16, 99) + write(0, 1) + take + write(0, 0x80000000) + take)


def xen_p2m():
    def shared(pages, lists, root, address):
        return (bytes(0xC10) + u64(pages, lists, 0, root, address, 6)).ljust(4096, b"\0")

    def page(*words, at=0):
        return (bytes(8 * at) + u64(*words)).ljust(4096, b"\0")

    frames = page(*[3 + at if at % 7 else -1 for at in range(500)])
    holes = page(*[at | (1 << 63) * (at % 3) for at in range(512)])
    put("xen_p2m", "lists", shared(900, 1, 0, 0) + page() + page(2) + page(3, 4) + frames + holes)
    address = 0xFFFFC90000000000
    index = lambda shift: address >> shift & 511
    # Frame 0 is nothing; 1 is the top table, 2 to 4 those below, 5 and 6 the list.
    tables = page() + page(0x2067, at=index(39)) + page(0x3067, at=index(30)) + page(1 << 63 | 0x4067, at=index(21)) + page(0x5067, 0x6067, at=index(12))
    put("xen_p2m", "tables", shared(900, -1, 0x1000, address) + tables + frames + holes)
    put("xen_p2m", "tables-end", shared(2000, -1, 0x1000, address) + tables + frames)
    put("xen_p2m", "bad-self", shared(100000, 1, 0, 0) + page() + page(*[1] * 512))
    put("xen_p2m", "bad-tables-self", shared(1 << 20, 0, 0x1000, 0) + page() + page(*[0x1067] * 512))
    put("xen_p2m", "bad-long", shared(1 << 40, 1, 0, 0) + page(1))
    put("xen_p2m", "bad-none", shared(100, -1, 0, 0))


def xen_texts():
    put("xen_texts", "name", b"web1")
    put("xen_texts", "long", "gr\u00fc\u00dfe".encode() * 200)
    put("xen_texts", "control", b"a\x1b[2Jb\xff\0")
    put("xen_texts", "uuid", b"b8a3c7f0-1234-5678-9abc-def012345678")
    put("xen_texts", "lock", b"ring\nb 1234567 55\nb fffffffff000 cc\nw 77 2\nend\n")
    put("xen_texts", "lock-cut", b"ring\nb 1234567 55\n")
    put("xen_texts", "bad-empty", b"")


def gdb_session():
    def packet(text):
        return b"+$" + text + b"#%02x" % (sum(text) & 0xFF)

    registers = b"".join(b'<reg name="%s" bitsize="64"/>' % name for name in [b"rax", b"rip", b"eflags", b"cr0", b"cr3"])
    target = b'l<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target>%s</target>' % registers
    stop, values = b"T05thread:p1.1;", b"0011223344556677" * 5
    start = [b"PacketSize=1000;qXfer:features:read+;multiprocess+", b"vCont;c;C;s;S", b"mp1.2,p1.1", b"l", stop, b"0", target]
    bare = [b"PacketSize=1000", b"vCont;c;C;s;S", b"m1", b"l", b"S05", b"", b"00" * 536]
    def session(*answers):
        return b"".join(map(packet, answers))
    ok = [b"OK"] * 4
    put("gdb_session", "reads", session(*start, b"OK", values, *ok, values, b"OK", b"aa" * 100, *[b"bb" * 2000] * 5, *ok, b"cc" * 8, *ok))
    put("gdb_session", "runs", session(*start, b"OK", values, *ok, b"E14", *ok, b"E14", *ok, stop, b"T05swbreak:;thread:p1.2;", stop, *ok, b"O6162", *ok))
    put("gdb_session", "no-description", session(*bare, b"OK", b"00" * 536, *ok, b"E01", *ok))
    put("gdb_session", "no-acks", session(b"QStartNoAckMode+;PacketSize=400", b"OK") + session(*bare[1:]).replace(b"+", b""))
    put("gdb_session", "exits", session(*start, b"OK", values, *ok, b"W00", b"X09;process:1", *ok))
    put("gdb_session", "bad-start", session(b"", b"vCont;c"))
    put("gdb_session", "bad-threads", session(*start[:2], *[b"m1,2,3"] * 100))
    put("gdb_session", "bad-checksum", session(*start)[:-1] + b"x")
    put("gdb_session", "bad-document", session(*start[:6], *[b"m<reg"] * 50))


# A QMP server, and how QEMU is started.


def qmp():
    lines = lambda *objects: b"".join(json.dumps(line).encode() + b"\r\n" for line in objects)
    greeting = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}
    event = {"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}
    answer = lambda number, value: {"return": value, "id": number}
    tree = "FlatView #0\n AS \"memory\", root: system\n Root memory region: system\n  0000000000000000-000000000009ffff (prio 0, ram): pc.ram\n\n"
    state = {"running": True, "singlestep": False, "status": "running"}
    start = (greeting, answer(0, {}), event, answer(1, state), answer(2, tree))
    host = "Host virtual address for 0x0 (pc.ram) is 0x7f09f7e00000\r\n"
    put("qmp", "layout", lines(*start, answer(3, [{"id": "pc.ram"}]), answer(4, host), answer(5, "7.2.0"), answer(6, {})))
    put("qmp", "no-backends", lines(*start, {"error": {"class": "CommandNotFound", "desc": "no"}, "id": 3}, answer(4, "No memory is mapped"), answer(5, "x")))
    put("qmp", "closed", lines(greeting, answer(0, None)))
    put("qmp", "other-answers", lines(greeting, answer(0, {}), answer(7, {}), {"return": {}}, answer(1, []), answer(2, 5), event, answer(4, "x")))
    put("qmp", "not-json", lines(greeting, answer(0, {})) + b"{]\n\xff\xfe\n\n")
    put("qmp", "bad-greeting", b"QEMU 7.2.0 monitor - type 'help' for more information\r\n(qemu) ")
    put("qmp", "bad-error", lines(greeting, {"error": {"class": "GenericError"}}))


def command_lines():
    line = lambda *words: b"\0".join(word.encode() for word in words) + b"\0"
    put("qemu_command_line", "people", line(
        "qemu-system-x86_64", "-name", "guest=web1,debug-threads=on", "-m", "2G", "-qmp", "unix:/run/a,,b,server=on,wait=off", "--gdb", "unix:g", "-s"))
    put("qemu_command_line", "libvirt", line(
        "/usr/bin/kvm", "-object", '{"qom-type":"memory-backend-memfd","id":"pc.ram","share":true,"size":1}', "-m", "size=1k",
        "-chardev", "socket,id=m,fd=21,path=/run/q", "-mon", "chardev=m,id=monitor,mode=control"))
    put("qemu_command_line", "bad-end", line("kvm", "-chardev", "socket,id=,path", "-mon", "mode=control", "-gdb", "none", "-name")[:-1])


# Cabinets ([MS-CAB]): stored, MSZIP, and LZX with a stored block ([MS-PATCH] 2).


def cabinets():
    def cabinet(method, blocks, size, files=((b"ntkrnlmp.pdb", 0),)):
        entries = b"".join(u32(size, at) + u16(0, 0x4A21, 0x6000, 0x20) + name + b"\0" for name, at in files)
        data = b"".join(u32(0) + u16(len(packed), plain) + packed for packed, plain in blocks)
        first_file, first_data = 36 + 8, 36 + 8 + len(entries)
        head = b"MSCF" + u32(0, first_data + len(data), 0, first_file, 0) + bytes([3, 1]) + u16(1, len(files), 0, 1, 0)
        return head + u32(first_data) + u16(len(blocks), method) + entries + data

    def zipped(data, history=b""):
        packer = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=history) if history else zlib.compressobj(9, zlib.DEFLATED, -15)
        return b"CK" + packer.compress(data) + packer.flush()

    text = b"Microsoft C/C++ MSF 7.00\r\n\x1aDS\0\0\0" * 1500
    first, second = text[:32768], text[32768:]
    put("windows_cabinet", "stored", cabinet(0, [(text[:3000], 3000)], 3000))
    put("windows_cabinet", "mszip", cabinet(1, [(zipped(first), len(first)), (zipped(second, first), len(second))], len(text)))
    bits = 3 << 28 - 4 | 600  # no translation of calls, a stored block of 600 bytes: 28 bits, then up to the next word
    stored = u16(bits << 4 >> 16, bits << 4 & 0xFFFF) + u32(1, 1, 1) + text[:600]
    put("windows_cabinet", "lzx", cabinet(3 | 21 << 8, [(stored, 600)], 600))
    put("windows_cabinet", "bad-two", cabinet(1, [(zipped(b"ab"), 2)], 1, ((b"a", 0), (b"b", 1))))
    put("windows_cabinet", "bad-offset", cabinet(1, [(zipped(b"ab"), 2)], 1, ((b"a", 7),)))
    put("windows_cabinet", "bad-size", cabinet(1, [(zipped(b"ab"), 2)], 2**31 - 1))
    put("windows_cabinet", "bad-block", cabinet(1, [(b"CK\7", 9)], 9))


for make in (
    paging, descriptors, images, streams, windows_dumps, hibernation, vmware, xen_core, firecracker, cloud_hypervisor, kallsyms, type_files, programs,
    scripts, vmcoreinfo, pmemaccess, gdb, monitor, xen_registers, xen_events, xen_ring, xen_p2m, xen_texts, gdb_session, qmp, command_lines, cabinets,
):
    make()
