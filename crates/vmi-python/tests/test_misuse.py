"""Wrong types, closed handles, several threads, exceptions in callbacks: errors, never a crash."""

import gc
import inspect
import threading

import pytest
import vmi
from conftest import DEMO

WRONG = [None, -1, 2**64, "text", b"bytes", 1.5, [], {}, object()]


def test_wrong_arguments_everywhere(machine, guest):
    """Every method of every object, with every wrong argument in every place, raises something that is no panic."""
    init = guest.process(1)
    objects = [
        machine, machine.memory, guest, guest.kernel, guest.symbols, guest.types, init, init.memory, init.struct, init.struct.mm,
        init.struct.comm, next(guest.threads()), guest.processes(), guest.kernel_log(), machine.memory_map[0],
    ]
    calls = 0
    for thing in objects:
        for name in dir(type(thing)):
            if name in ("close", "__class__", "__init_subclass__", "__subclasshook__", "__exit__", "__enter__", "__del__",
                        "write_image", "write_isf", "__new__", "__reduce__", "__reduce_ex__", "__getattribute__", "__dir__", "__sizeof__"):
                continue
            method = getattr(thing, name, None)
            if not callable(method):
                continue
            for arguments in [(), *((wrong,) for wrong in WRONG), *((1, wrong) for wrong in WRONG), (1, 2, 3, 4, 5, 6)]:
                calls += 1
                try:
                    method(*arguments)
                except Exception as error:  # a panic of Rust would be a BaseException
                    assert "panic" not in type(error).__name__.lower()
    assert calls > 2000


def test_wrong_types_are_type_errors(machine, guest):
    for call in [
        lambda: vmi.open(5), lambda: vmi.open(None), lambda: machine.read("init_task", 4), lambda: machine.read(0, "4"),
        lambda: machine.write(0, "text"), lambda: guest.struct(5, 0), lambda: guest.struct("task_struct", 0, memory=5),
        lambda: guest.processes(5), lambda: vmi.to_dicts(5), lambda: machine.memory.translate(0), lambda: vmi.Machine(),
        lambda: vmi.Memory(), lambda: vmi.Events(),
    ]:
        with pytest.raises(TypeError):
            call()
    for call in [lambda: machine.read(-1, 4), lambda: machine.read(0, -1), lambda: machine.read(2**64, 1)]:
        with pytest.raises(OverflowError):
            call()
    for call in [
        lambda: machine.read(0, 2**62), lambda: machine.zread(0, 2**40), lambda: machine.address_space(0, "6-level"),
        lambda: vmi.open(DEMO, raw_map="x"), lambda: vmi.open(DEMO, road="x"),
    ]:
        with pytest.raises(ValueError):
            call()


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(vmi.OpenError, match="none called `a`"):
        vmi.open(DEMO, snapshot="a")
    with pytest.raises(vmi.OpenError, match="no/such"):
        vmi.open("no/such/image.raw")
    with pytest.raises(vmi.OpenError, match="no build|no back end|cannot connect"):
        vmi.open("qemu:/no/such/guest.qmp")
    noise = tmp_path / "noise.raw"
    noise.write_bytes(bytes(1 << 20))
    with vmi.open(noise) as machine, pytest.raises(vmi.AttachError, match="Linux"):
        machine.attach()
    with pytest.raises(vmi.AttachError, match="no/such"), vmi.open(DEMO) as machine:
        machine.attach(symbols=["no/such/file"])


def test_what_a_source_lacks_is_named(machine):
    for call in [machine.registers, machine.pause, machine.events, lambda: machine.write(0, b"x"), lambda: machine.memory.write(0, b"x")]:
        with pytest.raises(vmi.UnsupportedError) as caught:
            call()
        assert caught.value.capability and caught.value.back_end


