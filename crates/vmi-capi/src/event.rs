//! Events, and how they are answered.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use vmi::owned;
use vmi::x86::{DescriptorTable, Incident};
use vmi::{AccessOrigin, Action, Emulation, MemoryAccess, Reply, TrapKind, ViewId, VirtAddr, What};

use crate::border::{self, VMI_UNKNOWN_ADDRESS, VMI_UNKNOWN_ID};
use crate::error::{Failure, Result, vmi_error, vmi_status};
use crate::registers::vmi_registers;
use crate::table::{self, Handle, Object};
use crate::trap::{self, vmi_event_kind};

/// Something that a vCPU did. It stands still (with QEMU's gdb stub: all of them do) until the event is answered or closed, until the next one is asked for, or until the
/// session is closed. Any thread may use it.
#[derive(Debug)]
pub struct vmi_event {
    _opaque: [u8; 0],
}

impl Handle for vmi_event {
    type Object = Event;
}

/// An event in the table.
#[derive(Debug)]
pub struct Event(pub(crate) owned::Event);

impl Object for Event {
    const NAME: &'static str = "vmi_event";

    fn close(&self) {
        // A failure means that the guest is gone, or that it is let go on by the end of the session.
        _ = self.0.let_go();
    }
}

/// How an event is answered.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmi_action {
    /// The guest goes on, as if nobody had watched.
    Resume = 0,
    /// The vCPU runs one instruction, after which there is an event of kind VMI_EVENT_KIND_STEP.
    Step = 1,
    /// For callbacks: the guest goes on, and vmi_events_run returns.
    End = 2,
    /// What caused the event is not done: the register keeps its value.
    Deny = 3,
    /// The guest gets the breakpoint or exception, even where it came from a trap.
    Reinject = 4,
    /// The hypervisor emulates the instruction, which does not spring the trap again: see vmi_reply. Not for callbacks.
    Emulate = 5,
}

/// How an instruction is emulated.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmi_emulation {
    /// As it is.
    Plain = 0,
    /// Without its writes and other lasting effects.
    WithoutWrites = 1,
    /// With `bytes` in place of what it reads of memory.
    Reading = 2,
    /// With `bytes`, 16 of them, in place of the instruction itself.
    Instruction = 3,
}

/// An answer to an event. All zero lets the guest go on.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmi_reply {
    /// What becomes of what caused it: a vmi_action.
    pub action: u32,
    /// For VMI_ACTION_EMULATE: a vmi_emulation.
    pub emulation: u32,
    /// What the emulation reads; not looked at by the others.
    pub bytes: *const c_void,
    /// How many bytes there are.
    pub byte_count: usize,
    /// Registers to bring to the vCPU before it goes on; NULL for none.
    pub registers: *const vmi_registers,
    /// Whether it then runs one instruction only, as with VMI_ACTION_STEP.
    pub step: bool,
    /// Whether it goes on in the view of memory `view`.
    pub set_view: bool,
    /// A view of vmi_events_create_view; 0 is the guest's memory as it is.
    pub view: u32,
}

/// What touched memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmi_access_origin {
    /// The back end does not tell.
    Unknown = 0,
    /// The walk of page tables towards the linear address.
    Walk = 1,
    /// The access by the linear address itself.
    Linear = 2,
}

/// A descriptor-table register.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmi_descriptor_table {
    /// The global descriptor table.
    Gdtr = 0,
    /// The interrupt descriptor table.
    Idtr = 1,
    /// The local descriptor table.
    Ldtr = 2,
    /// The task register.
    Tr = 3,
    /// This and above: another one, by the hypervisor's own number.
    Other = 65536,
}

/// What happened. What the kind does not have is 0, or VMI_UNKNOWN_ADDRESS for addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmi_event_info {
    /// What it is: a vmi_event_kind.
    pub kind: u32,
    /// The vCPU that did it.
    pub vcpu: u32,
    /// The instruction of a breakpoint, or the memory that was touched; of VMI_EVENT_KIND_MEMORY the guest-physical address.
    pub at: u64,
    /// The instruction pointer: behind the instruction that touched watched virtual memory, at the instruction of all others.
    pub instruction: u64,
    /// The number of the trap that was sprung; 0 if none was.
    pub trap: u64,
    /// Whether it was answered.
    pub answered: bool,
    /// VMI_EVENT_KIND_DESCRIPTOR_TABLE: whether it is written.
    pub write: bool,
    /// VMI_EVENT_KIND_MEMORY: how it is touched, some of VMI_ACCESS_READ and its siblings.
    pub access: u32,
    /// VMI_EVENT_KIND_MEMORY: what touches it, a vmi_access_origin.
    pub origin: u32,
    /// VMI_EVENT_KIND_MEMORY: the view in which it happened; VMI_UNKNOWN_ID where there are none.
    pub view: u32,
    /// VMI_EVENT_KIND_MEMORY: the linear address.
    pub linear: u64,
    /// The vmi_control_register, the number of the model-specific register, the leaf of CPUID, the vmi_descriptor_table, the vector of the interrupt, the reason of the exit,
    /// or the hypervisor's number of something other.
    pub which: u64,
    /// Writes of registers: what is in it when the vCPU goes on, unless that is denied.
    pub new_value: u64,
    /// Writes of registers: what was in it.
    pub old_value: u64,
    /// CPUID: the subleaf. Debug exceptions: the conditions in the bits of DR6, or VMI_UNKNOWN_ADDRESS. Interrupts: CR2, for page faults. Exits: the qualification.
    pub detail: u64,
    /// CPUID, debug exceptions and breakpoints of the guest's own: bytes of the instruction.
    pub length: u32,
    /// Debug exceptions, breakpoints of the guest's own and interrupts: the kind of event as VMX numbers them (Intel SDM, volume 3, table 25-17).
    pub vmx_kind: u32,
    /// Interrupts: the error code, where the vector has one.
    pub error_code: u32,
}

