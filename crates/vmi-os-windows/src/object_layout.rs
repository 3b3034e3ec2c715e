//! Where the members of objects, handle tables and hives are, resolved once at attach.
//!
//! Kernels differ by which members they have, and that is what decides here, never a version number.

vmi_core::kernel_layout! {
    /// In front of each object. Until Windows Vista it points to the object's type, since 7 it has an index into a table of types.
    header: HeaderLayout = "_OBJECT_HEADER" {
        pointer_count: "PointerCount",
        handle_count: "HandleCount",
        kind: "Type",
        type_index: "TypeIndex",
        info_mask: "InfoMask",
        name_info_offset: "NameInfoOffset",
        body: "Body",
    }
    /// Optional, in front of the header.
    name_info: NameInfoLayout = "_OBJECT_HEADER_NAME_INFO" {
        whole,
        directory: "Directory",
        name: "Name",
    }
    /// Optional, between the name and the header.
    creator_info: CreatorInfoLayout = "_OBJECT_HEADER_CREATOR_INFO" {
        whole,
    }
    object_type: ObjectTypeLayout = "_OBJECT_TYPE" {
        name: "Name",
        index: "Index",
        objects: "TotalNumberOfObjects",
        handles: "TotalNumberOfHandles",
    }
    directory: DirectoryLayout = "_OBJECT_DIRECTORY" {
        buckets: "HashBuckets",
    }
    directory_entry: DirectoryEntryLayout = "_OBJECT_DIRECTORY_ENTRY" {
        next: "ChainLink",
        object: "Object",
    }
    symbolic_link: SymbolicLinkLayout = "_OBJECT_SYMBOLIC_LINK" {
        target: "LinkTarget",
    }
    handle_table: HandleTableLayout = "_HANDLE_TABLE" {
        code: "TableCode",
        pid: "UniqueProcessId",
    }
    /// Until Windows 7 `Object` is a pointer with flags in its low bits; since 8 the pointer is a bit field.
    handle_entry: HandleEntryLayout = "_HANDLE_TABLE_ENTRY" {
        whole,
        object: "Object",
        low: "LowValue" | "VolatileLowValue" | "ObjectPointerBits",
        access: "GrantedAccess",
        access_bits: "GrantedAccessBits",
    }
    file: FileLayout = "_FILE_OBJECT" {
        device: "DeviceObject",
        name: "FileName",
    }
    key_body: KeyBodyLayout = "_CM_KEY_BODY" {
        control_block: "KeyControlBlock",
    }
    control_block: ControlBlockLayout = "_CM_KEY_CONTROL_BLOCK" {
        parent: "ParentKcb",
        name: "NameBlock",
    }
    name_block: NameBlockLayout = "_CM_NAME_CONTROL_BLOCK" {
        compressed: "Compressed",
        len: "NameLength",
        name: "Name",
    }
    cm_hive: CmHiveLayout = "_CMHIVE" {
        hive: "Hive",
        links: "HiveList",
        file_path: "FileFullPath",
        user_path: "FileUserName",
        root_path: "HiveRootPath",
    }
    hhive: HhiveLayout = "_HHIVE" {
        signature: "Signature",
        base_block: "BaseBlock",
        storage: "Storage",
    }
    dual: DualLayout = "_DUAL" {
        whole,
        len: "Length",
        map: "Map",
        small: "SmallDir",
    }
    /// Until Windows 8.1 the address of each block; later that of its bin, and its offset there.
    map_entry: MapEntryLayout = "_HMAP_ENTRY" {
        whole,
        block: "BlockAddress",
        bin: "PermanentBinAddress",
        temporary_bin: "TemporaryBinAddress",
        block_offset: "BlockOffset",
    }
}
