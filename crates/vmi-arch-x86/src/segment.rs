//! Segment registers and what their descriptors say.

use core::fmt;

use bitflags::bitflags;

/// The segment registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // they carry their own names
pub struct Segments {
    pub cs: Option<Segment>,
    pub ds: Option<Segment>,
    pub es: Option<Segment>,
    pub fs: Option<Segment>,
    pub gs: Option<Segment>,
    pub ss: Option<Segment>,
    /// Local descriptor table.
    pub ldt: Option<Segment>,
    /// Task state segment.
    pub tr: Option<Segment>,
}

/// A segment: the visible and the hidden part of a segment register, or what a descriptor says of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Index in the descriptor table (bits 15 to 3), table (bit 2) and requested privilege (bits 1 and 0).
    pub selector: u16,
    /// Linear address of the segment's first byte. 64-bit code sees it only in FS, GS, LDT and TR.
    pub base: u64,
    /// Last valid offset in bytes.
    pub limit: u32,
    /// Type and access; `None` if the source does not tell.
    pub attributes: Option<SegmentAttributes>,
}

bitflags! {
    /// Type and access of a segment, laid out as in the "access rights" of a virtual-machine control structure (Intel SDM, volume 3,
    /// table 26-2). The names of the low four bits are those of code and data segments.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct SegmentAttributes: u16 {
        /// The processor has loaded the segment.
        const ACCESSED = 1;
        /// Data may be written; code may be read.
        const WRITABLE = 1 << 1;
        /// Data grows downward; code may be called from less privileged code.
        const EXPAND_DOWN = 1 << 2;
        /// The segment holds code, not data.
        const CODE = 1 << 3;
        /// The segment holds code or data (S); else it is a system segment or a gate.
        const CODE_OR_DATA = 1 << 4;
        /// The privilege level that is needed (DPL), two bits: [`SegmentAttributes::privilege_level`].
        const PRIVILEGE = 3 << 5;
        /// The segment is present.
        const PRESENT = 1 << 7;
        /// Free for software.
        const AVAILABLE = 1 << 12;
        /// 64-bit code (L).
        const LONG = 1 << 13;
        /// 32-bit rather than 16-bit operations (D/B).
        const DEFAULT_32 = 1 << 14;
        /// The limit in the descriptor counts pages, not bytes.
        const GRANULARITY = 1 << 15;
    }
}

/// What a segment is, by the type in its [`SegmentAttributes`] (Intel SDM, volume 3, sections 3.4.5.1 and 3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SegmentKind {
    /// Data or stack.
    Data,
    /// Code.
    Code,
    /// A local descriptor table.
    LocalDescriptorTable,
    /// A task state segment of a 16-bit task.
    TaskState16,
    /// A task state segment, 64-bit in long mode and 32-bit elsewhere.
    TaskState,
    /// Any other type; its number.
    Other(u8),
}

impl SegmentAttributes {
    /// From the second half of a descriptor, as QEMU keeps it.
    pub const fn from_descriptor(high: u32) -> Self {
        Self::from_access_rights(high >> 8)
    }

    /// From the form that virtual-machine control structures, KVM, Xen and VirtualBox share.
    pub const fn from_access_rights(rights: u32) -> Self {
        Self::from_bits_truncate(rights as u16)
    }

    /// The privilege level that is needed to use the segment (DPL), 0 to 3.
    pub const fn privilege_level(self) -> u8 {
        (self.bits() >> 5) as u8 & 3
    }

    /// What kind of segment it is.
    pub const fn kind(self) -> SegmentKind {
        match (self.contains(Self::CODE_OR_DATA), self.type_number()) {
            (true, 0..8) => SegmentKind::Data,
            (true, _) => SegmentKind::Code,
            (false, 2) => SegmentKind::LocalDescriptorTable,
            (false, 1 | 3) => SegmentKind::TaskState16,
            (false, 9 | 11) => SegmentKind::TaskState,
            (false, other) => SegmentKind::Other(other),
        }
    }

    /// The type, bits 3 to 0.
    pub(crate) const fn type_number(self) -> u8 {
        self.bits() as u8 & 0xf
    }
}

/// Selector, base, limit and attributes.
impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x} base {:016x} limit {:08x}", self.selector, self.base, self.limit)?;
        let Some(attributes) = self.attributes else { return Ok(()) };
        write!(f, " {:?} dpl {}", attributes.kind(), attributes.privilege_level())
    }
}
