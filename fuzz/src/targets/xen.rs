//! What Xen, a domain, or whoever else has a hand in the shared page tells of a domain.

use vmi_arch_x86::Registers;
use vmi_arch_x86::xen::{RegistersError, SaveRecords, VcpuContext};
use vmi_driver_xen::fuzz;
use vmi_driver_xen::vm_event::{Flags, InterfaceVersion, Request, RequestError, Response};

use super::head;

/// The registers of a vCPU, read and set. The first byte says whether it is a `vcpu_guest_context` or the save records, and of these which vCPU's.
pub fn registers(data: &[u8]) -> bool {
    let Some(([kind], bytes)) = head::<1>(data) else { return false };
    if kind & 1 == 0 { save_records(bytes, u16::from(kind >> 1)) } else { context(bytes) }
}

fn ask(registers: &Registers) {
    let _ = (registers.paging_mode(), registers.code_mode(), registers.privilege_level(), registers.to_string());
}

/// What was read can be set again; what else is set is read back.
fn save_records(bytes: &[u8], vcpu: u16) -> bool {
    let records = SaveRecords::new(bytes);
    let Ok(now) = records.registers(vcpu) else {
        assert!(records.change(vcpu, &Registers::default()).is_err());
        return false;
    };
    ask(&now);
    let mut wanted = now;
    // Records of their own hold these, which are not among those that are sent back.
    (wanted.xcr0, wanted.pat, wanted.cr8) = (None, None, None);
    // Bits that no register has are not kept.
    if let Some(sent) = records.change(vcpu, &now).expect("what Xen has just told") {
        let sent = SaveRecords::new(&sent);
        assert_eq!(sent.registers(vcpu), Ok(wanted));
        assert_eq!(sent.change(vcpu, &wanted), Ok(None));
    }
    wanted.rip = !now.rip;
    wanted.cr3 = now.cr3.map(|cr3| !cr3);
    wanted.segments.gs = wanted.segments.cs;
    wanted.idtr = now.gdtr;
    let sent = records.change(vcpu, &wanted).expect("only what can be set").expect("the instruction pointer differs");
    assert!(sent.len() <= bytes.len() + 8);
    assert_eq!(SaveRecords::new(&sent).registers(vcpu), Ok(wanted));
    true
}

fn context(bytes: &[u8]) -> bool {
    let Ok(context) = VcpuContext::of(bytes) else {
        assert!(bytes.len() < VcpuContext::LEN);
        return false;
    };
    let (now, _) = context.paravirtual();
    ask(&now);
    ask(&context.hardware());
    let mut copy = bytes.to_vec();
    let mut change = |wanted: &Registers| VcpuContext::of_mut(&mut copy).expect("as long as before").change(&now, wanted);
    assert_eq!(change(&now), Ok(false));
    let mut wanted = now;
    wanted.cr0 = now.cr0.map(|cr0| !cr0);
    assert_eq!(change(&wanted), Err(RegistersError::Fixed { register: "CR0" }));
    wanted.cr0 = None;
    wanted.rip = !now.rip;
    wanted.kernel_gs_base = now.kernel_gs_base.map(|base| base ^ 1);
    assert_eq!(change(&wanted), Ok(true));
    wanted.cr0 = now.cr0;
    assert_eq!(VcpuContext::of(&copy).map(|context| context.paravirtual().0), Ok(wanted));
    // The instruction pointer and one of the bases, and nothing else.
    assert_eq!(bytes.len(), copy.len());
    assert!(bytes.iter().zip(&copy).filter(|(before, now)| before != now).count() <= 9);
    true
}

/// An entry of the event ring: decoded, and answered in each way that there is.
pub fn events(data: &[u8]) -> bool {
    let words: Vec<u32> = data.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let versions = [InterfaceVersion::V5, InterfaceVersion::V6, InterfaceVersion::V7];
    versions.into_iter().filter(|version| event(&words, *version)).count() > 0
}

fn event(words: &[u32], version: InterfaceVersion) -> bool {
    let request = match Request::decode(words, version) {
        Ok(request) => request,
        Err(RequestError::Version { found, expected }) => {
            assert!(found != expected && words[0] == found);
            return false;
        }
        Err(_) => return false,
    };
    ask(&request.registers);
    assert_eq!((request.flags.bits(), request.reason_number(), request.vcpu), (words[1], words[2], words[3]));
    // Nothing of the request is lost but the flags, which are ours.
    let (plain, len) = Response::to(&request).encode();
    let kept = (Flags::VCPU_PAUSED | Flags::ALTERNATE_P2M).bits();
    assert_eq!((plain[0], plain[1], &plain[2..len]), (words[0], words[1] & kept, &words[2..len]));
    let again = Request::decode(&plain[..len], version).expect("a response has the form of a request");
    assert_eq!((again.registers, again.reason), (request.registers, request.reason));
    // Registers are where they were.
    let mut set = Response::to(&request);
    let mut wanted = request.registers;
    wanted.rip = !wanted.rip;
    wanted.rax = wanted.rax.wrapping_add(1);
    set.registers(&wanted);
    let (set, len) = set.encode();
    assert_eq!(Request::decode(&set[..len], version).map(|set| set.registers), Ok(wanted));
    // What is emulated fits, or is refused.
    for bytes in [0, 1, 288, 323, 324, 339, 340, 341, 4096] {
        let mut emulated = Response::to(&request);
        let fits = emulated.emulate_reading(&vec![0xaa; bytes]);
        assert_eq!(fits, bytes + 60 <= len * 4);
        let (emulated, _) = emulated.encode();
        assert_eq!(emulated[2..14], words[2..14]);
    }
    let mut stepped = Response::to(&request);
    stepped.emulate_instruction(&[0x90; 16]);
    stepped.fast_single_step(1, 2);
    assert_eq!(stepped.encode().0[2..4], words[2..4]);
    true
}

/// The event ring, whose other side does what it likes.
pub fn ring(data: &[u8]) -> bool {
    fuzz::ring(data) > 0
}

/// The list of machine frames of a PV domain.
pub fn p2m(data: &[u8]) -> bool {
    fuzz::p2m(data).is_ok_and(|runs| runs > 0)
}

/// A name in xenstore, a UUID, a lock file.
pub fn texts(data: &[u8]) -> bool {
    let (name, other) = fuzz::texts(data);
    name || other
}
