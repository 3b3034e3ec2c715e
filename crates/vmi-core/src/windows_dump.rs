//! What the header of a Windows crash dump says of its machine.

use crate::{PhysAddr, Region, VirtAddr};

/// The header of a Windows crash dump, for the layer that knows Windows. Hints, never trusted: whoever wrote the file chose them.
///
/// Fields that the writer left out are `None`. The structures are those of `DUMP_HEADER64` and `DUMP_HEADER32` in Microsoft's documentation of
/// the Win32 API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WindowsDump {
    /// What of the memory was saved.
    pub kind: WindowsDumpKind,
    /// Whether the system is a 64-bit one.
    pub is_64_bit: bool,
    /// Whether a 32-bit system uses PAE paging; `None` for a 64-bit system.
    pub pae: Option<bool>,
    /// Page tables that map the kernel, to be walked with 4 levels in a 64-bit system; of which process they are, the header does not tell. In a
    /// dump with virtual memory only ([`WindowsDump::triage`]) the tables there are made up, from what was saved.
    pub directory_table_base: PhysAddr,
    /// The variable `MmPfnDatabase`.
    pub pfn_database: Option<VirtAddr>,
    /// The list head `PsLoadedModuleList`.
    pub loaded_modules: Option<VirtAddr>,
    /// The list head `PsActiveProcessHead`.
    pub active_processes: Option<VirtAddr>,
    /// The structure `KdDebuggerDataBlock`, which may be encoded in memory.
    pub debugger_data: Option<VirtAddr>,
    /// The machine type as PE files have it: 0x8664 for x86-64, 0x14c for i386.
    pub machine: u32,
    /// How many processors the machine has. The registers of one are in the dump: of that which wrote it.
    pub processors: u32,
    /// 0xf for the usual kernel, 0xc for one with additional checks.
    pub major_version: u32,
    /// The build of the kernel.
    pub build: u32,
    /// Why the system stopped: the code of the bug check.
    pub bug_check: u32,
    /// The parameters of the bug check.
    pub bug_check_parameters: [u64; 4],
    /// The code of the exception for which the dump was written. It may be a breakpoint of the kernel's own, after that which led to the bug check.
    pub exception_code: u32,
    /// Where it came from.
    pub exception_address: VirtAddr,
    /// When the dump was made, in units of 100 ns since 1601 (UTC).
    pub system_time: Option<u64>,
    /// How long the system was up then, in units of 100 ns.
    pub up_time: Option<u64>,
    /// `Some` if the dump holds no physical memory: the physical addresses of the source are made up then, and only virtual memory has a meaning.
    pub triage: Option<TriageDump>,
}

/// What of the memory is in a crash dump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WindowsDumpKind {
    /// All memory (type 1).
    #[default]
    Full,
    /// The kernel's memory (type 2).
    Kernel,
    /// A few structures and the stack, by virtual address (type 4).
    Triage,
    /// All memory that is in use, with a bitmap of pages (type 5).
    BitmapFull,
    /// Memory that is in active use (type 6).
    Active,
    /// Automatic choice of the system (type 7).
    Automatic,
    /// The kernel's memory of a running system (type 8).
    LiveKernel,
    /// The memory of a running system's kernel and processes (type 9).
    LiveKernelAndUser,
    /// All memory of a running system (type 10).
    LiveFull,
}

/// Where the parts of a triage dump are that have no virtual address in the file, in the made-up physical memory of the source.
///
/// None of them has been looked into. A part whose length the file does not tell reaches to the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TriageDump {
    /// The bytes of the dump file: an offset in the file, such as that of a driver's name, counts from the start of this.
    pub file: Region,
    /// `_KPRCB` of the processor that wrote the dump.
    pub processor: Option<Region>,
    /// `_EPROCESS` of the process that ran on it.
    pub process: Option<Region>,
    /// `_ETHREAD` of the thread that ran on it.
    pub thread: Option<Region>,
    /// The thread's stack; it is also at its virtual address.
    pub call_stack: Option<Region>,
    /// The decoded `KdDebuggerDataBlock`; it is also at its virtual address.
    pub debugger_data: Option<Region>,
    /// Counters of the memory manager.
    pub memory_manager: Option<Region>,
    /// Drivers that have been unloaded.
    pub unloaded_drivers: Option<Region>,
    /// The drivers: entries of an offset in the file, where the name is, and a `_KLDR_DATA_TABLE_ENTRY`.
    pub drivers: Option<Region>,
    /// How many drivers there are.
    pub driver_count: u32,
    /// Names of drivers.
    pub strings: Option<Region>,
}

impl TriageDump {
    /// A dump of which nothing is known but where the file is.
    pub const fn new(file: Region) -> Self {
        Self {
            file,
            processor: None,
            process: None,
            thread: None,
            call_stack: None,
            debugger_data: None,
            memory_manager: None,
            unloaded_drivers: None,
            drivers: None,
            driver_count: 0,
            strings: None,
        }
    }
}
