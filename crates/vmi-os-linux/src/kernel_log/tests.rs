//! Logs of both forms, made up word by word.

use vmi_core::{Error, ErrorKind, LogRecord};

use crate::Linux;
use crate::test_guest::TestGuest;

const DESCRIPTORS: u64 = 0x20000;
const INFOS: u64 = 0x21000;
const TEXT: u64 = 0x22000;
const FINALIZED: u64 = 2 << 62;
const RING: u64 = 0x23000;

/// A ring of four descriptors (state 0, begin 8, next 0x10), four infos (seq 0, ts 8, len 0x10, level 0x12) and 64 bytes of text.
fn ring(tail: u64, head: u64) -> TestGuest {
    let mut guest = TestGuest::new();
    for (structure, path, offset, size) in [
        ("printk_ringbuffer", "desc_ring.count_bits", 0, 4),
        ("printk_ringbuffer", "desc_ring.descs", 8, 8),
        ("printk_ringbuffer", "desc_ring.infos", 0x10, 8),
        ("printk_ringbuffer", "desc_ring.head_id", 0x18, 8),
        ("printk_ringbuffer", "desc_ring.tail_id", 0x20, 8),
        ("printk_ringbuffer", "text_data_ring.size_bits", 0x28, 4),
        ("printk_ringbuffer", "text_data_ring.data", 0x30, 8),
        ("prb_desc", "state_var", 0, 8),
        ("prb_desc", "text_blk_lpos.begin", 8, 8),
        ("prb_desc", "text_blk_lpos.next", 0x10, 8),
        ("printk_info", "seq", 0, 8),
        ("printk_info", "ts_nsec", 8, 8),
        ("printk_info", "text_len", 0x10, 2),
        ("printk_info", "level", 0x12, 1),
    ] {
        guest.types.member(structure, path, offset, size);
    }
    guest.types.size("prb_desc", 0x18);
    guest.types.size("printk_info", 0x18);
    guest.symbol("prb", RING - 8);
    guest.put(RING - 8, &[RING, 2, DESCRIPTORS, INFOS, head, tail, 6, TEXT]);
    guest
}

/// The record `id` with the sequence number `sequence` and this text at a position of the text ring, up to `next`.
fn record(guest: &mut TestGuest, id: u64, sequence: u64, position: (u64, u64), text: &str) {
    guest.put(DESCRIPTORS + 0x18 * (id % 4), &[FINALIZED | id, position.0, position.1]);
    guest.put(INFOS + 0x18 * (id % 4), &[sequence, 1000 * sequence, text.len() as u64 | 6 << 16]);
    if position.0 & 1 == 0 {
        let start = if position.0 / 64 == (position.1 - 1) / 64 { position.0 % 64 } else { 0 };
        guest.put(TEXT + start, &[id]);
        guest.text(TEXT + start + 8, text);
    }
}

fn read(guest: TestGuest) -> Vec<Result<(u64, String), Error>> {
    let (vmi, kernel) = guest.build();
    let linux = Linux::with_kernel(&vmi, kernel).unwrap();
    let row = |record: LogRecord| {
        assert_eq!((record.level, record.nanoseconds), (6, 1000 * record.sequence));
        (record.sequence, record.text)
    };
    linux.kernel_log().map(|record| record.map(row)).collect()
}

fn whole(guest: TestGuest) -> Vec<(u64, String)> {
    read(guest).into_iter().map(Result::unwrap).collect()
}

/// Three records whose ids wrap (the highest is 2^62 - 1) and whose last text would cross the end of the text ring.
fn three() -> TestGuest {
    let last = (1 << 62) - 1;
    let mut guest = ring(last - 1, 0);
    record(&mut guest, last - 1, 10, (0x50, 0x60), "first");
    record(&mut guest, last, 11, (0x60, 0x70), "second");
    record(&mut guest, 0, 12, (0x78, 0x90), "third");
    guest
}

fn texts(texts: &[(u64, &str)]) -> Vec<(u64, String)> {
    texts.iter().map(|(sequence, text)| (*sequence, (*text).to_owned())).collect()
}

