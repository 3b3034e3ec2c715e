//! Event sessions over a scripted back end.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic, missing_docs)]

use core::time::Duration;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use vmi_core::synthetic::{LiveDriver, Unpaged};
use vmi_core::{
    Accesses, Architecture, Cause, Driver, Error, ErrorKind, EventAbilities, EventAbility, EventSession, EventSource,
    MachineInfo, MemoryAccess, Occurrence, PhysAddr, Place, Reply, Result, Trap, TrapKind, VcpuId, ViewId, VirtAddr, Vmi, What,
};

/// Registers are the page-table root alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Rooted;

impl Architecture for Rooted {
    type Registers = Option<u64>;
    type Paging = Unpaged;
    type Watch = core::convert::Infallible;
    type Incident = core::convert::Infallible;
    type Injection = core::convert::Infallible;

    fn runs_on(registers: &Option<u64>, root: PhysAddr) -> Option<bool> {
        registers.map(|mine| mine == root.get())
    }

    fn springs(watch: &Self::Watch, _incident: &Self::Incident) -> bool {
        match *watch {}
    }

    fn ability(watch: &Self::Watch) -> vmi_core::EventAbility {
        match *watch {}
    }
}

#[derive(Debug, PartialEq, Eq, Clone)]
enum Done {
    Arm(Cause<Rooted>),
    Disarm(Cause<Rooted>),
    Reply { registers: Option<Option<u64>>, step: bool },
    End,
}

type Script = VecDeque<Result<Option<Occurrence<Rooted>>>>;

struct Scripted {
    memory: LiveDriver<Rooted>,
    script: Mutex<Script>,
    done: Arc<Mutex<Vec<Done>>>,
    abilities: EventAbilities,
}

struct Session<'d>(&'d Scripted);

impl Driver for Scripted {
    type Arch = Rooted;

    fn machine(&self) -> &MachineInfo {
        self.memory.machine()
    }

    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        self.memory.read(at, buf)
    }

    fn epoch(&self) -> Option<u64> {
        Some(0)
    }
}

impl EventSource for Scripted {
    fn abilities(&self) -> Result<EventAbilities> {
        Ok(self.abilities)
    }

    fn subscribe(&self) -> Result<Box<dyn EventSession<Rooted> + '_>> {
        Ok(Box::new(Session(self)))
    }
}

impl Session<'_> {
    fn did(&self, done: Done) {
        self.0.done.lock().unwrap().push(done);
    }
}

impl EventSession<Rooted> for Session<'_> {
    fn abilities(&self) -> EventAbilities {
        self.0.abilities
    }

    fn arm(&mut self, place: Cause<Rooted>, _roots: &[PhysAddr]) -> Result<()> {
        self.did(Done::Arm(place));
        Ok(())
    }

    fn disarm(&mut self, place: Cause<Rooted>) -> Result<()> {
        self.did(Done::Disarm(place));
        Ok(())
    }

    fn next(&mut self, _limit: Duration) -> Result<Option<Occurrence<Rooted>>> {
        self.0.script.lock().unwrap().pop_front().unwrap_or(Ok(None))
    }

    fn reply(&mut self, reply: Reply<Option<u64>>) -> Result<()> {
        self.did(Done::Reply { registers: reply.registers, step: reply.step });
        Ok(())
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.did(Done::End);
    }
}

const AT: VirtAddr = VirtAddr::new(0x4000);
const PLACE: Place = Place { kind: TrapKind::SoftwareBreakpoint, at: AT, len: 1 };
const CAUSE: Cause<Rooted> = Cause::Place(PLACE);
const RESUME: Done = Done::Reply { registers: None, step: false };
const SOON: Duration = Duration::from_millis(1);

fn hit(root: Option<u64>) -> Result<Option<Occurrence<Rooted>>> {
    Ok(Some(Occurrence { vcpu: VcpuId(1), registers: root, what: What::Trapped { place: PLACE, at: AT } }))
}

fn machine(script: impl IntoIterator<Item = Result<Option<Occurrence<Rooted>>>>) -> (Vmi<Scripted>, Arc<Mutex<Vec<Done>>>) {
    let done = Arc::new(Mutex::new(Vec::new()));
    let memory = LiveDriver::new(vec![0; 64], None);
    (
        Vmi::new(Scripted {
            memory,
            script: Mutex::new(script.into_iter().collect()),
            done: done.clone(),
            abilities: all_but_views(),
        }),
        done,
    )
}

fn all_but_views() -> EventAbilities {
    EventAbility::ALL.iter().copied().filter(|ability| *ability != EventAbility::View).collect()
}

#[test]
fn a_dropped_event_is_answered_and_a_dropped_session_ends() {
    let (vmi, done) = machine([hit(Some(7)), hit(Some(7))]);
    let mut events = vmi.events().unwrap();
    let id = events.set(Trap::breakpoint(AT)).unwrap();
    let event = events.next(SOON).unwrap().unwrap();
    assert_eq!((event.vcpu(), event.trap(), *event.registers()), (VcpuId(1), Some(id), Some(7)));
    drop(event);
    let event = events.next(SOON).unwrap().unwrap();
    event.reply(Reply::step().with_registers(Some(8))).unwrap();
    assert!(events.next(SOON).unwrap().is_none());
    drop(events);
    let stepped = Done::Reply { registers: Some(Some(8)), step: true };
    assert_eq!(*done.lock().unwrap(), [Done::Arm(CAUSE), RESUME, stepped, Done::End]);
}

