//! Handle tables and object directories that lie, in a guest that is written by hand. Tier: synthetic NT layout.

use proptest::prelude::*;
use vmi_core::{ErrorKind, VirtAddr};

use crate::test_guest::{KERNEL, SYSTEM, TestGuest};
use crate::{EntryFormat, Windows};

const TABLE: u64 = KERNEL + 0x1_0000;
const PAGES: u64 = KERNEL + 0x2_0000;
const ROOT: u64 = KERNEL + 0x4_0000;

/// A guest whose process System has a handle table with this code.
fn with_table(code: u64) -> TestGuest {
    let mut guest = TestGuest::new();
    guest.put(SYSTEM + 0x60, &[TABLE]);
    guest.put(TABLE + 8, &[code]);
    guest
}

/// An entry of Windows 8.1 and later.
fn entry(object: u64) -> u64 {
    object << 16 | 1
}

/// The handles that are read, and the errors among them.
fn handles(guest: TestGuest) -> (Vec<(u64, u64)>, Vec<String>) {
    let (vmi, kernel) = guest.build();
    let windows = Windows::with_kernel(&vmi, kernel).unwrap();
    let (mut handles, mut errors) = (Vec::new(), Vec::new());
    for handle in windows.system_process().handles() {
        match handle {
            Ok(handle) => handles.push((handle.value(), handle.object().address().get())),
            Err(error) => errors.push(error.to_string()),
        }
    }
    (handles, errors)
}

#[test]
fn entries_of_every_format() {
    let object = 0xffff_e001_2345_6780u64;
    // Windows 8.0 keeps 45 bits of an address: all of its kernel's addresses begin with 0xfffff.
    let old = 0xffff_fa80_2345_6780u64;
    let bytes = |low: u64, high: u64| [low.to_le_bytes(), high.to_le_bytes()].concat();
    for (format, object, low) in [
        (EntryFormat::Pointer(8), object, object | 3),
        (EntryFormat::Bits(20), object, (object << 16) | 0x4_0000 | 0xffff),
        (EntryFormat::Bits(23), old, (old << 19) | 0x20_0000 | 0xffff),
        (EntryFormat::Bits(11), object, (object << 7) | 0x200 | 0x7f),
    ] {
        let found = format.entry(8, &bytes(low, 0x0012_019f)).unwrap();
        assert_eq!((found.handle, found.pointer, found.granted_access), (8, VirtAddr::new(object), 0x12_019f), "{format:?}");
        assert_eq!(found.attributes, 2, "{format:?}");
        assert_eq!(format.entry(8, &bytes(0, 0x1234)), None, "free");
        assert_eq!(format.entry(8, &bytes(low, 0)[..15]), None, "cut off");
    }
    let narrow = |access: u32| [0x8123_4563u32.to_le_bytes(), access.to_le_bytes()].concat();
    let found = EntryFormat::Pointer(4).entry(4, &narrow(0x001f_0003)).unwrap();
    assert_eq!((found.pointer, found.granted_access, found.attributes), (VirtAddr::new(0x8123_4560), 0x1f_0003, 2));
    let found = EntryFormat::Pointer(4).entry(4, &narrow(0x021f_0003)).unwrap();
    assert_eq!((found.granted_access, found.attributes), (0x1f_0003, 3), "protected from being closed");
}

#[test]
fn tables_of_every_level() {
    let object = KERNEL + 0x5_0000;
    let mut guest = with_table(PAGES);
    guest.put(PAGES + 16, &[entry(object), 0, 0, 0, entry(object + 0x100)]);
    assert_eq!(handles(guest), (vec![(4, object + 0x30), (12, object + 0x130)], vec![]));
    let mut guest = with_table((PAGES + 0x1000) | 1);
    guest.put(PAGES + 0x1000, &[PAGES, 0, PAGES + 0x2000]);
    guest.put(PAGES + 16, &[entry(object)]);
    guest.put(PAGES + 0x2000 + 32, &[entry(object)]);
    assert_eq!(handles(guest).0, [(4, object + 0x30), ((512 + 2) * 4, object + 0x30)]);
    let mut guest = with_table((PAGES + 0x3000) | 2);
    guest.put(PAGES + 0x3000, &[0, PAGES + 0x1000]);
    guest.put(PAGES + 0x1000, &[0, PAGES]);
    guest.put(PAGES + 16, &[entry(object)]);
    assert_eq!(handles(guest), (vec![((512 * 256 + 256 + 1) * 4, object + 0x30)], vec![]));
}

#[test]
fn tables_that_lie_are_errors() {
    let (rows, errors) = handles(with_table(PAGES | 3));
    assert!(rows.is_empty() && errors[0].contains("a handle table of 3 levels"), "{errors:?}");
    // A page of pointers that all lead to itself.
    let mut guest = with_table(PAGES | 2);
    guest.put(PAGES, &[PAGES; 512]);
    let (rows, errors) = handles(guest);
    assert!(rows.is_empty(), "{rows:?}");
    assert!(errors[0].contains("found twice"), "{errors:?}");
    // Each of them stands for 131,072 handles, and 16,777,216 is the most that there can be.
    assert_eq!(errors.len(), 128 + 1);
    assert!(errors[128].contains("more than 16777216"), "{errors:?}");
    // One of two pages is not in memory.
    let mut guest = with_table(PAGES | 1);
    guest.put(PAGES, &[KERNEL + 0x7000_0000, PAGES + 0x1000]);
    guest.put(PAGES + 0x1000 + 16, &[entry(KERNEL + 0x5_0000)]);
    let (rows, errors) = handles(guest);
    assert_eq!((rows.len(), errors.len()), (1, 1), "{errors:?}");
}

