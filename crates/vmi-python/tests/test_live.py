"""A running guest of QEMU, booted by tests/lab where VMI_LAB_LIVE=1: what the module says is what the guest says of itself."""

import gc
import threading
import time

import pytest
import vmi

FUNCTION = "__x64_sys_personality"  # called by nobody in the guest but its program actor


@pytest.fixture(scope="module")
def machine(live):
    with vmi.open(live.target) as machine:
        yield machine


@pytest.fixture(scope="module")
def guest(machine):
    return machine.attach()


class InGuest:
    """Has the guest run a line meanwhile."""

    def __init__(self, live, line):
        self.thread = threading.Thread(target=live.sh, args=(line,))

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        self.thread.join(60)
        assert not self.thread.is_alive()


def ticks(live):
    return int(live.sh("actor report").split()[1])


def test_it_is_found(live):
    found = {guest.pid: guest for guest in vmi.targets()}
    ours = found[live.facts["pid"]]
    assert ours.target and ours.target.startswith("qemu:") and ours.control and ours.events and ours.to_dict()["pid"] == ours.pid


def test_what_it_can_do(machine, guest, live):
    assert not machine.frozen and machine.vcpu_count == 1
    assert set(machine.capabilities) == {"write_memory", "vcpus", "write_vcpus", "control", "events"}
    assert guest.version == f"Linux {live.facts['release']}"
    machine.check()


def test_processes_and_modules_equal_proc(machine, guest, live):
    with machine.pause():
        rows = {p.pid: p.name for p in guest.processes()}
    said = live.sh("for d in /proc/[0-9]*; do echo ${d#/proc/} $(sed -n 's/^Name:.//p' $d/status); done")
    said = {int(pid): name for pid, _, name in (line.partition(" ") for line in said.splitlines())}
    # /proc adds to the names of kernel threads what they work on.
    assert all(said[pid].startswith(name) for pid, name in rows.items() if pid in said)
    assert {1, 2, live.facts["actor"]["pid"]} <= set(rows) and len(set(rows) ^ set(said)) <= 4
    modules = {line.split()[0]: int(line.split()[1]) for line in live.sh("cat /proc/modules").splitlines()}
    assert {m.name: m.size for m in guest.modules()} == modules


def test_memory_of_a_process_read_and_written(guest, live):
    actor = guest.process(live.facts["actor"]["pid"])
    word = live.page + 24 + 8 * 100
    assert actor.memory.read_u64(word) == word ^ 0x5A5A5A5A5A5A5A5A
    actor.memory.write(live.page + 8, (0x1234).to_bytes(8, "little"))
    time.sleep(0.1)
    assert "inbox 4660" in live.sh("actor report")
    with pytest.raises(vmi.AbsentError):
        actor.memory.write(0, b"x")


def test_pause_stops_the_guest(machine, live):
    def ticks_by_memory():
        return machine.attach().process(live.facts["actor"]["pid"]).memory.read_u64(live.page)

    with machine.pause() as paused:
        assert paused.holds
        before = ticks_by_memory()
        with machine.pause():
            time.sleep(0.2)
        time.sleep(0.2)
        assert ticks_by_memory() == before
    assert not paused.holds
    paused.resume()
    time.sleep(0.3)
    assert ticks_by_memory() > before


def test_an_exception_lets_a_paused_guest_run(machine, live):
    with pytest.raises(ZeroDivisionError), machine.pause():
        1 / 0
    assert live.sh("echo runs") == "runs"
    machine.pause()  # nobody keeps it
    gc.collect()
    assert live.sh("echo runs") == "runs"


def test_registers(machine, guest):
    with machine.pause():
        registers = machine.registers()
        assert registers.paging_mode == "4-level" and registers.cr3 and registers.cs["selector"] & 3 == registers.privilege_level
        assert registers.to_dict()["rip"] == registers.rip and "rax" in str(registers) and "cr3" in dir(registers)
        before = registers.r15
        registers.r15 = 0x1122334455667788
        assert machine.registers().r15 == before
        machine.set_registers(0, registers)
        assert machine.registers().r15 == 0x1122334455667788
        registers.r15 = before
        machine.set_registers(0, registers)
        assert guest.running_on(0).name
    with pytest.raises(AttributeError):
        registers.no_such = 1
    with pytest.raises((TypeError, OverflowError)):
        registers.rax = -1
    with pytest.raises(vmi.NoObjectError):
        machine.registers(99)


