//! A live machine: the synthetic kernel boots in QEMU and changes its list of processes all the time.
//!
//! The memory is that of an [`NtMachine`] with a compiled kernel. A multiboot file carries it into QEMU (`-kernel`), a few instructions switch to long mode and enter
//! the kernel, with CR3, GS base, LSTAR and the descriptor tables as NT has them. From then on processes begin (a fresh object at the list's end), exit (`ExitTime`), are
//! taken out of the list, and their memory is overwritten and used again. The kernel keeps its own account of the list ([`GuestTruth`]), with a generation that is odd
//! while a change is under way.

mod running;

use std::path::Path;
use std::process::Command;
use std::{env, fs, io};

use crate::build::Build;
use crate::c_source;
use crate::compiled::{CompiledKernel, ORDINAL_ONLY};
use crate::kernel_image::KernelImage;
use crate::machine::NtMachine;
use crate::memory::PAGE;
use crate::options::{KvaShadow, Options};
use crate::paging::{USER_CODE, USER_DATA};
use crate::process::{FIRST_TIME, ProcessId, ProcessSpec};
pub use running::{Backing, Running};

/// What can be chosen about a live machine.
#[derive(Clone, Debug)]
pub struct LiveOptions {
    /// Bytes of memory: what QEMU is given by `-m`. At most 3 GiB.
    pub memory: u64,
    /// How many processes can come and go; at most 48. Half of them are there on average.
    pub slots: u64,
    /// Timer interrupts in a second, 19 to 10000.
    pub ticks_per_second: u64,
    /// Changes of the list at each interrupt.
    pub changes_per_tick: u64,
    /// Of how many stretches between two interrupts in which a process' page tables are loaded one is spent in user mode; 0 for none. User mode keeps a host
    /// processor busy, the kernel halts.
    pub user_one_in: u64,
    /// Whether user mode has page tables of its own (KVA shadow): CR3 is a shadow's then, in which next to nothing of the kernel is mapped. Builds that know
    /// `UserDirectoryTableBase` and `KernelDirectoryTableBase` only.
    pub kva_shadow: bool,
}

impl Default for LiveOptions {
    fn default() -> Self {
        Self { memory: 64 << 20, slots: 32, ticks_per_second: 250, changes_per_tick: 2, user_one_in: 4, kva_shadow: false }
    }
}

/// A machine to boot.
#[derive(Clone, Debug)]
pub struct LiveMachine {
    /// The machine as it is when its kernel starts. Its truth tells the kernel and the processes that stay; those that come and go are in it as not linked.
    pub machine: NtMachine,
    /// The kernel.
    pub kernel: CompiledKernel,
    elf: Vec<u8>,
    memory: u64,
}

/// A process in the guest's own account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestProcess {
    /// Address of its `_EPROCESS`.
    pub eprocess: u64,
    /// Process id.
    pub pid: u64,
    /// Process id of the parent.
    pub parent: u64,
    /// FILETIME of the start.
    pub create_time: u64,
    /// FILETIME of the end, 0 while it lives.
    pub exit_time: u64,
    /// Root of its page tables.
    pub page_table: u64,
    /// `ImageFileName`.
    pub name: String,
}

/// The guest's own account of its processes, in the order of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestTruth {
    /// Grows by two with every change; odd while one is under way, and then the account may not agree with the list.
    pub generation: u64,
    /// How many processes were begun.
    pub created: u64,
    /// How many were taken out of the list.
    pub ended: u64,
    /// Timer interrupts.
    pub ticks: u64,
    /// The list.
    pub processes: Vec<GuestProcess>,
}

impl GuestTruth {
    /// Bytes of the account in the guest's memory.
    pub const SIZE: usize = HEADER + MAX * ENTRY;