#[test]
fn ids_and_text_wrap() {
    assert_eq!(whole(three()), texts(&[(10, "first"), (11, "second"), (12, "third")]));
}

#[test]
fn a_text_that_ends_exactly_at_the_end_of_the_ring() {
    let mut guest = ring(4, 4);
    record(&mut guest, 4, 7, (0x70, 0x80), "to the e");
    assert_eq!(whole(guest), texts(&[(7, "to the e")]));
}

#[test]
fn records_without_text() {
    let mut guest = ring(4, 5);
    record(&mut guest, 4, 7, (3, 3), "");
    record(&mut guest, 5, 8, (1, 1), "lost");
    assert_eq!(whole(guest), texts(&[(7, "")]));
}

#[test]
fn a_record_that_is_being_written_is_left_out() {
    let mut guest = three();
    let last = (1u64 << 62) - 1;
    guest.put(DESCRIPTORS + 0x18 * 3, &[last]);
    assert_eq!(whole(guest), texts(&[(10, "first"), (12, "third")]));
    // Taken, but with the descriptor of one round before.
    let mut guest = three();
    guest.put(DESCRIPTORS, &[FINALIZED | ((1 << 62) - 4)]);
    assert_eq!(whole(guest), texts(&[(10, "first"), (11, "second")]));
}

#[test]
fn a_record_overwritten_while_it_is_read_is_left_out() {
    // As soon as the level of the second record was read, the kernel takes its descriptor for another.
    let (vmi, kernel) = three().build_racing(INFOS + 0x18 * 3 + 0x12, &[(DESCRIPTORS + 0x18 * 3, 3)]);
    let linux = Linux::with_kernel(&vmi, kernel).unwrap();
    let texts: Vec<_> = linux.kernel_log().map(|record| record.unwrap().text).collect();
    assert_eq!(texts, ["first", "third"]);
}

#[test]
fn a_ring_that_contradicts_itself_is_an_error() {
    let corrupt = |guest: TestGuest, rows: usize| {
        let read = read(guest);
        assert_eq!(read.len(), rows);
        let errors = read.into_iter().filter_map(Result::err);
        for error in errors {
            assert!(matches!(error.kind(), ErrorKind::Corrupt { .. }), "{error}");
        }
    };
    let mut strange = three();
    strange.put(DESCRIPTORS, &[FINALIZED | 0x123]);
    corrupt(strange, 3);
    let mut other_text = three();
    other_text.put(TEXT + 0x20, &[99]);
    corrupt(other_text, 3);
    let mut backwards = three();
    backwards.put(DESCRIPTORS + 0x18 * 3 + 8, &[0x68, 0x6a]);
    corrupt(backwards, 3);
    corrupt(ring(0, 4), 1);
    let mut huge = three();
    huge.put(RING, &[63]);
    corrupt(huge, 1);
}

/// A buffer of 0x80 bytes with records of the form before 5.10: time 0, len 8, text_len 0xa, level 0xf.
fn buffer(first: (u32, u64), next: u64) -> TestGuest {
    let mut guest = TestGuest::new();
    for (path, offset, size) in [("ts_nsec", 0, 8), ("len", 8, 2), ("text_len", 0xa, 2), ("level", 0xf, 1)] {
        guest.types.member("printk_log", path, offset, size);
    }
    guest.types.size("printk_log", 0x10);
    for (index, name) in ["log_buf", "log_buf_len", "log_first_idx", "log_first_seq", "log_next_seq"].into_iter().enumerate() {
        guest.symbol(name, RING + 8 * index as u64);
    }
    guest.put(RING, &[TEXT, 0x80, u64::from(first.0), first.1, next]);
    guest
}

fn old_record(guest: &mut TestGuest, at: u64, sequence: u64, len: u64, text: &str) {
    guest.put(TEXT + at, &[1000 * sequence, len | (text.len() as u64) << 16 | 6 << 56]);
    guest.text(TEXT + at + 0x10, text);
}

