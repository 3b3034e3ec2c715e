"""Virtual machine introspection: look into a machine from outside."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from os import PathLike
from types import TracebackType
from typing import Any, Generic, Literal, Protocol, Self, SupportsIndex, TypeAlias, TypeVar, final, overload

from typing_extensions import Buffer

__version__: str

Address: TypeAlias = SupportsIndex
"""A number, or what Python takes for one: numpy's integers, Pointer, Symbol."""
Place: TypeAlias = SupportsIndex | str
"""An address, or a symbol: "init_task", "init_task+0x10"."""
OnError: TypeAlias = Callable[[Error], object]

_Row = TypeVar("_Row", covariant=True)

class _Row_(Protocol):
    def to_dict(self) -> dict[str, Any]: ...

def open(
    target: str | PathLike[str],
    *,
    raw_map: str | None = None,
    allow_truncated: bool = False,
    base: str | PathLike[str] | None = None,
    snapshot: str | None = None,
    road: Literal["shared", "process", "pmemaccess", "gdb"] | None = None,
) -> Machine:
    """Opens a memory image, compressed or not, or a running guest: "guest.lime", "qemu:/run/guest.qmp"."""

def targets() -> list[FoundGuest]:
    """The running guests of this host that this user can see. Nothing is opened."""

def to_dicts(iterable: Iterable[_Row_]) -> list[dict[str, Any]]:
    """Any iterable of objects that have to_dict(), as a list of dictionaries: pandas.DataFrame takes it as it is."""

class Error(Exception):
    """Anything that this library reports."""

    done: int
    """Bytes of a read or write that were good before the failure."""
    address: int | None
    """Where it failed, if that is an address."""

class AbsentError(Error):
    """The memory is not there: a hole or a page fault. zread pads over it."""

class HoleError(AbsentError):
    """No memory at this guest-physical address."""

class FaultError(AbsentError):
    """The page tables do not map the address."""

    root: int
    level: int
    entry_address: int
    entry: int
    reason: str

class PagedOutError(AbsentError):
    """Virtual memory that exists, but is in no page of memory now."""

    why: str

class ReadOnlyError(Error):
    """Memory that can be read but not written."""

class OutOfRangeError(Error):
    """The range leaves the address range."""

    length: int

class UnterminatedError(Error):
    """A string without an end."""

    limit: int

class CorruptError(Error):
    """A structure of the guest that contradicts itself."""

    what: str

class LimitError(Error):
    """More elements than the bound that protects the reader."""

    what: str
    limit: int

class NoSymbolError(Error):
    """No such symbol."""

    name: str

class NoTypeError(Error):
    """No such type or member."""

    name: str
    why: str

class NoObjectError(Error):
    """No such object in the guest."""

    what: str

class ChangingError(Error):
    """The guest runs, and changed this each time it was read."""

    what: str
    attempts: int
    last: str

class GoneError(Error):
    """An object of a running guest that was no more there when it was read."""

    what: str

class UnsupportedError(Error):
    """The back end cannot do this."""

    capability: str
    back_end: str

class EndedError(Error):
    """The machine is no more."""

    machine: str
    why: str

class DriverError(Error):
    """The back end failed."""

    back_end: str
    action: str
    cause: str

class OpenError(Error):
    """The target could not be opened."""

class AttachError(Error):
    """No operating system was recognised."""

class WriteImageError(Error):
    """The image could not be written."""

class WriteIsfError(Error):
    """No symbol file of this kernel could be written."""

class StateError(Error):
    """The object cannot do this now: an event that was answered, a session that holds an event."""

class ClosedError(StateError):
    """The machine or session was closed."""

@final
class Region:
    """A run of guest-physical memory."""

    start: int
    end: int
    def __len__(self) -> int: ...
    def __contains__(self, at: int, /) -> bool: ...
    def to_dict(self) -> dict[str, Any]: ...

@final
class FoundGuest:
    """A running guest that was found on this host."""

    target: str | None
    name: str | None
    pid: int | None
    memory: str | None
    roads: list[str]
    control: bool
    events: bool
    problems: list[str]
    def to_dict(self) -> dict[str, Any]: ...

@final
class SnapshotReport:
    """How a snapshot was made. Times are in seconds."""

    stood_still: float
    took: float
    resident: int
    missing: list[Region]

