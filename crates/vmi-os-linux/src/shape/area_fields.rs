//! The members of `vm_area_struct` (kernel: include/linux/mm_types.h), judged by the areas whose purpose is known.

use vmi_arch_x86::X86Driver;
use vmi_core::{Memory, Symbols, VirtAddr};

use super::areas::{Area, Purpose, bounds};
use super::findings::Findings;
use super::sample::{self, Doubt};
use super::types::Kind;
use super::view::View;

/// The size of a page as a power of two: `vm_pgoff` counts pages.
const PAGE_SHIFT: u32 = 12;
/// `VM_READ | VM_WRITE | VM_EXEC`; four bits higher are those that say whether the right may be given (kernel: include/linux/mm.h).
const RIGHTS: u64 = 7;
const MAY_SHIFT: u32 = 4;
const READ_WRITE: u64 = 3;
const READ_EXECUTE: u64 = 5;
/// `VM_GROWSDOWN`: set in the stack of every program.
const GROWS_DOWN: u64 = 0x100;

/// The function that names what the kernel itself maps.
const SPECIAL_NAME: &str = "special_mapping_name";
/// Functions in `vm_operations_struct` that are looked at. Measured: `name` is the ninth to fourteenth (kernels 5.10 to 7.2).
const MAX_OPERATIONS: usize = 24;

/// Infers `vm_mm`, `vm_flags`, `vm_ops`, `vm_pgoff`, `vm_file` and `vm_private_data`; the offset of `vm_file`.
pub(super) fn infer<D: X86Driver>(
    view: &View<'_, D>,
    areas: &[Area],
    symbols: &Symbols,
    findings: &mut Findings,
) -> Option<usize> {
    let width = view.width();
    let start = width.saturating_mul(2);
    let mm = only(areas, start, width, |offset| all(areas, |area| Some(area.object.word(offset, width)? == area.mm)));
    let Some(mm) = findings.record("vm_area_struct", "vm_mm", mm, Kind::Pointer) else {
        findings.missing("vm_area_struct", "vm_flags", Doubt::None);
        return None;
    };
    let flags = only(areas, mm, width, |offset| most(areas, |area| is_flags(area, area.object.word(offset, width)?)));
    let kind = Kind::Number(width as u64);
    let flags = findings.record("vm_area_struct", "vm_flags", flags, kind).unwrap_or(mm);
    let file = only(areas, flags, width, |offset| {
        let Some(before) = offset.checked_sub(width) else { return false };
        most(areas, |area| is_file(view, area, area.object.word(before, width)?, area.object.word(offset, width)?))
    });
    let file = findings.record("vm_area_struct", "vm_file", file, Kind::Pointer)?;
    findings.add("vm_area_struct", "vm_pgoff", file.saturating_sub(width), kind);
    operations(view, areas, file, symbols, findings);
    Some(file)
}

/// `vm_ops` before `vm_pgoff`: none for heap and stack, some for code. `vm_private_data` behind `vm_file`: what the kernel itself maps
/// (neither of a file nor without operations) has its name there (kernel: `struct vm_special_mapping`). `swap_readahead_info` (since 4.14) or
/// Ubuntu's `vm_prfile` (with aufs) may lie between.
fn operations<D: X86Driver>(view: &View<'_, D>, areas: &[Area], file: usize, symbols: &Symbols, findings: &mut Findings) {
    let width = view.width();
    let ops = file.saturating_sub(width.saturating_mul(2));
    let sound = most(areas, |area| {
        let ops = area.object.word(ops, width)?;
        Some(match area.purpose {
            Purpose::Code => view.pointer(ops).is_some(),
            Purpose::Heap | Purpose::Stack => ops == 0,
            Purpose::Other => ops == 0 || view.pointer(ops).is_some(),
        })
    });
    findings.record("vm_area_struct", "vm_ops", sound.then_some(ops).ok_or(Doubt::None), Kind::Pointer);
    let special = |area: &Area| -> Option<u64> {
        let ops = area.object.word(ops, width)?;
        (area.object.word(file, width)? == 0 && ops != 0).then_some(ops)
    };
    let named = |area: &Area, data: usize| {
        let name = view.pointer(area.object.word(data, width)?)?;
        Some(view.read::<u8>(VirtAddr::new(name)).ok()? == b'[')
    };
    let first = areas.iter().find_map(special);
    let behind = file.saturating_add(width);
    let data = sample::only(behind..behind.saturating_add(width.saturating_mul(3)), width, |data| {
        first.is_some() && areas.iter().filter(|area| special(area).is_some()).all(|area| named(area, data) == Some(true))
    });
    if findings.record("vm_area_struct", "vm_private_data", data, Kind::Pointer).is_none() {
        return;
    }
    findings.add("vm_special_mapping", "name", 0, Kind::Pointer);
    if symbols.find(SPECIAL_NAME).is_some() {
        let name = only_function(view, first.unwrap_or(0), SPECIAL_NAME, symbols);
        findings.record("vm_operations_struct", "name", name, Kind::Pointer);
    }
}