    /// Reads the account from the guest's bytes. `None` until the guest has begun.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        if bytes.len() < Self::SIZE || word(0) != MAGIC {
            return None;
        }
        let count = (word(40) as usize).min(MAX);
        let processes = (0..count).map(|nth| {
            let at = HEADER + nth * ENTRY;
            let name = bytes[at + 48..at + ENTRY].iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect();
            GuestProcess {
                eprocess: word(at),
                pid: word(at + 8),
                parent: word(at + 16),
                create_time: word(at + 24),
                exit_time: word(at + 32),
                page_table: word(at + 40),
                name,
            }
        });
        Some(Self { generation: word(8), created: word(16), ended: word(24), ticks: word(32), processes: processes.collect() })
    }
}

// As in kernel.c.
const MAGIC: u64 = 0x6874_7572_7474_6E6D;
const HEADER: usize = 48;
const ENTRY: usize = 64;
const MAX: usize = 96;
const SLOTS: u64 = 48;

const LOW_STUB: u64 = 0x1_3000;
/// Where the first instructions lie, and behind them the page tables that they need.
const START: u64 = 0x10_0000;
const START_TABLES: u64 = 0x10_8000;
const USER_CODE_AT: u64 = 0x1_8000_1000;
const BASE: u64 = 0xFFFF_F804_7000_0000;

impl LiveMachine {
    /// Makes the machine. The build must be a 64-bit one whose threads are known.
    ///
    /// # Errors
    /// What is missing, or what the tools say: clang, lld-link and ld.lld come with Debian's packages clang and lld.
    pub fn new(build: Build, options: &LiveOptions) -> Result<Self, String> {
        assert!(build.is_64_bit && options.slots <= SLOTS && (19..=10_000).contains(&options.ticks_per_second));
        // Where the way back from user mode finds the kernel's page tables. Builds without shadows have no such member: a word behind the block serves.
        let prcb = build.layout.offset("_KPCR", "Prcb").unwrap_or(0x180);
        let tables =
            prcb + build.layout.offset("_KPRCB", "KernelDirectoryTableBase").unwrap_or_else(|| build.layout.size("_KPRCB"));
        if options.kva_shadow {
            let known = |of: &str, member: &str| build.layout.offset(of, member).is_some();
            assert!(
                known("_KPROCESS", "UserDirectoryTableBase") && known("_KPRCB", "KernelDirectoryTableBase"),
                "{} has no shadows",
                build.name
            );
        }
        let defines = format!("#define KERNEL_TABLES {tables:#x}\n{}", if options.kva_shadow { "#define SHADOW\n" } else { "" });
        let source = defines
            + &c_source::structures(&build.layout, true)
            + &c_source::variables(&build, &["KiSystemStartup"])
            + ORDINAL_ONLY
            + include_str!("kernel.c");
        let kernel = CompiledKernel::compile_source(&build, BASE, &source, &[])?;
        let ram = vec![0..0xA_0000, 0x10_0000..options.memory];
        let kva_shadow = if options.kva_shadow { KvaShadow::On } else { KvaShadow::Off };
        let machine_options = Options {
            kernel: KernelImage::Compiled(Box::new(kernel.clone())),
            ram,
            low_stub: Some(LOW_STUB),
            kva_shadow,
            ..Options::default()
        };
        let mut machine = NtMachine::new(build, machine_options);
        let at = machine.kpcr + tables;
        machine.write_kernel(at, &machine.system_root().to_le_bytes());
        machine.populate();
        fill_start(&mut machine, options);
        let elf = boot_file(&mut machine)?;
        Ok(Self { machine, kernel, elf, memory: options.memory })
    }

    /// Writes what QEMU boots by `-kernel`.
    ///
    /// # Errors
    /// Those of the file.
    pub fn write_boot_file(&self, path: &Path) -> io::Result<()> {
        fs::write(path, &self.elf)
    }

