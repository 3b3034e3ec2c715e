//! Requests and responses of the event ring.
//!
//! Follows xen/include/public/vm_event.h: interface version 7 (Xen 4.17 to 4.20; tried with the first and the last), and the older 6 and 5, from their headers alone. The
//! versions differ in the registers (7 has `npt_base` and `vmtrace_pos` in the middle) and in what is told of debug exceptions (6 put `pending_dbg` in). What a
//! request says that has no name here is kept by its number, and a response is made of its request, so nothing is lost on the way back.

mod layout;
mod registers;

use vmi_core::ErrorKind;
use zerocopy::{FromBytes, IntoBytes};

use layout::{
    CpuidData, CtrlRegData, DebugData5, DebugData6, DescriptorData, Head, InterruptData, MemAccessData, MsrData, PagingData,
    VmExitData,
};
pub(crate) use registers::settable;
use vmi_arch_x86::Registers;

/// Bytes before what belongs to the reason.
const DATA: usize = size_of::<Head>();
/// Bytes before the registers.
const REGISTERS: usize = 56;
/// Words of the largest entry.
pub(crate) const MOST_WORDS: usize = 100;
/// Bytes of the largest entry.
const MOST: usize = 400;

/// A version of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InterfaceVersion {
    /// Without `pending_dbg`.
    V5,
    /// With `pending_dbg`.
    V6,
    /// With `npt_base` and `vmtrace_pos`: Xen 4.17 to 4.20.
    V7,
}

impl InterfaceVersion {
    /// By its number; none for those that are not known.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            5 => Some(Self::V5),
            6 => Some(Self::V6),
            7 => Some(Self::V7),
            _ => None,
        }
    }

    /// Its number.
    pub const fn number(self) -> u32 {
        match self {
            Self::V5 => 5,
            Self::V6 => 6,
            Self::V7 => 7,
        }
    }

    /// Words in an entry of the ring.
    pub(crate) const fn words(self) -> usize {
        match self {
            Self::V5 | Self::V6 => 96,
            Self::V7 => MOST_WORDS,
        }
    }
}

bitflags::bitflags! {
    /// `VM_EVENT_FLAG_*`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Flags: u32 {
        /// Request: the vCPU waits for the response. Response: it goes on.
        const VCPU_PAUSED = 1;
        /// Request: another domain caused it.
        const FOREIGN = 1 << 1;
        /// Response: the instruction is emulated.
        const EMULATE = 1 << 2;
        /// Response: as before, without its writes.
        const EMULATE_NOWRITE = 1 << 3;
        /// Response: single steps begin or end.
        const TOGGLE_SINGLESTEP = 1 << 4;
        /// Response: what the emulated instruction reads is in the response.
        const SET_EMUL_READ_DATA = 1 << 5;
        /// Response: the register is not written.
        const DENY = 1 << 6;
        /// Request: it happened in another view. Response: the vCPU goes on in a view.
        const ALTERNATE_P2M = 1 << 7;
        /// Response: the registers are set.
        const SET_REGISTERS = 1 << 8;
        /// Response: the emulated instruction is in the response.
        const SET_EMUL_INSN_DATA = 1 << 9;
        /// Response: the next interrupt is an event.
        const GET_NEXT_INTERRUPT = 1 << 10;
        /// Response: one step in this view, then another view.
        const FAST_SINGLESTEP = 1 << 11;
        /// Request: a nested guest caused it.
        const NESTED_P2M = 1 << 12;
        /// Response: the trace buffer is emptied.
        const RESET_VMTRACE = 1 << 13;
        /// Response: a forked guest gets its state back.
        const RESET_FORK_STATE = 1 << 14;
        /// Response: a forked guest gets its memory back.
        const RESET_FORK_MEMORY = 1 << 15;
    }

    /// `MEM_ACCESS_*`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct AccessFlags: u32 {
        /// It reads.
        const R = 1;
        /// It writes.
        const W = 1 << 1;
        /// It fetches an instruction.
        const X = 1 << 2;
        /// The linear address is told.
        const GLA_VALID = 1 << 3;
        /// The access by the linear address itself.
        const FAULT_WITH_GLA = 1 << 4;
        /// The walk of page tables towards it.
        const FAULT_IN_GPT = 1 << 5;
    }
}

