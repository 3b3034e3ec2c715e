//! What a running kernel leaves in memory: its variables, the processor block, the low stub, the lists of processes and modules.

use crate::NtMachine;
use crate::memory::PAGE;
use crate::options::KvaShadow;
use crate::paging::KERNEL_DATA;
use crate::process::{ProcessId, ProcessSpec};
use crate::truth::ModuleTruth;

/// The registers of the first processor, as a driver would tell them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// CR0.
    pub cr0: u64,
    /// CR3: System's root, or a shadow (see [`KvaShadow::InUserMode`]).
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// IA32_LSTAR: the kernel's entry for system calls; 0 on 32-bit machines.
    pub lstar: u64,
    /// IA32_SYSENTER_EIP; 0 on 64-bit machines.
    pub sysenter_eip: u64,
    /// GS base: the processor block in kernel mode (64-bit).
    pub gs_base: u64,
    /// IA32_KERNEL_GS_BASE: the processor block in user mode (64-bit).
    pub kernel_gs_base: u64,
    /// FS base: the processor block (32-bit).
    pub fs_base: u64,
    /// Base of the interrupt descriptor table.
    pub idt_base: u64,
    /// Its limit.
    pub idt_limit: u16,
    /// Base of the global descriptor table.
    pub gdt_base: u64,
    /// Its limit.
    pub gdt_limit: u16,
    /// Code segment selector.
    pub cs: u16,
    /// Instruction pointer.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
}

impl NtMachine {
    pub(crate) fn write_kernel_state(&mut self, root: u64) {
        for list in
            ["PsActiveProcessHead", "PsLoadedModuleList", "HandleTableListHead", "CmpHiveListHead", "KdpDebuggerDataListHead"]
        {
            if self.image.symbols.contains_key(list) {
                let at = self.symbol_address(list);
                self.list_init(at);
            }
        }
        let number = self.build.number | 0xF000_0000;
        self.set_variable("NtBuildNumber", u64::from(number), 4);
        let lab = self.build_lab();
        for variable in ["NtBuildLab", "NtBuildLabEx"] {
            let at = self.symbol_address(variable);
            self.write_kernel(at, format!("{lab}\0").as_bytes());
        }
        self.set_pointer("PsNtosImageBase", self.base);
        self.set_variable("KeNumberProcessors", 1, 4);
        self.set_variable("KiKvaShadow", u64::from(self.options.kva_shadow != KvaShadow::Off), 1);
        let (system_range, highest) = match (self.build.is_64_bit, self.build.number) {
            (true, ..9600) => (0xFFFF_0800_0000_0000, 0x7FF_FFFE_FFFF),
            (true, _) => (0xFFFF_8000_0000_0000, 0x7FFF_FFFE_FFFF),
            (false, _) => (0x8000_0000, 0x7FFE_FFFF),
        };
        self.set_pointer("MmSystemRangeStart", system_range);
        self.set_pointer("MmHighestUserAddress", highest);
        self.set_pointer("MmUserProbeAddress", highest + 1);
        if let crate::paging::Paging::FourLevel { self_map } = self.tables.paging() {
            self.set_pointer("MmPteBase", 0xFFFF_0000_0000_0000 | u64::from(self_map) << 39);
        }

        let system = self.add_system(root);
        let system_object = self.processes[system.0].eprocess;
        self.set_pointer("PsInitialSystemProcess", system_object);
        let thread = self.add_thread(system, if self.build.number < 6000 { 8 } else { 0x0C });
        self.write_processor(root, thread);
        self.write_shared_data();
        self.write_low_stub(root);
        let (base, size) = (self.base, self.image.size);
        self.add_module_entry("ntoskrnl.exe", "\\SystemRoot\\system32\\ntoskrnl.exe", base, size);
        self.add_module("hal.dll", "\\SystemRoot\\system32\\hal.dll", 0x6000);
        self.write_kdbg();
        if self.options.stale_kernel {
            self.write_stale_kernel();
        }
        // Last, because nothing can be written there from then on.
        let codeview = (self.base + self.image.codeview) & !(PAGE - 1);
        let exports = (self.base + self.image.export_directory) & !(PAGE - 1);
        for (wanted, page) in [(self.options.exports_paged_out, exports), (self.options.codeview_paged_out, codeview)] {
            if wanted {
                assert!(!self.options.kernel_large_pages, "a page of a large page cannot be paged out");
                let pa = self.translate(self.system_root(), page).expect("mapped");
                self.memory.write(pa, &[0; PAGE as usize]);
                // In the pagefile at page 0x1234: not valid, neither transition nor prototype.
                self.set_kernel_entry(
                    page,
                    if self.tables.paging() == crate::paging::Paging::Legacy { 0x0123_4080 } else { 0x1234_0000_0080 },
                );
            }
        }
    }

