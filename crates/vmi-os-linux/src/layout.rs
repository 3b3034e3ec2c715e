//! Where the members of the kernel's structures are, resolved once at attach.
//!
//! Kernels differ by which members they have, and that is what decides here, never a version number. A member that the type
//! information does not describe disables only what needs it: using it is an error that names it.

vmi_core::kernel_layout! {
    /// include/linux/sched.h. `state` became `__state` and half as long in 5.14 (commit 2f064a59a11f); `real_start_time` became
    /// `start_boottime` in 5.5 (commit cf25e24db61c).
    task: TaskLayout = "task_struct" {
        tasks: "tasks",
        pid: "pid",
        tgid: "tgid",
        comm: "comm",
        state: "__state" | "state",
        exit_state: "exit_state",
        flags: "flags",
        real_parent: "real_parent",
        real_cred: "real_cred",
        signal: "signal",
        thread_node: "thread_node",
        id_links: "pid_links" | "pids",
        id: "thread_pid",
        children: "children",
        sibling: "sibling",
        mm: "mm",
        start: "start_boottime" | "real_start_time",
    }
    /// include/linux/pid_namespace.h. The table of ids is an IDR since 4.15 (commit 95846ecf9dac), and that is an XArray since 4.20, a radix tree before.
    id_space: IdSpaceLayout = "pid_namespace" {
        array: "idr.idr_rt.xa_head",
        radix_tree: "idr.idr_rt.rnode",
    }
    /// include/linux/xarray.h, since 4.20.
    array_node: ArrayNodeLayout = "xa_node" {
        shift: "shift",
        slots: "slots",
    }
    /// include/linux/radix-tree.h, until 4.19.
    radix_node: RadixNodeLayout = "radix_tree_node" {
        shift: "shift",
        slots: "slots",
    }
    /// include/linux/pid.h. The first list is that of the thread which has the id. Since 4.19 (commit 2c4704756cab) their nodes are `pid_links` of the task, and
    /// its `thread_pid` is the id; before, both were in `pids`.
    id: IdLayout = "pid" {
        tasks: "tasks",
        numbers: "numbers",
    }
    /// include/linux/pid.h, until 4.18; it begins with the node.
    id_link: IdLinkLayout = "pid_link" {
        id: "pid",
    }
    /// include/linux/pid.h. `pid_chain` is the node in the hash table that ids were in until 4.14.
    id_number: IdNumberLayout = "upid" {
        number: "nr",
        space: "ns",
        chain: "pid_chain",
    }
    /// include/linux/sched/signal.h.
    signal: SignalLayout = "signal_struct" {
        thread_head: "thread_head",
    }
    /// include/linux/cred.h.
    cred: CredLayout = "cred" {
        euid: "euid",
        egid: "egid",
    }
    /// include/linux/mm_types.h. The list `mmap` gave way to the maple tree `mm_mt` in 6.1 (commits d4af56c5c7c6, 763ecb035029).
    mm: MmLayout = "mm_struct" {
        pgd: "pgd",
        mmap: "mmap",
        maple_root: "mm_mt.ma_root",
        arg_start: "arg_start",
        arg_end: "arg_end",
        env_start: "env_start",
        env_end: "env_end",
        start_brk: "start_brk",
        brk: "brk",
        start_stack: "start_stack",
        exe_file: "exe_file",
    }
    /// include/linux/mm_types.h. `anon_name` exists since 5.17 (commit 9a10064f5625) if CONFIG_ANON_VMA_NAME is set. Until 6.2 (commit
    /// d09e8ca6cb93) it shared its place with `shared`, which is what an area of a file has there.
    area: AreaLayout = "vm_area_struct" {
        start: "vm_start",
        end: "vm_end",
        next: "vm_next",
        flags: "vm_flags",
        offset: "vm_pgoff",
        file: "vm_file",
        ops: "vm_ops",
        private_data: "vm_private_data",
        anon_name: "anon_name",
        shared: "shared",
    }
    /// include/linux/mm_inline.h.
    anon_name: AnonNameLayout = "anon_vma_name" {
        name: "name",
    }
    /// include/linux/mm.h.
    area_ops: AreaOpsLayout = "vm_operations_struct" {
        name: "name",
    }
    /// include/linux/mm_types.h.
    special_mapping: SpecialMappingLayout = "vm_special_mapping" {
        name: "name",
    }
    /// include/linux/fs.h.
    file: FileLayout = "file" {
        mount: "f_path.mnt",
        dentry: "f_path.dentry",
    }
    /// include/linux/dcache.h.
    dentry: DentryLayout = "dentry" {
        parent: "d_parent",
        name: "d_name.name",
        name_len: "d_name.len",
        hash_back: "d_hash.pprev",
        ops: "d_op",
        inode: "d_inode",
    }
    /// include/linux/dcache.h.
    dentry_ops: DentryOpsLayout = "dentry_operations" {
        name: "d_dname",
    }
    /// include/linux/fs.h.
    inode: InodeLayout = "inode" {
        number: "i_ino",
    }
    /// fs/mount.h.
    mount: MountLayout = "mount" {
        parent: "mnt_parent",
        mountpoint: "mnt_mountpoint",
        vfsmount: "mnt",
    }
    /// include/linux/mount.h.
    vfsmount: VfsMountLayout = "vfsmount" {
        root: "mnt_root",
    }
    /// include/linux/module.h. `core_layout` and `init_layout` (4.5, commit 7523e4dc5057) became the array `mem` in 6.4
    /// (commit ac3b43283923).
    module: ModuleLayout = "module" {
        state: "state",
        list: "list",
        name: "name",
        parts: "mem",
        core_base: "core_layout.base",
        core_size: "core_layout.size",
        init_base: "init_layout.base",
        init_size: "init_layout.size",
        references: "refcnt",
        kallsyms: "kallsyms",
        exports: "syms",
        exports_len: "num_syms",
    }
    /// include/linux/module.h, since 6.4.
    part: PartLayout = "module_memory" {
        whole,
        base: "base",
        size: "size",
    }
    /// include/linux/module.h. `typetab` exists since 5.2 (commit 1c7651f43777).
    kallsyms: KallsymsLayout = "mod_kallsyms" {
        symbols: "symtab",
        symbols_len: "num_symtab",
        names: "strtab",
        kinds: "typetab",
    }
    /// include/linux/export.h, later kernel/module/internal.h. With CONFIG_HAVE_ARCH_PREL32_RELOCATIONS (x86 since 4.19, commit
    /// 7290d5809571) the members are relative to themselves.
    export: ExportLayout = "kernel_symbol" {
        whole,
        value: "value",
        value_offset: "value_offset",
        name: "name",
        name_offset: "name_offset",
    }
    /// include/linux/bpf.h, since 5.7.
    bpf_symbol: BpfSymbolLayout = "bpf_ksym" {
        start: "start",
        name: "name",
        list: "lnode",
    }
    /// kernel/trace/ftrace.c, since 4.15 (commit 6aa69784b4d7).
    traced_module: TracedModuleLayout = "ftrace_mod_map" {
        list: "list",
        module: "mod",
        functions: "funcs",
    }
    /// kernel/trace/ftrace.c.
    traced_function: TracedFunctionLayout = "ftrace_mod_func" {
        list: "list",
        name: "name",
        start: "ip",
    }
    /// kernel/bpf/btf.c, since 5.11 (commit 36e68442d1af).
    btf_module: BtfModuleLayout = "btf_module" {
        list: "list",
        module: "module",
        btf: "btf",
    }
    /// kernel/bpf/btf.c.
    btf: BtfLayout = "btf" {
        data: "data",
        data_size: "data_size",
    }
    /// kernel/printk/printk_ringbuffer.h, since 5.10 (commit 896fbe20b4e2).
    log: LogLayout = "printk_ringbuffer" {
        count_bits: "desc_ring.count_bits",
        descriptors: "desc_ring.descs",
        infos: "desc_ring.infos",
        head: "desc_ring.head_id",
        tail: "desc_ring.tail_id",
        text_bits: "text_data_ring.size_bits",
        text: "text_data_ring.data",
    }
    /// kernel/printk/printk_ringbuffer.h.
    log_descriptor: LogDescriptorLayout = "prb_desc" {
        whole,
        state: "state_var",
        begin: "text_blk_lpos.begin",
        next: "text_blk_lpos.next",
    }
    /// kernel/printk/printk_ringbuffer.h.
    log_info: LogInfoLayout = "printk_info" {
        whole,
        sequence: "seq",
        time: "ts_nsec",
        len: "text_len",
        level: "level",
    }
    /// kernel/printk/printk.c, before 5.10. `len` is of the whole record.
    log_record: LogRecordLayout = "printk_log" {
        whole,
        time: "ts_nsec",
        len: "len",
        text_len: "text_len",
        level: "level",
    }
    /// include/linux/timekeeper_internal.h.
    timekeeper: TimekeeperLayout = "timekeeper" {
        real: "offs_real",
        boot: "offs_boot",
    }
    /// kernel/time/timekeeping.c, a named type since 6.13.
    tk_data: TkDataLayout = "tk_data" {
        timekeeper: "timekeeper",
    }
}
