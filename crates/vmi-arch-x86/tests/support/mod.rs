//! Guest-physical memory for page-table tests, written word by word. It knows page-table formats only through the numbers that the
//! tests write down.
#![allow(dead_code, clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)] // no test uses all of it

use std::collections::BTreeMap;

use vmi_arch_x86::{PagingMode, X86};
use vmi_core::synthetic::SyntheticDriver;
use vmi_core::{ErrorKind, Fault, FaultKind, Paging, PhysAddr, Result, Translation, VirtAddr, Vmi};

pub(crate) const PRESENT: u64 = 1;
pub(crate) const WRITABLE: u64 = 2;
pub(crate) const USER: u64 = 4;
pub(crate) const LARGE: u64 = 0x80;
pub(crate) const NX: u64 = 1 << 63;
/// Present, writable and for user mode.
pub(crate) const ALL: u64 = 7;

/// A machine whose memory is the pages that something was written to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pages(BTreeMap<u64, Vec<u8>>);

impl Pages {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn put64(mut self, at: u64, value: u64) -> Self {
        self.put(at, &value.to_le_bytes());
        self
    }

    pub(crate) fn put32(mut self, at: u64, value: u64) -> Self {
        self.put(at, &u32::try_from(value).unwrap().to_le_bytes());
        self
    }

    pub(crate) fn put(&mut self, at: u64, bytes: &[u8]) {
        let page = self.0.entry(at & !0xfff).or_insert_with(|| vec![0; 4096]);
        let offset = (at & 0xfff) as usize;
        page[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn get(&self, at: u64, len: usize) -> Option<&[u8]> {
        self.0.get(&(at & !0xfff))?.get((at & 0xfff) as usize..)?.get(..len)
    }

    pub(crate) fn vmi(self) -> Vmi<SyntheticDriver<X86>> {
        Vmi::new(SyntheticDriver::with_arch(self.0.into_iter().map(|(at, bytes)| (PhysAddr::new(at), bytes))))
    }

    pub(crate) fn translate(&self, mode: PagingMode, root: u64, at: u64) -> Result<Translation> {
        mode.translate(&self.clone().vmi(), PhysAddr::new(root), VirtAddr::new(at))
    }

    /// The physical address, or 0xdead.
    pub(crate) fn physical(&self, mode: PagingMode, root: u64, at: u64) -> u64 {
        self.translate(mode, root, at).map_or(0xdead, |to| to.at.get())
    }

    pub(crate) fn fault(&self, mode: PagingMode, root: u64, at: u64) -> Fault {
        let error = self.translate(mode, root, at).unwrap_err();
        match error.kind() {
            ErrorKind::Fault(fault) => *fault,
            other => panic!("{other}"),
        }
    }

    /// The level and kind of the fault.
    pub(crate) fn fault_kind(&self, mode: PagingMode, root: u64, at: u64) -> (u8, FaultKind) {
        let fault = self.fault(mode, root, at);
        (fault.level, fault.kind)
    }
}