def test_snapshot_holds_still(machine, live):
    with machine.snapshot() as frozen:
        report = frozen.snapshot_report
        assert frozen.frozen and report.stood_still <= report.took and frozen.registers().cr3
        guest = frozen.attach()
        memory = guest.process(live.facts["actor"]["pid"]).memory
        before = memory.read_u64(live.page)
        view = memory.view(live.page, 4096)
        time.sleep(0.1)
        assert memory.read_u64(live.page) == before == int.from_bytes(view[:8], "little")
        with pytest.raises(vmi.UnsupportedError):
            frozen.write(0, b"x")
    assert int.from_bytes(view[:8], "little") == before
    with pytest.raises(BufferError, match="snapshot"):
        machine.view(0x200000, 4096)


def test_breakpoints(machine, guest, live):
    at = guest.symbols[FUNCTION]
    code = guest.kernel.read(at, 64)
    for hardware in [False, True]:
        with machine.events() as events:
            trap = events.breakpoint(at, hardware=hardware)
            assert [(row[0], row[2]) for row in events.traps()] == [(trap, at)]
            seen = 0
            with InGuest(live, "actor call personality 20"):
                while event := events.next(timeout=1):
                    assert (event.trap, event.instruction, event.address, event.vcpu) == (trap, at, at, 0)
                    assert event.registers.rip == at and not event.answered
                    assert guest.running_on(0).name == "actor"
                    seen += 1
                    if seen % 2:
                        event.resume()
                        assert event.answered
            assert seen == 20
            events.remove(trap)
            with InGuest(live, "actor call personality 5"):
                assert events.next(timeout=1) is None
    assert guest.kernel.read(at, 64) == code


def test_watchpoints_and_other_processes(machine, guest, live):
    actor = guest.process(live.facts["actor"]["pid"])
    with machine.events() as events:
        trap = events.watchpoint(live.page + 16, 8, within=actor)
        with InGuest(live, "actor write 3"):
            kinds = [event.kind for event in iter(lambda: events.next(timeout=1), None)]
        assert kinds == ["write watchpoint"] * 3
        events.remove(trap)
        events.breakpoint(guest.symbols[FUNCTION], within=guest.process(1))
        with InGuest(live, "actor call personality 4"):
            assert events.next(timeout=1) is None
        assert events.passed_over == 4
        with pytest.raises(ValueError):
            events.breakpoint(0, within=guest.process(2))
        with pytest.raises(ValueError):
            events.watchpoint(0, 8, "no such access")


def test_steps(machine, guest, live):
    at = guest.symbols[FUNCTION]
    with machine.events() as events, InGuest(live, "actor call personality 1"):
        events.breakpoint(at)
        event = events.next(timeout=20)
        addresses = [event.instruction]
        for _ in range(4):
            event.step()
            event = events.next(timeout=20)
            assert event.kind == "step" and event.trap is None and event.address is None
            addresses.append(event.instruction)
        assert len(set(addresses)) == 5
        event.resume()


def test_replies_with_registers(machine, guest, live):
    """The system call returns what the event's reply puts into its place: personality(2) is skipped."""
    at = guest.symbols[FUNCTION]
    with machine.events() as events:
        events.breakpoint(at)
        with InGuest(live, "actor call personality 1"):
            event = events.next(timeout=20)
            registers = event.registers
            registers.rax = 0
            registers.rip = guest.kernel.read_u64(registers.rsp)
            registers.rsp += 8
            event.resume(registers)
            assert events.next(timeout=1) is None


