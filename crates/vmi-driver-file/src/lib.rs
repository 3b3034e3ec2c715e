//! Memory images for the vmi workspace: files that hold the frozen memory of a machine.
//!
//! [`ImageDriver::open`] finds out from the content what a file is, maps it, and shows it as a
//! [`Driver`](vmi_core::Driver). Nothing is read as a whole. Of a file packed with zstd, gzip or xz in blocks that the container tells, what is read is
//! unpacked; any other, also of lz4, bzip2 and lzop, is unpacked once into an unnamed temporary file that is gone when the driver is.
//!
//! | format | modules | what it brings beside memory |
//! |---|---|---|
//! | raw, optionally with a map | `format/raw.rs` | nothing |
//! | LiME, and AVML version 1, which is the same | `format/lime.rs` | nothing |
//! | AVML version 2, also mixed with version 1 | `format/avml.rs` | nothing |
//! | ELF core of QEMU, kdump (`/proc/vmcore`), VirtualBox | `format/elf/` | registers, VMCOREINFO |
//! | kdump's compressed format (makedumpfile, QEMU) and diskdump | `format/kdump/` | registers, VMCOREINFO |
//! | either of the last two flattened (makedumpfile `-F`, QEMU) | `flattened.rs` | as these |
//! | QEMU migration stream, with mapped-ram or without | `format/qemu/` | registers |
//! | QEMU snapshot in a qcow2 disk image (`savevm`, `virsh snapshot-create`) | `format/qcow2/` | registers |
//! | libvirt save | `format/libvirt_save.rs` | registers |
//! | Windows crash dump: full, kernel, bitmap, active, live; triage (virtual memory only) | `format/windows_dump/` | registers of one processor, the header |
//! | Windows 8 to 11 hibernation file | `format/hiberfil/` | nothing |
//! | Xen core (`xl dump-core`) | `format/xen_core/` | registers |
//! | VMware: `.vmss`, `.vmsn`, `.vmem` | `format/vmware/` | registers |
//! | Firecracker snapshots | `format/firecracker.rs` | registers |
//! | Cloud Hypervisor snapshots | `format/cloud_hypervisor/` | registers |
//!
//! Others are recognised and refused with the advice what to do ([`OpenError::NotSupported`]).
//! [`mod@write`] makes images of any machine.
//!
//! ```
//! use vmi_core::{Memory, PhysAddr, Vmi};
//! use vmi_driver_file::{Format, ImageDriver};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("guest.raw");
//! # std::fs::write(&path, vec![7; 8192])?;
//! let vmi = Vmi::new(ImageDriver::open(&path)?);
//! assert_eq!(vmi.driver().format(), Format::Raw);
//! assert_eq!(vmi.read::<u8>(PhysAddr::new(0x1000))?, 7);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic))]

mod arranged;
mod claims;
mod directory;
mod driver;
mod error;
mod flattened;
mod format;
mod image;
mod layers;
mod loaded;
mod machine_frames;
mod options;
mod packed_memory;
mod raw_map;
mod sniff;
mod source;
mod sparse;
mod unpack;
pub mod write;

pub use driver::ImageDriver;
pub use error::{FormatError, OpenError};
pub use options::OpenOptions;
pub use raw_map::{RawMap, RawMapError};
pub use sniff::Format;
pub use unpack::Compression;
