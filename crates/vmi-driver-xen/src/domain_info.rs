//! What Xen says of a domain: `xen_domctl_getdomaininfo` (xen/include/public/domctl.h).
//!
//! Offsets are those of Xen 4.17 to 4.20, whose fields up to `handle` are the same (checked in the headers; run with the first and the last).

use core::fmt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// The structure has 128 bytes in Xen 4.17; this is room for what later versions append.
pub(crate) const INFO_ROOM: usize = 1024;

/// Room for one structure of any version.
#[derive(Debug)]
#[repr(C, align(8))]
pub(crate) struct RawDomainInfo([u8; INFO_ROOM]);

/// The part of the structure that is used.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Layout {
    domain: U16,
    pad1: U16,
    flags: U32,
    tot_pages: U64,
    max_pages: U64,
    outstanding_pages: U64,
    shr_pages: U64,
    paged_pages: U64,
    shared_info_frame: U64,
    cpu_time: U64,
    nr_online_vcpus: U32,
    max_vcpu_id: U32,
    ssidref: U32,
    handle: [u8; 16],
}

/// `XEN_DOMINF_*`.
const DYING: u32 = 1;
const HVM: u32 = 1 << 1;
const SHUTDOWN: u32 = 1 << 2;
const PAUSED: u32 = 1 << 3;

/// How a domain is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DomainKind {
    /// With hardware support: HVM and PVH.
    Hardware,
    /// Paravirtualised: its kernel knows machine frames, and its page tables hold them.
    Paravirtual,
}

impl fmt::Display for DomainKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hardware => "HVM or PVH",
            Self::Paravirtual => "PV",
        })
    }
}

/// What Xen says of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DomainInfo {
    /// The domain's number. A number is not used again until all others have been.
    pub id: u32,
    /// How it is run.
    pub kind: DomainKind,
    /// The UUID that the toolstack gave it.
    pub uuid: [u8; 16],
    /// Pages of 4 KiB that it has now.
    pub pages: u64,
    /// Pages that it may have.
    pub max_pages: u64,
    /// The frame of the page that it shares with Xen: a machine frame for PV domains.
    pub shared_info_frame: u64,
    /// Processor time that it has used, in nanoseconds.
    pub cpu_time: u64,
    /// vCPUs that are online.
    pub online_vcpus: u32,
    /// vCPUs that exist.
    pub vcpus: u32,
    /// Whether the toolstack has paused it, this program included.
    pub paused: bool,
    /// Whether it has shut down (also: crashed, suspended).
    pub shut_down: bool,
    /// Whether it is being destroyed.
    pub dying: bool,
}

/// Xen: `MAX_VIRT_CPUS` is 8192.
const MAX_VCPUS: u32 = 8192;

impl RawDomainInfo {
    pub(crate) fn new() -> Self {
        Self([0; INFO_ROOM])
    }

    /// The fields.
    pub(crate) fn decode(&self) -> DomainInfo {
        let layout = Layout::ref_from_prefix(&self.0).ok().map(|(layout, _)| layout);
        layout.map_or_else(DomainInfo::none, |layout| {
            let flags = layout.flags.get();
            DomainInfo {
                id: layout.domain.get().into(),
                kind: if flags & HVM != 0 { DomainKind::Hardware } else { DomainKind::Paravirtual },
                uuid: layout.handle,
                pages: layout.tot_pages.get(),
                max_pages: layout.max_pages.get(),
                shared_info_frame: layout.shared_info_frame.get(),
                cpu_time: layout.cpu_time.get(),
                online_vcpus: layout.nr_online_vcpus.get().min(MAX_VCPUS),
                // The highest number, all ones if there is none: XEN_INVALID_MAX_VCPU_ID.
                vcpus: layout.max_vcpu_id.get().wrapping_add(1).min(MAX_VCPUS),
                paused: flags & PAUSED != 0,
                shut_down: flags & SHUTDOWN != 0,
                dying: flags & DYING != 0,
            }
        })
    }
}

impl DomainInfo {
    fn none() -> Self {
        Self {
            id: 0,
            kind: DomainKind::Hardware,
            uuid: [0; 16],
            pages: 0,
            max_pages: 0,
            shared_info_frame: 0,
            cpu_time: 0,
            online_vcpus: 0,
            vcpus: 0,
            paused: false,
            shut_down: false,
            dying: false,
        }
    }
}

/// A UUID as the toolstack writes it, `b8a3...-....`.
pub(crate) fn uuid_text(uuid: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// Reads a UUID, with dashes or without.
pub(crate) fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    let dashes = text.len().saturating_sub(digits.len());
    if digits.len() != 32 || !(dashes == 0 || dashes == 4) {
        return None;
    }
    let mut uuid = [0; 16];
    for (byte, pair) in uuid.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |digit: Option<&u8>| digit.and_then(|digit| char::from(*digit).to_digit(16));
        let (high, low) = (digit(pair.first())?, digit(pair.get(1))?);
        *byte = u8::try_from(high.wrapping_mul(16).wrapping_add(low)).ok()?;
    }
    Some(uuid)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The bytes of a structure, written down by hand after domctl.h.
    fn bytes() -> RawDomainInfo {
        let mut raw = RawDomainInfo::new();
        let mut put = |at: usize, value: &[u8]| raw.0[at..at + value.len()].copy_from_slice(value);
        put(0, &7u16.to_le_bytes());
        put(4, &0x0000_010au32.to_le_bytes()); // hap, paused, hvm
        put(8, &0x8004u64.to_le_bytes());
        put(16, &0x8400u64.to_le_bytes());
        put(48, &0xfefffu64.to_le_bytes());
        put(56, &123_456u64.to_le_bytes());
        put(64, &1u32.to_le_bytes());
        put(68, &3u32.to_le_bytes());
        put(76, &[0xab; 16]);
        raw
    }

    #[test]
    fn fields_lie_where_the_header_says() {
        let info = bytes().decode();
        assert_eq!((info.id, info.kind, info.pages, info.max_pages), (7, DomainKind::Hardware, 0x8004, 0x8400));
        assert_eq!((info.shared_info_frame, info.cpu_time, info.online_vcpus, info.vcpus), (0xfefff, 123_456, 1, 4));
        assert_eq!((info.paused, info.shut_down, info.dying, info.uuid), (true, false, false, [0xab; 16]));
    }

    #[test]
    fn a_domain_without_vcpus_has_none() {
        let mut raw = bytes();
        raw.0[68..72].fill(0xff);
        assert_eq!(raw.decode().vcpus, 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded(start in proptest::collection::vec(any::<u8>(), 0..INFO_ROOM)) {
            let mut raw = RawDomainInfo::new();
            raw.0[..start.len()].copy_from_slice(&start);
            let info = raw.decode();
            prop_assert!(info.vcpus <= MAX_VCPUS && info.online_vcpus <= MAX_VCPUS);
        }

        #[test]
        fn a_uuid_survives_both_ways(uuid: [u8; 16]) {
            prop_assert_eq!(parse_uuid(&uuid_text(&uuid)), Some(uuid));
            prop_assert_eq!(parse_uuid(&uuid_text(&uuid).replace('-', "").to_uppercase()), Some(uuid));
        }

        #[test]
        fn no_text_is_too_odd_for_a_uuid(text in "\\PC*") {
            let _ = parse_uuid(&text);
        }
    }
}