fn kind(kind: TrapKind) -> vmi_event_kind {
    match kind {
        TrapKind::SoftwareBreakpoint => vmi_event_kind::SoftwareBreakpoint,
        TrapKind::HardwareBreakpoint => vmi_event_kind::HardwareBreakpoint,
        TrapKind::Write => vmi_event_kind::Write,
        TrapKind::Read => vmi_event_kind::Read,
        TrapKind::Access => vmi_event_kind::Access,
        _ => vmi_event_kind::Stop,
    }
}

fn table_number(table: DescriptorTable) -> u64 {
    match table {
        DescriptorTable::Gdtr => vmi_descriptor_table::Gdtr as u64,
        DescriptorTable::Idtr => vmi_descriptor_table::Idtr as u64,
        DescriptorTable::Ldtr => vmi_descriptor_table::Ldtr as u64,
        DescriptorTable::Tr => vmi_descriptor_table::Tr as u64,
        DescriptorTable::Other(number) => (vmi_descriptor_table::Other as u64).saturating_add(number.into()),
        _ => u64::MAX,
    }
}

impl vmi_event_info {
    fn of(event: &owned::Event) -> Self {
        let empty = Self {
            kind: vmi_event_kind::Stop as u32,
            vcpu: event.vcpu().0,
            at: VMI_UNKNOWN_ADDRESS,
            instruction: event.registers().rip,
            trap: event.trap().map_or(0, |trap| trap.0),
            answered: event.is_answered(),
            write: false,
            access: 0,
            origin: 0,
            view: VMI_UNKNOWN_ID,
            linear: VMI_UNKNOWN_ADDRESS,
            which: 0,
            new_value: 0,
            old_value: 0,
            detail: 0,
            length: 0,
            vmx_kind: 0,
            error_code: 0,
        };
        match event.what() {
            What::Trapped { place, at } => Self { kind: kind(place.kind) as u32, at: at.get(), ..empty },
            What::Stepped => Self { kind: vmi_event_kind::Step as u32, ..empty },
            What::Memory(access) => empty.with_access(access),
            What::Processor(incident) => empty.with_incident(incident),
            _ => empty,
        }
    }

    fn with_access(self, access: MemoryAccess) -> Self {
        let origin = match access.origin {
            None => vmi_access_origin::Unknown,
            Some(AccessOrigin::Walk) => vmi_access_origin::Walk,
            Some(AccessOrigin::Linear) => vmi_access_origin::Linear,
        };
        Self {
            kind: vmi_event_kind::Memory as u32,
            at: access.at.get(),
            access: trap::number_of(access.kinds),
            origin: origin as u32,
            view: access.view.map_or(VMI_UNKNOWN_ID, |view| view.0.into()),
            linear: access.linear.map_or(VMI_UNKNOWN_ADDRESS, VirtAddr::get),
            ..self
        }
    }

    fn with_incident(self, incident: Incident) -> Self {
        use vmi_event_kind as K;
        let of = |kind: K| Self { kind: kind as u32, ..self };
        match incident {
            Incident::ControlRegister { register, new, old } => {
                Self { which: trap::number_of_register(register), new_value: new, old_value: old, ..of(K::ControlRegister) }
            }
            Incident::Msr { index, new, old } => Self { which: index, new_value: new, old_value: old, ..of(K::Msr) },
            Incident::Cpuid { leaf, subleaf, length } => {
                Self { which: leaf.into(), detail: subleaf.into(), length, ..of(K::Cpuid) }
            }
            Incident::DebugException { kind, length, pending } => {
                let detail = pending.unwrap_or(VMI_UNKNOWN_ADDRESS);
                Self { vmx_kind: kind.into(), length, detail, ..of(K::DebugException) }
            }
            Incident::Breakpoint { kind, length } => Self { vmx_kind: kind.into(), length, ..of(K::OwnBreakpoint) },
            Incident::DescriptorTable { table, write } => Self { which: table_number(table), write, ..of(K::DescriptorTable) },
            Incident::GuestRequest => of(K::GuestRequest),
            Incident::PrivilegedCall => of(K::PrivilegedCall),
            Incident::Interrupt { vector, kind, error_code, cr2 } => {
                Self { which: vector.into(), vmx_kind: kind, error_code, detail: cr2, ..of(K::Interrupt) }
            }
            Incident::EmulationFailure => of(K::EmulationFailure),
            Incident::Exit { reason, qualification } => Self { which: reason, detail: qualification, ..of(K::Exit) },
            Incident::Other(number) => Self { which: number.into(), ..of(K::Other) },
            _ => of(K::Other),
        }
    }
}

