//! The owned objects over a back end that does what a test says, and over the demo image.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmi_arch_x86::{ControlRegister, Incident, Injection, Registers, Watch, X86};
use vmi_core::{
    Accesses, Capability, Cause, Control, Driver, ErrorKind, EventAbilities, EventAbility, EventSource, Gfn, GuestMapping,
    Injector, MachineInfo, Memory as _, Occurrence, PhysAddr, Reply, Result, Trap, TrapId, VcpuId, ViewId, Views, VirtAddr, Vmi,
    What,
};

use super::*;
use crate::AnyDriver;

/// What was done to the back end, in words.
type Done = Arc<Mutex<Vec<String>>>;
type Coming = Arc<Mutex<VecDeque<What<X86>>>>;

/// A machine without memory to speak of, whose events are those that the test puts into a queue.
struct Scripted {
    inner: vmi_core::synthetic::SyntheticDriver<X86>,
    coming: Coming,
    done: Done,
}

impl Driver for Scripted {
    type Arch = X86;

    fn machine(&self) -> &MachineInfo {
        self.inner.machine()
    }

    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        self.inner.read(at, buf)
    }

    fn mapping(&self) -> Option<&GuestMapping> {
        self.inner.mapping()
    }

    fn control(&self) -> Option<&dyn Control<Arch = X86>> {
        Some(self)
    }

    fn events(&self) -> Option<&dyn EventSource<Arch = X86>> {
        Some(self)
    }
}

impl Control for Scripted {
    fn pause(&self) -> Result<()> {
        self.done.lock().unwrap().push("pause".to_owned());
        Ok(())
    }

    fn resume(&self) -> Result<()> {
        self.done.lock().unwrap().push("go on".to_owned());
        Ok(())
    }
}

impl EventSource for Scripted {
    fn abilities(&self) -> Result<EventAbilities> {
        Ok(EventAbility::ALL.iter().copied().filter(|ability| *ability != EventAbility::Exit).collect())
    }

    fn subscribe(&self) -> Result<Box<dyn vmi_core::EventSession<X86> + '_>> {
        Ok(Box::new(Session(self)))
    }
}

struct Session<'d>(&'d Scripted);

impl Session<'_> {
    fn note(&self, what: String) {
        self.0.done.lock().unwrap().push(what);
    }
}

impl vmi_core::EventSession<X86> for Session<'_> {
    fn abilities(&self) -> EventAbilities {
        self.0.abilities().unwrap()
    }

    fn arm(&mut self, cause: Cause<X86>, _: &[PhysAddr]) -> Result<()> {
        self.note(format!("arm {}", cause.ability()));
        Ok(())
    }

    fn disarm(&mut self, cause: Cause<X86>) -> Result<()> {
        self.note(format!("disarm {}", cause.ability()));
        Ok(())
    }

    fn next(&mut self, limit: Duration) -> Result<Option<Occurrence<X86>>> {
        let Some(what) = self.0.coming.lock().unwrap().pop_front() else {
            std::thread::sleep(limit.min(Duration::from_millis(5)));
            return Ok(None);
        };
        let mut registers = Registers::default();
        registers.rip = 0x1234;
        Ok(Some(Occurrence { vcpu: VcpuId(1), registers, what }))
    }

    fn reply(&mut self, reply: Reply<Registers>) -> Result<()> {
        let step = if reply.step { " and step" } else { "" };
        self.note(format!("{:?}{step}", reply.action));
        Ok(())
    }

    fn views(&mut self) -> Option<&mut dyn Views> {
        Some(self)
    }

    fn injector(&mut self) -> Option<&mut dyn Injector<X86>> {
        Some(self)
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.note("end".to_owned());
    }
}

