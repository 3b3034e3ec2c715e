//! Snapshots of Firecracker: a state file, and a file with the guest's memory regions one behind the other. Their names are free.
//!
//! The state file is Firecracker's own structures, serialised: its src/vmm/src/snapshot/mod.rs (the frame), persist.rs (`MicrovmState`),
//! vstate/memory.rs (`GuestMemoryState`). Three serialisations have been used: versionize (until 1.5), bincode and, in recent versions,
//! bitcode. The first two write numbers as they are, little endian, and lists behind their length. What lies between differs from
//! version to version, so the region table and the registers are found by their structure: regions that ascend from zero and sum up to the
//! memory size, which stands at the front; KVM's register structures with flags that are flags. Bitcode packs numbers: only the
//! memory size is read from it, and all versions that write it lay memory out alike. Behind all of them is a CRC-64 of everything before it.
//!
//! A differential snapshot stores only what has changed, and has holes elsewhere: see [`OpenOptions::base`](crate::OpenOptions::base).

use std::path::{Path, PathBuf};

use crc::{CRC_64_REDIS, Crc};
use vmi_arch_x86::Registers;
use vmi_core::{PhysAddr, Piece, Region};
use zerocopy::FromBytes;

use super::kvm::{General, Special};
use crate::image::{Image, Input, Part};
use crate::source::Source;
use crate::{FormatError, RawMap, directory};

/// Of x86-64; the lowest 16 bits are the version of the format.
const MAGIC: u64 = 0x0710_1984_8664_0000;

/// Firecracker reads no state of more than 10 MiB itself.
const MAX_STATE: u64 = 16 << 20;
/// How far into the state the region table is searched: it is behind paths and the kernel's command line.
const SEARCHED: usize = 64 << 10;
/// Regions below and above the gap, and room for more.
const MAX_REGIONS: u64 = 64;
/// Slots have 128 MiB if the user does not say otherwise.
const MAX_SLOTS: usize = 4096;
/// KVM allows 4096 vCPUs at most, Firecracker 32.
const MAX_VCPUS: usize = 4096;
const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
/// Of the bytes and their sum, zero.
const CHECKSUM: Crc<u64> = Crc::<u64>::new(&CRC_64_REDIS);

/// The magic number: as it is, or behind the one byte by which bitcode says that a number follows as it is.
pub(crate) fn matches(bytes: &[u8]) -> bool {
    let at = |from| word(bytes, from).is_some_and(|magic| magic & !0xffff == MAGIC);
    at(0) || (bytes.first() == Some(&0) && at(1))
}

/// Whether `input` has the length of the memory that a state file beside it tells of.
pub(crate) fn owns(input: Input<'_>) -> bool {
    input.source.len().is_multiple_of(PAGE) && !matches!(state_of(input), Ok(None))
}

/// From the state file or from the memory file.
pub(crate) fn parse(input: Input<'_>) -> Result<Image, FormatError> {
    let (state, path, source) = if matches(&input.source.head(16)?) {
        let state = State::read(input.source)?.intact(input)?;
        let (path, source) = memory_of(input, &state)?;
        (state, Some(path), source)
    } else {
        let state = state_of(input)?.ok_or_else(|| FormatError::Files("no state file of this memory is beside it".to_owned()))?;
        (state, input.path.map(Path::to_owned), input.source.clone())
    };
    let layout = Some(RawMap::new(state.pieces.iter().copied()));
    let pieces = input.stored(path.as_deref(), &source, state.pieces)?;
    Ok(Image { parts: vec![Part { source, pieces }], registers: state.registers, layout, ..Image::default() })
}

/// The file beside the state that has as many bytes as the machine has memory.
fn memory_of(input: Input<'_>, state: &State) -> Result<(PathBuf, Source), FormatError> {
    let fits = |file: &PathBuf| file.metadata().is_ok_and(|metadata| metadata.len() == state.file_len);
    let found: Vec<_> = input.neighbours().into_iter().filter(fits).collect();
    let missing =
        || FormatError::Files(format!("the memory file, which has {} bytes, is not beside this state file", state.file_len));
    match found.as_slice() {
        [one] => one.file_name().and_then(|name| input.beside(name).transpose()).ok_or_else(missing)?,
        [] => Err(missing()),
        many => Err(FormatError::Files(format!(
            "several files beside this state file can be its memory ({}): open the right one of them",
            directory::names(many)
        ))),
    }
}