    fn add_system(&mut self, root: u64) -> ProcessId {
        let spec =
            ProcessSpec { session: None, user_space: false, image_path: String::new(), ..ProcessSpec::new("System", 4, 0) };
        self.add_process_with_root(spec, root)
    }

    /// Writes a variable of the kernel, if this kernel has it.
    pub fn set_variable(&mut self, name: &str, value: u64, width: usize) {
        if self.image.symbols.contains_key(name) {
            let at = self.symbol_address(name);
            self.write_kernel(at, &value.to_le_bytes()[..width]);
        }
    }

    /// Writes a pointer of the kernel, if this kernel has it.
    pub fn set_pointer(&mut self, name: &str, value: u64) {
        self.set_variable(name, value, self.build.pointer() as usize);
    }

    /// `NtBuildLab`, in the form that real ones have.
    pub fn build_lab(&self) -> String {
        let arch = if self.build.is_64_bit { "amd64fre" } else { "x86fre" };
        match self.build.number {
            2600 => "2600.xpsp.080413-2111".to_owned(),
            7601 => format!("7601.17514.{arch}.win7sp1_rtm.101119-1850"),
            9600 => format!("9600.16384.{arch}.winblue_rtm.130821-1623"),
            19041 => format!("19041.1.{arch}.vb_release.191206-1406"),
            number => format!("{number}.1.{arch}.th_release.000000-0000"),
        }
    }

    fn write_processor(&mut self, root: u64, thread: u64) {
        let size = self.build.layout.size("_KPCR").max(self.build.layout.size("_KPRCB") + 0x190);
        self.kpcr = if self.build.number < 6000 && !self.build.is_64_bit {
            self.map_kernel_page(0xFFDF_F000, KERNEL_DATA);
            0xFFDF_F000
        } else {
            self.alloc_system(size, PAGE)
        };
        let kpcr = self.kpcr;
        let wide = self.build.is_64_bit;
        let prcb_offset =
            self.offset("_KPCR", if wide { "Prcb" } else { "PrcbData" }).unwrap_or(if wide { 0x180 } else { 0x120 });
        let prcb = kpcr + prcb_offset;
        let tables = self.alloc_system(2 * PAGE, PAGE);
        let (idt, gdt) = (tables, tables + PAGE);
        self.write_descriptors(idt, gdt);
        let version_block = self.symbol_address("KdVersionBlock");
        if wide {
            self.put("_KPCR", "Self", kpcr, kpcr);
            self.put("_KPCR", "CurrentPrcb", kpcr, prcb);
            self.put("_KPCR", "IdtBase", kpcr, idt);
            self.put("_KPCR", "GdtBase", kpcr, gdt);
            self.put("_KPCR", "KdVersionBlock", kpcr, if self.build.number < 9200 { version_block } else { 0 });
        } else {
            self.put("_KPCR", "SelfPcr", kpcr, kpcr);
            self.put("_KPCR", "Prcb", kpcr, prcb);
            self.put("_KPCR", "IDT", kpcr, idt);
            self.put("_KPCR", "GDT", kpcr, gdt);
            self.put("_KPCR", "KdVersionBlock", kpcr, version_block);
        }
        self.put_sized("_KPCR", "MajorVersion", kpcr, 1, 2);
        self.put_sized("_KPCR", "MinorVersion", kpcr, 1, 2);
        self.put("_KPRCB", "CurrentThread", prcb, thread);
        self.put_sized("_KPRCB", "MajorVersion", prcb, 1, 2);
        self.put_sized("_KPRCB", "MinorVersion", prcb, 1, 2);
        if self.offset("_KPRCB", "KernelDirectoryTableBase").is_some() {
            self.put("_KPRCB", "KernelDirectoryTableBase", prcb, root);
        }
        if self.offset("_KPRCB", "ProcessorState").is_some() {
            let state = self.member("_KPRCB", "ProcessorState", prcb);
            let special = state + self.offset("_KPROCESSOR_STATE", "SpecialRegisters").unwrap_or(0);
            for (member, value) in [("Cr0", 0x8005_0033), ("Cr3", root), ("Cr4", 0x6F8)] {
                self.put("_KSPECIAL_REGISTERS", member, special, value);
            }
        }
        let blocks = self.symbol_address("KiProcessorBlock");
        self.write_pointer(blocks, prcb);
        self.set_pointer("KiInitialPCR", kpcr);
    }

