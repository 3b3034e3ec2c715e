//! QEMU's migration stream and libvirt's file around it, from QEMU's documentation of the stream: big-endian, section by section.
#![allow(dead_code, unreachable_pub)]

pub const PAGE: usize = 4096;

/// A page as it is sent: block, offset in the block, and content; `None` is a page of zeros.
pub type Sent = (&'static str, u64, Option<Vec<u8>>);

/// A stream under construction.
#[derive(Clone)]
pub struct Stream {
    pub machine: &'static str,
    pub capabilities: Vec<&'static str>,
    /// Names, lengths, and numbers of 8 bytes behind the entry.
    pub blocks: Vec<(&'static str, u64, Vec<u64>)>,
    /// Rounds of pages, each a section of its own.
    pub rounds: Vec<Vec<Sent>>,
    /// What is between the end of the memory and the end of the stream, and the JSON on it.
    pub devices: Vec<u8>,
    pub description: String,
    /// A record that is sent before the pages.
    pub record: Option<u64>,
}

pub fn name(text: &str) -> Vec<u8> {
    [&[text.len() as u8], text.as_bytes()].concat()
}

fn footer(id: u32) -> Vec<u8> {
    [&[0x7e][..], &id.to_be_bytes()].concat()
}

impl Stream {
    pub fn new(machine: &'static str, blocks: Vec<(&'static str, u64)>, rounds: Vec<Vec<Sent>>) -> Self {
        Self {
            machine,
            capabilities: Vec::new(),
            blocks: blocks.into_iter().map(|(name, len)| (name, len, Vec::new())).collect(),
            rounds,
            devices: Vec::new(),
            description: String::new(),
            record: None,
        }
    }

    /// With the state of a clock whose CMOS tells the memory, and of one vCPU.
    pub fn with_devices(mut self, low: u64, high: u64) -> Self {
        let mut cmos = vec![0; 128];
        cmos[0x34..0x36].copy_from_slice(&(((low - (16 << 20)) >> 16) as u16).to_le_bytes());
        cmos[0x5b..0x5e].copy_from_slice(&(high >> 16).to_le_bytes()[..3]);
        let mut cpu = Vec::new();
        // rax rcx rdx rbx rsp rbp rsi rdi r8 to r15, then rip and rflags.
        (0..16u64).for_each(|number| cpu.extend((0x100 + number).to_be_bytes()));
        cpu.extend(0xffff_ffff_8100_0000_u64.to_be_bytes());
        cpu.extend(0x246_u64.to_be_bytes());
        // es cs ss ds fs gs, then gdt and idt.
        for number in 0..8u64 {
            cpu.extend((0x10 + number as u32).to_be_bytes());
            cpu.extend((0x1000 * number).to_be_bytes());
            cpu.extend(0xfff_u32.to_be_bytes());
            cpu.extend(0x00a0_9b00_u32.to_be_bytes());
        }
        [0x8005_0033, 0, 0x1234_5000, 0x6f0, 0xd01].iter().for_each(|value: &u64| cpu.extend(value.to_be_bytes()));
        let sections = [("timer", vec![1, 2, 3]), ("cpu", cpu), ("mc146818rtc", cmos)];
        for (id, (device, state)) in (10u32..).zip(sections) {
            self.devices.push(4);
            self.devices.extend(id.to_be_bytes());
            self.devices.extend(name(device));
            self.devices.extend(0u32.to_be_bytes());
            self.devices.extend(12u32.to_be_bytes());
            self.devices.extend(state);
            if device == "cpu" {
                self.devices.push(5);
                self.devices.extend(name("cpu/more"));
                self.devices.extend([0, 0, 0, 1, 9, 9]);
            }
            self.devices.extend(footer(id));
        }
        let field = |name: &str, size: u32| format!(r#"{{"name": "{name}", "type": "x", "size": {size}}}"#);
        let array =
            |name: &str, len: u32, size: u32| format!(r#"{{"name": "{name}", "array_len": {len}, "type": "x", "size": {size}}}"#);
        let cpu = [
            array("env.regs", 16, 8),
            field("env.eip", 8),
            field("env.eflags", 8),
            array("env.segs", 6, 20),
            field("env.gdt", 20),
            field("env.idt", 20),
            field("env.cr[0]", 8),
            field("env.cr[2]", 8),
            field("env.cr[3]", 8),
            field("env.cr[4]", 8),
            field("env.efer", 8),
        ];
        let device = |name: &str, fields: &str, more: &str| {
            format!(r#"{{"name": "{name}", "instance_id": 0, "vmsd_name": "{name}", "version": 12, "fields": [{fields}]{more}}}"#)
        };
        let more = format!(r#", "subsections": [{{"vmsd_name": "cpu/more", "version": 1, "fields": [{}]}}]"#, field("a", 2));
        let devices = [
            device("timer", &field("t", 3), ""),
            device("cpu", &cpu.join(","), &more),
            device("mc146818rtc", &field("cmos_data", 128), ""),
        ];
        self.description = format!(r#"{{"page_size": 4096, "devices": [{}]}}"#, devices.join(", "));
        self
    }

    fn head(&self) -> Vec<u8> {
        let mut out = b"QEVM\0\0\0\x03\x07".to_vec();
        out.extend((self.machine.len() as u32).to_be_bytes());
        out.extend(self.machine.as_bytes());
        if !self.capabilities.is_empty() {
            out.push(5);
            out.extend(name("configuration/capabilities"));
            out.extend(1u32.to_be_bytes());
            out.extend((self.capabilities.len() as u32).to_be_bytes());
            self.capabilities.iter().for_each(|capability| out.extend(name(capability)));
        }
        out.push(1);
        out.extend(2u32.to_be_bytes());
        out.extend(name("ram"));
        out.extend(0u32.to_be_bytes());
        out.extend(4u32.to_be_bytes());
        let total: u64 = self.blocks.iter().map(|block| block.1).sum();
        out.extend((total | 4).to_be_bytes());
        out
    }

    fn tail(&self, out: &mut Vec<u8>) {
        out.extend(&self.devices);
        out.push(0);
        if !self.description.is_empty() {
            out.push(6);
            out.extend((self.description.len() as u32).to_be_bytes());
            out.extend(self.description.as_bytes());
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.head();
        for (block, len, more) in &self.blocks {
            out.extend(name(block));
            out.extend(len.to_be_bytes());
            more.iter().for_each(|number| out.extend(number.to_be_bytes()));
        }
        out.extend(0x10_u64.to_be_bytes());
        out.extend(footer(2));
        // A ping.
        out.extend([8, 0, 2, 0, 4, 0, 0, 0, 1]);
        for (index, round) in self.rounds.iter().enumerate() {
            out.push(if index + 1 == self.rounds.len() { 3 } else { 2 });
            out.extend(2u32.to_be_bytes());
            out.extend(self.record.iter().flat_map(|record| record.to_be_bytes()));
            let mut last = "";
            for (block, at, content) in round {
                let kind = if content.is_some() { 8 } else { 2 };
                let same = if *block == last { 0x20 } else { 0 };
                out.extend((at | kind | same).to_be_bytes());
                if same == 0 {
                    out.extend(name(block));
                }
                last = block;
                match content {
                    Some(content) => out.extend(content),
                    None => out.push(0),
                }
            }
            out.extend(0x10_u64.to_be_bytes());
            out.extend(footer(2));
        }
        self.tail(&mut out);
        out
    }

    /// The same with memory at fixed places: what was sent last is in the file, and so is what was sent before zeros.
    pub fn mapped(&self, offset: usize) -> Vec<u8> {
        let with_capability = Self { capabilities: vec!["mapped-ram"], ..self.clone() };
        let mut out = vec![0xee; offset];
        out.extend(with_capability.head());
        for (block, len, _) in &self.blocks {
            out.extend(name(block));
            out.extend(len.to_be_bytes());
            let bits = *len as usize / PAGE;
            let bitmap_at = out.len() + 28;
            let pages_at = (bitmap_at + bits.div_ceil(64) * 8).next_multiple_of(1 << 20);
            out.extend(1u32.to_be_bytes());
            [PAGE, bitmap_at, pages_at].iter().for_each(|&number| out.extend((number as u64).to_be_bytes()));
            out.resize(pages_at + *len as usize, 0);
            for (_, at, content) in self.rounds.iter().flatten().filter(|sent| sent.0 == *block) {
                let page = *at as usize / PAGE;
                let byte = &mut out[bitmap_at + page / 8];
                match content {
                    Some(content) => {
                        *byte |= 1 << (page % 8);
                        out[pages_at + page * PAGE..][..PAGE].copy_from_slice(content);
                    }
                    None => *byte &= !(1 << (page % 8)),
                }
            }
        }
        out.extend(0x10_u64.to_be_bytes());
        out.extend(footer(2));
        out.push(3);
        out.extend(2u32.to_be_bytes());
        out.extend(0x10_u64.to_be_bytes());
        out.extend(footer(2));
        self.tail(&mut out);
        out
    }
}

/// The header of libvirt's file, and an XML behind it.
pub fn libvirt_head(magic: &[u8; 16], version: u32, packing: u32) -> Vec<u8> {
    let xml = b"<domain type='kvm'><name>guest</name></domain>\0";
    let mut out = magic.to_vec();
    [version, xml.len() as u32, 1, packing, 0].iter().for_each(|number| out.extend(number.to_le_bytes()));
    out.resize(92, 0);
    out.extend(xml);
    out
}
