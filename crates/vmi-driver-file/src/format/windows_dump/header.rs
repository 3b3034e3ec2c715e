//! The header of a dump: `DUMP_HEADER64` and `DUMP_HEADER32`, as Microsoft documents them with the Win32 API.

use vmi_arch_x86::Registers;
use vmi_core::{PhysAddr, VirtAddr, WindowsDump};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::context;
use super::runs::Run;
use crate::FormatError;
use crate::source::Source;

/// What a 64-bit dump starts with.
pub(super) const MAGIC_64: &[u8] = b"PAGEDU64";
/// What a 32-bit dump starts with.
pub(super) const MAGIC_32: &[u8] = b"PAGEDUMP";

/// Machine types of PE files.
const AMD64: u32 = 0x8664;
const I386: u32 = 0x14c;

/// The writer fills the header with this before it sets its fields, and sets not all.
const FILLER: u64 = u64::from_le_bytes(*b"PAGEPAGE");
const FILLER_32: u32 = u32::from_le_bytes(*b"PAGE");

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header64 {
    magic: [u8; 8],
    major_version: U32,
    minor_version: U32,
    directory_table_base: U64,
    pfn_database: U64,
    loaded_modules: U64,
    active_processes: U64,
    machine: U32,
    processors: U32,
    bug_check: U32,
    padding_1: U32,
    bug_check_parameters: [U64; 4],
    version_user: [u8; 32],
    debugger_data: U64,
    run_count: U32,
    padding_2: U32,
    page_count: U64,
    runs: [[U64; 2]; 42],
    padding_3: [u8; 16],
    context: [u8; 3000],
    exception_code: U32,
    exception_flags: U32,
    exception_record: U64,
    exception_address: U64,
    exception_rest: [u8; 128],
    dump_type: U32,
    padding_4: U32,
    required_space: U64,
    system_time: U64,
    comment: [u8; 128],
    up_time: U64,
    rest: [u8; 0xfc8],
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header32 {
    magic: [u8; 8],
    major_version: U32,
    minor_version: U32,
    directory_table_base: U32,
    pfn_database: U32,
    loaded_modules: U32,
    active_processes: U32,
    machine: U32,
    processors: U32,
    bug_check: U32,
    bug_check_parameters: [U32; 4],
    version_user: [u8; 32],
    pae: u8,
    secondary_version: u8,
    spare: [u8; 2],
    debugger_data: U32,
    run_count: U32,
    page_count: U32,
    runs: [[U32; 2]; 86],
    padding_1: [u8; 4],
    context: [u8; 1200],
    exception_code: U32,
    exception_flags: U32,
    exception_record: U32,
    exception_address: U32,
    exception_rest: [u8; 64],
    comment: [u8; 128],
    reserved_1: [u8; 0x6e8],
    dump_type: U32,
    fields: [u8; 20],
    required_space: U64,
    reserved_2: [u8; 16],
    up_time: U64,
    system_time: U64,
    rest: [u8; 56],
}

const _: () = assert!(size_of::<Header64>() == 0x2000 && size_of::<Header32>() == 0x1000);

/// What both kinds of header tell.
pub(super) struct Header {
    /// What goes to the layers above. Its kind is not set yet.
    pub(super) note: WindowsDump,
    /// The number of the kind.
    pub(super) dump_type: u32,
    /// The runs of pages of a full dump. Other kinds have no valid count.
    pub(super) run_count: u32,
    /// As many as the header has room for.
    pub(super) runs: Vec<Run>,
    /// Of the processor that wrote the dump.
    pub(super) registers: Option<Registers>,
    /// How long the header is: where memory, or the header of its bitmap, begins.
    pub(super) len: u64,
}

/// Reads the header of either kind.
pub(super) fn read(source: &Source) -> Result<Header, FormatError> {
    let header = if source.head(8)?.starts_with(MAGIC_64) {
        long(&source.read(0, "the header")?)
    } else {
        short(&source.read(0, "the header")?)
    };
    let machine = header.note.machine;
    match (header.note.is_64_bit, machine) {
        (true, AMD64) | (false, I386) => Ok(header),
        (_, machine) => {
            let what = match machine {
                0xaa64 => "the dump of an ARM64 machine, which is not read: only x86 is".to_owned(),
                0x200 => "the dump of an Itanium machine, which is not read: only x86 is".to_owned(),
                _ => format!("machine type {machine:#x} is not that of x86 in this kind of dump"),
            };
            Err(FormatError::Malformed { offset: if header.note.is_64_bit { 0x30 } else { 0x20 }, what })
        }
    }
}

fn long(header: &Header64) -> Header {
    let mut note = WindowsDump::default();
    note.is_64_bit = true;
    note.directory_table_base = PhysAddr::new(header.directory_table_base.get());
    note.pfn_database = address(header.pfn_database);
    note.loaded_modules = address(header.loaded_modules);
    note.active_processes = address(header.active_processes);
    note.debugger_data = address(header.debugger_data);
    note.machine = header.machine.get();
    note.processors = header.processors.get();
    note.major_version = header.major_version.get();
    note.build = header.minor_version.get();
    note.bug_check = header.bug_check.get();
    note.bug_check_parameters = header.bug_check_parameters.map(U64::get);
    note.exception_code = header.exception_code.get();
    note.exception_address = VirtAddr::new(header.exception_address.get());
    note.system_time = filled(header.system_time);
    note.up_time = filled(header.up_time);
    Header {
        note,
        dump_type: header.dump_type.get(),
        run_count: header.run_count.get(),
        runs: header.runs.iter().map(|[first, count]| Run { first: first.get(), count: count.get() }).collect(),
        registers: context::long(&header.context),
        len: size_of::<Header64>() as u64,
    }
}

fn short(header: &Header32) -> Header {
    let mut note = WindowsDump::default();
    note.pae = Some(header.pae == 1);
    note.directory_table_base = PhysAddr::new(header.directory_table_base.get().into());
    note.pfn_database = address_32(header.pfn_database);
    note.loaded_modules = address_32(header.loaded_modules);
    note.active_processes = address_32(header.active_processes);
    note.debugger_data = address_32(header.debugger_data);
    note.machine = header.machine.get();
    note.processors = header.processors.get();
    note.major_version = header.major_version.get();
    note.build = header.minor_version.get();
    note.bug_check = header.bug_check.get();
    note.bug_check_parameters = header.bug_check_parameters.map(|parameter| parameter.get().into());
    note.exception_code = header.exception_code.get();
    note.exception_address = VirtAddr::new(header.exception_address.get().into());
    note.system_time = filled(header.system_time);
    note.up_time = filled(header.up_time);
    Header {
        note,
        dump_type: header.dump_type.get(),
        run_count: header.run_count.get(),
        runs: header.runs.iter().map(|[first, count]| Run { first: first.get().into(), count: count.get().into() }).collect(),
        registers: context::short(&header.context),
        len: size_of::<Header32>() as u64,
    }
}

/// A field, if the writer has set it.
fn filled(field: U64) -> Option<u64> {
    Some(field.get()).filter(|&value| value != FILLER && value != 0)
}

fn address(field: U64) -> Option<VirtAddr> {
    filled(field).map(VirtAddr::new)
}

fn address_32(field: U32) -> Option<VirtAddr> {
    Some(field.get()).filter(|&value| value != FILLER_32 && value != 0).map(|value| VirtAddr::new(value.into()))
}
