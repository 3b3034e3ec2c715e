//! Where the members of the kernel's structures are, resolved once at attach.
//!
//! Kernels differ by which members they have, and that is what decides here, never a version number. A member that the type information does not
//! describe disables only what needs it: using it is an error that names it.
//!
//! `_KPROCESS` and `_KTHREAD` are the first members of `_EPROCESS` and `_ETHREAD`, so that their members are read at the address of the outer ones.

vmi_core::kernel_layout! {
    /// An object of type process. `Session` points to `_MM_SESSION_SPACE`, in the newest kernels to `_PSP_SESSION_SPACE`.
    process: ProcessLayout = "_EPROCESS" {
        links: "ActiveProcessLinks",
        pid: "UniqueProcessId",
        parent: "InheritedFromUniqueProcessId",
        name: "ImageFileName",
        audit: "SeAuditProcessCreationInfo.ImageFileName" | "SeAuditProcessCreationInfo",
        peb: "Peb",
        wow64: "WoW64Process" | "Wow64Process",
        session: "Session",
        token: "Token",
        handles: "ObjectTable",
        threads: "ThreadListHead",
        active_threads: "ActiveThreads",
        created: "CreateTime",
        exited: "ExitTime",
        exit_status: "ExitStatus",
        protection: "Protection",
        section_base: "SectionBaseAddress",
        vad_root: "VadRoot",
    }
    /// The part of a process that the scheduler knows.
    kernel_process: KernelProcessLayout = "_KPROCESS" {
        page_table: "DirectoryTableBase",
        user_page_table: "UserDirectoryTableBase",
        threads: "ThreadListHead",
        base_priority: "BasePriority",
    }
    /// An object of type thread.
    thread: ThreadLayout = "_ETHREAD" {
        links: "ThreadListEntry",
        client: "Cid",
        pid: "Cid.UniqueProcess",
        tid: "Cid.UniqueThread",
        start: "StartAddress",
        win32_start: "Win32StartAddress",
        created: "CreateTime",
        exited: "ExitTime",
        process: "ThreadsProcess",
        name: "ThreadName",
        flags: "CrossThreadFlags",
    }
    /// The part of a thread that the scheduler knows. XP and Server 2003 have no `Process` in it.
    kernel_thread: KernelThreadLayout = "_KTHREAD" {
        links: "ThreadListEntry",
        state: "State",
        wait_reason: "WaitReason",
        wait_mode: "WaitMode",
        priority: "Priority",
        base_priority: "BasePriority",
        teb: "Teb",
        process: "Process",
        attached: "ApcState.Process",
        apc_state: "ApcState",
        switches: "ContextSwitches",
        stack_base: "StackBase",
        stack_limit: "StackLimit",
    }
    /// Which process a thread runs in.
    apc_state: ApcStateLayout = "_KAPC_STATE" {
        process: "Process",
    }
    /// What a WoW64 process has beside its 64-bit parts, since Windows 10.
    wow64: Wow64Layout = "_EWOW64PROCESS" {
        peb: "Peb",
    }
    /// What the processes of a session share.
    session: SessionLayout = "_MM_SESSION_SPACE" {
        id: "SessionId",
    }
    /// The same in the newest kernels.
    new_session: NewSessionLayout = "_PSP_SESSION_SPACE" {
        id: "SessionId",
    }
    /// The handles of a process. Kernels since Windows 8.1 do not count them in one place.
    handle_count: HandleCountLayout = "_HANDLE_TABLE" {
        count: "HandleCount",
    }
    /// A token: who a process is and what it may.
    token: TokenLayout = "_TOKEN" {
        user_and_groups: "UserAndGroups",
        count: "UserAndGroupCount",
        privileges: "Privileges",
        present: "Privileges.Present",
        privilege_count: "PrivilegeCount",
        session: "SessionId",
        integrity: "IntegrityLevelIndex",
    }
    /// The process environment block, in user memory.
    peb: PebLayout = "_PEB" {
        image_base: "ImageBaseAddress",
        loader: "Ldr",
        parameters: "ProcessParameters",
        being_debugged: "BeingDebugged",
        session: "SessionId",
    }
    /// What a program was started with, in user memory.
    parameters: ParametersLayout = "_RTL_USER_PROCESS_PARAMETERS" {
        current_directory: "CurrentDirectory",
        image_path: "ImagePathName",
        command_line: "CommandLine",
        environment: "Environment",
        environment_size: "EnvironmentSize",
        window_title: "WindowTitle",
    }
    /// What the loader knows of a process, in user memory.
    loader: LoaderLayout = "_PEB_LDR_DATA" {
        load_order: "InLoadOrderModuleList",
        memory_order: "InMemoryOrderModuleList",
        initialization_order: "InInitializationOrderModuleList",
    }
    /// A loaded module, in user memory. Before Windows Vista the kernel has its own modules in the same structure.
    module: ModuleLayout = "_LDR_DATA_TABLE_ENTRY" {
        load_links: "InLoadOrderLinks",
        memory_links: "InMemoryOrderLinks",
        initialization_links: "InInitializationOrderLinks",
        base: "DllBase",
        entry_point: "EntryPoint",
        size: "SizeOfImage",
        full_name: "FullDllName",
        name: "BaseDllName",
        flags: "Flags",
        load_count: "LoadCount",
        node: "DdagNode",
        load_time: "LoadTime",
        time_stamp: "TimeDateStamp",
    }
    /// What modules that are loaded together share, since Windows 8.
    module_node: ModuleNodeLayout = "_LDR_DDAG_NODE" {
        load_count: "LoadCount",
    }
    /// A module of the kernel.
    kernel_module: KernelModuleLayout = "_KLDR_DATA_TABLE_ENTRY" {
        links: "InLoadOrderLinks",
        base: "DllBase",
        entry_point: "EntryPoint",
        size: "SizeOfImage",
        full_name: "FullDllName",
        name: "BaseDllName",
        load_count: "LoadCount",
        time_stamp: "TimeDateStamp",
    }
    /// A balanced tree since Windows 8.1.
    tree: TreeLayout = "_RTL_AVL_TREE" {
        root: "Root",
    }
    /// Its node.
    tree_node: TreeNodeLayout = "_RTL_BALANCED_NODE" {
        left: "Left",
        right: "Right",
    }
    /// A balanced tree from Server 2003 to Windows 8.
    old_tree: OldTreeLayout = "_MM_AVL_TABLE" {
        root: "BalancedRoot",
    }
    /// Its node in Windows 8.
    avl_node: AvlNodeLayout = "_MM_AVL_NODE" {
        left: "LeftChild",
        right: "RightChild",
    }
    /// A virtual address descriptor. The node of the tree is a member since Windows 8; before, the descriptor is the node.
    vad: VadLayout = "_MMVAD_SHORT" {
        whole,
        node: "VadNode",
        left: "LeftChild",
        right: "RightChild",
        start: "StartingVpn",
        end: "EndingVpn",
        start_high: "StartingVpnHigh",
        end_high: "EndingVpnHigh",
        commit_high: "CommitChargeHigh",
        flags: "u",
        more_flags: "u1",
    }
    /// A virtual address descriptor of mapped memory. Before Windows Vista it points to the control area.
    mapped_vad: MappedVadLayout = "_MMVAD" {
        flags: "u2",
        subsection: "Subsection",
        control_area: "ControlArea",
        first_pte: "FirstPrototypePte",
        last_pte: "LastContiguousPte",
    }
    /// Flags of a descriptor.
    vad_flags: VadFlagsLayout = "_MMVAD_FLAGS" {
        kind: "VadType",
        protection: "Protection",
        private: "PrivateMemory",
        committed: "MemCommit",
        commit: "CommitCharge",
        image: "ImageMap",
        physical: "PhysicalMapping",
        no_change: "NoChange",
    }
    /// More of them since Windows 8.
    vad_flags_1: VadFlags1Layout = "_MMVAD_FLAGS1" {
        commit: "CommitCharge",
        committed: "MemCommit",
    }
    /// Flags of mapped memory: the offset in the file in units of 64 KiB.
    vad_flags_2: VadFlags2Layout = "_MMVAD_FLAGS2" {
        offset: "FileOffset",
    }
    /// A part of a section.
    subsection: SubsectionLayout = "_SUBSECTION" {
        control_area: "ControlArea",
        base: "SubsectionBase",
        next: "NextSubsection",
        pages: "PtesInSubsection",
    }
    /// What the memory manager knows of a file that is mapped, or of shared memory.
    control_area: ControlAreaLayout = "_CONTROL_AREA" {
        segment: "Segment",
        file: "FilePointer",
        flags: "u",
    }
    /// A section.
    segment: SegmentLayout = "_SEGMENT" {
        control_area: "ControlArea",
    }
    /// Flags of a section.
    section_flags: SectionFlagsLayout = "_MMSECTION_FLAGS" {
        image: "Image",
        file: "File",
    }
    /// An open file.
    file: FileLayout = "_FILE_OBJECT" {
        device: "DeviceObject",
        name: "FileName",
    }
    /// An entry of a page table whose page is in the page file, or is to be made.
    software_entry: SoftwareEntryLayout = "_MMPTE_SOFTWARE" {
        whole,
        file: "PageFileLow",
        offset: "PageFileHigh",
        protection: "Protection",
        swizzle: "SwizzleBit",
    }
    /// An entry whose page is on its way out of memory or into it, and still there.
    transition_entry: TransitionEntryLayout = "_MMPTE_TRANSITION" {
        frame: "PageFrameNumber",
    }
    /// An entry that leads to another one, which all who share the page have in common.
    prototype_entry: PrototypeEntryLayout = "_MMPTE_PROTOTYPE" {
        address: "ProtoAddress",
        low: "ProtoAddressLow",
        high: "ProtoAddressHigh",
    }
    /// An entry whose page is in a mapped file.
    subsection_entry: SubsectionEntryLayout = "_MMPTE_SUBSECTION" {
        address: "SubsectionAddress",
    }
    /// The state of the memory manager, since Windows 10.
    memory_state: MemoryStateLayout = "_MI_SYSTEM_INFORMATION" {
        invalid_mask: "Hardware.InvalidPteMask",
    }
    /// The control region of a processor. 32-bit kernels call the pointer to itself `SelfPcr` and that to the control block `Prcb`.
    control_region: ControlRegionLayout = "_KPCR" {
        itself: "Self" | "SelfPcr",
        block: "CurrentPrcb" | "Prcb",
    }
    /// The control block of a processor.
    control_block: ControlBlockLayout = "_KPRCB" {
        thread: "CurrentThread",
    }
}
