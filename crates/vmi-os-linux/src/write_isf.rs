//! A Volatility 3 symbol file of the kernel, from what the guest's own memory tells.

use std::io::Write;
use std::sync::Arc;

use vmi_arch_x86::{PagingMode, X86Driver};
use vmi_core::IsfType::{Array, Number, Pointer, Structure, Void};
use vmi_core::{
    Error, ErrorKind, IsfStructure, IsfSummary, IsfType, IsfWriteError, IsfWriter, Member, Memory, Paging, Result, Symbols,
    SymbolsBuilder, Type, TypeId, TypeSource, VirtAddr,
};

use crate::Linux;

/// Symbols below are offsets of per-CPU variables and absolute values, which do not move with the kernel.
const MOVES_FROM: u64 = 16 << 20;
/// Where `_text` is linked: __START_KERNEL_map plus CONFIG_PHYSICAL_START of its usual 16 MiB (arch/x86/include/asm/page_types.h).
const LINKED_AT: u64 = 0xffff_ffff_8100_0000;
const LINKED_AT_32: u64 = 0xc100_0000;
/// Bytes of a banner that are read.
const MAX_BANNER: usize = 4096;
/// Elements of an array whose length is told by the symbol that follows.
const MAX_ELEMENTS: u64 = 8192;
/// Modules whose types are read.
const MAX_MODULES: usize = 4096;

/// Structures without which Volatility refuses a file (volatility3 2.28, framework/symbols/linux/__init__.py).
const NEEDED: &[&str] = &[
    "address_space",
    "cred",
    "dentry",
    "file",
    "files_struct",
    "fs_struct",
    "hlist_head",
    "idr",
    "inet_sock",
    "inode",
    "kobject",
    "list_head",
    "mm_struct",
    "net",
    "page",
    "qstr",
    "sock",
    "socket",
    "super_block",
    "task_struct",
    "unix_sock",
    "vfsmount",
    "vm_area_struct",
];

/// Symbols without which it does not find the kernel.
const NEEDED_SYMBOLS: &[&str] = &["init_files", "init_mm", "init_task", "linux_banner"];

const LIST: IsfType<'static> = Structure("list_head");
const WORD: IsfType<'static> = Number("long unsigned int");
const U32: IsfType<'static> = Number("unsigned int");
const INT: IsfType<'static> = Number("int");
const CHAR: IsfType<'static> = Number("char");
const SEQUENCE: IsfType<'static> = Structure("seq_operations");
const SCHEDULER: IsfType<'static> = Structure("sched_class");
const FRAME_BUFFER: IsfType<'static> = Pointer(&Structure("fb_info"));

