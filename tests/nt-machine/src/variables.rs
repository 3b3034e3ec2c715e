//! The kernel's own variables and functions that machines have: where they lie in the image and which are exported.

/// A section of the kernel's image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) name: &'static str,
    /// First and last address in an image of full size, relative to its base.
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) flags: u32,
}

const CODE: u32 = 0x6800_0020;
const PAGED_CODE: u32 = 0x6000_0020;
const DATA: u32 = 0xC800_0040;
const CONST: u32 = 0x4800_0040;
const DISCARD: u32 = 0x4200_0040;

const fn section(name: &'static str, start: u64, end: u64, flags: u32) -> Section {
    Section { name, start, end, flags }
}

/// As the kernels of Windows 10 have them, names and places (measured in a crash dump of 19041: .data at 0xC00000, ALMOSTRO at 0xCFC000).
pub(crate) const SECTIONS: &[Section] = &[
    section(".rdata", 0x1000, 0x13_0000, CONST),
    section(".pdata", 0x13_0000, 0x1A_0000, CONST),
    section(".edata", 0x1A_0000, 0x1C_0000, 0x4000_0040),
    section(".text", 0x20_0000, 0x62_0000, CODE),
    section("PAGE", 0x62_0000, 0x9A_0000, PAGED_CODE),
    section("PAGELK", 0x9A_0000, 0x9B_0000, PAGED_CODE),
    section("POOLCODE", 0x9B_0000, 0x9B_4000, CODE),
    section("PAGEKD", 0x9B_4000, 0x9B_C000, PAGED_CODE),
    section("INITKDBG", 0x9B_C000, 0x9D_0000, CODE),
    section("KVASCODE", 0xA1_2000, 0xA1_6000, CODE),
    section("INIT", 0xA2_0000, 0xB0_0000, 0x6200_0020),
    section(".data", 0xC0_0000, 0xCF_C000, DATA),
    section("ALMOSTRO", 0xCF_C000, 0xD2_6000, DATA),
    section("PAGEDATA", 0xD2_6000, 0xE0_0000, DATA),
    section("CFGRO", 0xE0_0000, 0xE0_6000, DATA),
    section(".rsrc", 0xE1_0000, 0xE4_0000, DISCARD),
    section(".reloc", 0x101_0000, 0x104_6000, DISCARD),
];

/// Bytes of an image of full size.
pub(crate) const FULL_SIZE: u64 = 0x104_6000;

/// Whether a section holds code.
pub(crate) fn is_code(section: &str) -> bool {
    SECTIONS.iter().any(|of| of.name == section && of.flags & 0x20 != 0)
}

/// One symbol.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variable {
    pub(crate) name: &'static str,
    /// Bytes in pointers.
    pub(crate) words: u64,
    pub(crate) section: &'static str,
    pub(crate) exported: bool,
}

const fn variable(name: &'static str, words: u64, section: &'static str, exported: bool) -> Variable {
    Variable { name, words, section, exported }
}