/// What a state file beside the memory file says. Several may: of a full snapshot and of differential ones. They must agree.
fn state_of(input: Input<'_>) -> Result<Option<State>, FormatError> {
    let mut found: Option<State> = None;
    for path in input.neighbours().iter().filter(|path| directory::begins(path, matches)) {
        let Some((_, source)) = path.file_name().map(|name| input.beside(name)).transpose()?.flatten() else { continue };
        let Ok(state) = State::read(&source) else { continue };
        if state.file_len != input.source.len() {
            continue;
        }
        let state = state.intact(input)?;
        match &mut found {
            None => found = Some(state),
            // Whose registers are those of this memory cannot be told.
            Some(other) if other.pieces == state.pieces => other.registers.clear(),
            Some(_) => {
                return Err(FormatError::Files("the state files beside this memory file contradict each other".to_owned()));
            }
        }
    }
    Ok(found)
}

/// What a state file tells.
#[derive(Debug)]
struct State {
    /// Where which memory is in the memory file.
    pieces: Vec<Piece>,
    /// How long that file is.
    file_len: u64,
    registers: Vec<Registers>,
    /// Whether the file is as Firecracker wrote it, to its end.
    is_intact: bool,
}

impl State {
    /// Itself, unless the file is damaged and the user did not ask for what is left of it.
    fn intact(self, input: Input<'_>) -> Result<Self, FormatError> {
        if self.is_intact || input.options.allow_truncated {
            return Ok(self);
        }
        let what = format!("the state's checksum is wrong: the file is cut off or damaged; {ADVICE}");
        Err(FormatError::Malformed { offset: 0, what })
    }

    fn read(source: &Source) -> Result<Self, FormatError> {
        let bytes = &*source.get(0, source.len().min(MAX_STATE), "the state")?;
        Ok(Self { is_intact: CHECKSUM.checksum(bytes) == 0, ..Self::of(bytes)? })
    }

    fn of(bytes: &[u8]) -> Result<Self, FormatError> {
        if bytes.first() == Some(&0) && word(bytes, 1).is_some_and(|magic| magic & !0xffff == MAGIC) {
            return Self::of_bitcode(bytes);
        }
        // Bincode has the version as a text behind the magic number, versionize as 16 bits.
        let text_len = word(bytes, 8).and_then(|len| usize::try_from(len).ok()).filter(|len| (5..=32).contains(len));
        let text = text_len.and_then(|len| bytes.get(16..16usize.saturating_add(len)));
        let is_version = |text: &[u8]| text.iter().all(|&byte| byte.is_ascii_graphic());
        let front = text.filter(|text| is_version(text)).map_or(10, |text| text.len().saturating_add(16));
        let size = word(bytes, front).and_then(|mib| mib.checked_mul(MIB)).filter(|&size| size > 0);
        let size =
            size.ok_or_else(|| FormatError::Malformed { offset: front as u64, what: "no memory size in the state".to_owned() })?;
        let table = (front..bytes.len().min(SEARCHED)).find_map(|at| Table::at(bytes, at, size));
        let Some(Table { pieces, file_len }) = table else {
            let what = format!("no table of memory regions in the state that sums up to {size:#x} bytes; {ADVICE}");
            return Err(FormatError::Malformed { offset: 0, what });
        };
        Ok(Self { pieces, file_len, registers: registers(bytes), is_intact: false })
    }

    /// The memory size is the third number, behind the magic number and the version as a text.
    fn of_bitcode(bytes: &[u8]) -> Result<Self, FormatError> {
        // How many bytes each number of a column has; of several, an odd code would follow.
        let number = |at: usize| {
            let len = match *bytes.get(at)? {
                0 => 8,
                2 => 4,
                4 => 2,
                6 => 1,
                _ => return None,
            };
            let mut value = [0; 8];
            let start = at.checked_add(1)?;
            value.get_mut(..len)?.copy_from_slice(bytes.get(start..start.checked_add(len)?)?);
            Some(u64::from_le_bytes(value))
        };
        let version = bytes.get(9).map(|&len| usize::from(len)).filter(|len| (5..=32).contains(len));
        let size = version.and_then(|len| number(len.checked_add(10)?)?.checked_mul(MIB)).filter(|&size| size > 0);
        let size =
            size.ok_or_else(|| FormatError::Malformed { offset: 10, what: format!("no memory size in the state; {ADVICE}") })?;
        // The hole below 4 GiB is 1 GiB in all versions that write bitcode (src/vmm/src/arch/x86_64/layout.rs).
        const GAP: u64 = 3 << 30;
        const ABOVE: u64 = 4 << 30;
        let low = Region::new(PhysAddr::ZERO, size.min(GAP)).map(|region| Piece { region, offset: 0 });
        let high = size.checked_sub(GAP).and_then(|len| Region::new(PhysAddr::new(ABOVE), len));
        let pieces = low.into_iter().chain(high.map(|region| Piece { region, offset: GAP })).collect();
        Ok(Self { pieces, file_len: size, registers: Vec::new(), is_intact: false })
    }
}

