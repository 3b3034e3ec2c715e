"""`vmi:` as a scheme of URLs: what Volatility opens is guest-physical memory as a file, with zeros where there is none."""

import io
import urllib.request
from typing import Any
from urllib.error import URLError

import vmi
from volatility3.framework.layers import resources

from vmi_volatility3.machines import Location, OpenedMachine, opened, schemes

# What one call reads, so that reading to the end of a guest of many gigabytes does not take them all.
PIECE = 16 << 20


class MemoryFile(io.RawIOBase):
    """Guest-physical memory as a file."""

    def __init__(self, known: OpenedMachine) -> None:
        super().__init__()
        self._known = known
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._known.machine.memory_end}[whence]
        if start + offset < 0:
            raise ValueError("before the start of memory")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        room = memoryview(buffer).cast("B")
        length = min(len(room), max(0, self._known.machine.memory_end - self._at), PIECE)
        data, _ = self._known.machine.zread(self._at, length)
        room[:length] = data
        self._at += length
        return length


class VmiHandler(resources.VolatilityHandler):
    """Opens `vmi:TARGET`."""

    @classmethod
    def non_cached_schemes(cls) -> list[str]:
        return schemes()

    @staticmethod
    def default_open(request: urllib.request.Request) -> Any:
        try:
            location = Location.parse(request.full_url)
            return None if location is None else io.BufferedReader(MemoryFile(opened(location)), 1 << 16)
        except (vmi.Error, ValueError) as error:
            raise URLError(str(error)) from error
