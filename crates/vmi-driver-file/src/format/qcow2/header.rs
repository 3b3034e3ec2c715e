//! The disk image's header.

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::FormatError;
use crate::source::Source;

const MAGIC: &[u8; 4] = b"QFI\xfb";

/// What versions 2 and 3 have in common.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 4],
    version: U32,
    backing_file_offset: U64,
    backing_file_size: U32,
    cluster_bits: U32,
    size: U64,
    crypt_method: U32,
    l1_size: U32,
    l1_table_offset: U64,
    refcount_table_offset: U64,
    refcount_table_clusters: U32,
    snapshots: U32,
    snapshots_offset: U64,
}

/// Bits of version 3 that a reader must know. The others, `dirty` and `corrupt` and the packing of disk clusters, change nothing for a snapshot's state.
mod incompatible {
    pub(super) const CORRUPT: u64 = 1 << 1;
    pub(super) const EXTERNAL_DATA: u64 = 1 << 2;
    pub(super) const EXTENDED_L2: u64 = 1 << 4;
    pub(super) const KNOWN: u64 = (1 << 5) - 1;
}

/// Where the features are, and the encryption.
const INCOMPATIBLE: u64 = 72;
const CRYPT_METHOD: u64 = 32;
/// QEMU's own limits: 512 bytes to 2 MiB; with subclusters, of which a cluster has 32, not less than 16 KiB.
const CLUSTER_BITS: core::ops::RangeInclusive<u32> = 9..=21;
const LEAST_EXTENDED: u32 = 14;

/// Whether `bytes` start with a header of version 2 or 3.
pub(crate) fn matches(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC) && matches!(bytes.get(4..8), Some([0, 0, 0, 2 | 3]))
}

/// How the disk image is laid out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disk {
    pub(super) cluster_bits: u32,
    /// Of the disk now, in bytes.
    pub(super) size: u64,
    /// Whether entries of the second level say for each 32nd of a cluster whether it is there.
    pub(super) extended: bool,
    pub(super) snapshots: u32,
    pub(super) snapshots_at: u64,
}

impl Disk {
    /// Bytes of an entry of the second level.
    pub(super) fn entry_size(&self) -> usize {
        if self.extended { 16 } else { 8 }
    }

    /// Reads the header.
    ///
    /// # Errors
    /// What of the disk is not read here, with what to do.
    pub(super) fn read(source: &Source) -> Result<Self, FormatError> {
        const WHAT: &str = "the header";
        let malformed = |offset, what: String| Err(FormatError::Malformed { offset, what });
        let header: Header = source.read(0, WHAT)?;
        let features = match header.version.get() {
            2 => 0,
            _ => source.read::<U64>(INCOMPATIBLE, WHAT)?.get(),
        };
        let (cluster_bits, extended) = (header.cluster_bits.get(), features & incompatible::EXTENDED_L2 != 0);
        if features & !incompatible::KNOWN != 0 {
            return malformed(INCOMPATIBLE, format!("unknown features ({features:#x})"));
        }
        if features & incompatible::EXTERNAL_DATA != 0 {
            return malformed(
                INCOMPATIBLE,
                "the disk's data is in another file, with which there are no snapshots in it".to_owned(),
            );
        }
        if features & incompatible::CORRUPT != 0 {
            tracing::warn!("the disk image is marked as corrupt");
        }
        if header.crypt_method.get() != 0 {
            let advice = "restore it with `loadvm` and write the memory with `dump-guest-memory`";
            return malformed(CRYPT_METHOD, format!("the disk is encrypted, and the state of its snapshots with it: {advice}"));
        }
        if !CLUSTER_BITS.contains(&cluster_bits) || extended && cluster_bits < LEAST_EXTENDED {
            return malformed(20, format!("clusters of 2^{cluster_bits} bytes"));
        }
        Ok(Self {
            cluster_bits,
            size: header.size.get(),
            extended,
            snapshots: header.snapshots.get(),
            snapshots_at: header.snapshots_offset.get(),
        })
    }
}