/// All symbols, variables and functions, that every machine's kernel has.
pub(crate) const VARIABLES: &[Variable] = &[
    variable("PsInitialSystemProcess", 1, "ALMOSTRO", true),
    variable("PsIdleProcess", 1, "ALMOSTRO", false),
    variable("PspCidTable", 1, "ALMOSTRO", false),
    variable("PsNtosImageBase", 1, "ALMOSTRO", false),
    variable("KiWaitNever", 1, "ALMOSTRO", false),
    variable("KiWaitAlways", 1, "ALMOSTRO", false),
    variable("KeNumberProcessors", 1, "ALMOSTRO", true),
    variable("KiProcessorBlock", 64, "ALMOSTRO", false),
    variable("ObTypeIndexTable", 256, "ALMOSTRO", false),
    variable("ObHeaderCookie", 1, "ALMOSTRO", false),
    variable("ObpTypeObjectType", 1, "ALMOSTRO", false),
    variable("PsProcessType", 1, "ALMOSTRO", true),
    variable("PsThreadType", 1, "ALMOSTRO", true),
    variable("MmPfnDatabase", 1, "ALMOSTRO", false),
    variable("MmPteBase", 1, "ALMOSTRO", false),
    variable("MmSystemRangeStart", 1, "ALMOSTRO", true),
    variable("MmHighestUserAddress", 1, "ALMOSTRO", true),
    variable("MmUserProbeAddress", 1, "ALMOSTRO", true),
    variable("MmNonPagedPoolStart", 1, "ALMOSTRO", false),
    variable("MmNonPagedPoolEnd", 1, "ALMOSTRO", false),
    variable("MmPagedPoolStart", 1, "ALMOSTRO", false),
    variable("MmPagedPoolEnd", 1, "ALMOSTRO", false),
    variable("KdDebuggerDataBlock", 0x400 / 4, ".data", false),
    variable("KdVersionBlock", 16, ".data", false),
    variable("KdpDataBlockEncoded", 1, ".data", false),
    variable("KdpDebuggerDataListHead", 4, ".data", false),
    variable("KdDebuggerEnabled", 1, ".data", true),
    variable("PsActiveProcessHead", 2, ".data", false),
    variable("PsLoadedModuleList", 2, ".data", true),
    variable("HandleTableListHead", 2, ".data", false),
    variable("CmpHiveListHead", 2, ".data", false),
    variable("MmUnloadedDrivers", 1, ".data", false),
    variable("MmLastUnloadedDriver", 1, ".data", false),
    variable("ObpRootDirectoryObject", 1, ".data", false),
    variable("ObpKernelHandleTable", 1, ".data", false),
    variable("KeServiceDescriptorTable", 8, ".data", true),
    variable("KeServiceDescriptorTableShadow", 8, ".data", false),
    variable("KiKvaShadow", 1, ".data", false),
    variable("NtBuildNumber", 1, ".data", true),
    variable("NtGlobalFlag", 1, ".data", true),
    variable("NtBuildLab", 16, ".data", false),
    variable("NtBuildLabEx", 32, ".data", false),
    variable("CmNtCSDVersion", 1, ".data", false),
    variable("KiInitialPCR", 1, ".data", false),
    variable("KiInitialProcess", 1, ".data", false),
    variable("PoolTrackTable", 1, ".data", false),
    variable("PoolBigPageTable", 1, ".data", false),
    variable("PoolBigPageTableSize", 1, ".data", false),
    variable("PspCreateProcessNotifyRoutine", 64, ".data", false),
    variable("PspLoadImageNotifyRoutine", 64, ".data", false),
    variable("PspCreateThreadNotifyRoutine", 64, ".data", false),
    variable("KiSystemStartup", 8, "INIT", false),
    variable("KiServiceTable", 512, ".rdata", false),
    variable("KiArgumentTable", 512, ".rdata", false),
    variable("KiSystemCall64", 32, ".text", false),
    variable("KiSystemCall64Shadow", 32, "KVASCODE", false),
    variable("KiFastCallEntry", 32, ".text", false),
    variable("KiDivideErrorFault", 32, ".text", false),
    variable("KiPageFault", 32, ".text", false),
    variable("KiBreakpointTrap", 32, ".text", false),
    variable("KiUnexpectedInterrupt", 512, ".text", false),
    variable("HalpLMStub", 32, ".text", false),
    variable("KeBugCheckEx", 16, ".text", true),
    variable("ExAllocatePoolWithTag", 16, "POOLCODE", true),
    variable("ExFreePool", 16, "POOLCODE", true),
    variable("KdCopyDataBlock", 16, "INITKDBG", false),
    variable("PsGetProcessId", 8, ".text", true),
    variable("PsGetProcessImageFileName", 8, ".text", true),
    variable("PsGetProcessPeb", 8, ".text", true),
    variable("PsGetCurrentProcess", 8, ".text", true),
    variable("PsLookupProcessByProcessId", 16, "PAGE", true),
    variable("IoGetCurrentProcess", 8, ".text", true),
    variable("NtCreateFile", 16, "PAGE", true),
    variable("NtClose", 16, "PAGE", true),
    variable("NtOpenFile", 16, "PAGE", true),
    variable("NtReadFile", 16, "PAGE", true),
    variable("NtQuerySystemInformation", 16, "PAGE", true),
    variable("NtOpenProcess", 16, "PAGE", true),
    variable("NtAllocateVirtualMemory", 16, "PAGE", true),
    variable("ZwCreateFile", 8, ".text", true),
    variable("ZwClose", 8, ".text", true),
    variable("RtlInitUnicodeString", 8, ".text", true),
];