#[test]
fn hits_in_other_address_spaces_are_let_go_on() {
    let (vmi, done) = machine([hit(Some(1)), hit(Some(2)), hit(Some(3)), hit(None)]);
    let mut events = vmi.events().unwrap();
    let trap = Trap::breakpoint(AT).in_address_space(PhysAddr::new(2)).in_address_space(PhysAddr::new(3));
    events.set(trap).unwrap();
    assert_eq!(*events.next(SOON).unwrap().unwrap().registers(), Some(2));
    assert_eq!(events.passed_over(), 1);
    assert_eq!(*events.next(SOON).unwrap().unwrap().registers(), Some(3));
    // registers that do not tell the root rule nothing out
    assert_eq!(*events.next(SOON).unwrap().unwrap().registers(), None);
    assert_eq!(done.lock().unwrap().iter().filter(|done| **done == RESUME).count(), 4);
}

#[test]
fn a_place_is_armed_for_each_address_space_and_disarmed_with_its_last_trap() {
    let (vmi, done) = machine([hit(Some(2))]);
    let mut events = vmi.events().unwrap();
    let first = events.set(Trap::breakpoint(AT).in_address_space(PhysAddr::new(1))).unwrap();
    let second = events.set(Trap::breakpoint(AT).in_address_space(PhysAddr::new(2))).unwrap();
    assert_eq!(events.next(SOON).unwrap().unwrap().trap(), Some(second));
    events.remove(first).unwrap();
    events.remove(first).unwrap();
    assert_eq!(events.traps().map(|(id, _)| id).collect::<Vec<_>>(), [second]);
    events.remove(second).unwrap();
    let hardware = Trap::breakpoint(AT).hardware();
    assert_eq!(hardware.place().unwrap().kind, TrapKind::HardwareBreakpoint);
    events.set(hardware.clone()).unwrap();
    assert_eq!(
        *done.lock().unwrap(),
        [Done::Arm(CAUSE), Done::Arm(CAUSE), RESUME, Done::Disarm(CAUSE), Done::Arm(hardware.cause())]
    );
}

#[test]
fn an_event_means_that_memory_changed() {
    let (vmi, _done) = machine([hit(None)]);
    let before = vmi.epoch().unwrap();
    let mut events = vmi.events().unwrap();
    events.set(Trap::breakpoint(AT)).unwrap();
    let event = events.next(SOON).unwrap().unwrap();
    let meanwhile = vmi.epoch().unwrap();
    drop(event);
    assert!(before < meanwhile && meanwhile < vmi.epoch().unwrap());
}

#[test]
fn a_machine_that_ends_is_an_error() {
    let ended = || Error::from(ErrorKind::Ended { machine: "guest".into(), why: "its process ended".into() });
    let (vmi, _done) = machine([Err(ended())]);
    let mut events = vmi.events().unwrap();
    events.set(Trap::write(AT, 8)).unwrap();
    let error = events.next(SOON).unwrap_err();
    assert_eq!(error.to_string(), "guest is gone: its process ended");
}

#[test]
fn what_the_back_end_lacks_is_named_and_the_guest_goes_on() {
    let (vmi, done) = machine([hit(None)]);
    let mut events = vmi.events().unwrap();
    events.set(Trap::breakpoint(AT)).unwrap();
    let event = events.next(SOON).unwrap().unwrap();
    let error = event.reply(Reply::resume().in_view(ViewId(1))).unwrap_err();
    assert!(error.to_string().ends_with("does not support views of memory"), "{error}");
    assert!(events.views().is_err());
    // claimed, but not there
    let injected = events.abilities().has(EventAbility::Inject);
    assert!(injected);
    assert_eq!(*done.lock().unwrap(), [Done::Arm(CAUSE), RESUME]);
}

#[test]
fn accesses_beside_the_range_and_of_other_kinds_are_let_go_on() {
    let touch = |at, kinds| {
        let what = What::Memory(MemoryAccess::new(PhysAddr::new(at), kinds));
        Ok(Some(Occurrence { vcpu: VcpuId(0), registers: Some(1), what }))
    };
    let script = [
        touch(0x1007, Accesses::WRITE),
        touch(0x1008, Accesses::READ),
        touch(0x1010, Accesses::WRITE),
        touch(0x100f, Accesses::ALL),
    ];
    let (vmi, _done) = machine(script);
    let mut events = vmi.events().unwrap();
    let id = events.set(Trap::memory(PhysAddr::new(0x1008), 8, Accesses::WRITE)).unwrap();
    let event = events.next(SOON).unwrap().unwrap();
    let What::Memory(access) = event.what() else { panic!() };
    assert_eq!((access.at, event.trap()), (PhysAddr::new(0x100f), Some(id)));
    drop(event);
    assert_eq!(events.passed_over(), 3);
}

#[test]
fn steps_that_were_asked_for_are_shown_and_others_by_address_space() {
    let step = |root| Ok(Some(Occurrence { vcpu: VcpuId(0), registers: Some(root), what: What::Stepped }));
    let (vmi, _done) = machine([step(5), step(4), step(5), step(4)]);
    let mut events = vmi.events().unwrap();
    let id = events.set(Trap::instructions(VcpuId(0)).in_address_space(PhysAddr::new(4))).unwrap();
    let event = events.next(SOON).unwrap().unwrap();
    assert_eq!((*event.registers(), event.trap()), (Some(4), Some(id)));
    event.reply(Reply::step()).unwrap();
    assert_eq!(*events.next(SOON).unwrap().unwrap().registers(), Some(5));
    assert_eq!(*events.next(SOON).unwrap().unwrap().registers(), Some(4));
    assert_eq!(events.passed_over(), 1);
}
