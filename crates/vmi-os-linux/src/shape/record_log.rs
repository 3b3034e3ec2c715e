//! The kernel's log before 5.10 (kernel: kernel/printk/printk.c), where symbols name its parts: a buffer of records.
//!
//! A record's head (`struct printk_log`) has had one layout since 3.5, with a member more at its end since 5.1 if the kernel keeps who logged
//! (`CONFIG_PRINTK_CALLER`). Its size is what is left of a record's length without text, dictionary and padding.

use vmi_arch_x86::X86Driver;
use vmi_core::{Memory, Symbols, VirtAddr};

use super::findings::Findings;
use super::types::Kind;
use super::view::View;

/// Bytes of a head: without and with `caller_id`.
const SIZES: [u16; 2] = [16, 20];
/// Records that are judged.
const RECORDS: usize = 64;
/// What a record is aligned to at most.
const ALIGNMENT: u16 = 8;

/// Describes `printk_log` if the symbols name a log of this kind; whether they do.
pub(super) fn infer<D: X86Driver>(view: &View<'_, D>, symbols: &Symbols, findings: &mut Findings) -> bool {
    let Some(size) = head(view, symbols) else { return false };
    let members = [
        ("ts_nsec", 0, Kind::Number(8)),
        ("len", 8, Kind::Number(2)),
        ("text_len", 10, Kind::Number(2)),
        ("dict_len", 12, Kind::Number(2)),
        ("facility", 14, Kind::Number(1)),
        ("flags", 15, Kind::Bits(0, 5)),
        ("level", 15, Kind::Bits(5, 3)),
    ];
    for (member, offset, kind) in members {
        findings.add("printk_log", member, offset, kind);
    }
    findings.types.resize("printk_log", size.into());
    true
}

/// The size of a record's head: the only one that fits the first records.
fn head<D: X86Driver>(view: &View<'_, D>, symbols: &Symbols) -> Option<u16> {
    let variable = |name| symbols.find(name).map(|symbol| symbol.address);
    let buffer = view.pointer(variable("log_buf")?.get())?;
    let mut at = buffer.checked_add(view.read::<u32>(variable("log_first_idx")?).ok()?.into())?;
    let count = view.read::<u64>(variable("log_next_seq")?).ok()?.checked_sub(view.read(variable("log_first_seq")?).ok()?)?;
    let mut fitting = SIZES.to_vec();
    for _ in 0..usize::try_from(count).ok()?.min(RECORDS) {
        let word = |offset: u64| view.read::<u16>(VirtAddr::new(at.checked_add(offset)?)).ok();
        let (len, text, dictionary) = (word(8)?, word(10)?, word(12)?);
        if len == 0 {
            // The next record is at the start of the buffer.
            break;
        }
        let rest = len.checked_sub(text)?.checked_sub(dictionary)?;
        fitting.retain(|size| rest.checked_sub(*size).is_some_and(|padding| padding < ALIGNMENT));
        at = at.checked_add(len.into())?;
    }
    // A head with a member more looks like the smaller one with padding where each text ends so; the largest that fits all is it.
    fitting.last().copied().filter(|_| count > 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vmi_arch_x86::X86;
    use vmi_core::synthetic::SyntheticDriver;
    use vmi_core::{PhysAddr, SymbolsBuilder, Vmi};

    use super::*;
    use crate::shape::view::{Budget, Window};

    const BUFFER: u64 = 0x1000;

    /// Memory with the variables at 0x100 and the buffer; the first record is at the start.
    fn memory(records: u64, buffer: &[u8]) -> Vec<u8> {
        let mut memory = vec![0; 0x4000];
        for (at, word) in [(0x100, BUFFER), (0x108, 0), (0x110, 5), (0x118, 5 + records)] {
            memory[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        memory[BUFFER as usize..][..buffer.len()].copy_from_slice(buffer);
        memory
    }

    /// Records whose heads have so many bytes, with texts of 0 to 7 bytes.
    fn records(head: u16) -> Vec<u8> {
        let mut buffer = Vec::new();
        for text in 0..8u16 {
            let len = (head + text).next_multiple_of(4);
            let start = buffer.len();
            buffer.extend(77u64.to_le_bytes());
            [len, text, 0, 0].iter().for_each(|number| buffer.extend(number.to_le_bytes()));
            buffer.resize(start + usize::from(len), b'x');
        }
        buffer
    }

    fn head_in(memory: Vec<u8>) -> Option<u16> {
        let mut symbols = SymbolsBuilder::default();
        for (name, at) in [("log_buf", 0x100), ("log_first_idx", 0x108), ("log_first_seq", 0x110), ("log_next_seq", 0x118)] {
            symbols.push(name, VirtAddr::new(at), b'd');
        }
        let window = Window { start: 0, last: memory.len() as u64 - 1, delta: 0 };
        let vmi = Vmi::new(SyntheticDriver::<X86>::with_arch([(PhysAddr::ZERO, memory)]));
        head(&View::linear(&vmi, 8, vec![window], &Budget::new()), &symbols.build())
    }

    #[test]
    fn both_sizes_of_a_head() {
        for size in SIZES {
            assert_eq!(head_in(memory(8, &records(size))), Some(size));
        }
    }

    #[test]
    fn what_is_no_record_is_no_log() {
        assert_eq!(head_in(memory(0, &[])), None, "no records");
        assert_eq!(head_in(memory(8, &[0xff; 64])), None);
        // A text longer than its record.
        let mut damaged = records(16);
        damaged[10] = 0xff;
        assert_eq!(head_in(memory(8, &damaged)), None);
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..0x400), count in any::<u64>()) {
            head_in(memory(count % (1 << 40), &bytes));
        }
    }
}