/// The only one of the functions at `operations` that has this name.
fn only_function<D: X86Driver>(view: &View<'_, D>, operations: u64, name: &str, symbols: &Symbols) -> Result<usize, Doubt> {
    let width = view.width();
    sample::only(0..MAX_OPERATIONS.saturating_mul(width), width, |offset| {
        let function = operations.checked_add(offset as u64).and_then(|at| view.pointer(at)).unwrap_or(0);
        symbols.at(VirtAddr::new(function)).any(|symbol| symbol.name == name)
    })
}

/// Every right that is given may be given; code is read and run, heap and stack are read and written, and the stack grows down.
fn is_flags(area: &Area, flags: u64) -> Option<bool> {
    let may = flags >> MAY_SHIFT & RIGHTS;
    let rights = flags & RIGHTS;
    let fitting = match area.purpose {
        Purpose::Code => rights == READ_EXECUTE,
        Purpose::Heap => rights & READ_WRITE == READ_WRITE && flags & GROWS_DOWN == 0,
        Purpose::Stack => rights & READ_WRITE == READ_WRITE && flags & GROWS_DOWN != 0,
        Purpose::Other => true,
    };
    Some(fitting && may != 0 && rights & !may == 0)
}

/// `vm_file` and `vm_pgoff` before it: code is from a file; heap and stack are not, and the heap's offset is its own address.
fn is_file<D: X86Driver>(view: &View<'_, D>, area: &Area, offset: u64, file: u64) -> Option<bool> {
    let (start, _) = bounds(area, view.width())?;
    Some(match area.purpose {
        Purpose::Code => view.pointer(file).is_some() && offset < start >> PAGE_SHIFT,
        Purpose::Heap => file == 0 && offset == start >> PAGE_SHIFT,
        Purpose::Stack => file == 0 && offset != 0,
        Purpose::Other => file == 0 || view.pointer(file).is_some(),
    })
}

/// Whether all areas pass but an eighth of each purpose: programs may change how they are mapped.
fn most(areas: &[Area], mut test: impl FnMut(&Area) -> Option<bool>) -> bool {
    let mut counts = [(Purpose::Code, 0usize, 0usize), (Purpose::Heap, 0, 0), (Purpose::Stack, 0, 0), (Purpose::Other, 0, 0)];
    for area in areas {
        let passed = test(area) == Some(true);
        for (_, all, failed) in counts.iter_mut().filter(|(purpose, ..)| *purpose == area.purpose) {
            *all = all.saturating_add(1);
            *failed = failed.saturating_add(usize::from(!passed));
        }
    }
    counts.into_iter().all(|(_, all, failed)| failed <= all / 8)
}

fn all(areas: &[Area], mut test: impl FnMut(&Area) -> Option<bool>) -> bool {
    areas.iter().all(|area| test(area) == Some(true))
}

/// The only offset behind `start` that passes, if there are areas of every purpose to judge by.
fn only(areas: &[Area], start: usize, width: usize, test: impl FnMut(usize) -> bool) -> Result<usize, Doubt> {
    let has = |purpose| areas.iter().any(|area| area.purpose == purpose);
    if ![Purpose::Code, Purpose::Heap, Purpose::Stack].into_iter().all(has) {
        return Err(Doubt::None);
    }
    let end = areas.first().map_or(0, |area| area.object.bytes.len());
    sample::only(start..end, width, test)
}
