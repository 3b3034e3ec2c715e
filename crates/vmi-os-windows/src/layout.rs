//! Where the members of the kernel's structures are, resolved once at attach.
//!
//! Kernels differ by which members they have, and that is what decides here, never a version number.

vmi_core::kernel_layout! {
    /// An object of type process.
    process: ProcessLayout = "_EPROCESS" {
        links: "ActiveProcessLinks",
        pid: "UniqueProcessId",
        parent: "InheritedFromUniqueProcessId",
        name: "ImageFileName",
        page_table: "Pcb.DirectoryTableBase",
    }
}