/// What is told of a debug exception or breakpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Debug {
    /// The frame of the instruction.
    pub gfn: u64,
    /// The conditions, as in VMX's field of pending debug exceptions; from version 6 on.
    pub pending: Option<u64>,
    /// Length of the instruction in bytes.
    pub length: u32,
    /// Kind of the event: `X86_EVENTTYPE_*`.
    pub kind: u8,
}

/// Why there is a request: `VM_EVENT_REASON_*`, with what belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // as the header names them
#[non_exhaustive]
pub enum Reason {
    Unknown,
    MemAccess {
        gfn: u64,
        offset: u64,
        gla: u64,
        flags: AccessFlags,
    },
    MemSharing {
        gfn: u64,
        p2mt: u32,
    },
    MemPaging {
        gfn: u64,
        p2mt: u32,
        flags: u32,
    },
    WriteCtrlReg {
        index: u32,
        new: u64,
        old: u64,
    },
    MovToMsr {
        msr: u64,
        new: u64,
        old: u64,
    },
    SoftwareBreakpoint(Debug),
    SingleStep {
        gfn: u64,
    },
    GuestRequest,
    DebugException(Debug),
    Cpuid {
        length: u32,
        leaf: u32,
        subleaf: u32,
    },
    PrivilegedCall,
    Interrupt {
        vector: u32,
        kind: u32,
        error_code: u32,
        cr2: u64,
    },
    DescriptorAccess {
        descriptor: u8,
        write: bool,
        instruction: u32,
        qualification: u64,
    },
    EmulUnimplemented,
    VmExit {
        reason: u64,
        qualification: u64,
    },
    /// One that the header of 4.20 does not have.
    Other(u32),
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    /// The vCPU.
    pub vcpu: u32,
    /// Its flags, unknown ones too.
    pub flags: Flags,
    /// Why.
    pub reason: Reason,
    /// The view in which it happened, if in one.
    pub view: Option<u16>,
    /// The vCPU's registers.
    pub registers: Registers,
    version: InterfaceVersion,
    bytes: [u8; MOST],
}

/// An entry of the ring that is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// Another version than was agreed on.
    #[error("a request of vm_event interface version {found} on a ring of version {expected}")]
    Version {
        /// The version that it says.
        found: u32,
        /// The version of the ring.
        expected: u32,
    },
    /// The entry is too short.
    #[error("a request of {0} bytes")]
    Short(usize),
}

impl RequestError {
    #[allow(dead_code)]
    pub(crate) fn into_core(self, back_end: &str) -> vmi_core::Error {
        let action = "taking an event off the ring".to_owned();
        ErrorKind::Driver { back_end: back_end.to_owned(), action, source: Box::new(self) }.into()
    }
}

impl Request {
    /// Decodes an entry of the ring.
    ///
    /// # Errors
    /// If its version is not `version`, or if it is too short.
    pub fn decode(words: &[u32], version: InterfaceVersion) -> Result<Self, RequestError> {
        let mut bytes = [0; MOST];
        let short = RequestError::Short(words.len().saturating_mul(4));
        let entry = words.get(..version.words()).ok_or(short)?.as_bytes();
        bytes.get_mut(..entry.len()).ok_or(short)?.copy_from_slice(entry);
        let (head, _) = Head::read_from_prefix(&bytes).map_err(|_| short)?;
        if head.version != version.number() {
            return Err(RequestError::Version { found: head.version, expected: version.number() });
        }
        let flags = Flags::from_bits_retain(head.flags);
        let reason = reason(head.reason, &bytes, version).ok_or(short)?;
        let registers = registers::decode(bytes.get(REGISTERS..).unwrap_or_default(), version).ok_or(short)?;
        let view = flags.contains(Flags::ALTERNATE_P2M).then_some(head.altp2m_idx);
        Ok(Self { vcpu: head.vcpu_id, flags, reason, view, registers, version, bytes })
    }

