//! Which build a kernel is, as it says itself.

use vmi_arch_x86::X86Driver;
use vmi_core::{AddressSpace, Memory, Paging, Symbols, VirtAddr, WindowsDump};

/// Where the page is that the kernel shares with user mode, `KUSER_SHARED_DATA` (Microsoft's ntddk.h): the same in all releases.
const SHARED_DATA: u64 = 0xffff_f780_0000_0000;
const SHARED_DATA_32: u64 = 0xffdf_0000;
/// Its members: the time, the build (Windows 10 and later), and the version of the system.
const SYSTEM_TIME: u64 = 0x14;
const BUILD: u64 = 0x260;
const MAJOR: u64 = 0x26c;
const MINOR: u64 = 0x270;
/// `NtBuildNumber` has the build below and, in its highest bits, how the kernel was built: free or checked.
const FREE: u32 = 0xf000_0000;
const CHECKED: u32 = 0xc000_0000;
/// Builds from Windows 2000 on.
const BUILDS: core::ops::RangeInclusive<u32> = 2195..=0xffff;

/// The build: of the variable `NtBuildNumber`, a crash dump's header, a text that begins with it (which debugger data may have told), or the page that is shared
/// with user mode.
pub(super) fn number<D: X86Driver>(
    space: &AddressSpace<'_, D>,
    symbols: &Symbols,
    dump: Option<&WindowsDump>,
    build_lab: Option<VirtAddr>,
) -> Option<u32> {
    let variable = || {
        let number: u32 = space.read(symbols.find("NtBuildNumber")?.address).ok()?;
        matches!(number & 0xf000_0000, FREE | CHECKED).then_some(number & 0xffff)
    };
    let text = || {
        let at = symbols.find("NtBuildLab").map(|symbol| symbol.address).or(build_lab)?;
        let text = space.read_c_string(at, 128).ok()?;
        let digits = text.split(|byte| !byte.is_ascii_digit()).next()?;
        core::str::from_utf8(digits).ok()?.parse().ok()
    };
    let known = |build: &u32| BUILDS.contains(build);
    let header = || dump.map(|dump| dump.build);
    variable()
        .filter(known)
        .or_else(|| header().filter(known))
        .or_else(|| text().filter(known))
        .or_else(|| shared(space).filter(known))
}

fn shared_data<D: X86Driver>(space: &AddressSpace<'_, D>) -> VirtAddr {
    VirtAddr::new(if space.mode().pointer_size() == 8 { SHARED_DATA } else { SHARED_DATA_32 })
}

/// The build that the shared page tells or, of releases before Windows 10, whose version names but one.
fn shared<D: X86Driver>(space: &AddressSpace<'_, D>) -> Option<u32> {
    let word = |member| space.read::<u32>(shared_data(space).wrapping_add(member)).ok();
    match (word(MAJOR)?, word(MINOR)?) {
        (10, _) => word(BUILD),
        (5, 1) => Some(2600),
        (5, 2) => Some(3790),
        (6, 1) => Some(7601),
        (6, 2) => Some(9200),
        (6, 3) => Some(9600),
        _ => None,
    }
}

/// The time that the kernel last wrote down, in units of 100 ns since 1601.
pub(super) fn system_time<D: X86Driver>(space: &AddressSpace<'_, D>) -> Option<u64> {
    // Low half and first high half; it stands twice, for readers on other processors.
    let parts: [u32; 2] = space.read(shared_data(space).wrapping_add(SYSTEM_TIME)).ok()?;
    let [low, high] = parts;
    Some(u64::from(high) << 32 | u64::from(low)).filter(|&time| time != 0)
}