    /// 256 gates to the kernel's trap handlers. Formats: Intel SDM volume 3, chapters 3 and 6.
    fn write_descriptors(&mut self, idt: u64, gdt: u64) {
        for vector in 0..256_u64 {
            let handler = match vector {
                0 => self.symbol_address("KiDivideErrorFault"),
                3 => self.symbol_address("KiBreakpointTrap"),
                14 => self.symbol_address("KiPageFault"),
                _ => self.symbol_address("KiUnexpectedInterrupt") + vector * 2,
            };
            let selector = if self.build.is_64_bit { 0x10 } else { 8 };
            let low = handler & 0xFFFF | selector << 16 | 0x8E00 << 32 | (handler >> 16 & 0xFFFF) << 48;
            if self.build.is_64_bit {
                self.write_kernel(idt + vector * 16, &low.to_le_bytes());
                self.write_kernel(idt + vector * 16 + 8, &(handler >> 32).to_le_bytes());
            } else {
                self.write_kernel(idt + vector * 8, &low.to_le_bytes());
            }
        }
        let kpcr = self.kpcr;
        let descriptors: [u64; 8] = if self.build.is_64_bit {
            [
                0,
                0,
                0x0020_9B00_0000_0000,
                0x00CF_9300_0000_FFFF,
                0x00CF_FB00_0000_FFFF,
                0x00CF_F300_0000_FFFF,
                0x0020_FB00_0000_0000,
                0,
            ]
        } else {
            // The sixth (selector 0x30) is the processor block's.
            let block = (kpcr & 0xFF_FFFF) << 16 | (kpcr >> 24 & 0xFF) << 56 | 0x00C0_9300_0000_0001;
            [0, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00CF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF, 0, block, 0]
        };
        for (nth, descriptor) in (0..).zip(descriptors) {
            self.write_kernel(gdt + nth * 8, &descriptor.to_le_bytes());
        }
    }

    /// The registers of the first processor.
    pub fn registers(&self) -> Registers {
        let tables = |member: &str| self.offset("_KPCR", member).map_or(0, |offset| self.read_pointer(self.kpcr + offset));
        let wide = self.build.is_64_bit;
        let shadowed = self.processes.iter().find(|process| process.user_dtb != 0);
        let user = shadowed.filter(|_| self.options.kva_shadow == KvaShadow::InUserMode);
        let entry = if self.options.kva_shadow == KvaShadow::Off { "KiSystemCall64" } else { "KiSystemCall64Shadow" };
        Registers {
            cr0: 0x8005_0033,
            cr3: user.map_or(self.system_root(), |process| process.user_dtb),
            cr4: if self.tables.paging() == crate::paging::Paging::Legacy { 0x6D8 } else { 0x6F8 },
            efer: if wide { 0xD01 } else { 0x800 },
            lstar: if wide { self.symbol_address(entry) } else { 0 },
            sysenter_eip: if wide { 0 } else { self.symbol_address("KiFastCallEntry") },
            gs_base: if !wide {
                0
            } else if user.is_some() {
                0x9A_4C1F_F000
            } else {
                self.kpcr
            },
            kernel_gs_base: if !wide {
                0
            } else if user.is_some() {
                self.kpcr
            } else {
                0x9A_4C1F_F000
            },
            fs_base: if wide { 0 } else { self.kpcr },
            idt_base: tables(if wide { "IdtBase" } else { "IDT" }),
            idt_limit: if wide { 0xFFF } else { 0x7FF },
            gdt_base: tables(if wide { "GdtBase" } else { "GDT" }),
            gdt_limit: 0x3F,
            cs: match (wide, user) {
                (true, None) => 0x10,
                (true, Some(_)) => 0x33,
                (false, _) => 8,
            },
            rip: user.map_or(self.symbol_address("KeBugCheckEx"), |_| 0x7FFA_1234_5678),
            rsp: user.map_or(self.kpcr + 0x100, |_| 0x9A_4C0F_F000),
        }
    }

