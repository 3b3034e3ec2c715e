//! The targets.

mod demo;
mod gdb;
mod images;
mod linux;
mod monitor;
mod paging;
mod patched;
mod pmemaccess;
mod qmp;
mod snapshots;
mod symbols;
mod windows;
mod xen;

use crate::Target;

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "page_walk", about: "page walks of every mode over hostile tables", run: paging::walk },
    Target { name: "mappings", about: "all mappings of hostile page tables", run: paging::mappings },
    Target { name: "descriptors", about: "descriptor tables and gates", run: paging::descriptors },
    Target { name: "raw", about: "raw images with a map", run: images::raw },
    Target { name: "elf", about: "ELF core images", run: images::open },
    Target { name: "lime", about: "LiME images", run: images::open },
    Target { name: "avml", about: "AVML images, version 2, also mixed with LiME", run: images::open },
    Target { name: "windows_dump", about: "Windows crash dumps", run: images::open },
    Target { name: "hiberfil", about: "Windows hibernation files", run: images::open },
    Target { name: "vmware", about: "VMware's saved states, with the memory in them or beside them", run: snapshots::vmware },
    Target { name: "xen_core", about: "cores of Xen", run: images::open },
    Target { name: "firecracker", about: "state files of Firecracker beside a memory file", run: snapshots::firecracker },
    Target {
        name: "cloud_hypervisor",
        about: "state.json of Cloud Hypervisor beside its memory",
        run: snapshots::cloud_hypervisor,
    },
    Target {
        name: "packed",
        about: "zstd, gzip, xz, lz4 and bzip2 around images, as a whole and block by block",
        run: images::open,
    },
    Target { name: "kdump", about: "kdump's compressed format", run: images::open },
    Target { name: "kdump_split", about: "kdump's compressed format in two parts", run: snapshots::kdump_split },
    Target { name: "flattened", about: "makedumpfile's flattened form", run: images::open },
    Target { name: "qemu_stream", about: "QEMU's migration streams", run: images::open },
    Target { name: "mapped_ram", about: "QEMU's migration streams with memory at fixed places", run: images::open },
    Target { name: "qcow2", about: "snapshots in qcow2 disk images", run: images::open },
    Target { name: "libvirt_save", about: "libvirt's saved domains", run: images::open },
    Target { name: "lzop", about: "lzop around images", run: images::open },
    Target { name: "kallsyms", about: "the kernel's symbol table in its own memory", run: symbols::kallsyms },
    Target { name: "btf", about: "BTF type information", run: symbols::btf },
    Target { name: "isf", about: "Volatility symbol files", run: symbols::isf },
    Target { name: "system_map", about: "System.map", run: symbols::system_map },
    Target { name: "dwarf", about: "vmlinux with DWARF", run: symbols::dwarf },
    Target { name: "vmcoreinfo", about: "the note VMCOREINFO, and the page tables it names", run: linux::vmcoreinfo },
    Target { name: "shape", about: "inference of structures on the demo image with patches", run: linux::shape },
    Target { name: "attach", about: "everything else of Linux on the demo image with patches", run: linux::attach },
    Target { name: "windows_pe", about: "PE files over guest memory", run: windows::pe_image },
    Target {
        name: "windows_symbols",
        about: "program databases, symbol files and cache files of Windows",
        run: windows::symbols,
    },
    Target { name: "windows_cabinet", about: "cabinets, as symbol stores pack files", run: windows::cabinet },
    Target { name: "windows_texts", about: "symbol paths and command lines", run: windows::texts },
    Target { name: "windows_kdbg", about: "the debugger's data block, in clear and encoded", run: windows::debugger_data },
    Target { name: "windows_hive", about: "registry hives", run: windows::hive },
    Target { name: "windows_attach", about: "everything of Windows on a synthetic machine with patches", run: windows::attach },
    Target { name: "pmemaccess", about: "the answers of a hostile pmemaccess server", run: pmemaccess::pmemaccess },
    Target { name: "gdb_packets", about: "a stream of gdb's remote protocol", run: gdb::packets },
    Target { name: "gdb_replies", about: "stop replies, features and thread lists of a gdb stub", run: gdb::replies },
    Target { name: "memory_tree", about: "the texts of `info mtree -f` and `gpa2hva`", run: monitor::memory_tree },
    Target { name: "human_registers", about: "the text of `info registers -a`", run: monitor::registers },
    Target { name: "gdb_description", about: "target descriptions of a gdb stub", run: gdb::description },
    Target { name: "gdb_session", about: "a whole session with a hostile gdb stub", run: gdb::session },
    Target { name: "qmp", about: "the answers of a hostile QMP server, and the memory that it tells of", run: qmp::qmp },
    Target { name: "qemu_command_line", about: "the command lines of QEMU processes", run: qmp::command_line },
    Target { name: "xen_registers", about: "save records and vCPU contexts of Xen, read and set", run: xen::registers },
    Target { name: "xen_events", about: "requests of Xen's event ring, and their answers", run: xen::events },
    Target { name: "xen_ring", about: "Xen's event ring, whose other side does what it likes", run: xen::ring },
    Target { name: "xen_p2m", about: "the list of machine frames of a PV domain", run: xen::p2m },
    Target { name: "xen_texts", about: "names in xenstore, UUIDs, and what a lock file says was left", run: xen::texts },
];

/// Splits a fixed head off.
fn head<const N: usize>(data: &[u8]) -> Option<([u8; N], &[u8])> {
    data.split_first_chunk::<N>().map(|(head, rest)| (*head, rest))
}
