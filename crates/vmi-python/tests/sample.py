"""What mypy --strict checks: the stubs as a program uses them."""

from pathlib import Path

import vmi


def processes(target: str | Path) -> list[tuple[int, str]]:
    with vmi.open(target) as machine:
        guest: vmi.Guest = machine.attach()
        rows = [(process.pid, process.name) for process in guest.processes()]
        names: list[str] = [module.name for module in guest.modules(on_error=print)]
        areas = [(area.start, area.end) for area in guest.process(1).memory_areas()]
        task = guest.struct("task_struct", "init_task")
        pid: int = task.pid
        data, padded = machine.zread(0, 16)
        first: tuple[int, int] | None = padded[0] if padded else None
        view: memoryview = machine.view(0, 4096)
        buffer = bytearray(16)
        guest.kernel.read_into("init_task", buffer)
        vmi.to_dicts(guest.kernel_log())
        print(names, areas, pid, data, first, len(view), guest.symbols["init_task"])
        return rows


def trace(target: str, name: str) -> int:
    with vmi.open(target) as machine, machine.events() as events:
        guest = machine.attach()
        trap: int = events.breakpoint(guest.symbols[name], within=guest.process(1))
        try:
            for event in events:
                registers = event.registers
                registers.rax = 0
                event.resume(registers)
                if event.trap == trap:
                    break
        except vmi.FaultError as error:
            print(error.address, error.done, error.reason)
        with machine.pause(), machine.snapshot() as frozen:
            report = frozen.snapshot_report
            print(report.stood_still if report is not None else None)
        return events.passed_over


def registers_written(target: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    with vmi.open(target, base="full.snap") as machine, machine.events() as events:
        if "control_register" not in events.abilities:
            return rows
        events.control_register("cr3", on_change=True)
        events.msr(0xC0000082)
        events.watch("cpuid")
        page: int = events.memory_access(0x1000, 0x1000, "rw")
        view: int = events.create_view("rx")
        events.allow(view, 0x1000, "r")
        events.remap(view, 0x1000, None)
        while (event := events.next(timeout=1.0)) is not None:
            rows.append(event.to_dict())
            if event.kind == "msr" and event.details["new"] == 0:
                event.deny()
            elif event.trap == page:
                event.emulate(without_writes=True, view=view)
            else:
                event.resume(view=0)
        events.inject_exception(0, 13, 0)
        return rows


def windows(target: str) -> dict[str, object]:
    with vmi.open(target) as machine:
        guest = machine.attach()
        found = guest.windows
        if found is None:
            slide: int | None = guest.slide
            lacking: list[str] = guest.write_isf("guest.json.xz")
            return {"slide": slide, "lacking": lacking, "mode": guest.paging_mode, "root": guest.page_table}
        for process in guest.processes():
            token: vmi.Token = found.token(process)
            groups: list[tuple[str, int]] = token.groups
            files = [handle.name for handle in found.handles(process, on_error=print) if handle.kind == "File"]
            images: list[str | None] = [vad.file for vad in found.vads(process) if vad.kind == "Image"]
            print(token.user, groups, files, images)
        hooked = [service.number for service in found.system_services() if service.outside]
        key: vmi.RegistryKey = found.registry_key(r"\REGISTRY\MACHINE\SYSTEM")
        names: list[str] = list(key.subkeys())
        hives = [hive.root_path for hive in found.hives()]
        return {value.name: value.data for value in key.subkey(names[0]).values()} | {"hooked": hooked, "hives": hives}