impl Views for Session<'_> {
    fn create(&mut self, rights: Accesses) -> Result<ViewId> {
        self.note(format!("create {rights}"));
        Ok(ViewId(3))
    }

    fn destroy(&mut self, view: ViewId) -> Result<()> {
        self.note(format!("destroy {view}"));
        Ok(())
    }

    fn allow(&mut self, view: ViewId, page: Gfn, rights: Accesses) -> Result<()> {
        self.note(format!("{view} {:x} {rights}", page.get()));
        Ok(())
    }

    fn remap(&mut self, view: ViewId, page: Gfn, instead: Option<Gfn>) -> Result<()> {
        self.note(format!("{view} {:x} is {:?}", page.get(), instead.map(Gfn::get)));
        Ok(())
    }

    fn switch(&mut self, view: ViewId) -> Result<()> {
        self.note(format!("all in {view}"));
        Ok(())
    }
}

impl Injector<X86> for Session<'_> {
    fn inject(&mut self, vcpu: VcpuId, what: Injection) -> Result<()> {
        self.note(format!("inject {} {what:?}", vcpu.0));
        Ok(())
    }
}

const CR3: What<X86> = What::Processor(Incident::ControlRegister { register: ControlRegister::Cr3, new: 2, old: 1 });

fn trap() -> Trap<X86> {
    Trap::processor(Watch::ControlRegister { register: ControlRegister::Cr3, on_change: false })
}

fn machine(coming: &[What<X86>]) -> (Machine, Done) {
    let (coming, done) = (Arc::new(Mutex::new(coming.iter().copied().collect())), Done::default());
    let inner = vmi_core::synthetic::SyntheticDriver::with_arch([(PhysAddr::new(0x1000), b"some memory\0".to_vec())]);
    (Machine::new(Vmi::new(AnyDriver::new(Scripted { inner, coming, done: done.clone() }))), done)
}

fn said(done: &Done) -> Vec<String> {
    std::mem::take(&mut *done.lock().unwrap())
}

#[test]
fn what_is_owned_goes_anywhere() {
    fn anywhere<T: Send + Sync + 'static>() {}
    anywhere::<Machine>();
    anywhere::<Guest>();
    anywhere::<Memory>();
    anywhere::<Paused>();
    anywhere::<Events>();
    anywhere::<Event>();
}

#[test]
fn physical_memory_is_memory() {
    let (machine, _) = machine(&[]);
    assert_eq!(machine.capabilities(), [Capability::Control, Capability::Events]);
    let memory = machine.memory();
    drop(machine);
    assert_eq!(memory.read_c_string(AnyAddr(0x1005), 64).unwrap(), b"memory");
    assert_eq!(memory.slice(AnyAddr(0x1000), 4), Some(&b"some"[..]));
    let error = memory.read_vec(AnyAddr(0x1008), 8).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Hole { .. }), "{error}");
    assert_eq!((error.done(), error.kind().address()), (4, Some(0x100c)));
    let mut buf = [1; 8];
    assert_eq!(memory.read_lossy(AnyAddr(0x1008), &mut buf).unwrap(), std::slice::from_ref(&(4..8)));
    assert_eq!(&buf, b"ory\0\0\0\0\0");
    assert!(memory.is_physical() && memory.guest().is_none() && memory.pid().is_none());
    let error = memory.write(AnyAddr(0x1000), b"x").unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unsupported { .. }), "{error}");
}

#[test]
fn a_pause_ends_with_its_guard() {
    let (machine, done) = machine(&[]);
    let pause = machine.pause().unwrap();
    assert_eq!(said(&done), ["pause"]);
    drop(machine);
    drop(pause);
    assert_eq!(said(&done), ["go on"]);
}