const ADVICE: &str = "open the memory file with a physical map";

/// The list of memory regions.
struct Table {
    pieces: Vec<Piece>,
    file_len: u64,
}

/// What follows address and length of a region.
#[derive(Clone, Copy)]
enum Shape {
    /// Its place in the memory file: until 1.10.
    Offset,
    Nothing,
    /// Whether it is memory that can be plugged in, and which slots of it are: 1.14.
    Slots,
}

impl Table {
    /// The table at `at`, if there is one and its memory that was not plugged in has `size` bytes.
    fn at(bytes: &[u8], at: usize, size: u64) -> Option<Self> {
        let count = word(bytes, at).filter(|count| (1..=MAX_REGIONS).contains(count))?;
        // All of x86 has memory at zero.
        let first = at.checked_add(8)?;
        if word(bytes, first)? != 0 || word(bytes, first.checked_add(8)?)? > size {
            return None;
        }
        [Shape::Offset, Shape::Nothing, Shape::Slots].into_iter().find_map(|shape| Self::of(bytes, first, count, shape, size))
    }

    fn of(bytes: &[u8], mut at: usize, count: u64, shape: Shape, size: u64) -> Option<Self> {
        let mut table = Self { pieces: Vec::new(), file_len: 0 };
        let (mut end, mut sum) = (0u64, 0u64);
        for _ in 0..count {
            let (start, len) = (word(bytes, at)?, word(bytes, at.checked_add(8)?)?);
            if start < end || len == 0 || !start.is_multiple_of(PAGE) || !len.is_multiple_of(PAGE) {
                return None;
            }
            at = at.checked_add(16)?;
            let region = Region::new(PhysAddr::new(start), len)?;
            let mut is_ram = true;
            match shape {
                Shape::Nothing => table.pieces.push(Piece { region, offset: table.file_len }),
                Shape::Offset => {
                    if word(bytes, at)? != table.file_len {
                        return None;
                    }
                    at = at.checked_add(8)?;
                    table.pieces.push(Piece { region, offset: table.file_len });
                }
                Shape::Slots => {
                    let kind = u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?);
                    at = at.checked_add(4)?;
                    let slots = usize::try_from(word(bytes, at)?).ok().filter(|slots| *slots <= MAX_SLOTS)?;
                    at = at.checked_add(8)?;
                    let plugged = bytes.get(at..at.checked_add(slots)?)?;
                    at = at.checked_add(slots)?;
                    is_ram = kind == 0;
                    table.slots(region, plugged)?;
                }
            }
            end = region.end().get();
            table.file_len = table.file_len.checked_add(len)?;
            sum = sum.checked_add(if is_ram { len } else { 0 })?;
        }
        (sum == size).then_some(table)
    }

    /// The slots of `region` that are plugged in. The memory file has holes for the others.
    fn slots(&mut self, region: Region, plugged: &[u8]) -> Option<()> {
        let slot = region.len().checked_div(plugged.len() as u64).filter(|slot| slot.is_multiple_of(PAGE) && *slot > 0)?;
        for (index, &plugged) in plugged.iter().enumerate() {
            let within = slot.checked_mul(index as u64)?;
            let part = Region::new(region.start().checked_add(within)?, slot)?;
            match plugged {
                0 => {}
                1 => self.pieces.push(Piece { region: part, offset: self.file_len.checked_add(within)? }),
                _ => return None,
            }
        }
        Some(())
    }
}

/// The registers of all vCPUs: `struct kvm_sregs` wherever it can be told by its content, right behind `struct kvm_regs`.
fn registers(bytes: &[u8]) -> Vec<Registers> {
    const APIC_BASE: usize = core::mem::offset_of!(Special, apic_base);
    let mut found = Vec::new();
    let mut next = 0usize;
    while let Some(rest) = bytes.get(next..)
        && let Some(apic) = memchr::memmem::find(rest, &[0xe0, 0xfe, 0, 0, 0, 0])
        && found.len() < MAX_VCPUS
    {
        // The two lowest bytes are flags.
        let apic = apic.saturating_add(next);
        next = apic.saturating_add(6);
        let special = apic.checked_sub(2).and_then(|apic| apic.checked_sub(APIC_BASE));
        let parts = special.and_then(|at| Some((at.checked_sub(size_of::<General>())?, at)));
        let Some((general, special)) = parts.and_then(|(general, special)| Some((bytes.get(general..)?, bytes.get(special..)?)))
        else {
            continue;
        };
        let Ok((special, _)) = Special::read_from_prefix(special) else { break };
        if let Ok((general, _)) = General::read_from_prefix(general)
            && special.is_possible()
        {
            found.push(special.with(&general));
        }
    }
    found
}

/// The number at `at`.
fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}
