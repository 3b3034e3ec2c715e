//! The state of Cloud Hypervisor.

/// The forms in which the data of a node has been kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    /// JSON as a text.
    Text,
    /// JSON as a list of its bytes.
    Bytes,
    /// The memory manager's table as binary numbers, in a list of bytes.
    Binary,
}

fn list(bytes: &[u8]) -> String {
    let numbers: Vec<_> = bytes.iter().map(u8::to_string).collect();
    format!("[{}]", numbers.join(","))
}

fn node(name: &str, form: Form, data: &[u8], children: &str) -> String {
    let data = match form {
        Form::Text => format!(r#"{{"state":"{}"}}"#, String::from_utf8_lossy(data).replace('\\', "\\\\").replace('"', "\\\"")),
        _ => format!(r#"{{"{name}-section":{{"id":"{name}-section","snapshot":{}}}}}"#, list(data)),
    };
    format!(r#"{{"id":"{name}","snapshots":{{{children}}},"snapshot_data":{data}}}"#)
}

/// `state.json` for memory at these addresses and of these lengths, and these vCPUs.
pub fn state(form: Form, ranges: &[(u64, u64)], vcpus: &[String]) -> String {
    let binary = || {
        let numbers = [ranges.len() as u64].into_iter().chain(ranges.iter().flat_map(|(gpa, len)| [*gpa, *len]));
        numbers.flat_map(u64::to_le_bytes).chain([0x5a; 40]).collect::<Vec<u8>>()
    };
    let json = || {
        let ranges: Vec<_> = ranges.iter().map(|(gpa, len)| format!(r#"{{"gpa":{gpa},"length":{len}}}"#)).collect();
        let more = r#""guest_ram_mappings":[{"slot":0,"gpa":0,"size":4096,"zone_id":"mem0"}],"boot_ram":8192"#;
        format!(r#"{{"memory_ranges":{{"data":[{}]}},{more}}}"#, ranges.join(",")).into_bytes()
    };
    let memory = node("memory-manager", form, &if form == Form::Binary { binary() } else { json() }, "");
    let data_form = if form == Form::Text { Form::Text } else { Form::Bytes };
    let each = vcpus
        .iter()
        .enumerate()
        .map(|(number, vcpu)| format!(r#""{number}":{}"#, node(&number.to_string(), data_form, vcpu.as_bytes(), "")));
    let cpus = each.collect::<Vec<_>>().join(",");
    let children = format!(
        r#""cpu-manager":{{"id":"cpu-manager","snapshots":{{{cpus}}},"snapshot_data":{}}},"device-manager":{},"memory-manager":{memory}"#,
        if form == Form::Text { "null" } else { "{}" },
        node("device-manager", data_form, br#"{"devices":["a\"b",1.5,null]}"#, ""),
    );
    format!(r#"{{"id":"vm","snapshots":{{{children}}},"snapshot_data":{{}}}}"#)
}

/// A vCPU's state. Numbers count up from `first`.
pub fn vcpu(first: u64, general_as_bytes: bool) -> String {
    let names =
        "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags".split(' ').zip(first..).collect::<Vec<_>>();
    let general = if general_as_bytes {
        list(&names.iter().flat_map(|(_, value)| value.to_le_bytes()).collect::<Vec<u8>>())
    } else {
        format!("{{{}}}", names.iter().map(|(name, value)| format!(r#""{name}":{value}"#)).collect::<Vec<_>>().join(","))
    };
    let segment = |base| {
        let flags = r#""type_":11,"present":1,"dpl":0,"db":0,"s":1,"l":1,"g":1,"avl":0,"unusable":0"#;
        format!(r#"{{"base":{base},"limit":1048575,"selector":16,{flags}}}"#)
    };
    let segments = "cs ds es fs gs ss tr ldt".split(' ').zip(0u64..);
    let segments = segments.map(|(name, number)| format!(r#""{name}":{}"#, segment(first + 0x100 * number)));
    let special = format!(
        r#"{{{},"gdt":{{"base":{},"limit":127}},"idt":{{"base":{},"limit":4095}},"cr0":{},"cr2":{},"cr3":{},"cr4":{},"cr8":{},"efer":3329,"apic_base":{},"interrupt_bitmap":[0,0,0,0]}}"#,
        segments.collect::<Vec<_>>().join(","),
        first + 0x1000,
        first + 0x2000,
        first + 100,
        first + 101,
        first + 102,
        first + 103,
        first + 104,
        0xfee0_0900u64,
    );
    format!(r#"{{"Kvm":{{"cpuid":[],"regs":{{"Kvm":{general}}},"sregs":{special},"fpu":{{}}}}}}"#)
}