#[test]
fn events_come_and_are_answered() {
    let (machine, done) = machine(&[CR3, What::Stepped, CR3]);
    let events = machine.events().unwrap();
    let number = events.set(trap()).unwrap();
    assert_eq!(number, TrapId(1));
    assert_eq!(events.traps().unwrap(), [(number, trap())]);
    let event = events.next(None).unwrap().unwrap();
    assert_eq!((event.vcpu(), event.registers().rip, event.what(), event.trap()), (VcpuId(1), 0x1234, CR3, Some(number)));
    assert!(!event.is_answered());
    // The same things as in a session that is borrowed.
    assert!(matches!(events.set(trap()), Err(SessionError::Held)));
    assert!(matches!(events.remove(number), Err(SessionError::Held)));
    assert!(matches!(events.traps(), Err(SessionError::Held)));
    assert!(events.abilities().unwrap().has(EventAbility::View));
    event.reply(Reply { step: true, ..Reply::deny() }).unwrap();
    assert!(event.is_answered());
    assert!(matches!(event.reply(Reply::resume()), Err(SessionError::Answered)));
    event.let_go().unwrap();
    let step = events.next(None).unwrap().unwrap();
    assert_eq!((step.what(), step.trap()), (What::Stepped, None));
    // Dropped: the guest goes on, before whatever is asked next.
    drop(step);
    events.remove(number).unwrap();
    assert_eq!(events.passed_over().unwrap(), 0);
    // Not asked for by any trap, but shown.
    assert_eq!(events.next(None).unwrap().unwrap().trap(), None);
    assert!(events.next(Some(Duration::from_millis(20))).unwrap().is_none());
    drop(events);
    let expected =
        ["arm events of control-register writes", "Deny and step", "Go", "disarm events of control-register writes", "Go", "end"];
    assert_eq!(said(&done), expected);
}

#[test]
fn asking_for_the_next_event_lets_the_last_one_go() {
    let (machine, done) = machine(&[CR3, CR3]);
    let events = machine.events().unwrap();
    let first = events.next(None).unwrap().unwrap();
    let second = events.next(None).unwrap().unwrap();
    assert!(first.is_answered() && !second.is_answered());
    assert!(matches!(first.reply(Reply::deny()), Err(SessionError::Answered)));
    assert_eq!(said(&done), ["Go"]);
    // The end of the session is an answer too.
    events.end();
    assert!(second.is_answered());
    assert!(matches!(second.reply(Reply::deny()), Err(SessionError::Answered)));
    assert!(matches!(events.next(None), Err(SessionError::Closed)));
    assert!(matches!(events.abilities(), Err(SessionError::Closed)));
    assert_eq!(said(&done), ["Go", "end"]);
}

#[test]
fn one_session_at_a_time() {
    let (machine, _) = machine(&[]);
    let events = machine.events().unwrap();
    assert!(matches!(machine.events(), Err(SessionError::Busy)));
    events.end();
    drop(machine.events().unwrap());
    drop(machine.events().unwrap());
}

#[test]
fn a_back_end_without_events_says_so() {
    let machine = Machine::new(Vmi::new(AnyDriver::new(vmi_core::synthetic::LiveDriver::new(vec![0; 16], None))));
    for _ in 0..2 {
        match machine.events().unwrap_err() {
            SessionError::Guest(error) => assert!(matches!(error.kind(), ErrorKind::Unsupported { .. }), "{error}"),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn what_the_back_end_lacks_is_named() {
    let (machine, done) = machine(&[]);
    let error = machine.events().unwrap().set(Trap::processor(Watch::Exits)).unwrap_err();
    assert!(error.to_string().contains("every exit"), "{error}");
    assert_eq!(said(&done), ["end"]);
}

#[test]
fn views_and_injection_work_at_any_time() {
    let (machine, done) = machine(&[CR3]);
    let events = machine.events().unwrap();
    let view = events.create_view(Accesses::ALL).unwrap();
    let event = events.next(None).unwrap().unwrap();
    events.allow(view, Gfn::new(0x10), Accesses::READ).unwrap();
    events.remap(view, Gfn::new(0x10), Some(Gfn::new(0x20))).unwrap();
    events.inject(VcpuId(0), Injection::PageFault { at: VirtAddr::new(8), error_code: 4 }).unwrap();
    events.switch_view(view).unwrap();
    event.reply(Reply::resume().in_view(view)).unwrap();
    events.destroy_view(view).unwrap();
    let expected = ["create rwx", "view 3 10 r--", "view 3 10 is Some(32)"];
    let done = said(&done);
    assert_eq!(done[..3], expected);
    assert!(done[3].starts_with("inject 0 PageFault"), "{done:?}");
    assert_eq!(done[4..], ["all in view 3", "Go", "destroy view 3"]);
}

#[test]
fn many_threads_share_a_session() {
    let (machine, done) = machine(&[CR3; 200]);
    let events = machine.events().unwrap();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(event) = events.wait(Duration::ZERO).unwrap() {
                    // Some are answered, some dropped.
                    if event.vcpu() == VcpuId(1) && began.elapsed().subsec_nanos().is_multiple_of(2) {
                        event.reply(Reply::resume()).unwrap();
                    }
                    _ = events.create_view(Accesses::NONE).unwrap();
                }
            });
        }
    });
    drop(events);
    let done = said(&done);
    assert_eq!(done.iter().filter(|what| *what == "Go").count(), 200);
    assert_eq!(done.last().map(String::as_str), Some("end"));
}