    /// The number of its reason.
    pub fn reason_number(&self) -> u32 {
        Head::read_from_prefix(&self.bytes).map_or(0, |(head, _)| head.reason)
    }
}

fn reason(number: u32, bytes: &[u8; MOST], version: InterfaceVersion) -> Option<Reason> {
    let data = bytes.get(DATA..REGISTERS)?;
    Some(match number {
        0 => Reason::Unknown,
        1 => {
            let (data, _) = MemAccessData::read_from_prefix(data).ok()?;
            let flags = AccessFlags::from_bits_retain(data.flags);
            Reason::MemAccess { gfn: data.gfn, offset: data.offset, gla: data.gla, flags }
        }
        2 => {
            let (data, _) = PagingData::read_from_prefix(data).ok()?;
            Reason::MemSharing { gfn: data.gfn, p2mt: data.p2mt }
        }
        3 => {
            let (data, _) = PagingData::read_from_prefix(data).ok()?;
            Reason::MemPaging { gfn: data.gfn, p2mt: data.p2mt, flags: data.flags }
        }
        4 => {
            let (data, _) = CtrlRegData::read_from_prefix(data).ok()?;
            Reason::WriteCtrlReg { index: data.index, new: data.new_value, old: data.old_value }
        }
        5 => {
            let (data, _) = MsrData::read_from_prefix(data).ok()?;
            Reason::MovToMsr { msr: data.msr, new: data.new_value, old: data.old_value }
        }
        6 => Reason::SoftwareBreakpoint(debug(data, version)?),
        7 => Reason::SingleStep { gfn: u64::read_from_prefix(data).ok()?.0 },
        8 => Reason::GuestRequest,
        9 => Reason::DebugException(debug(data, version)?),
        10 => {
            let (data, _) = CpuidData::read_from_prefix(data).ok()?;
            Reason::Cpuid { length: data.insn_length, leaf: data.leaf, subleaf: data.subleaf }
        }
        11 => Reason::PrivilegedCall,
        12 => {
            let (data, _) = InterruptData::read_from_prefix(data).ok()?;
            Reason::Interrupt { vector: data.vector, kind: data.kind, error_code: data.error_code, cr2: data.cr2 }
        }
        13 => {
            let (data, _) = DescriptorData::read_from_prefix(data).ok()?;
            Reason::DescriptorAccess {
                descriptor: data.descriptor,
                write: data.is_write != 0,
                instruction: data.instr_info,
                qualification: data.exit_qualification,
            }
        }
        14 => Reason::EmulUnimplemented,
        15 => {
            let (data, _) = VmExitData::read_from_prefix(data).ok()?;
            Reason::VmExit { reason: data.reason, qualification: data.qualification }
        }
        other => Reason::Other(other),
    })
}

fn debug(data: &[u8], version: InterfaceVersion) -> Option<Debug> {
    Some(if version == InterfaceVersion::V5 {
        let (data, _) = DebugData5::read_from_prefix(data).ok()?;
        Debug { gfn: data.gfn, pending: None, length: data.insn_length, kind: data.kind }
    } else {
        let (data, _) = DebugData6::read_from_prefix(data).ok()?;
        Debug { gfn: data.gfn, pending: Some(data.pending_dbg), length: data.insn_length, kind: data.kind }
    })
}

/// A response: its request, with other flags and what they need.
#[derive(Clone, Debug)]
pub struct Response {
    version: InterfaceVersion,
    flags: Flags,
    bytes: [u8; MOST],
}

impl Response {
    /// Lets the vCPU go on, in the view in which it is.
    pub fn to(request: &Request) -> Self {
        let flags = request.flags & (Flags::VCPU_PAUSED | Flags::ALTERNATE_P2M);
        Self { version: request.version, flags, bytes: request.bytes }
    }