def test_use_after_close():
    machine = vmi.open(DEMO)
    guest = machine.attach()
    init = guest.process(1)
    rows, symbols, types, kernel, task = guest.processes(), guest.symbols, guest.types, guest.kernel, init.struct
    comm, mm = task.comm, task.mm
    next(rows)
    machine.close()
    machine.close()
    assert machine.closed and "closed" in repr(machine)
    for call in [
        lambda: machine.name, lambda: machine.read(0, 1), lambda: machine.memory.read(0, 1), machine.attach, machine.snapshot, machine.pause,
        machine.events, machine.registers, machine.check, lambda: guest.version, guest.processes, guest.modules, lambda: guest.symbols,
        lambda: next(rows), lambda: list(rows), lambda: symbols["init_task"], lambda: len(symbols), lambda: types.structures(),
        lambda: kernel.read("init_task", 1), lambda: task.pid, lambda: comm[0], lambda: comm.string_(), lambda: mm.pgd, lambda: mm[0],
        init.environment, init.memory_areas, lambda: init.memory.read(0, 1), lambda: guest.struct("task_struct", 0),
        lambda: machine.zread(0, 1), lambda: machine.view(0, 1), lambda: machine.read_into(0, bytearray(1)),
        lambda: init.page_tables, lambda: guest.process(1), lambda: machine.write_image("/tmp/never"),
        lambda: guest.page_table, lambda: guest.paging_mode, lambda: guest.slide, lambda: guest.windows, lambda: guest.write_isf("/tmp/never"),
    ]:
        with pytest.raises(vmi.ClosedError):
            call()
    # What was read before stays: it is Python's own.
    assert init.pid == 1 and init.name == "init" and init.to_dict()["pid"] == 1
    repr(guest), repr(task), repr(rows)
    with pytest.raises(vmi.ClosedError), machine:
        machine.read(0, 1)


def test_objects_without_their_machine():
    task = vmi.open(DEMO).attach().process(1).struct
    gc.collect()
    assert task.pid == 1