/// Types of variables, which BTF tells of per-CPU variables only. They are those that Volatility's plugins read, and some that users of
/// its shell are likely to.
const VARIABLES: &[(&str, IsfType<'static>)] = &[
    // `tracepoint_ptr_t`, of addresses relative to their own place (include/linux/tracepoint-defs.h).
    ("__start___tracepoints_ptrs", Array(&INT, 1)),
    ("arp_seq_ops", SEQUENCE),
    ("bpf_kallsyms", LIST),
    ("bpf_tree", Structure("latch_tree_root")),
    ("cap_last_cap", INT),
    ("dl_sched_class", SCHEDULER),
    ("fair_sched_class", SCHEDULER),
    ("file_systems", Pointer(&Structure("file_system_type"))),
    ("ftrace_list_end", Structure("ftrace_ops")),
    ("ftrace_mod_maps", LIST),
    ("ftrace_ops_list", Pointer(&Structure("ftrace_ops"))),
    ("ftrace_ops_trampoline_list", LIST),
    ("high_memory", Pointer(&Void)),
    ("idle_sched_class", SCHEDULER),
    ("idt_table", Array(&Structure("gate_struct"), 256)),
    ("init_cred", Structure("cred")),
    ("init_files", Structure("files_struct")),
    ("init_fs", Structure("fs_struct")),
    ("init_mm", Structure("mm_struct")),
    ("init_net", Structure("net")),
    ("init_nsproxy", Structure("nsproxy")),
    ("init_pid_ns", Structure("pid_namespace")),
    ("init_task", Structure("task_struct")),
    ("init_user_ns", Structure("user_namespace")),
    ("init_uts_ns", Structure("uts_namespace")),
    ("iomem_resource", Structure("resource")),
    ("ioport_resource", Structure("resource")),
    ("jiffies", WORD),
    ("jiffies_64", Number("long long unsigned int")),
    ("kallsyms_markers", U32),
    ("kallsyms_num_syms", U32),
    ("kallsyms_offsets", INT),
    ("kallsyms_relative_base", WORD),
    ("keyboard_notifier_list", Structure("atomic_notifier_head")),
    ("log_buf", Pointer(&CHAR)),
    ("log_buf_len", U32),
    ("log_first_idx", U32),
    ("log_next_idx", U32),
    ("map_idr", Structure("idr")),
    ("mem_map", Pointer(&Structure("page"))),
    ("mod_tree", Structure("mod_tree_root")),
    ("module_kset", Pointer(&Structure("kset"))),
    ("modules", LIST),
    ("net_namespace_list", LIST),
    ("nr_cpu_ids", U32),
    ("num_registered_fb", INT),
    ("packet_seq_ops", SEQUENCE),
    ("page_offset_base", WORD),
    ("prb", Pointer(&Structure("printk_ringbuffer"))),
    ("prog_idr", Structure("idr")),
    ("raw6_seq_ops", SEQUENCE),
    ("raw_seq_ops", SEQUENCE),
    ("registered_fb", Array(&FRAME_BUFFER, 32)),
    ("rt_sched_class", SCHEDULER),
    ("saved_command_line", Pointer(&CHAR)),
    ("socket_file_ops", Structure("file_operations")),
    ("sockfs_dentry_operations", Structure("dentry_operations")),
    ("stop_sched_class", SCHEDULER),
    ("super_blocks", LIST),
    ("tcp4_seq_ops", SEQUENCE),
    ("tcp6_seq_ops", SEQUENCE),
    ("tcp_seq_ops", SEQUENCE),
    ("tty_drivers", LIST),
    ("udp6_seq_ops", SEQUENCE),
    ("udp_seq_ops", SEQUENCE),
    ("unix_seq_ops", SEQUENCE),
    ("vmalloc_base", WORD),
    ("vmemmap_base", WORD),
];

/// Why no symbol file of a guest's kernel could be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteIsfError {
    /// The kernel does not describe what Volatility cannot do without.
    #[error(
        "this kernel does not tell what Volatility needs: {}. Such a file can be made of kernels with BTF (CONFIG_DEBUG_INFO_BTF) and data \
         symbols (CONFIG_KALLSYMS_ALL), or with the files that describe the kernel", lacking.join(", ")
    )]
    Lacking {
        /// Structures and symbols.
        lacking: Vec<&'static str>,
    },
    /// The guest cannot be read.
    #[error(transparent)]
    Guest(#[from] Error),
    /// The file cannot be written.
    #[error(transparent)]
    Write(#[from] IsfWriteError),
}

impl<D: X86Driver> Linux<'_, D> {
    /// How far the kernel's address-space randomisation (KASLR) moved it from where it was linked, in bytes.
    ///
    /// The kernel tells it in its VMCOREINFO (`KERNELOFFSET`). One that has none is taken to be linked where CONFIG_PHYSICAL_START is 16 MiB, as it
    /// is by default.
    ///
    /// # Errors
    /// [`ErrorKind::NoSymbol`] if neither tells.
    pub fn slide(&self) -> Result<u64> {
        if let Ok(info) = self.vmcoreinfo() {
            let line = info.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"KERNELOFFSET="));
            let offset = line.and_then(|digits| u64::from_str_radix(core::str::from_utf8(digits).ok()?.trim(), 16).ok());
            if let Some(offset) = offset {
                return Ok(offset);
            }
        }
        let linked = if self.space.mode().pointer_size() == 8 { LINKED_AT } else { LINKED_AT_32 };
        let text = self.symbol("_text").or_else(|_| self.symbol("_stext"))?;
        Ok(text.get().wrapping_sub(linked))
    }

    /// Writes a Volatility 3 symbol file of this kernel as JSON: its symbols where they were linked, its banner, the types of the kernel and of
    /// its modules, as far as they are in the guest's memory (kallsyms and BTF) or in the files that the kernel was attached with.
    ///
    /// Volatility finds the file by the banner in it, under any name, in the directory `linux` of its symbol directories (option `-s`). Packed with
    /// xz it is a twentieth of the size; its name has to end with `.json.xz` then.
    ///
    /// # Errors
    /// [`WriteIsfError`]: the kernel does not describe itself well enough, the guest cannot be read, or the file not be written.
    pub fn write_isf(&self, to: impl Write) -> Result<IsfSummary, WriteIsfError> {
        let (modules, mut remarks) = self.all_module_types();
        let lacks_type = |tag: &str| !modules.iter().chain([&self.kernel().types]).any(|types| types.find(tag).is_some());
        let lacks_symbol = |name: &str| self.symbol(name).is_err();
        let symbols = NEEDED_SYMBOLS.iter().copied().filter(|name| lacks_symbol(name));
        let lacking: Vec<_> = NEEDED.iter().copied().filter(|tag| lacks_type(tag)).chain(symbols).collect();
        if !lacking.is_empty() {
            return Err(WriteIsfError::Lacking { lacking });
        }

        let banner = self.raw_banner()?;
        let symbols = self.symbols_for_volatility();
        let own = &symbols;
        let mut writer = IsfWriter::new(self.types()).symbols(own, self.slide()?, MOVES_FROM);
        for types in &modules {
            writer = writer.further(&**types);
        }
        for &(name, ty) in VARIABLES {
            writer = writer.variable(name, ty);
        }
        let pointer_size = self.space.mode().pointer_size() as u64;
        let arrays = [
            ("__per_cpu_offset", WORD, pointer_size),
            ("boot_command_line", CHAR, 1),
            ("sys_call_table", Pointer(&Void), pointer_size),
            ("taint_flags", Structure("taint_flag"), self.size_of("taint_flag")),
        ];
        for &(name, ref element, size) in &arrays {
            writer = writer.variable(name, Array(element, room(own, name).checked_div(size).unwrap_or(0).min(MAX_ELEMENTS)));
        }
        // A structure without a tag since 6.3 (commit f122a08b197d), which Volatility knows by the name of its typedef.
        if let Ok(capabilities) = self.types().field("cred", "cap_effective") {
            writer = writer.tag(capabilities.ty, "kernel_cap_t");
        }
        writer = writer.variable("linux_banner", Array(&CHAR, banner.len() as u64));
        // LAST_PKMAP; by it Volatility tells PAE from two-level paging.
        let mapped = if self.space.mode() == PagingMode::Pae { 512 } else { 1024 };
        writer = writer.variable("pkmap_count", Array(&INT, mapped));
        writer = match self.timekeeper_core() {
            Some(core) => writer.variable("tk_core", Structure(core.name)).structure(core),
            None => writer.variable("tk_core", Structure("tk_data")),
        };
        let mut summary = writer.linux_banner(banner).write(to)?;
        summary.incomplete.append(&mut remarks);
        Ok(summary)
    }

    /// The types of all modules that have some, and what could not be read.
    fn all_module_types(&self) -> (Vec<Arc<dyn TypeSource>>, Vec<String>) {
        let (mut found, mut remarks) = (Vec::new(), Vec::new());
        for module in self.modules().take(MAX_MODULES) {
            let name = match module.and_then(|module| module.name()) {
                Ok(name) => name,
                Err(error) if matches!(error.kind(), ErrorKind::Gone { .. }) => continue,
                Err(error) => {
                    remarks.push(format!("a module cannot be read: {error}"));
                    continue;
                }
            };
            match self.module_types(&name) {
                Ok(types) => found.push(types),
                // Before 5.11, without CONFIG_DEBUG_INFO_BTF_MODULES, or built without types.
                Err(error) if matches!(error.kind(), ErrorKind::NoObject { .. } | ErrorKind::NoSymbol { .. }) => {}
                Err(error) => remarks.push(format!("the types of the module {name} cannot be read: {error}")),
            }
        }
        (found, remarks)
    }

    /// The banner with its line end and terminator. Volatility looks for these very bytes.
    fn raw_banner(&self) -> Result<Vec<u8>> {
        let mut banner = self.space.read_c_string(self.symbol("linux_banner")?, MAX_BANNER)?;
        banner.push(0);
        Ok(banner)
    }

    /// The kernel's symbols, and names that Volatility knows for what the kernel has renamed since.
    fn symbols_for_volatility(&self) -> Symbols {
        let own = &self.kernel().symbols;
        let mut builder = SymbolsBuilder::default();
        builder.reserve(own.len());
        // volatility3 2.28 reads a member of these that newer kernels do not have (seen in 7.2: `linux.lsmod` ends in an error), but has a
        // table of its own for kernels without the symbol.
        let unreadable = self.types().field("taint_flag", "module").is_err();
        for symbol in own.iter().filter(|symbol| !unreadable || symbol.name != "taint_flags") {
            builder.push(symbol.name, symbol.address, symbol.kind);
        }
        // Since 6.17 `tk_core` is a macro for the first of these (kernel/time/timekeeping.c).
        if let (Err(_), Ok(at)) = (own.address("tk_core"), own.address("timekeeper_data")) {
            builder.push("tk_core", at, b'd');
        }
        builder.build()
    }

    fn size_of(&self, tag: &str) -> u64 {
        self.types().structure(tag).map_or(0, |structure| structure.size)
    }

    /// The structure of `tk_core` before 6.13, which has no tag: BTF describes it all the same.
    fn timekeeper_core(&self) -> Option<IsfStructure<'static>> {
        if self.types().find("tk_data").is_some() {
            return None;
        }
        let btf = self.kernel_btf().ok()?;
        let types: &dyn TypeSource = &*btf;
        let timekeeper = types.find("timekeeper")?;
        let of_timekeeper = |member: &&Member| member.name == "timekeeper" && member.ty == timekeeper;
        (1..btf.end_id()).find_map(|id| match types.get(TypeId(id)) {
            Ok(Type::Structure(found)) if found.name.is_empty() && found.members.first()?.name == "seq" => {
                let offset = found.members.iter().find(of_timekeeper)?.bit_offset / 8;
                let members = vec![("timekeeper", offset, Structure("timekeeper"))];
                Some(IsfStructure { name: "tk_core", size: found.size, members })
            }
            _ => None,
        })
    }
}

/// Bytes from a symbol to the next one that has another address; 0 if there is none.
fn room(symbols: &Symbols, name: &str) -> u64 {
    let Ok(at) = symbols.address(name) else { return 0 };
    next(symbols, at).and_then(|next| next.offset_from(at)).unwrap_or(0)
}

fn next(symbols: &Symbols, at: VirtAddr) -> Option<VirtAddr> {
    symbols.iter().map(|symbol| symbol.address).find(|&address| address > at)
}