    /// Lets a vCPU go on whose request is lost.
    pub fn to_lost(version: InterfaceVersion, vcpu: u32) -> Self {
        let mut response = Self { version, flags: Flags::VCPU_PAUSED, bytes: [0; MOST] };
        response.with_head(|head| (head.version, head.vcpu_id) = (version.number(), vcpu));
        response
    }

    /// With these flags besides.
    pub fn add(&mut self, flags: Flags) {
        self.flags |= flags;
    }

    /// The vCPU goes on in a view.
    pub fn view(&mut self, view: u16) {
        self.add(Flags::ALTERNATE_P2M);
        self.with_head(|head| head.altp2m_idx = view);
    }

    /// The vCPU goes on with these general registers, flags and instruction pointer. Xen sets no others.
    pub fn registers(&mut self, registers: &Registers) {
        self.add(Flags::SET_REGISTERS);
        registers::encode(registers, self.bytes.get_mut(REGISTERS..).unwrap_or_default());
    }

    /// Whether Xen carries it out only when the vCPU runs on, and forgets it if the ring is off by then (xen/arch/x86/hvm/vm_event.c, `hvm_vm_event_do_resume`;
    /// xen/arch/x86/vm_event.c, `vm_event_cleanup_domain`).
    pub(crate) fn is_late(&self) -> bool {
        self.flags.intersects(Flags::SET_REGISTERS | Flags::EMULATE)
    }

    /// The registers that it sets.
    pub(crate) fn wanted_registers(&self) -> Option<Registers> {
        let bytes = self.bytes.get(REGISTERS..).filter(|_| self.flags.contains(Flags::SET_REGISTERS))?;
        registers::decode(bytes, self.version)
    }

    /// The emulated instruction reads these bytes. Whether there is room for them. The registers cannot be set in the same response.
    #[must_use]
    pub fn emulate_reading(&mut self, data: &[u8]) -> bool {
        let room = self.version.words().saturating_mul(4).saturating_sub(REGISTERS.saturating_add(4));
        let Some(place) = self.bytes.get_mut(REGISTERS..) else { return false };
        let (Ok(len), Some((size, place))) = (u32::try_from(data.len()), place.split_first_chunk_mut::<4>()) else {
            return false;
        };
        let Some(place) = place.get_mut(..data.len()).filter(|_| data.len() <= room) else { return false };
        *size = len.to_ne_bytes();
        place.copy_from_slice(data);
        self.flags |= Flags::EMULATE | Flags::SET_EMUL_READ_DATA;
        true
    }

    /// These bytes are emulated in place of the instruction. The registers cannot be set in the same response.
    pub fn emulate_instruction(&mut self, bytes: &[u8; 16]) {
        if let Some(place) = self.bytes.get_mut(REGISTERS..).and_then(|place| place.first_chunk_mut::<16>()) {
            *place = *bytes;
        }
        self.flags |= Flags::EMULATE | Flags::SET_EMUL_INSN_DATA;
    }

    /// One step in `now`, and Xen switches to view `then` by itself. Overwrites what belongs to the reason.
    pub fn fast_single_step(&mut self, now: u16, then: u16) {
        self.view(now);
        self.add(Flags::FAST_SINGLESTEP);
        if let Some(place) = self.bytes.get_mut(DATA..).and_then(|place| place.first_chunk_mut::<2>()) {
            *place = then.to_ne_bytes();
        }
    }

    /// The entry of the ring.
    pub fn encode(mut self) -> ([u32; MOST_WORDS], usize) {
        let flags = self.flags.bits();
        self.with_head(|head| head.flags = flags);
        let mut words = [0; MOST_WORDS];
        words.as_mut_bytes().copy_from_slice(&self.bytes);
        (words, self.version.words())
    }

    fn with_head(&mut self, change: impl FnOnce(&mut Head)) {
        if let Ok((mut head, _)) = Head::read_from_prefix(&self.bytes) {
            change(&mut head);
            _ = head.write_to_prefix(&mut self.bytes); // as long as what was read
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
