use proptest::prelude::*;

use super::*;

const VERSIONS: [InterfaceVersion; 3] = [InterfaceVersion::V5, InterfaceVersion::V6, InterfaceVersion::V7];

fn entry(version: u32, reason: u32, fill: impl FnOnce(&mut [u8])) -> [u32; MOST_WORDS] {
    let mut words = [0u32; MOST_WORDS];
    words[..4].copy_from_slice(&[version, 1 | 1 << 7 | 1 << 20, reason, 3]);
    words[4] = 2;
    fill(words.as_mut_bytes());
    words
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn structures_are_as_long_as_the_headers() {
    // By the C compiler from the header of 4.17: 400 bytes in all, 344 of them registers; the data of the reason at 24, the registers at 56.
    assert_eq!(
        size_of::<layout::FirstRegisters>() + size_of::<layout::MiddleRegisters>() + size_of::<layout::LastRegisters>(),
        344
    );
    assert_eq!((DATA, REGISTERS, MOST), (24, 56, 56 + 344));
    assert_eq!(InterfaceVersion::V7.words() * 4, 400);
    assert_eq!(InterfaceVersion::V6.words() * 4, 400 - 16);
    assert_eq!((size_of::<DebugData6>(), size_of::<DescriptorData>(), size_of::<MemAccessData>()), (24, 24, 32));
}

#[test]
fn registers_are_where_the_header_has_them() {
    // Offsets by the C compiler: rcx 8, rip 152, cr3 176, gdtr_base 240, fs_base 280, cs 296, shadow_gs 320, gdtr_limit 328, cs_sel 330.
    let words = entry(7, 8, |bytes| {
        let registers = &mut bytes[56..];
        put(registers, 8, 0xcc);
        put(registers, 152, 0xffff_ffff_8100_0000);
        put(registers, 176, 0x1234_5000);
        put(registers, 240, 0xfe00);
        put(registers, 280, 0x7f00_0000_0000);
        // a 64-bit code segment with a limit in pages: limit 0xfffff, rights type 0xb, S, P, L, G
        put(registers, 296, 0xa9b_u64 << 20 | 0xf_ffff);
        put(registers, 320, 0x9999);
        registers[328..332].copy_from_slice(&[0x7f, 0, 0x10, 0]);
    });
    let request = Request::decode(&words, InterfaceVersion::V7).unwrap();
    let registers = request.registers;
    assert_eq!((registers.rcx, registers.rip, registers.cr3), (0xcc, 0xffff_ffff_8100_0000, Some(0x1234_5000)));
    assert_eq!(registers.gdtr, Some(vmi_arch_x86::Table { base: vmi_core::VirtAddr::new(0xfe00), limit: 0x7f }));
    assert_eq!((registers.segments.fs.unwrap().base, registers.kernel_gs_base), (0x7f00_0000_0000, Some(0x9999)));
    let cs = registers.segments.cs.unwrap();
    assert_eq!((cs.selector, cs.limit, cs.attributes.unwrap().bits()), (0x10, 0xffff_ffff, 0xa09b));
    assert_eq!((request.vcpu, request.view, request.reason), (3, Some(2), Reason::GuestRequest));
    assert!(request.flags.bits() & (1 << 20) != 0, "unknown flags are kept");
}

/// In one build the place was aligned, in another it was not, and the registers stayed as they were.
#[test]
fn registers_are_written_wherever_the_response_lies() {
    let mut registers = vmi_arch_x86::Registers::default();
    registers.rip = 0x1122_3344_5566_7788;
    for offset in 0..8 {
        let mut bytes = vec![0u8; 400];
        registers::encode(&registers, &mut bytes[offset..]);
        assert_eq!(bytes[offset + 152..offset + 160], 0x1122_3344_5566_7788u64.to_ne_bytes(), "{offset}");
    }
}

#[test]
fn a_response_to_a_lost_request_names_its_vcpu() {
    let (words, len) = Response::to_lost(InterfaceVersion::V7, 3).encode();
    assert_eq!((words[..5].to_vec(), len), (vec![7, 1, 0, 3, 0], 100));
    assert!(words[5..].iter().all(|word| *word == 0));
}

#[test]
fn older_versions_have_less() {
    let words = entry(6, 9, |bytes| {
        put(bytes, 24, 7);
        put(bytes, 32, 0x4000);
        put(bytes, 40, 3 | 5 << 32);
        put(bytes, 56 + 280 - 16, 0x55); // fs_base
    });
    let request = Request::decode(&words[..96], InterfaceVersion::V6).unwrap();
    assert_eq!(request.reason, Reason::DebugException(Debug { gfn: 7, pending: Some(0x4000), length: 3, kind: 5 }));
    assert_eq!(request.registers.segments.fs.unwrap().base, 0x55);
    let words = entry(5, 6, |bytes| {
        put(bytes, 24, 7);
        put(bytes, 32, 1 | 6 << 32);
    });
    let request = Request::decode(&words[..96], InterfaceVersion::V5).unwrap();
    assert_eq!(request.reason, Reason::SoftwareBreakpoint(Debug { gfn: 7, pending: None, length: 1, kind: 6 }));
}

#[test]
fn every_reason_is_told() {
    let words = |reason| {
        entry(7, reason, |bytes| {
            for at in 0..4u64 {
                put(bytes, 24 + 8 * at as usize, (0x20 + at) << 32 | (0x10 + at));
            }
        })
    };
    let (a, b, c) = (0x20_0000_0010, 0x21_0000_0011, 0x22_0000_0012);
    let debug = Debug { gfn: a, pending: Some(b), length: 0x12, kind: 0x22 };
    let expected = [
        Reason::Unknown,
        Reason::MemAccess { gfn: a, offset: b, gla: c, flags: AccessFlags::from_bits_retain(0x13) },
        Reason::MemSharing { gfn: a, p2mt: 0x11 },
        Reason::MemPaging { gfn: a, p2mt: 0x11, flags: 0x21 },
        Reason::WriteCtrlReg { index: 0x10, new: b, old: c },
        Reason::MovToMsr { msr: a, new: b, old: c },
        Reason::SoftwareBreakpoint(debug),
        Reason::SingleStep { gfn: a },
        Reason::GuestRequest,
        Reason::DebugException(debug),
        Reason::Cpuid { length: 0x10, leaf: 0x20, subleaf: 0x11 },
        Reason::PrivilegedCall,
        Reason::Interrupt { vector: 0x10, kind: 0x20, error_code: 0x11, cr2: c },
        Reason::DescriptorAccess { descriptor: 0x12, write: false, instruction: 0x10, qualification: b },
        Reason::EmulUnimplemented,
        Reason::VmExit { reason: a, qualification: b },
        Reason::Other(16),
    ];
    for (number, expected) in expected.into_iter().enumerate() {
        let request = Request::decode(&words(number as u32), InterfaceVersion::V7).unwrap();
        assert_eq!((request.reason, request.reason_number()), (expected, number as u32));
    }
}

#[test]
fn another_version_and_a_short_entry_are_errors() {
    let words = entry(6, 0, |_| {});
    assert_eq!(Request::decode(&words, InterfaceVersion::V7).unwrap_err(), RequestError::Version { found: 6, expected: 7 });
    assert_eq!(Request::decode(&words[..95], InterfaceVersion::V6).unwrap_err(), RequestError::Short(380));
    assert_eq!(InterfaceVersion::from_number(8), None);
}

#[test]
fn emulation_data_lies_where_the_registers_were() {
    let request = Request::decode(&entry(7, 1, |_| {}), InterfaceVersion::V7).unwrap();
    let mut response = Response::to(&request);
    assert!(response.emulate_reading(b"abc"));
    let (words, len) = response.encode();
    assert_eq!(len, 100);
    assert_eq!(words[1], 1 | 1 << 7 | 1 << 2 | 1 << 5, "unknown flags of the request are not given back");
    assert_eq!(&words.as_bytes()[56..63], b"\x03\0\0\0abc");
    let mut response = Response::to(&request);
    // vm_event_emul_read_data.data: the registers without four bytes
    assert!(response.emulate_reading(&[1; 340]) && !response.emulate_reading(&[1; 341]));
    let mut response = Response::to(&request);
    response.emulate_instruction(&[0x90; 16]);
    let (words, _) = response.encode();
    assert_eq!((words[1] & (1 << 9 | 1 << 2), &words.as_bytes()[56..72]), (1 << 9 | 1 << 2, &[0x90; 16][..]));
}

proptest! {
    /// An answered request is the request, flags aside; registers that are set lie where they came from.
    #[test]
    fn a_response_is_made_of_its_request(mut words in proptest::collection::vec(any::<u32>(), MOST_WORDS), which in 0usize..3) {
        let version = VERSIONS[which];
        words[0] = version.number();
        let request = Request::decode(&words, version).unwrap();
        let mut response = Response::to(&request);
        response.registers(&request.registers);
        let (back, len) = response.encode();
        prop_assert_eq!(back[1], words[1] & (1 | 1 << 7) | 1 << 8);
        prop_assert_eq!((back[0], &back[2..len]), (words[0], &words[2..len]));
    }

    #[test]
    fn any_words_are_decoded(words in proptest::collection::vec(any::<u32>(), 0..120), which in 0usize..3, known: bool) {
        let version = VERSIONS[which];
        let mut words = words;
        if let Some(first) = words.first_mut().filter(|_| known) {
            *first = version.number();
        }
        match Request::decode(&words, version) {
            Ok(request) => _ = Response::to(&request).encode(),
            Err(RequestError::Short(len)) => prop_assert!(len == words.len() * 4 && words.len() < version.words()),
            Err(RequestError::Version { found, .. }) => prop_assert!(found == words[0] && found != version.number()),
        }
    }
}