/// An object at `at` with a name, in the directory `above`.
fn named(guest: &mut TestGuest, at: u64, kind: u8, name: &str, above: u64) {
    let header = at - 0x30;
    guest.write(header + 0x18, &[kind, 0, 2]);
    guest.put(header - 0x20, &[above]);
    guest.unicode(header - 0x18, at + 0x180, name);
}

/// A guest with the types Type (2) and Directory (3), and a root directory.
fn with_root() -> TestGuest {
    let mut guest = TestGuest::new();
    guest.build = Some(9600);
    let types = KERNEL + 0x6_0000;
    guest.symbol("ObTypeIndexTable", types);
    guest.symbol("ObpRootDirectoryObject", KERNEL + 0x8020);
    guest.put(0x8020, &[ROOT]);
    guest.put(types, &[0, 0xbad0_b0b0, types + 0x1000, types + 0x2000, types + 0x3000]);
    for (index, name) in [(1, "Type"), (2, "Directory"), (3, "Event")] {
        guest.unicode(types + index * 0x1000 + 0x10, types + index * 0x1000 + 0x80, name);
    }
    named(&mut guest, ROOT, 3, "\\", 0);
    guest
}

fn paths(guest: TestGuest) -> (Vec<String>, Vec<String>) {
    let (vmi, kernel) = guest.build();
    let windows = Windows::with_kernel(&vmi, kernel).unwrap();
    let (mut paths, mut errors) = (Vec::new(), Vec::new());
    for row in windows.named_objects() {
        match row {
            Ok(row) => paths.push(format!("{} {}", row.path, row.type_name.unwrap_or_default())),
            Err(error) => errors.push(error.to_string()),
        }
    }
    (paths, errors)
}

#[test]
fn directories_that_contain_themselves_come_to_an_end() {
    let (inner, event, entries) = (ROOT + 0x1000, ROOT + 0x2000, ROOT + 0x3000);
    let mut guest = with_root();
    named(&mut guest, inner, 3, "Inner", ROOT);
    named(&mut guest, event, 4, "Happens", inner);
    guest.put(ROOT + 8, &[entries]);
    guest.put(entries, &[0, inner]);
    guest.put(inner, &[entries + 0x100, entries + 0x200]);
    // The inner directory holds itself, the root, and an event.
    guest.put(entries + 0x100, &[entries + 0x180, inner]);
    guest.put(entries + 0x180, &[0, ROOT]);
    guest.put(entries + 0x200, &[0, event]);
    let (rows, errors) = paths(guest);
    assert_eq!(rows, ["\\Inner Directory", "\\Inner\\Inner Directory", "\\Inner\\\\ Directory", "\\Inner\\Happens Event"]);
    assert_eq!(errors, [""; 0]);
}

#[test]
fn buckets_in_a_circle_and_paths_without_an_end_are_errors() {
    let (object, entries) = (ROOT + 0x1000, ROOT + 0x3000);
    let mut guest = with_root();
    named(&mut guest, object, 4, "Happens", ROOT);
    guest.put(ROOT, &[entries]);
    guest.put(entries, &[entries, object]);
    let (rows, errors) = paths(guest);
    assert_eq!(rows, ["\\Happens Event"]);
    assert!(errors[0].contains("runs in a circle"), "{errors:?}");
    let mut guest = with_root();
    named(&mut guest, object, 3, "Inner", object);
    let (vmi, kernel) = guest.build();
    let windows = Windows::with_kernel(&vmi, kernel).unwrap();
    let error = windows.object_at(VirtAddr::new(object)).path().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Limit { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever is in the pages of a table, reading it ends.
    #[test]
    fn any_handle_table_comes_to_an_end(code in 0u64..0x8000, words in prop::collection::vec((0u64..0x4000, any::<u64>()), 0..64)) {
        let mut guest = with_table(PAGES + code);
        for (at, word) in words {
            // Half of the words lead to other pages of the table.
            let word = if word & 1 == 0 { PAGES + (word & 0x3ff0) } else { word };
            guest.put(PAGES + (at & !7), &[word]);
        }
        let (rows, _) = handles(guest);
        prop_assert!(rows.len() < 1 << 18);
    }

    #[test]
    fn any_entry_is_read(low in any::<u64>(), high in any::<u64>(), lowest in 0u32..64) {
        let bytes = [low.to_le_bytes(), high.to_le_bytes()].concat();
        for format in [EntryFormat::Pointer(4), EntryFormat::Pointer(8), EntryFormat::Bits(lowest)] {
            format.entry(4, &bytes);
        }
    }
}
