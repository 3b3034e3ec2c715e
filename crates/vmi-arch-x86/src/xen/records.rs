//! The save records of a domain with hardware support: `hvm_save_descriptor`, then as many bytes as it tells, until the record `END` (Xen,
//! xen/include/public/hvm/save.h).

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `HVM_SAVE_CODE(END)` and so on (xen/include/public/arch-x86/hvm/save.h).
pub(super) const END: u16 = 0;
pub(super) const HEADER: u16 = 1;
pub(super) const CPU: u16 = 2;
pub(super) const LAPIC_REGISTERS: u16 = 6;
pub(super) const MTRR: u16 = 14;
pub(super) const XSAVE: u16 = 16;

/// The head of a record.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Descriptor {
    pub(super) code: U16,
    /// Of per-vCPU records the vCPU.
    pub(super) instance: U16,
    pub(super) len: U32,
}

/// A record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record<'b> {
    pub(super) code: u16,
    pub(super) instance: u16,
    pub(super) content: &'b [u8],
}

/// The records do not come to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the save records of the domain end in the midst of one, at byte {at} of {len}")]
pub(super) struct Truncated {
    /// Where the last record starts.
    pub(super) at: usize,
    pub(super) len: usize,
}

/// The records, up to `END`. After an error comes nothing more.
pub(super) fn records(bytes: &[u8]) -> impl Iterator<Item = Result<Record<'_>, Truncated>> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let here = rest.take()?;
        let truncated = Truncated { at: bytes.len().saturating_sub(here.len()), len: bytes.len() };
        let Ok((descriptor, behind)) = Descriptor::ref_from_prefix(here) else { return Some(Err(truncated)) };
        let (code, instance) = (descriptor.code.get(), descriptor.instance.get());
        if code == END {
            return None;
        }
        let parts = usize::try_from(descriptor.len.get()).ok().and_then(|len| behind.split_at_checked(len));
        let Some((content, next)) = parts else { return Some(Err(truncated)) };
        rest = Some(next);
        Some(Ok(Record { code, instance, content }))
    })
}

/// Appends a record.
pub(super) fn append(bytes: &mut Vec<u8>, code: u16, instance: u16, content: &[u8]) {
    // Contents are parts of a buffer of at most 16 MiB.
    let len = U32::new(content.len() as u32);
    bytes.extend_from_slice(Descriptor { code: code.into(), instance: instance.into(), len }.as_bytes());
    bytes.extend_from_slice(content);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_record_that_is_cut_off_is_an_error() {
        let mut bytes = Vec::new();
        append(&mut bytes, CPU, 3, &[1, 2, 3]);
        append(&mut bytes, END, 0, &[]);
        let whole = Record { code: CPU, instance: 3, content: &[1, 2, 3] };
        assert_eq!(records(&bytes).collect::<Vec<_>>(), [Ok(whole)]);
        // Without the end, and within the record.
        assert_eq!(records(&bytes[..11]).collect::<Vec<_>>(), [Ok(whole), Err(Truncated { at: 11, len: 11 })]);
        assert_eq!(records(&bytes[..10]).collect::<Vec<_>>(), [Err(Truncated { at: 0, len: 10 })]);
    }

    proptest! {
        #[test]
        fn records_survive_both_ways(written in proptest::collection::vec((1..30u16, any::<u16>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..20)) {
            let mut bytes = Vec::new();
            for (code, instance, content) in &written {
                append(&mut bytes, *code, *instance, content);
            }
            append(&mut bytes, END, 0, &[]);
            let read: Vec<_> = records(&bytes).map(|record| record.map(|r| (r.code, r.instance, r.content.to_vec()))).collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(read, written);
        }

        #[test]
        fn any_bytes_come_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert!(records(&bytes).count() <= bytes.len() / 8 + 1);
        }
    }
}
