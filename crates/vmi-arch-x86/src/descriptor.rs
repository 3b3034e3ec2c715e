//! Descriptor tables: GDT, LDT and IDT (Intel SDM, volume 3, sections 3.4.5, 3.5, 5.8.3, 6.11 and 6.14.1).

use vmi_core::{Error, Memory, Result, VirtAddr};

use crate::{PagingMode, Segment, SegmentAttributes, Table};

/// Vectors that the processor has.
const VECTORS: u16 = 256;

/// An entry of a GDT or LDT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// Code, data, task state or local descriptor table, as a segment register would hold it; the selector is that of the entry in a
    /// GDT, with requested privilege 0.
    Segment(Segment),
    /// A call or task gate.
    Gate(Gate),
}

/// A gate: an entry point into other code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Its index in the table: of an IDT, the vector.
    pub index: u16,
    /// What passing through it does.
    pub kind: GateKind,
    /// Width of the code behind it in bits: 16, 32 or 64; 0 for a task gate, which leads to a task of any width.
    pub bits: u8,
    /// The code segment, or the task state segment of a task gate.
    pub selector: u16,
    /// Where execution goes on in that segment; zero for a task gate.
    pub offset: VirtAddr,
    /// The least privilege level that may pass by an instruction (DPL), 0 to 3.
    pub privilege_level: u8,
    /// Whether the gate is present.
    pub present: bool,
    /// The entry of the interrupt stack table that is used, 1 to 7; 0 for none. Only in long mode.
    pub stack: u8,
}

/// What kind of gate it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GateKind {
    /// A far call to more privileged code.
    Call,
    /// A task switch.
    Task,
    /// An interrupt handler, which starts with interrupts disabled.
    Interrupt,
    /// A trap handler, which leaves interrupts as they are.
    Trap,
}

impl Gate {
    /// Decodes the first half (in long mode) or the whole of a gate; `high` is the second half. `None` if the type is not that of a gate.
    fn decode(index: u16, low: u64, high: u64, long: bool) -> Option<Self> {
        let attributes = SegmentAttributes::from_descriptor((low >> 32) as u32);
        if attributes.contains(SegmentAttributes::CODE_OR_DATA) {
            return None;
        }
        let (kind, bits) = match (long, attributes.type_number()) {
            (false, 0x4) => (GateKind::Call, 16),
            (false, 0x5) => (GateKind::Task, 0),
            (false, 0x6) => (GateKind::Interrupt, 16),
            (false, 0x7) => (GateKind::Trap, 16),
            (false, 0xc) => (GateKind::Call, 32),
            (false, 0xe) => (GateKind::Interrupt, 32),
            (false, 0xf) => (GateKind::Trap, 32),
            (true, 0xc) => (GateKind::Call, 64),
            (true, 0xe) => (GateKind::Interrupt, 64),
            (true, 0xf) => (GateKind::Trap, 64),
            _ => return None,
        };
        let offset = match bits {
            0 => 0,
            16 => low & 0xffff,
            32 => low & 0xffff | low >> 32 & 0xffff_0000,
            _ => low & 0xffff | low >> 32 & 0xffff_0000 | high << 32,
        };
        let has_stack = long && kind != GateKind::Call;
        Some(Self {
            index,
            kind,
            bits,
            selector: (low >> 16) as u16,
            offset: VirtAddr::new(offset),
            privilege_level: attributes.privilege_level(),
            present: attributes.contains(SegmentAttributes::PRESENT),
            stack: if has_stack { (low >> 32) as u8 & 7 } else { 0 },
        })
    }
}

/// Decodes a segment descriptor; `high` is the second half of a system descriptor in long mode, else 0.
fn segment(index: u16, low: u64, high: u64) -> Segment {
    let attributes = SegmentAttributes::from_descriptor((low >> 32) as u32);
    let limit = (low & 0xffff | low >> 32 & 0xf_0000) as u32;
    Segment {
        selector: index << 3,
        base: low >> 16 & 0xff_ffff | low >> 32 & 0xff00_0000 | high << 32,
        limit: if attributes.contains(SegmentAttributes::GRANULARITY) { limit << 12 | 0xfff } else { limit },
        attributes: Some(attributes),
    }
}