    /// The page that kernel and user mode share (`KUSER_SHARED_DATA`); its places are documented in ntddk.h.
    fn write_shared_data(&mut self) {
        let at = if self.build.is_64_bit { 0xFFFF_F780_0000_0000 } else { 0xFFDF_0000 };
        self.map_kernel_page(at, KERNEL_DATA);
        let now = crate::process::FIRST_TIME + 36_000_000_000;
        self.write_kernel(at + 0x14, &now.to_le_bytes());
        self.write_kernel(at + 0x1C, &((now >> 32) as u32).to_le_bytes());
        let system_root: Vec<u8> = "C:\\Windows\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
        self.write_kernel(at + 0x30, &system_root);
        let (major, minor) = self.build.version;
        for (offset, value) in [(0x260, self.build.number), (0x264, 1), (0x268, 1), (0x26C, major), (0x270, minor)] {
            self.write_kernel(at + offset, &value.to_le_bytes());
        }
    }

    /// `PROCESSOR_START_BLOCK` of 64-bit machines: a jump, a flag that the start is done, the entry in the kernel, and the processor's CR3.
    fn write_low_stub(&mut self, root: u64) {
        let Some(at) = self.options.low_stub.filter(|at| self.build.is_64_bit && self.memory.is_ram(*at..*at + PAGE)) else {
            return;
        };
        self.memory.reserve(at..at + PAGE);
        self.memory.write_number(at, 0x0000_0001_0006_4DE9, 8);
        let entry = self.symbol_address("HalpLMStub");
        self.memory.write_number(at + 0x70, entry, 8);
        self.memory.write_number(at + 0xA0, root, 8);
    }

    /// Adds a module of the kernel with a small image.
    pub fn add_module(&mut self, name: &str, path: &str, size: u64) -> u64 {
        let base = self.alloc_system(size, 0x1_0000);
        let header = small_pe(self.build.is_64_bit, base, size);
        self.write_kernel(base, &header);
        self.add_module_entry(name, path, base, size)
    }

    /// Puts a module at the end of `PsLoadedModuleList`: the address of its entry.
    pub fn add_module_entry(&mut self, name: &str, path: &str, base: u64, size: u64) -> u64 {
        let of = if self.build.layout.structs.contains_key("_KLDR_DATA_TABLE_ENTRY") {
            "_KLDR_DATA_TABLE_ENTRY"
        } else {
            "_LDR_DATA_TABLE_ENTRY"
        };
        let length = self.build.layout.size(of);
        let entry = self.alloc_pool(b"MmLd", length);
        for (member, text) in [("FullDllName", path), ("BaseDllName", name)] {
            let at = self.member(of, member, entry);
            self.put_string(at, text);
        }
        self.put(of, "DllBase", entry, base);
        self.put(of, "EntryPoint", entry, base + 0x1000);
        self.put_sized(of, "SizeOfImage", entry, size, 4);
        let links = self.member(of, "InLoadOrderLinks", entry);
        let head = self.symbol_address("PsLoadedModuleList");
        self.list_append(head, links);
        self.modules.push(ModuleTruth { entry, base, size, name: name.to_owned(), path: path.to_owned() });
        entry
    }

    /// Fills a `UNICODE_STRING` of the kernel; its text goes into the pool.
    pub fn put_string(&mut self, string: u64, text: &str) {
        let units: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let buffer = self.alloc_pool(b"NtFs", units.len() as u64 + 2);
        self.write_kernel(buffer, &units);
        self.put_sized("_UNICODE_STRING", "Length", string, units.len() as u64, 2);
        self.put_sized("_UNICODE_STRING", "MaximumLength", string, units.len() as u64 + 2, 2);
        self.put("_UNICODE_STRING", "Buffer", string, buffer);
    }

