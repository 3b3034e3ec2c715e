//! State files of Firecracker.

const MAGIC: u64 = 0x0710_1984_8664_0000;

/// How the state is serialised, and what a region has behind its address and length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    /// 1.0: versionize; a region has an offset.
    Versionize,
    /// 1.7: bincode; a region has an offset.
    BincodeOffset,
    /// 1.11: bincode; nothing, and the table is in the state of the virtual machine.
    Bincode,
    /// 1.14: kind and slots.
    BincodeSlots,
    /// Numbers packed.
    Bitcode,
}

pub const FORMS: [Form; 5] = [Form::Versionize, Form::BincodeOffset, Form::Bincode, Form::BincodeSlots, Form::Bitcode];

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// A state that tells of `regions` (address, length), and what is in `vcpus` somewhere behind them.
pub fn state(form: Form, regions: &[(u64, u64)], vcpus: &[Vec<u8>]) -> Vec<u8> {
    let mib: u64 = regions.iter().map(|(_, len)| len >> 20).sum();
    if form == Form::Bitcode {
        // Each number behind a byte that says how long it is; a text behind its length.
        let mut bytes = vec![0];
        bytes.extend(MAGIC.to_le_bytes());
        bytes.extend(b"\x059.0.0");
        bytes.extend(if mib < 256 { vec![6, mib as u8] } else { [&[4][..], &(mib as u16).to_le_bytes()].concat() });
        bytes.extend(vec![0x5a; 600]);
        return with_checksum(bytes);
    }
    let mut bytes = if form == Form::Versionize { (MAGIC | 1).to_le_bytes().to_vec() } else { MAGIC.to_le_bytes().to_vec() };
    bytes.extend(if form == Form::Versionize { 5u16.to_le_bytes().to_vec() } else { text("4.0.0") });
    bytes.extend(mib.to_le_bytes());
    bytes.extend([1, 0, 0, 0, 0]); // threads, CPU template
    bytes.extend(text("/srv/vmlinux"));
    bytes.push(0); // no initial RAM disk
    bytes.push(1);
    bytes.extend(text("console=ttyS0 reboot=k panic=1"));
    bytes.extend(0u32.to_le_bytes()); // huge pages
    bytes.extend(0u64.to_le_bytes()); // capabilities of KVM
    bytes.extend((regions.len() as u64).to_le_bytes());
    let mut offset = 0;
    for (at, len) in regions {
        bytes.extend(at.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        match form {
            Form::Versionize | Form::BincodeOffset => bytes.extend(u64::to_le_bytes(offset)),
            Form::BincodeSlots => {
                bytes.extend(0u32.to_le_bytes());
                bytes.extend(1u64.to_le_bytes());
                bytes.push(1);
            }
            _ => {}
        }
        offset += len;
    }
    bytes.extend(vec![0x5a; 600]);
    vcpus.iter().for_each(|vcpu| bytes.extend([&[9; 13][..], vcpu].concat()));
    with_checksum(bytes)
}

/// With CRC-64 behind it, as Redis computes it (polynomial 0xad93d23594c935a9, its bits from the lowest to the highest).
fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
    let mut sum = 0u64;
    for byte in &bytes {
        sum ^= u64::from(*byte);
        for _ in 0..8 {
            sum = sum >> 1 ^ if sum & 1 == 0 { 0 } else { 0xad93_d235_94c9_35a9u64.reverse_bits() };
        }
    }
    bytes.extend(sum.to_le_bytes());
    bytes
}

/// KVM's two structures. Numbers count up from `first`.
pub fn vcpu(first: u64) -> Vec<u8> {
    let words = |first: u64, count: u64| (first..first + count).flat_map(u64::to_le_bytes).collect::<Vec<u8>>();
    let mut bytes = words(first, 18);
    for segment in 0..8u64 {
        bytes.extend((first + 0x100 * segment).to_le_bytes()); // base
        bytes.extend(0xf_ffffu32.to_le_bytes());
        bytes.extend((8 * segment as u16).to_le_bytes());
        bytes.extend([11, 1, 0, 0, 1, 1, 1, 0, 0, 0]); // type present dpl db s l g avl unusable
    }
    for table in 0..2u64 {
        bytes.extend((first + 0x1000 * table).to_le_bytes());
        bytes.extend([&0x7fu16.to_le_bytes()[..], &[0; 6]].concat());
    }
    bytes.extend(words(first + 100, 5)); // cr0 cr2 cr3 cr4 cr8
    bytes.extend(0xd01u64.to_le_bytes()); // efer
    bytes.extend(0xfee0_0900u64.to_le_bytes()); // apic base
    bytes.extend([0; 32]);
    bytes
}