@final
class Machine:
    """One machine: a memory image, a snapshot or a running guest. A context manager that closes it."""

    @property
    def name(self) -> str: ...
    @property
    def frozen(self) -> bool: ...
    @property
    def memory_map(self) -> list[Region]: ...
    @property
    def memory_size(self) -> int: ...
    @property
    def memory_end(self) -> int: ...
    @property
    def vcpu_count(self) -> int: ...
    @property
    def capabilities(self) -> list[str]: ...
    @property
    def snapshot_report(self) -> SnapshotReport | None: ...
    @property
    def memory(self) -> Memory: ...
    @property
    def closed(self) -> bool: ...
    def check(self) -> None: ...
    def address_space(self, root: int, mode: Literal["32-bit", "pae", "4-level", "5-level"] = "4-level") -> Memory: ...
    def read(self, at: Address, length: int) -> bytes: ...
    def read_into(self, at: Address, buffer: Buffer) -> None: ...
    def zread(self, at: Address, length: int) -> tuple[bytes, list[tuple[int, int]]]: ...
    def write(self, at: Address, data: Buffer) -> None: ...
    def view(self, at: Address, length: int) -> memoryview: ...
    def registers(self, vcpu: int = 0) -> Registers: ...
    def set_registers(self, vcpu: int, registers: Registers) -> None: ...
    def pause(self) -> Paused: ...
    def snapshot(self) -> Machine: ...
    def events(self) -> Events: ...
    def write_image(
        self, path: str | PathLike[str], format: Literal["raw", "lime", "avml", "elf", "kdump"] = "lime"
    ) -> list[Region]: ...
    def attach(self, *, symbols: list[str | PathLike[str]] = ..., download: bool = False) -> Guest: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

@final
class Memory:
    """Memory of a machine: guest-physical, or virtual through page tables. Symbols name places in the memory of a guest only."""

    def read(self, at: Place, length: int) -> bytes: ...
    def read_into(self, at: Place, buffer: Buffer) -> None: ...
    def zread(self, at: Place, length: int) -> tuple[bytes, list[tuple[int, int]]]: ...
    def read_u8(self, at: Place) -> int: ...
    def read_u16(self, at: Place) -> int: ...
    def read_u32(self, at: Place) -> int: ...
    def read_u64(self, at: Place) -> int: ...
    def read_pointer(self, at: Place) -> int: ...
    def read_c_string(self, at: Place, limit: int = 4096) -> bytes: ...
    def read_utf16(self, at: Place, limit: int = 4096) -> str: ...
    def write(self, at: Place, data: Buffer) -> None: ...
    def view(self, at: Place, length: int) -> memoryview: ...
    def translate(self, at: Place) -> Translation: ...

@final
class FrozenView:
    """A run of frozen guest memory that lends itself as a buffer: what Machine.view makes its memoryview of."""

    @property
    def address(self) -> int: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Translation:
    """Where a virtual address lies in guest-physical memory."""

    at: int
    page_size: int
    write: bool
    execute: bool
    user: bool
    def __int__(self) -> int: ...
    def __index__(self) -> int: ...
    def to_dict(self) -> dict[str, Any]: ...