    /// The start of a kernel of an earlier boot: its header, its CodeView record and its System process, in physical memory that nothing maps.
    fn write_stale_kernel(&mut self) {
        let at = self.memory.alloc_contiguous(4 * PAGE, 2 << 20, 0);
        let mut header = self.read_kernel(self.base, PAGE as usize);
        let field = if self.build.is_64_bit { 0x108 + 4 + 20 + 24 } else { 0x108 + 4 + 20 + 28 };
        header[field + 2] ^= 0x40;
        self.memory.write(at, &header);
        let record = self.image.codeview;
        let mut bytes = self.read_kernel(self.base + record, 64);
        bytes[4] ^= 0xFF;
        self.memory.write(at + PAGE + record % PAGE, &bytes);
        let system = self.processes[0].eprocess;
        let mut process = self.read_kernel(system, self.build.layout.size("_EPROCESS") as usize);
        if let Some(dtb) = self.offset("_KPROCESS", "DirectoryTableBase") {
            process[dtb as usize..dtb as usize + 4].copy_from_slice(&0x0066_6000_u32.to_le_bytes());
        }
        self.memory.write(at + 2 * PAGE, &process);
    }

    /// The processes that every Windows has, with the parents they have there.
    pub fn populate(&mut self) -> Vec<ProcessId> {
        let mut ids = Vec::new();
        let mut specs = Vec::new();
        if self.build.number >= 17134 {
            specs.push(ProcessSpec {
                session: None,
                user_space: false,
                image_path: String::new(),
                ..ProcessSpec::new("Registry", 92, 4)
            });
        }
        specs.push(ProcessSpec { session: None, ..ProcessSpec::new("smss.exe", 320, 4) });
        for (name, pid, parent, session) in [
            ("csrss.exe", 412, 320, 0),
            ("wininit.exe", 484, 320, 0),
            ("services.exe", 620, 484, 0),
            ("lsass.exe", 640, 484, 0),
            ("svchost.exe", 752, 620, 0),
            ("csrss.exe", 900, 888, 1),
            ("explorer.exe", 3120, 3000, 1),
            ("notepad.exe", 4242, 3120, 1),
        ] {
            specs.push(ProcessSpec { session: Some(session), ..ProcessSpec::new(name, pid, parent) });
        }
        for spec in specs {
            let tid = spec.pid + 4;
            let id = self.add_process(spec);
            self.add_thread(id, tid);
            ids.push(id);
        }
        ids
    }
}

/// A PE header with one section, for modules whose contents do not matter.
pub fn small_pe(is_64_bit: bool, base: u64, size: u64) -> Vec<u8> {
    let mut h = vec![0; 0x80];
    h[0..2].copy_from_slice(b"MZ");
    h[0x3C] = 0x80;
    h.extend(b"PE\0\0");
    h.extend((if is_64_bit { 0x8664_u16 } else { 0x14C }).to_le_bytes());
    h.extend(1_u16.to_le_bytes());
    h.extend([0; 12]);
    h.extend((if is_64_bit { 0xF0_u16 } else { 0xE0 }).to_le_bytes());
    h.extend(0x22_u16.to_le_bytes());
    let optional = h.len();
    h.resize(optional + if is_64_bit { 0xF0 } else { 0xE0 }, 0);
    let mut put = |at: usize, bytes: &[u8]| h[optional + at..optional + at + bytes.len()].copy_from_slice(bytes);
    put(0, &(if is_64_bit { 0x20B_u16 } else { 0x10B }).to_le_bytes());
    put(16, &0x1000_u32.to_le_bytes());
    if is_64_bit {
        put(24, &base.to_le_bytes())
    } else {
        put(28, &(base as u32).to_le_bytes())
    };
    put(32, &0x1000_u32.to_le_bytes());
    put(36, &0x200_u32.to_le_bytes());
    put(56, &(size as u32).to_le_bytes());
    put(60, &0x400_u32.to_le_bytes());
    put(68, &1_u16.to_le_bytes());
    put(if is_64_bit { 108 } else { 92 }, &16_u32.to_le_bytes());
    h.extend(b".text\0\0\0");
    for value in [size as u32 - 0x1000, 0x1000, size as u32 - 0x1000, 0x400, 0, 0, 0, 0x6000_0020] {
        h.extend(value.to_le_bytes());
    }
    h
}