def test_kinds_that_the_back_end_lacks(machine, guest, live):
    with machine.events() as events:
        assert {"software_breakpoint", "watchpoint", "step", "set_registers"} <= set(events.abilities)
        assert not {"msr", "cpuid", "control_register", "deny", "view", "inject"} & set(events.abilities)
        for ask in [
            lambda: events.msr(0xC0000082), lambda: events.control_register("cr3", on_change=True), lambda: events.watch("cpuid"),
            lambda: events.watch("exit"), lambda: events.memory_access(0x1000, 8, "rw"), lambda: events.create_view(),
            lambda: events.inject_interrupt(0, 128), lambda: events.inject_exception(0, 13, 0), lambda: events.inject_page_fault(0, 0, 4),
        ]:
            with pytest.raises(vmi.UnsupportedError):
                ask()
        for ask in [
            lambda: events.control_register("cr2"), lambda: events.watch("weather"), lambda: events.memory_access(0, 8, "q"),
            lambda: events.memory_access(0, 8, ""), lambda: events.create_view("rwz"),
        ]:
            with pytest.raises(ValueError):
                ask()
        events.breakpoint(guest.symbols[FUNCTION])
        with InGuest(live, "actor call personality 2"):
            event = events.next(timeout=20)
            assert event.details == {} and event.to_dict()["kind"] == "software breakpoint" and event.to_dict()["address"] == event.address
            with pytest.raises(ValueError):
                event.emulate(without_writes=True, reading=b"1")
            with pytest.raises(vmi.UnsupportedError):
                event.deny()
            # The answer could not be carried out: the guest went on as if there was none.
            assert event.answered
            with pytest.raises(vmi.StateError):
                event.resume()
            second = events.next(timeout=20)
            assert second is not None and not second.answered
            second.resume(view=None)


def test_misuse_of_events(machine, guest, live):
    at = guest.symbols[FUNCTION]
    events = machine.events()
    with pytest.raises(vmi.StateError):
        machine.events()  # one session at a time
    events.breakpoint(at)
    with InGuest(live, "actor call personality 3"):
        event = events.next(timeout=20)
        for call in [lambda: events.breakpoint(at + 1), lambda: events.remove(1), events.traps, lambda: events.passed_over]:
            with pytest.raises(vmi.StateError):
                call()
        event.resume()
        for call in [event.resume, event.step]:
            with pytest.raises(vmi.StateError):
                call()
        event = events.next(timeout=20)
        del event  # nothing refers to it: the guest goes on
        event = events.next(timeout=20)
        events.close()  # while it is held
        assert event.answered
    events.close()
    for call in [lambda: events.next(timeout=1), lambda: events.breakpoint(at), lambda: next(events)]:
        with pytest.raises(vmi.ClosedError):
            call()
    assert live.sh("echo runs") == "runs"


def test_exceptions_in_handlers_and_loops(machine, guest, live):
    at = guest.symbols[FUNCTION]

    def handler(event):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), machine.events() as events:
        events.breakpoint(at)
        with InGuest(live, "actor call personality 1"):
            events.run(handler, timeout=20)
    with pytest.raises(ZeroDivisionError), machine.events() as events:
        events.breakpoint(at)
        with InGuest(live, "actor call personality 1 &"):
            for event in events:
                event.resume()
                1 / 0
    seen = []
    with machine.events() as events:
        events.breakpoint(at)
        with InGuest(live, "actor call personality 3"):
            assert events.run(seen.append, count=3, timeout=20) == 3
    assert all(event.answered for event in seen)
    assert live.sh("echo runs").endswith("runs")


def test_a_session_that_nobody_closes(machine, guest, live):
    events = machine.events()
    events.breakpoint(guest.symbols[FUNCTION])
    del events
    gc.collect()
    assert live.sh("actor call personality 2") == "cpu -1 made 2"


def test_events_from_another_thread(machine, guest, live):
    at, seen = guest.symbols[FUNCTION], []
    with machine.events() as events:
        events.breakpoint(at)

        def listen():
            try:
                for event in events:
                    seen.append(event.instruction)
            except vmi.ClosedError:
                seen.append("closed")

        thread = threading.Thread(target=listen)
        thread.start()
        live.sh("actor call personality 5")
        time.sleep(0.3)
        events.close()
        thread.join(20)
    assert seen == [at] * 5 + ["closed"]


def test_other_threads_run_meanwhile(machine):
    """A wait for an event holds no other thread up."""
    counted = 0
    with machine.events() as events:
        thread = threading.Thread(target=lambda: events.next(timeout=1))
        thread.start()
        while thread.is_alive():
            counted += 1
        thread.join()
    assert counted > 1000


def test_a_guest_that_ended(machine, guest, live):
    """Last: it ends the guest."""
    live.shell.sendall(b"echo o > /proc/sysrq-trigger\n")
    deadline = time.monotonic() + 30
    with pytest.raises(vmi.EndedError) as caught:
        while time.monotonic() < deadline:
            machine.check()
            time.sleep(0.1)
    assert caught.value.machine and caught.value.why
    with pytest.raises(vmi.Error):
        machine.pause()
    assert guest.kernel.read("linux_banner", 5) == b"Linux"  # mapped memory stays readable
