"""What a location names, and the machines that are open: Volatility opens a location several times, a snapshot is to be taken once."""

import logging
import os
import re
import threading
from dataclasses import dataclass

import vmi

log = logging.getLogger(__name__)

OPTIONS = ("snapshot", "nosymbols")
# Appended to a location, so that no name ends with .xz, .gz or .bz2: Volatility would unpack the memory of such a file once more.
END = "/."


@dataclass(frozen=True)
class Location:
    """A target of the package vmi, and how Volatility is to see it."""

    target: str
    snapshot: bool = False
    symbols: bool = True

    @classmethod
    def parse(cls, url: str) -> "Location | None":
        """What a URL means; None if it is none of these. ValueError: an option that there is not."""
        found = re.match(r"vmi((?:\+[^:/+]*)*):(.*)", url, re.DOTALL | re.IGNORECASE)
        if not found:
            return None
        options = [option.lower() for option in found[1].split("+")[1:]]
        for option in options:
            if option not in OPTIONS:
                raise ValueError(f"{url}: no option `{option}`; there are {', '.join(OPTIONS)}")
        target = found[2].removesuffix(END)
        if not target:
            raise ValueError(f"{url}: names no target; vmi:guest.lime, vmi:qemu:/run/guest.qmp")
        return cls(target, "snapshot" in options, "nosymbols" not in options)

    @property
    def url(self) -> str:
        """The form that Volatility is to keep."""
        options = ("+snapshot" if self.snapshot else "") + ("" if self.symbols else "+nosymbols")
        return f"vmi{options}:{self.target}{END}"


def schemes() -> list[str]:
    """All forms in which the scheme of a location can be written."""
    return ["vmi", "vmi+snapshot", "vmi+nosymbols", "vmi+snapshot+nosymbols", "vmi+nosymbols+snapshot"]


class OpenedMachine:
    """A machine, and the system inside once somebody asked for it."""

    def __init__(self, location: Location) -> None:
        self.process = os.getpid()
        machine = vmi.open(location.target)
        if location.snapshot and not machine.frozen:
            with machine:
                self.machine = machine.snapshot()
        else:
            self.machine = machine
        self._guest: vmi.Guest | None = None
        self._looked = False
        self._lock = threading.Lock()

    @property
    def guest(self) -> vmi.Guest | None:
        """The system inside; None if none was recognised, which leaves it to Volatility."""
        with self._lock:
            if not self._looked:
                self._looked = True
                try:
                    self._guest = self.machine.attach()
                except vmi.AttachError as error:
                    log.info("no system recognised in %s: %s", self.machine.name, error)
            return self._guest

    def banner(self) -> bytes | None:
        """The bytes by which Volatility knows a Linux kernel: with line end and terminator. None if it cannot be read."""
        guest = self.guest
        if guest is None or guest.system != "linux":
            return None
        try:
            return guest.kernel.read_c_string("linux_banner") + b"\0"
        except vmi.Error as error:
            log.info("the banner of %s cannot be read: %s", self.machine.name, error)
            return None


_opened: dict[Location, OpenedMachine] = {}
_lock = threading.Lock()


def opened(location: Location) -> OpenedMachine:
    """The machine at a location, opened when it is first asked for and kept until `close_all`.

    A process that was forked has connections of its own to a running guest, and shares frozen memory with its parent.
    """
    with _lock:
        known = _opened.get(location)
        if known is None or (known.process != os.getpid() and not known.machine.frozen):
            known = _opened[location] = OpenedMachine(location)
        return known


def close_all() -> None:
    """Closes all machines, for programs that go on after Volatility."""
    with _lock:
        for known in _opened.values():
            known.machine.close()
        _opened.clear()