def test_many_threads_share_one_machine(machine, guest, truth):
    expected, failures = machine.read(0x200000, 1 << 16), []
    start = threading.Barrier(8)

    def work():
        try:
            start.wait()
            for _ in range(5):
                assert machine.read(0x200000, 1 << 16) == expected
                assert len(list(guest.processes())) == len(truth)
                assert guest.struct("task_struct", "init_task").comm.string_() == "swapper/0"
                assert guest.process(1).memory.read(0x400000, 4) == b"\x7fELF"
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_one_iterator_for_many_threads(guest, truth):
    rows, seen = guest.processes(), []
    threads = [threading.Thread(target=lambda: seen.extend(p.pid for p in rows)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == sorted(row[0] for row in truth)


def test_closing_while_others_read():
    for _ in range(5):
        machine = vmi.open(DEMO)
        outcomes = []

        def work(machine=machine, outcomes=outcomes):
            try:
                while True:
                    machine.read(0x100000, 1 << 20)
            except vmi.ClosedError as error:
                outcomes.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        machine.close()
        for thread in threads:
            thread.join(30)
        assert len(outcomes) == 4


def test_an_exception_in_a_loop_leaves_the_iterator_usable(guest):
    rows = guest.processes()
    with pytest.raises(ZeroDivisionError):
        for _ in rows:
            1 / 0
    assert next(rows).pid == 2


def test_exceptions_of_arguments_that_are_programs(machine, guest):
    """Python runs code of the caller to get an address, a path, a buffer: what it raises comes out, and what it does meanwhile does no harm."""

    class Index:
        def __init__(self, run):
            self.run = run

        def __index__(self):
            return self.run()

        def __fspath__(self):
            return self.run()

    def fail():
        raise KeyError("mine")

    for call in (
        lambda at: machine.read(at, 4), lambda at: machine.memory.read_u64(at), lambda at: guest.kernel.read(at, 4), lambda at: machine.read(0, at),
        lambda at: guest.struct("task_struct", at), lambda at: guest.symbols.nearest(at), lambda at: vmi.open(at), lambda at: guest.write_isf(at),
    ):
        with pytest.raises(KeyError, match="mine"):
            call(Index(fail))
    assert machine.read(Index(lambda: len(machine.read(0, 0x1000))), 4) == machine.read(0x1000, 4)
    with vmi.open(DEMO) as other, pytest.raises(vmi.ClosedError):
        other.read(Index(lambda: other.close() or 0x1000), 4)

    buffer = bytearray(8)
    view = memoryview(buffer)
    machine.read_into(0x200000, view)
    with pytest.raises(BufferError):
        buffer.extend(b"more")
    view.release()
    buffer.extend(b"more")


def test_a_handler_that_closes_its_machine(tmp_path):
    path, _ = damaged(tmp_path)
    with vmi.open(path) as machine:
        rows = machine.attach().processes(on_error=lambda error: machine.close())
        seen = [next(rows).pid, next(rows).pid]
        with pytest.raises(vmi.ClosedError):
            while True:
                seen.append(next(rows).pid)
        assert seen == [1, 2] and machine.closed
        with pytest.raises(vmi.ClosedError):
            next(rows)


def test_buffers_that_other_threads_want_to_resize(machine):
    """Memory that is being filled is held: whoever resizes it meanwhile gets an exception, and nothing is written outside."""
    expected, buffer, failures, stop = machine.read(0x200000, 4 << 20), bytearray(4 << 20), [], threading.Event()

    def resize():
        while not stop.is_set():
            try:
                buffer.append(0)
                buffer.pop()
            except BufferError:
                pass
            except BaseException as error:
                failures.append(error)

    thread = threading.Thread(target=resize)
    thread.start()
    try:
        for _ in range(20):
            machine.read_into(0x200000, memoryview(buffer)[: 4 << 20])
            assert buffer[: 4 << 20] == expected
    finally:
        stop.set()
        thread.join()
    assert not failures


def damaged(tmp_path):
    """A copy of the demo whose task list leads nowhere after its second process, and the pids from the other end of that list."""
    with vmi.open(DEMO) as machine:
        guest = machine.attach()
        first, second, *others = [process.pid for process in guest.processes()]
        assert [first, second] == [1, 2]
        at = guest.translate(guest.process(2).struct.address_of_("tasks")).at
        path = tmp_path / "damaged.raw"
        machine.write_image(path, "raw")
    with open(path, "r+b") as file:
        file.seek(at)
        file.write((0xFFFF800000000010).to_bytes(8, "little"))
    return path, others[::-1]


def test_a_row_that_cannot_be_read_is_raised_in_its_place(tmp_path):
    path, others = damaged(tmp_path)
    with vmi.open(path) as machine:
        guest = machine.attach()
        rows, pids = guest.processes(), []
        with pytest.raises(vmi.Error):
            for process in rows:
                pids.append(process.pid)
        assert pids == [1, 2]
        # Nor can what that row leads to be read; then it goes on from the list's other end, and ends.
        with pytest.raises(vmi.FaultError):
            next(rows)
        assert [p.pid for p in rows] == others
        assert list(rows) == []

        errors = []
        assert [p.pid for p in guest.processes(on_error=errors.append)] == [1, 2, *others]
        assert errors and all(isinstance(error, vmi.AbsentError) for error in errors)

        def fail(error):
            raise KeyError("mine") from error

        with pytest.raises(KeyError, match="mine"):
            list(guest.processes(on_error=fail))
        with pytest.raises(TypeError):
            list(guest.processes(on_error=5))
        # A callback that uses the iterator which calls it.
        rows = None
        rows = guest.processes(on_error=lambda error: errors.extend(rows))
        assert [p.pid for p in rows] == [1, 2]


def test_to_dicts_of_anything():
    class Row:
        def to_dict(self):
            return {"a": 1}

    assert vmi.to_dicts([Row(), Row()]) == [{"a": 1}] * 2
    with pytest.raises(AttributeError):
        vmi.to_dicts([1])


def test_classes_are_documented():
    for name, thing in vars(vmi).items():
        if inspect.isclass(thing):
            assert thing.__doc__, name
    assert issubclass(vmi.ClosedError, vmi.StateError) and issubclass(vmi.HoleError, vmi.AbsentError)
    assert all(vmi.Error("x").__getattribute__(name) in (0, None) for name in ("done", "address"))


def test_the_stubs_name_everything_and_nothing_else():
    import ast
    from pathlib import Path

    tree = ast.parse((Path(__file__).parents[1] / "vmi.pyi").read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef) and node.name != "_Row_"}
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    there = {name for name in vars(vmi) if not name.startswith("_") and name != "vmi"}
    assert there == set(classes) | functions
    for name, node in classes.items():
        if name in ("Registers",) or issubclass(getattr(vmi, name), Exception):
            continue
        stub = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
        stub |= {part.target.id for part in node.body if isinstance(part, ast.AnnAssign)}
        public = {part for part in vars(getattr(vmi, name)) if not part.startswith("_")}
        assert public == {part for part in stub if not part.startswith("_")}, name