#[test]
fn records_of_older_kernels_wrap() {
    let mut guest = buffer((0x40, 8), 10);
    old_record(&mut guest, 0x40, 8, 0x20, "eighth");
    old_record(&mut guest, 0, 9, 0x20, "ninth");
    assert_eq!(whole(guest), texts(&[(8, "eighth"), (9, "ninth")]));
}

#[test]
fn a_buffer_of_older_kernels_that_contradicts_itself_is_an_error() {
    let nothing = buffer((0, 0), 2);
    let mut beyond = buffer((0x70, 0), 2);
    old_record(&mut beyond, 0x70, 0, 0x20, "beyond");
    let mut short = buffer((0, 0), 2);
    old_record(&mut short, 0, 0, 0x12, "longer");
    for guest in [nothing, beyond, short, buffer((0, 5), 4), buffer((0, 0), 1 << 40)] {
        let read = read(guest);
        assert_eq!(read.len(), 1);
        assert!(matches!(read[0].as_ref().unwrap_err().kind(), ErrorKind::Corrupt { .. }));
    }
}

#[test]
fn a_record_of_older_kernels_overwritten_while_it_is_read_is_left_out() {
    let mut guest = buffer((0, 8), 10);
    old_record(&mut guest, 0, 8, 0x20, "eighth");
    old_record(&mut guest, 0x20, 9, 0x20, "ninth");
    let (vmi, kernel) = guest.build_racing(TEXT + 0x10, &[(RING + 0x10, 0x20), (RING + 0x18, 9)]);
    let linux = Linux::with_kernel(&vmi, kernel).unwrap();
    let texts: Vec<_> = linux.kernel_log().map(|record| record.unwrap().text).collect();
    assert_eq!(texts, ["ninth"]);
}

/// The ring goes round once while its first record is read: what was there is gone, and nothing of what came is taken for it.
#[test]
fn a_ring_that_a_running_guest_has_gone_round_is_no_error() {
    let last = (1u64 << 62) - 1;
    let newer = |id: u64| FINALIZED | (id.wrapping_add(4) & last);
    let descriptor = |id: u64| DESCRIPTORS + 0x18 * (id % 4);
    let words: Vec<_> = [last - 1, last, 0].map(|id| (descriptor(id), newer(id))).into();
    let (vmi, kernel) = three().build_racing(INFOS + 0x18 * 2 + 0x12, &words);
    let linux = Linux::with_kernel(&vmi, kernel).unwrap();
    assert_eq!(linux.kernel_log().map(|record| record.unwrap().text).collect::<Vec<_>>(), [""; 0]);
}

/// The ids of the oldest and the newest record cannot be read in one go.
#[test]
fn ids_that_contradict_each_other_are_read_again() {
    // As soon as the newest was read, two more records come and the oldest, which was the newest, goes.
    let last = (1 << 62) - 1;
    let mut guest = three();
    guest.put(RING + 0x18, &[last - 1]);
    let (vmi, kernel) = guest.build_racing(RING + 0x18, &[(RING + 0x18, 0), (RING + 0x20, last)]);
    let linux = Linux::with_kernel(&vmi, kernel).unwrap();
    assert_eq!(linux.kernel_log().map(|record| record.unwrap().text).collect::<Vec<_>>(), ["second", "third"]);
}

#[test]
fn a_buffer_of_older_kernels_overwritten_before_it_is_read_goes_on_with_the_oldest_that_is_left() {
    let mut guest = buffer((0, 8), 11);
    old_record(&mut guest, 0, 8, 0x20, "eighth");
    old_record(&mut guest, 0x20, 9, 0x20, "ninth");
    old_record(&mut guest, 0x40, 10, 0x20, "tenth");
    // A longer one takes the place of the first two: where the second was, there is text.
    let words = [(RING + 0x10, 0x40), (RING + 0x18, 10), (TEXT + 0x20, u64::MAX), (TEXT + 0x28, u64::MAX)];
    let (vmi, kernel) = guest.build_racing(TEXT + 0x10, &words);
    let linux = Linux::with_kernel(&vmi, kernel).unwrap();
    assert_eq!(linux.kernel_log().map(|record| record.unwrap().text).collect::<Vec<_>>(), ["tenth"]);
}