#[test]
fn the_demo_image_is_read_through_all_memories() {
    use vmi_core::Guest as _;
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/debian-6.12.raw.zst");
    let guest = Machine::open(demo).unwrap().attach().unwrap();
    assert!(guest.version().starts_with("Linux 6.12."), "{}", guest.version());
    let init = guest.process(1).unwrap();
    assert_eq!(init.parent_pid, Some(0));
    assert!(matches!(guest.process(9999).unwrap_err().kind(), ErrorKind::NoObject { .. }));
    assert!(guest.linux(|linux| linux.slide().is_ok()).unwrap() && guest.windows(|_| ()).is_none());

    // The name in the kernel's structure, through the kernel's memory and through the page tables themselves, which other code walks.
    let comm = guest.types().field("task_struct", "comm").unwrap().offset;
    let at = AnyAddr(init.object.get() + comm);
    let kernel = guest.kernel_memory();
    assert_eq!(kernel.read_c_string(at, 16).unwrap(), init.name.as_bytes());
    let (root, mode) = guest.with(|system| system.page_tables());
    let tables = guest.machine().address_space(root, mode);
    assert_eq!(tables.read_c_string(at, 16).unwrap(), init.name.as_bytes());
    let place = tables.translate(VirtAddr::new(at.0)).unwrap();
    assert_eq!(place, kernel.translate(VirtAddr::new(at.0)).unwrap());
    assert_eq!(guest.machine().memory().read_c_string(place.at.into(), 16).unwrap(), init.name.as_bytes());
    assert_eq!((kernel.pointer_size(), tables.pointer_size(), tables.root()), (8, 8, Some(root)));
    let place = Place::parse("init_task+0x10").unwrap();
    assert_eq!(guest.address(place).unwrap(), guest.symbols().address("init_task").unwrap().wrapping_add(16));

    // The process's own memory, kept and not: a page of its program.
    let area = guest.memory_areas(1).next().unwrap().unwrap();
    let memory = guest.process_memory(1);
    assert_eq!((memory.pid(), memory.guest().is_some()), (Some(1), true));
    let mut direct = [0; 4];
    guest.read_virtual(Some(1), area.start, &mut direct).unwrap();
    assert_eq!(&direct, b"\x7fELF");
    let thread = std::thread::spawn(move || memory.read_vec(area.start.into(), 4));
    assert_eq!(thread.join().unwrap().unwrap(), direct);
    let nobody = guest.process_memory(9999);
    assert!(matches!(nobody.read::<u8>(AnyAddr(0)).unwrap_err().kind(), ErrorKind::NoObject { .. }));
    assert_eq!(
        guest.environment(&init).unwrap().iter().filter(|entry| entry.contains('=')).count(),
        guest.environment(&init).unwrap().len()
    );
}