/// What happened.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_event_get_info(
    event: *mut vmi_event,
    info: Option<&mut MaybeUninit<vmi_event_info>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        border::place(info, "the place for the information")?.write(vmi_event_info::of(&table::get(event)?.0));
        Ok(())
    })
}

/// The registers of the vCPU, as they were when it happened.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_event_get_registers(
    event: *mut vmi_event,
    registers: Option<&mut MaybeUninit<vmi_registers>>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        border::place(registers, "the place for the registers")?.write(table::get(event)?.0.registers().into());
        Ok(())
    })
}

/// What becomes of the cause of an event.
fn action(action: u32, emulation: impl FnOnce() -> Result<Emulation>) -> Result<(Action, bool)> {
    let is = |known: vmi_action| action == known as u32;
    Ok(if is(vmi_action::Resume) {
        (Action::Go, false)
    } else if is(vmi_action::Step) {
        (Action::Go, true)
    } else if is(vmi_action::Deny) {
        (Action::Deny, false)
    } else if is(vmi_action::Reinject) {
        (Action::Reinject, false)
    } else if is(vmi_action::Emulate) {
        (Action::Emulate(emulation()?), false)
    } else {
        return Err(Failure::argument(format!("{action} is no answer to an event")));
    })
}

fn emulation(number: u32, bytes: &[u8]) -> Result<Emulation> {
    let is = |known: vmi_emulation| number == known as u32;
    Ok(if is(vmi_emulation::Plain) {
        Emulation::Plain
    } else if is(vmi_emulation::WithoutWrites) {
        Emulation::WithoutWrites
    } else if is(vmi_emulation::Reading) {
        Emulation::Reading(bytes.to_vec())
    } else if is(vmi_emulation::Instruction) {
        let sixteen = bytes
            .try_into()
            .map_err(|_| Failure::argument(format!("an instruction is given by 16 bytes, not {}", bytes.len())))?;
        Emulation::Instruction(sixteen)
    } else {
        return Err(Failure::argument(format!("{number} is no vmi_emulation")));
    })
}

/// Answers an event and closes it. `action` is a vmi_action other than VMI_ACTION_END and VMI_ACTION_EMULATE. `registers`, which may be NULL, are brought to the vCPU before it
/// goes on. With VMI_STATUS_UNSUPPORTED the back end does not have the answer, and the guest goes on as if the event was closed.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_event_reply(
    event: *mut vmi_event,
    action: u32,
    registers: Option<&vmi_registers>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let object = table::get(event)?;
        let no_emulation = || Err(Failure::argument("how it is emulated is said by vmi_event_answer"));
        let (action, step) = self::action(action, no_emulation)?;
        let reply = Reply { registers: registers.map(Into::into), step, action, view: None };
        let answered = object.0.reply(reply);
        table::close(event);
        Ok(answered?)
    })
}

/// As vmi_event_reply, with all that an answer can say.
///
/// # Safety
/// `registers` of the reply is NULL or good; `bytes` is NULL with a count of 0, or has `byte_count` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmi_event_answer(
    event: *mut vmi_event,
    reply: Option<&vmi_reply>,
    error: Option<&mut MaybeUninit<*mut vmi_error>>,
) -> vmi_status {
    border::call(error, || {
        let given = reply.ok_or_else(|| Failure::null("the reply"))?;
        let object = table::get(event)?;
        // SAFETY: the caller's promise.
        let bytes = unsafe { border::bytes_given(given.bytes, given.byte_count) }?;
        let (action, step) = self::action(given.action, || emulation(given.emulation, bytes))?;
        // SAFETY: the caller's promise.
        let registers = unsafe { border::items_given(given.registers, usize::from(!given.registers.is_null())) }?;
        let view = given.set_view.then(|| view(given.view)).transpose()?;
        let answered =
            object.0.reply(Reply { registers: registers.first().map(Into::into), step: step || given.step, action, view });
        table::close(event);
        Ok(answered?)
    })
}

/// A view by its number.
pub(crate) fn view(number: u32) -> Result<ViewId> {
    u16::try_from(number).map(ViewId).map_err(|_| Failure::argument(format!("{number} is no view")))
}

/// Closes an event; the guest goes on if that was not answered yet. NULL and closed ones are left alone.
#[unsafe(no_mangle)]
pub extern "C" fn vmi_event_close(event: *mut vmi_event) {
    border::plain((), || table::close(event));
}