@final
class Paused:
    """The guest stands still while this lives: a context manager. Pauses nest."""

    @property
    def holds(self) -> bool: ...
    def resume(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

@final
class Guest:
    """An operating system that was found in a machine."""

    @property
    def system(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def remarks(self) -> list[str]: ...
    @property
    def kernel(self) -> Memory: ...
    @property
    def page_table(self) -> int: ...
    @property
    def paging_mode(self) -> Literal["32-bit", "pae", "4-level", "5-level"]: ...
    @property
    def slide(self) -> int | None: ...
    def write_isf(self, path: str | PathLike[str]) -> list[str]: ...
    @property
    def symbols(self) -> Symbols: ...
    @property
    def types(self) -> Types: ...
    @property
    def windows(self) -> Windows | None: ...
    def processes(self, *, on_error: OnError | None = None) -> Rows[Process]: ...
    def threads(self, *, on_error: OnError | None = None) -> Rows[Thread]: ...
    def survey_processes(self, *, on_error: OnError | None = None) -> Rows[SeenProcess]: ...
    def modules(self, *, on_error: OnError | None = None) -> Rows[Module]: ...
    def memory_areas(self, pid: int, *, on_error: OnError | None = None) -> Rows[MemoryArea]: ...
    def kernel_log(self, *, on_error: OnError | None = None) -> Rows[LogRecord]: ...
    def process(self, pid: int) -> Process: ...
    def running_on(self, vcpu: int = 0) -> Process: ...
    def process_of(self, root: int) -> Process | None: ...
    def translate(self, at: Place, pid: int | None = None) -> Translation: ...
    def struct(self, name: str, at: Place, memory: Memory | None = None) -> Struct: ...
    def container_of(self, at: Place, name: str, member: str) -> Struct: ...

@final
class Rows(Generic[_Row]):
    """Rows of a list. A row that could not be read is raised in its place, unless there is on_error; next() goes on after it."""

    def __iter__(self) -> Self: ...
    def __next__(self) -> _Row: ...
    def __length_hint__(self) -> int: ...
    def to_dicts(self) -> list[dict[str, Any]]: ...

@final
class Process:
    """A process, as it was when it was listed. What its methods read is read when they are called."""

    @property
    def pid(self) -> int: ...
    @property
    def parent_pid(self) -> int | None: ...
    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str | None: ...
    @property
    def uid(self) -> int | None: ...
    @property
    def gid(self) -> int | None: ...
    @property
    def kernel(self) -> bool: ...
    @property
    def started(self) -> datetime | None: ...
    @property
    def command_line(self) -> list[str] | None: ...
    @property
    def page_table(self) -> int | None: ...
    @property
    def page_tables(self) -> list[int]: ...
    @property
    def object(self) -> int: ...
    @property
    def memory(self) -> Memory: ...
    @property
    def struct(self) -> Struct: ...
    def memory_areas(self, *, on_error: OnError | None = None) -> Rows[MemoryArea]: ...
    def threads(self, *, on_error: OnError | None = None) -> Rows[Thread]: ...
    def environment(self) -> list[str]: ...
    def executable(self) -> str | None: ...
    def to_dict(self) -> dict[str, Any]: ...

@final
class Thread:
    """A thread, as it was when it was listed."""

    @property
    def tid(self) -> int: ...
    @property
    def pid(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str | None: ...
    @property
    def object(self) -> int: ...
    @property
    def struct(self) -> Struct: ...
    def to_dict(self) -> dict[str, Any]: ...

@final
class Module:
    """A loaded kernel module."""

    name: str
    base: int
    size: int
    references: int | None
    object: int
    def to_dict(self) -> dict[str, Any]: ...

@final
class MemoryArea:
    """A run of a process's virtual memory with the same properties."""

    start: int
    end: int
    read: bool
    write: bool
    execute: bool
    shared: bool
    offset: int
    name: str | None
    def to_dict(self) -> dict[str, Any]: ...

@final
class SeenProcess:
    """A process, and which views know it. Where a view is None it could not be had whole."""

    pid: int
    name: str
    hidden: bool
    exited: bool
    views: dict[str, bool | None]
    object: int | None
    physical: int | None
    def to_dict(self) -> dict[str, Any]: ...

@final
class LogRecord:
    """One record of the kernel's log."""

    sequence: int
    nanoseconds: int
    level: int
    text: str
    def to_dict(self) -> dict[str, Any]: ...

@final
class Windows:
    """What only a Windows guest has: Guest.windows."""

    def handles(self, process: Process, *, on_error: OnError | None = None) -> Rows[Handle]: ...
    def vads(self, process: Process, *, on_error: OnError | None = None) -> Rows[Vad]: ...
    def token(self, process: Process) -> Token: ...
    def system_services(self, *, on_error: OnError | None = None) -> Rows[SystemService]: ...
    def hives(self, *, on_error: OnError | None = None) -> Rows[Hive]: ...
    def registry_key(self, path: str) -> RegistryKey: ...

@final
class Handle:
    """An open handle of a Windows process."""

    value: int
    kind: str
    name: str | None
    access: int
    attributes: int
    object: int
    def to_dict(self) -> dict[str, Any]: ...

@final
class Vad:
    """A virtual address descriptor of a Windows process."""

    start: int
    end: int
    kind: str
    protection: str
    private: bool
    committed: bool
    commit_charge: int | None
    file: str | None
    object: int
    def to_dict(self) -> dict[str, Any]: ...

@final
class Token:
    """Who a Windows process is and what it may."""

    user: str
    user_name: str | None
    groups: list[tuple[str, int]]
    integrity: str | None
    privileges: list[tuple[str, bool]]
    session: int | None
    object: int
    def to_dict(self) -> dict[str, Any]: ...

@final
class SystemService:
    """A system service of the Windows kernel."""

    number: int
    target: int
    symbol: str | None
    offset: int | None
    module: str | None
    outside: bool
    stack_arguments: int
    def to_dict(self) -> dict[str, Any]: ...

@final
class Hive:
    """A registry hive that the kernel has loaded."""

    name: str | None
    root_path: str | None
    file: str | None
    object: int
    def to_dict(self) -> dict[str, Any]: ...

@final
class RegistryKey:
    """A registry key, as it was when it was asked for. Its subkeys and values are read when they are asked for."""

    @property
    def path(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def class_name(self) -> str | None: ...
    @property
    def last_write(self) -> datetime | None: ...
    def subkeys(self, *, on_error: OnError | None = None) -> Rows[str]: ...
    def subkey(self, name: str) -> RegistryKey: ...
    def values(self, *, on_error: OnError | None = None) -> Rows[RegistryValue]: ...
    def to_dict(self) -> dict[str, Any]: ...

@final
class RegistryValue:
    """A value of a registry key. The data is text, a list of texts, a number, or bytes for all other types."""

    name: str
    kind: str
    data: str | list[str] | int | bytes
    def to_dict(self) -> dict[str, Any]: ...

@final
class Symbol:
    """A symbol."""

    name: str
    address: int
    kind: str
    module: str | None
    def __int__(self) -> int: ...
    def __index__(self) -> int: ...
    def to_dict(self) -> dict[str, Any]: ...

@final
class Symbols:
    """The symbols of the kernel and its modules."""

    def __len__(self) -> int: ...
    def __contains__(self, name: str, /) -> bool: ...
    def __getitem__(self, name: str, /) -> int: ...
    def __iter__(self) -> Iterator[Symbol]: ...
    def address(self, name: str) -> int: ...
    def find(self, name: str) -> Symbol | None: ...
    def all(self, name: str) -> list[Symbol]: ...
    def nearest(self, at: int) -> tuple[Symbol, int] | None: ...
    def at(self, at: int) -> list[Symbol]: ...

@final
class Types:
    """Layouts of the kernel's structures, from whatever describes them."""

    @property
    def origin(self) -> str: ...
    @property
    def pointer_size(self) -> int: ...
    def __contains__(self, name: str, /) -> bool: ...
    def structures(self) -> list[str]: ...
    def members(self, name: str) -> list[str]: ...
    def size_of(self, name: str) -> int: ...
    def offset_of(self, name: str, path: str) -> int: ...
    def bits_of(self, name: str, path: str) -> tuple[int, int] | None: ...
    def type_of(self, name: str, path: str) -> str: ...
    def constant(self, enumeration: str, name: str) -> int: ...

@final
class Struct:
    """A structure or union in guest memory: its members are attributes, read when asked for. Our own names end with an underscore."""

    def __getattr__(self, name: str) -> Any: ...
    def __getitem__(self, path: str, /) -> Any: ...
    @property
    def address_(self) -> int: ...
    @property
    def type_(self) -> str: ...
    @property
    def size_(self) -> int: ...
    @property
    def members_(self) -> list[str]: ...
    def address_of_(self, name: str) -> int: ...
    def bytes_(self) -> bytes: ...
    def to_dict_(self) -> dict[str, Any]: ...
    def __hash__(self) -> int: ...

@final
class Pointer:
    """A pointer that was read from guest memory."""

    def __getattr__(self, name: str) -> Any: ...
    def __getitem__(self, index: int, /) -> Any: ...
    @property
    def address_(self) -> int: ...
    def value_(self) -> Any: ...
    def string_(self, limit: int = 4096) -> str: ...
    def __int__(self) -> int: ...
    def __index__(self) -> int: ...
    def __bool__(self) -> bool: ...
    def __hash__(self) -> int: ...

@final
class Array:
    """An array in guest memory: a sequence whose elements are read when asked for."""

    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, index: int, /) -> Any: ...
    @overload
    def __getitem__(self, index: slice, /) -> list[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...
    @property
    def address_(self) -> int: ...
    def bytes_(self) -> bytes: ...
    def string_(self) -> str: ...

Segment: TypeAlias = Mapping[str, int | None]

@final
class Registers:
    """The registers of one vCPU: a copy. What the source does not tell is None, never zero."""

    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rsp: int
    rbp: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    rip: int
    rflags: int
    cr0: int | None
    cr2: int | None
    cr3: int | None
    cr4: int | None
    cr8: int | None
    xcr0: int | None
    efer: int | None
    star: int | None
    lstar: int | None
    cstar: int | None
    sfmask: int | None
    kernel_gs_base: int | None
    pat: int | None
    sysenter_cs: int | None
    sysenter_esp: int | None
    sysenter_eip: int | None
    cs: Segment | None
    ds: Segment | None
    es: Segment | None
    fs: Segment | None
    gs: Segment | None
    ss: Segment | None
    ldt: Segment | None
    tr: Segment | None
    gdtr: Mapping[str, int] | None
    idtr: Mapping[str, int] | None
    dr: list[int] | None
    @property
    def privilege_level(self) -> int | None: ...
    @property
    def paging_mode(self) -> str | None: ...
    def to_dict(self) -> dict[str, Any]: ...

@final
class Events:
    """An event session: an iterator of events, and a context manager at whose end all traps are gone and the guest runs."""

    @property
    def passed_over(self) -> int: ...
    def breakpoint(self, at: Address, *, hardware: bool = False, within: Process | list[int] | None = None) -> int: ...
    def watchpoint(
        self,
        at: Address,
        length: int,
        access: Literal["write", "read", "access"] = "write",
        *,
        within: Process | list[int] | None = None,
    ) -> int: ...
    def memory_access(self, at: int, length: int, access: str = "w", *, within: Process | list[int] | None = None) -> int: ...
    def instructions(self, vcpu: int = 0, *, within: Process | list[int] | None = None) -> int: ...
    def control_register(
        self,
        register: Literal["cr0", "cr3", "cr4", "xcr0"],
        *,
        on_change: bool = False,
        within: Process | list[int] | None = None,
    ) -> int: ...
    def msr(self, index: int, *, on_change: bool = False, within: Process | list[int] | None = None) -> int: ...
    def watch(
        self,
        kind: Literal[
            "cpuid",
            "debug exception",
            "own breakpoint",
            "descriptor table",
            "guest request",
            "privileged call",
            "emulation failure",
            "exit",
        ],
        *,
        within: Process | list[int] | None = None,
    ) -> int: ...
    @property
    def abilities(self) -> list[str]: ...
    def create_view(self, rights: str = "rwx") -> int: ...
    def destroy_view(self, view: int) -> None: ...
    def allow(self, view: int, page: int, rights: str) -> None: ...
    def remap(self, view: int, page: int, instead: int | None) -> None: ...
    def switch_view(self, view: int) -> None: ...
    def inject_interrupt(self, vcpu: int, vector: int) -> None: ...
    def inject_exception(self, vcpu: int, vector: int, error_code: int | None = None) -> None: ...
    def inject_page_fault(self, vcpu: int, at: int, error_code: int) -> None: ...
    def remove(self, trap: int) -> None: ...
    def traps(self) -> list[tuple[int, str, int, int]]: ...
    def next(self, timeout: float | None = None) -> Event | None: ...
    def run(self, handler: Callable[[Event], object], *, count: int | None = None, timeout: float | None = None) -> int: ...
    def close(self) -> None: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> Event: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

@final
class Event:
    """Something that a vCPU did. It stands still until this is answered, or nothing refers to it any more."""

    @property
    def vcpu(self) -> int: ...
    @property
    def registers(self) -> Registers: ...
    @property
    def kind(self) -> str: ...
    @property
    def address(self) -> int | None: ...
    @property
    def instruction(self) -> int: ...
    @property
    def trap(self) -> int | None: ...
    @property
    def answered(self) -> bool: ...
    @property
    def details(self) -> dict[str, Any]: ...
    def resume(self, registers: Registers | None = None, *, view: int | None = None) -> None: ...
    def step(self, registers: Registers | None = None, *, view: int | None = None) -> None: ...
    def deny(self, registers: Registers | None = None, *, view: int | None = None) -> None: ...
    def reinject(self, registers: Registers | None = None, *, view: int | None = None) -> None: ...
    def emulate(
        self,
        *,
        without_writes: bool = False,
        reading: bytes | None = None,
        instruction: bytes | None = None,
        view: int | None = None,
    ) -> None: ...
    def to_dict(self) -> dict[str, Any]: ...