    /// The arguments of `qemu-system-x86_64` that boot the file, by TCG unless `VMI_LAB_ACCEL` names another accelerator. A monitor, a memory backend and the like
    /// are the caller's to add.
    pub fn qemu_arguments(&self, boot_file: &Path) -> Vec<String> {
        let memory = format!("{}M", self.memory >> 20);
        let file = boot_file.display().to_string();
        let accelerator = std::env::var("VMI_LAB_ACCEL").unwrap_or_else(|_| "tcg".to_owned());
        [
            "-m",
            &memory,
            "-kernel",
            &file,
            "-display",
            "none",
            "-serial",
            "none",
            "-parallel",
            "none",
            "-net",
            "none",
            "-no-reboot",
            "-accel",
            &accelerator,
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// Where the guest's account lies: its address in the kernel and in physical memory. It is contiguous in both.
    pub fn truth_address(&self) -> (u64, u64) {
        let at = self.machine.symbol_address("NtMachineTruth");
        (at, self.machine.translate(self.machine.system_root(), at).expect("the kernel is mapped"))
    }
}

/// Fills the kernel's `NtMachineStart` (see kernel.c).
fn fill_start(machine: &mut NtMachine, options: &LiveOptions) {
    let fixed: Vec<_> = machine.truth().processes;
    let mut words = vec![machine.system_root(), options.slots, options.changes_per_tick, 1_193_182 / options.ticks_per_second];
    let code = machine.memory.alloc_page();
    machine.memory.write(code, &[0xF3, 0x90, 0xEB, 0xFC]);
    let (mut processes, mut threads) = (vec![0; SLOTS as usize], vec![0; SLOTS as usize]);
    for slot in 0..options.slots as usize {
        let id: ProcessId = machine.add_process(ProcessSpec::new("free", 0, 4).hidden());
        // The page is the same in all of them: `pause` and a jump back to it. Before it lies the stack.
        machine.map_user(id, USER_CODE_AT, code, USER_CODE);
        machine.alloc_user(id, USER_CODE_AT - PAGE, 1, USER_DATA);
        threads[slot] = machine.add_thread(id, 20_000 + slot as u64 * 4);
        processes[slot] = machine.process(id).eprocess;
    }
    words.extend(processes);
    words.extend(threads);
    let prcb = machine.offset("_KPCR", "Prcb").unwrap_or(0x180) + machine.offset("_KPRCB", "CurrentThread").unwrap_or(8);
    words.extend([FIRST_TIME, machine.kpcr + prcb, machine.registers().idt_base]);
    let (segment, stack) = task_state(machine);
    let shadows: Vec<u64> = machine.processes().map(|(_, process)| process.user_dtb).filter(|shadow| *shadow != 0).collect();
    for shadow in shadows {
        for name in ["KiTimerInterrupt", "run_user_code"] {
            let at = machine.symbol_address(name);
            machine.share_with_shadow(shadow, at);
        }
        machine.share_with_shadow(shadow, segment);
        machine.share_with_shadow(shadow, stack);
    }
    words.extend([segment, USER_CODE_AT, options.user_one_in, stack, fixed.len() as u64]);
    for process in fixed {
        words.extend([process.eprocess, process.pid, process.parent, process.create_time, process.exit_time, process.dtb]);
        let mut name = process.name.into_bytes();
        name.resize(16, 0);
        words.extend(name.chunks(8).map(|part| u64::from_le_bytes(part.try_into().expect("8 bytes"))));
    }
    let at = machine.symbol_address("NtMachineStart");
    let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
    machine.write_kernel(at, &bytes);
}

/// A task state segment with a stack for interrupts of user mode, and its descriptor at selector 0x40, where NT has it. Formats: Intel SDM volume 3, chapter 8.
fn task_state(machine: &mut NtMachine) -> (u64, u64) {
    let stack = machine.alloc_system(4 * PAGE, PAGE) + 4 * PAGE - 64;
    let segment = machine.alloc_system(PAGE, PAGE);
    machine.write_kernel(segment + 4, &stack.to_le_bytes());
    machine.write_kernel(segment + 0x66, &0x68_u16.to_le_bytes());
    let gdt = machine.registers().gdt_base;
    let low = 0x67 | (segment & 0xFF_FFFF) << 16 | 0x89 << 40 | (segment >> 24 & 0xFF) << 56;
    machine.write_kernel(gdt + 0x40, &low.to_le_bytes());
    machine.write_kernel(gdt + 0x48, &(segment >> 32).to_le_bytes());
    (segment, stack)
}

/// A 32-bit ELF file with a multiboot header: memory from 1 MiB on as one segment, the start at its beginning.
fn boot_file(machine: &mut NtMachine) -> Result<Vec<u8>, String> {
    let stack = machine.alloc_system(8 * PAGE, PAGE) + 8 * PAGE - 64;
    let registers = machine.registers();
    let defines = [
        ("LOW_STUB", LOW_STUB),
        ("PAGE_TABLE", START_TABLES),
        ("STACK", stack),
        ("ENTRY", machine.symbol_address("KiSystemStartup")),
        ("GDT", registers.gdt_base),
        ("IDT", registers.idt_base),
        ("GS_BASE", registers.gs_base),
        ("KERNEL_GS_BASE", registers.kernel_gs_base),
        ("LSTAR", registers.lstar),
    ];
    let mut start = assemble(&defines)?;
    assert!(start.len() as u64 <= START_TABLES - START);
    // The page of the low stub is the last one of the start; it is copied to its place, which the firmware needs until then.
    let at = start.len() - PAGE as usize;
    start[at..].copy_from_slice(&machine.memory.read(LOW_STUB, PAGE as usize));
    machine.memory.write(START, &start);
    // Tables of the start: the first GiB as it is, and the kernel's half.
    let (directory_pointers, directory) = (START_TABLES + PAGE, START_TABLES + 2 * PAGE);
    let root = machine.system_root();
    machine.memory.write_number(START_TABLES, directory_pointers | 3, 8);
    machine.memory.write_number(directory_pointers, directory | 3, 8);
    for nth in 0..512 {
        machine.memory.write_number(directory + nth * 8, nth << 21 | 0x83, 8);
    }
    for slot in 256..512 {
        let entry = machine.memory.read_number(root + slot * 8, 8);
        machine.memory.write_number(START_TABLES + slot * 8, entry, 8);
    }
    let end = machine.memory.pages().map(|(at, _)| at + PAGE).max().unwrap_or(START);
    let contents = machine.memory.read(START, (end - START) as usize);

    let mut elf = b"\x7FELF\x01\x01\x01".to_vec();
    elf.resize(16, 0);
    // Executable, 386, version, entry behind the multiboot header, program headers, no sections.
    elf.extend(2_u16.to_le_bytes());
    elf.extend(3_u16.to_le_bytes());
    for value in [1, START as u32 + 12, 52, 0, 0] {
        elf.extend(value.to_le_bytes());
    }
    for value in [52_u16, 32, 1, 40, 0, 0] {
        elf.extend(value.to_le_bytes());
    }
    let size = contents.len() as u32;
    for value in [1, PAGE as u32, START as u32, START as u32, size, size, 7, PAGE as u32] {
        elf.extend(value.to_le_bytes());
    }
    elf.resize(PAGE as usize, 0);
    elf.extend(contents);
    Ok(elf)
}

fn assemble(defines: &[(&str, u64)]) -> Result<Vec<u8>, String> {
    let directory = env::temp_dir().join(format!("nt-machine-start-{}-{:?}", std::process::id(), std::thread::current().id()));
    let made = || {
        fs::create_dir_all(&directory).map_err(|error| error.to_string())?;
        fs::write(directory.join("start.S"), include_str!("start.S")).map_err(|error| error.to_string())?;
        let mut clang = Command::new("clang");
        clang.args(["--target=i386-unknown-none-elf", "-c", "start.S", "-o", "start.o"]);
        clang.args(defines.iter().map(|(name, value)| format!("-D{name}={value:#x}")));
        crate::compiled::run(clang.current_dir(&directory))?;
        let mut lld = Command::new("ld.lld");
        lld.args(["--oformat=binary", &format!("-Ttext={START:#x}"), "start.o", "-o", "start.bin"]);
        crate::compiled::run(lld.current_dir(&directory))?;
        fs::read(directory.join("start.bin")).map_err(|error| error.to_string())
    };
    let made = made();
    let _ = fs::remove_dir_all(&directory);
    made
}