impl Table {
    /// The entries of this GDT or LDT that are not empty, in order; at most 8192. `memory` is the address space that holds the
    /// table, `mode` its paging mode: in long mode system descriptors have 16 bytes.
    ///
    /// # Errors
    /// An item is an error where an entry cannot be read ([`Memory::read_into`]), or is cut off by the limit
    /// ([`ErrorKind::Corrupt`](vmi_core::ErrorKind::Corrupt)). The iterator goes on with the next entry.
    pub fn descriptors<M: Memory<Addr = VirtAddr>>(
        self,
        memory: &M,
        mode: PagingMode,
    ) -> impl Iterator<Item = Result<Descriptor>> {
        let mut next = 0;
        core::iter::from_fn(move || {
            while next < self.slots() {
                let index = next;
                next = next.saturating_add(1);
                let low = match self.slot(memory, index) {
                    Ok(0) => continue,
                    Ok(low) => low,
                    Err(error) => return Some(Err(error)),
                };
                let attributes = SegmentAttributes::from_descriptor((low >> 32) as u32);
                let is_system = !attributes.contains(SegmentAttributes::CODE_OR_DATA);
                let high = if mode.is_long() && is_system {
                    next = next.saturating_add(1);
                    match self.slot(memory, index.saturating_add(1)) {
                        Ok(high) => high,
                        Err(error) => return Some(Err(error)),
                    }
                } else {
                    0
                };
                let gate = Gate::decode(index, low, high, mode.is_long());
                return Some(Ok(gate.map_or_else(|| Descriptor::Segment(segment(index, low, high)), Descriptor::Gate)));
            }
            None
        })
    }

    /// The gates of this IDT that are not empty, in order; at most 256. `memory` is the address space that holds the table,
    /// `mode` its paging mode: in long mode a gate has 16 bytes, else 8.
    ///
    /// # Errors
    /// An item is an error where a gate cannot be read ([`Memory::read_into`]) or is none
    /// ([`ErrorKind::Corrupt`](vmi_core::ErrorKind::Corrupt)). The iterator goes on with the next gate.
    pub fn gates<M: Memory<Addr = VirtAddr>>(self, memory: &M, mode: PagingMode) -> impl Iterator<Item = Result<Gate>> {
        let slots: u16 = if mode.is_long() { 2 } else { 1 };
        let gate = move |vector: u16| {
            let index = vector.wrapping_mul(slots);
            let low = self.slot(memory, index)?;
            let high = if mode.is_long() { self.slot(memory, index.saturating_add(1))? } else { 0 };
            if (low, high) == (0, 0) {
                return Ok(None);
            }
            match Gate::decode(vector, low, high, mode.is_long()) {
                Some(gate) => Ok(Some(gate)),
                None => Err(Error::corrupt(
                    format!("vector {vector} of the interrupt descriptor table is no gate: {low:#x}"),
                    self.at(index),
                )),
            }
        };
        let count = (self.slots() >> u16::from(mode.is_long())).min(VECTORS);
        (0..count).filter_map(move |vector| gate(vector).transpose())
    }

    /// How many entries of 8 bytes the limit holds. The processor uses none that it cuts off.
    fn slots(self) -> u16 {
        (u32::from(self.limit).saturating_add(1) >> 3) as u16
    }

    fn at(self, index: u16) -> VirtAddr {
        self.base.wrapping_add(u64::from(index) << 3)
    }

    /// The 8 bytes at an index.
    fn slot<M: Memory<Addr = VirtAddr>>(self, memory: &M, index: u16) -> Result<u64> {
        let at = self.at(index);
        if u32::from(index) << 3 | 7 > u32::from(self.limit) {
            return Err(Error::corrupt(
                format!("entry {index} of a descriptor table reaches beyond its limit {:#x}", self.limit),
                at,
            ));
        }
        memory.read(at)
    }
}
