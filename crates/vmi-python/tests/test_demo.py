"""The demo image: what the module says is what the guest said of itself, and what the file holds."""

import base64
import gc
import json
import lzma
import struct
import subprocess
import zlib

import pytest
import vmi

PAGE = 4096


@pytest.fixture(scope="session")
def raw():
    """The bytes of the image by another reader: address is offset."""
    from conftest import DEMO

    try:
        return subprocess.run(["zstd", "-dc", DEMO], capture_output=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("no program zstd")


def test_the_map_and_what_an_image_can_do(machine):
    assert machine.frozen and machine.capabilities == [] and machine.vcpu_count == 0
    [region] = machine.memory_map
    assert (region.start, region.end, len(region)) == (0, 96 << 20, 96 << 20)
    assert machine.memory_size == machine.memory_end == 96 << 20
    assert 0 in region and 96 << 20 not in region
    machine.check()


def test_physical_reads(machine, raw):
    assert machine.read(0x1000, 100_000) == raw[0x1000:0x1000 + 100_000]
    memory = machine.memory
    at = next(at for at in range(0x100000, len(raw), PAGE) if any(raw[at:at + 16]))
    assert memory.read_u8(at) == raw[at]
    for read, form in [(memory.read_u16, "<H"), (memory.read_u32, "<I"), (memory.read_u64, "<Q")]:
        assert read(at + 1) == struct.unpack_from(form, raw, at + 1)[0]


def test_reading_into_buffers(machine, raw):
    whole = bytearray(3 << 20)
    machine.read_into(0x200000, whole)
    assert zlib.crc32(whole) == zlib.crc32(raw[0x200000:0x500000])
    part = bytearray(8)
    machine.read_into(0x200000, memoryview(part)[2:6])
    assert part == b"\0\0" + raw[0x200000:0x200004] + b"\0\0"
    with pytest.raises(BufferError):
        machine.read_into(0, bytes(8))
    with pytest.raises(BufferError):
        machine.read_into(0, memoryview(bytearray(8))[::2])
    with pytest.raises(TypeError):
        machine.read_into(0, 8)


def test_a_read_never_lies(machine, raw):
    end = machine.memory_end
    with pytest.raises(vmi.HoleError) as caught:
        machine.read(end - 10, 20)
    assert caught.value.address == end and caught.value.done == 10
    assert isinstance(caught.value, vmi.AbsentError) and isinstance(caught.value, vmi.Error)
    buffer = bytearray(b"x" * 20)
    with pytest.raises(vmi.HoleError) as caught:
        machine.read_into(end - 10, buffer)
    assert caught.value.done == 10
    assert buffer == raw[end - 10:] + b"x" * 10
    data, padded = machine.zread(end - 10, 20)
    assert (data, padded) == (raw[end - 10:] + bytes(10), [(10, 20)])
    assert machine.zread(2**64 - 4, 8) == (bytes(8), [(0, 8)])


def test_views_without_a_copy(machine, raw):
    view = machine.view(0x100000, 1 << 20)
    assert isinstance(view, memoryview) and view.readonly and view == raw[0x100000:0x200000]
    with pytest.raises(TypeError):
        view[0] = 1
    numpy = pytest.importorskip("numpy")
    array = numpy.frombuffer(view, dtype="<u8")
    assert array.shape == (1 << 17,) and not array.flags.writeable and not array.flags.owndata
    assert int(array[5]) == machine.memory.read_u64(0x100000 + 40)
    with pytest.raises(BufferError):
        machine.view(machine.memory_end - 4, 8)


def test_a_view_outlives_its_machine():
    from conftest import DEMO

    machine = vmi.open(DEMO)
    before = machine.read(0x200000, PAGE)
    view = machine.view(0x200000, PAGE)
    machine.close()
    del machine
    gc.collect()
    assert view == before


def test_processes_equal_proc(guest, truth):
    rows = [(p.pid, p.parent_pid, p.name, p.state, p.uid) for p in guest.processes()]
    assert sorted(rows) == sorted(truth)
    assert vmi.to_dicts(guest.processes()) == guest.processes().to_dicts()
    row = next(iter(vmi.to_dicts(guest.processes())))
    assert row["pid"] == 1 and row["command_line"] == ["/bin/busybox", "sh", "/init"]
    assert row["started"].utcoffset().total_seconds() == 0


def test_a_process_in_depth(guest, machine, raw):
    init = guest.process(1)
    assert init.executable() == "/bin/busybox" and "HOME=/" in init.environment()
    areas = list(init.memory_areas())
    code = areas[0]
    assert code.name == "/bin/busybox" and code.read and not code.write
    assert init.memory.read(code.start, 4) == b"\x7fELF"
    found = init.memory.translate(code.start)
    assert raw[found.at:found.at + 4] == b"\x7fELF" and found.user and found.page_size == PAGE
    assert guest.translate(code.start, 1).at == found.at
    tables = machine.address_space(init.page_table)
    assert tables.read(code.start, 4) == b"\x7fELF" and tables.translate(code.start).at == int(found)
    assert {t.pid for t in init.threads()} == {1}
    assert guest.process_of(init.page_table).pid == 1
    with pytest.raises(vmi.NoObjectError):
        guest.process(99999)
    with pytest.raises(vmi.FaultError) as caught:
        init.memory.read(0, 1)
    assert caught.value.address == 0 and caught.value.reason


def test_processes_by_view(guest):
    seen = list(guest.survey_processes())
    assert [p.pid for p in seen] == sorted(p.pid for p in guest.processes())
    assert all(p.views == {"list": True, "id_table": True, "children": True} and not p.hidden for p in seen)
    assert {p.object for p in seen} == {p.struct.address_ for p in guest.processes()}


def test_other_lists(guest, truth):
    threads = list(guest.threads())
    assert {row[0] for row in truth} == {t.pid for t in threads}
    log = list(guest.kernel_log())
    assert any("Linux version 6.12.117" in record.text for record in log)
    assert [r.sequence for r in log] == sorted(r.sequence for r in log)
    for module in guest.modules():
        assert module.size > 0 and module.to_dict()["name"] == module.name
    assert list(guest.memory_areas(2)) == []


def test_symbols_both_ways(guest):
    symbols = guest.symbols
    at = symbols["init_task"]
    assert symbols.address("init_task") == at == symbols.find("init_task").address
    assert "init_task" in symbols and "no such" not in symbols and symbols.find("no such") is None
    nearest, offset = symbols.nearest(at + 3)
    assert (nearest.name, offset) == ("init_task", 3)
    assert "init_task" in [s.name for s in symbols.at(at)] and symbols.all("init_task")
    assert sum(1 for _ in symbols) == len(symbols) > 100_000
    with pytest.raises(vmi.NoSymbolError) as caught:
        symbols["no such"]
    assert caught.value.name == "no such"
    assert guest.kernel.read_c_string("linux_banner").startswith(b"Linux version 6.12.117")
    assert guest.kernel.read("linux_banner+6", 7) == b"version"
    with pytest.raises(vmi.NoSymbolError):
        guest.kernel.read("linux_banner+x", 7)


def test_structures(guest, truth):
    first = guest.struct("task_struct", "init_task")
    assert first.comm.string_() == "swapper/0" and first.pid == 0 and first.type_ == "struct task_struct"
    assert first.comm.bytes_()[:10] == b"swapper/0\0" and len(first.comm) == 16
    # The list of tasks by hand, as its members lead.
    pids, node = [], first.tasks.next
    while int(node) != first.address_of_("tasks"):
        task = guest.container_of(node, "task_struct", "tasks")
        pids.append(task.pid)
        node = task.tasks.next
    assert sorted(pids) == sorted(row[0] for row in truth)
    init = guest.process(1).struct
    assert init.real_parent.pid == 0 and init.real_parent[0] == first
    assert init["mm.pgd".split(".")[0]].pgd and init.mm.owner == init.address_
    assert guest.kernel.read_u32(init.address_of_("pid")) == 1
    assert not first.mm and first.mm == 0
    assert first["se.sum_exec_runtime"] == first.se.sum_exec_runtime
    whole = init.to_dict_()
    assert whole["pid"] == 1 and whole["comm"].startswith(b"init\0") and whole["tasks"]["next"] == int(init.tasks.next)
    assert "pid" in dir(init) and "pid" in init.members_ and len(init.bytes_()) == init.size_
    with pytest.raises(AttributeError):
        init.no_such_member
    assert not hasattr(init, "no_such_member")
    with pytest.raises(vmi.NoTypeError):
        init["no_such_member"]
    with pytest.raises(vmi.NoTypeError):
        guest.struct("no_such_struct", 0)
    with pytest.raises(vmi.FaultError):
        guest.struct("task_struct", 0).pid
    with pytest.raises(IndexError):
        init.comm[16]
    assert init.comm[-1] == init.comm[15] and init.comm[0:2] == [ord("i"), ord("n")]
    with pytest.raises(TypeError):
        iter(init.mm)


def test_bit_fields(guest):
    """Of the first process, whose flags /proc/PID/stat and the kernel's source tell."""
    types = guest.types
    lowest, width = types.bits_of("task_struct", "in_execve")
    assert width == 1 and types.offset_of("task_struct", "in_execve") > 0
    task = guest.process(1).struct
    byte = guest.kernel.read_u8(task.address_ + types.offset_of("task_struct", "in_execve"))
    assert task.in_execve == (byte >> lowest) & 1


def test_types(guest):
    types = guest.types
    assert "task_struct" in types and "no such" not in types and types.pointer_size == 8
    assert types.size_of("list_head") == 16 and types.offset_of("list_head", "prev") == 8
    assert types.members("list_head") == ["next", "prev"] and types.type_of("list_head", "next") == "struct list_head *"
    assert types.type_of("task_struct", "comm") == "char[16]"
    assert types.constant("pid_type", "PIDTYPE_TGID") == 1
    assert "task_struct" in types.structures()
    with pytest.raises(vmi.NoTypeError):
        types.members("no such")


def test_images_written_are_read_again(machine, guest, tmp_path):
    path = tmp_path / "guest.lime"
    assert machine.write_image(path) == []
    with vmi.open(path) as again:
        assert again.attach().version == guest.version
        assert again.read(0x200000, PAGE) == machine.read(0x200000, PAGE)
    with pytest.raises(ValueError):
        machine.write_image(tmp_path / "x", "no such format")
    with pytest.raises(vmi.WriteImageError):
        machine.write_image(tmp_path / "no/such/directory/x")


def test_a_symbol_file(guest, machine, raw, tmp_path):
    for name in ("guest.json", "guest.json.xz"):
        assert guest.write_isf(tmp_path / name) == []
    isf = json.loads((tmp_path / "guest.json").read_text())
    assert json.loads(lzma.decompress((tmp_path / "guest.json.xz").read_bytes())) == isf
    assert sorted(path.name for path in tmp_path.iterdir()) == ["guest.json", "guest.json.xz"]
    banner = base64.b64decode(isf["symbols"]["linux_banner"]["constant_data"])
    assert banner == guest.kernel.read_c_string("linux_banner") + b"\0" and banner in raw
    # The files have addresses as linked, the guest has its own.
    for name in ("init_task", "_stext", "linux_banner", "kallsyms_names"):
        assert isf["symbols"][name]["address"] + guest.slide == guest.symbols[name]
    task = isf["user_types"]["task_struct"]
    assert task["size"] == guest.types.size_of("task_struct")
    assert task["fields"]["comm"]["offset"] == guest.types.offset_of("task_struct", "comm")
    with pytest.raises(vmi.WriteIsfError, match="no/such"):
        guest.write_isf(tmp_path / "no/such/directory/x.json")


def test_page_tables_of_the_kernel(guest, machine):
    assert guest.paging_mode == "4-level" and guest.page_table % PAGE == 0
    tables = machine.address_space(guest.page_table, guest.paging_mode)
    at = guest.symbols["linux_banner"]
    assert tables.read(at, 13) == b"Linux version" and tables.translate(at).at == guest.translate(at).at
    assert guest.windows is None
