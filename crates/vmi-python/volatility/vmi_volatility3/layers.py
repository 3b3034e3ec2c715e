"""Layers: guest-physical memory of a machine, and page tables that Volatility has no layer for."""

import bisect
from collections.abc import Iterable
from typing import Any

import vmi
from volatility3.framework import exceptions, interfaces
from volatility3.framework.configuration import requirements
from volatility3.framework.layers import intel

from vmi_volatility3.machines import Location, OpenedMachine, opened


class MachineLayer(interfaces.layers.DataLayerInterface):
    """Guest-physical memory of a machine. Holes are invalid addresses; what fails for another reason is an error of the package vmi."""

    def __init__(self, context: Any, config_path: str, name: str, metadata: dict[str, Any] | None = None) -> None:
        super().__init__(context=context, config_path=config_path, name=name, metadata=metadata)
        location = Location.parse(self.config["location"])
        if location is None:
            raise ValueError(f"{self.config['location']} is no location of vmi")
        self._location = location
        self._known: OpenedMachine | None = None
        regions = self.machine.memory_map
        self._starts = [region.start for region in regions]
        self._ends = [region.end for region in regions]

    @property
    def opened(self) -> OpenedMachine:
        """The machine, and the system inside."""
        if self._known is None:
            self._known = opened(self._location)
        return self._known

    @property
    def machine(self) -> vmi.Machine:
        """The machine."""
        return self.opened.machine

    @property
    def minimum_address(self) -> int:
        return self._starts[0] if self._starts else 0

    @property
    def maximum_address(self) -> int:
        return self._ends[-1] - 1 if self._ends else 0

    def is_valid(self, offset: int, length: int = 1) -> bool:
        index = bisect.bisect_right(self._starts, offset) - 1
        end = offset + length
        while index >= 0 and self._ends[index] < end:
            # Regions that touch are one run of memory.
            index += 1
            if index == len(self._starts) or self._starts[index] != self._ends[index - 1]:
                return False
        return index >= 0

    def read(self, offset: int, length: int, pad: bool = False) -> bytes:
        try:
            return self.machine.read(offset, length)
        except (vmi.AbsentError, vmi.OutOfRangeError, OverflowError) as error:
            if pad and offset >= 0:
                return self.machine.zread(offset, length)[0]
            at = getattr(error, "address", None)
            raise exceptions.InvalidAddressException(self.name, offset if at is None else at, str(error)) from error

    def write(self, offset: int, data: bytes) -> None:
        raise NotImplementedError("memory is only read; vmi.open(target).write() writes")

    def _scan_iterator(self, scanner: Any, sections: Iterable[tuple[int, int]]) -> Iterable[Any]:
        # What Volatility does for layers without holes, for each part without one: it drops a whole chunk for one missing page.
        parts = [
            (max(start, first), min(start + length, end) - max(start, first))
            for start, length in sections
            for first, end in zip(self._starts, self._ends, strict=True)
            if max(start, first) < min(start + length, end)
        ]
        return super()._scan_iterator(scanner, parts)

    def __getstate__(self) -> dict[str, Any]:
        # Contexts are copied and sent to other processes; those find the machine by its location.
        return {**self.__dict__, "_known": None}

    @classmethod
    def get_requirements(cls) -> list[Any]:
        return [requirements.StringRequirement(name="location", optional=False)]


class LinuxIntel5Level(intel.LinuxIntel32e):
    """Page tables of five levels (LA57), which Volatility 2.28 does not know."""

    _maxvirtaddr = 57
    _structure = [("page map layer 5", 9, False), *intel.Intel32e._structure]
