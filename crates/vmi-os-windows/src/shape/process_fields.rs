//! Members of a process, told by what they hold in all processes.

use vmi_arch_x86::X86Driver;
use vmi_core::{AddressSpace, Memory, VirtAddr};

use super::findings::{Doubt, Findings, only};
use super::object::{is_kernel, is_user_page};
use super::processes::{Process, Processes, only_offset};
use crate::discover::SYSTEM_ID;

/// Process ids are multiples of 4 below this.
const MAX_ID: u64 = 1 << 26;
/// Times are between the years 2000 and 2100, in units of 100 ns since 1601.
const TIMES: core::ops::Range<u64> = 0x01bf_53eb_256d_4000..0x0230_42c6_c7d4_4000;
/// How the token of System begins: the name of its source (`TOKEN.TokenSource`).
const SYSTEM_TOKEN: &[u8; 8] = b"*SYSTEM*";
/// How the path of an image begins that Windows notes for audits.
const DEVICE: &str = "\\Device\\";
/// Members of a handle table that are looked at.
const HANDLE_TABLE_REACH: usize = 0x40;
/// How many nodes of address trees are looked at.
const MIN_TREES: usize = 2;

/// Looks for the members of `_EPROCESS`.
pub(super) fn infer<D: X86Driver>(space: &AddressSpace<'_, D>, processes: &Processes, findings: &mut Findings) {
    let known = Known { space, processes, width: processes.mode_width() };
    findings.record("_EPROCESS", "InheritedFromUniqueProcessId", known.parent());
    let peb = known.peb();
    findings.record("_EPROCESS", "Peb", peb);
    let section = peb.and_then(|peb| known.section_base(peb));
    findings.record("_EPROCESS", "SectionBaseAddress", section);
    if let Some(table) = findings.record("_EPROCESS", "ObjectTable", known.object_table()) {
        known.handle_table(table, findings);
    }
    findings.record("_EPROCESS", "Token", known.token());
    findings.record("_EPROCESS", "CreateTime", known.create_time());
    findings.record("_EPROCESS", "SeAuditProcessCreationInfo", known.audit());
    findings.record("_EPROCESS", "VadRoot", known.address_tree());
}

struct Known<'a, 'v, D: X86Driver> {
    space: &'a AddressSpace<'v, D>,
    processes: &'a Processes,
    width: usize,
}

impl<D: X86Driver> Known<'_, '_, D> {
    /// Where all processes but System hold something that `fits`, and System nothing.
    fn zero_in_system(&self, at: usize) -> bool {
        self.processes.system().and_then(|system| system.object.word(at)) == Some(0)
    }

    /// The parent's id: between links and name; System has none, the first process that it started has 4.
    fn parent(&self) -> Result<usize, Doubt> {
        let from = self.processes.links.saturating_add(self.width.saturating_mul(2));
        let others = self.processes.others();
        let ids = |at: usize| others.clone().map(move |process| process.object.word(at).unwrap_or_default());
        let is_id = |id: u64| id != 0 && id % 4 == 0 && id < MAX_ID;
        only_offset(self.processes, from, |at| {
            at < self.processes.name
                && self.zero_in_system(at)
                && ids(at).next() == Some(SYSTEM_ID)
                && ids(at).all(is_id)
                // A process is not its own parent.
                && others.clone().all(|process| process.object.word(at) != Some(process.id))
        })
    }

    /// What a process has at `at` of its own user memory.
    fn user_word(&self, process: &Process, at: u64) -> Option<u64> {
        let space = self.space.vmi().address_space(process.root, self.processes.mode);
        space.read_pointer(VirtAddr::new(at)).ok().map(VirtAddr::get)
    }

    /// Whether an image begins at `at` in the memory of a process.
    fn is_image(&self, process: &Process, at: u64) -> bool {
        let space = self.space.vmi().address_space(process.root, self.processes.mode);
        space.read::<[u8; 2]>(VirtAddr::new(at)).is_ok_and(|start| start == *b"MZ")
    }

    /// The base of the program that the environment block at `peb` names: behind four bytes of flags and a handle (winternl.h).
    fn program_base(&self, process: &Process, peb: u64) -> Option<u64> {
        let base = self.user_word(process, peb.checked_add((self.width as u64).checked_mul(2)?)?)?;
        is_user_page(self.processes.mode, base).then_some(base)
    }

    /// The environment block: a page of user mode that names the program. Processes without user mode have none. Of several places the one where most
    /// processes have one: others are blocks for 32-bit programs.
    fn peb(&self) -> Result<usize, Doubt> {
        let count = |at: usize| {
            let pages = self.processes.others().filter(|process| process.object.word(at) != Some(0));
            let mut proven = 0usize;
            for process in pages {
                let page = process.object.word(at)?;
                if !is_user_page(self.processes.mode, page) {
                    return None;
                }
                if !self.is_image(process, page) && self.program_base(process, page).is_some() {
                    proven = proven.saturating_add(1);
                }
            }
            (proven > 0).then_some(proven)
        };
        let from = self.processes.links;
        let zero = self.processes.offsets().filter(|&at| at > from && self.zero_in_system(at));
        let counted: Vec<(usize, usize)> = zero.filter_map(|at| Some((at, count(at)?))).collect();
        let most = counted.iter().map(|&(_, count)| count).max().ok_or(Doubt::None)?;
        only(counted.iter().filter(|&&(_, count)| count == most).map(|&(at, _)| at))
    }

    /// Where the program is: what the environment block says too.
    fn section_base(&self, peb: usize) -> Result<usize, Doubt> {
        let bases: Vec<_> = self
            .processes
            .others()
            .filter_map(|process| Some((process, self.program_base(process, process.object.word(peb)?)?)))
            .collect();
        if bases.is_empty() {
            return Err(Doubt::None);
        }
        let same = |at: usize| bases.iter().all(|(process, base)| process.object.word(at) == Some(*base));
        only_offset(self.processes, self.processes.links, same)
    }

    /// The handle table: it holds the id of the process, and its address.
    fn object_table(&self) -> Result<usize, Doubt> {
        let mut ids: Option<Vec<usize>> = None;
        let fits = |at: usize| {
            let mut common: Option<Vec<usize>> = None;
            let mut owners = 0usize;
            for process in &self.processes.all {
                let Some(table) = process.object.word(at).filter(|&table| table != 0) else {
                    // Processes that have ended have none; System always has one.
                    if process.id == SYSTEM_ID {
                        return None;
                    }
                    continue;
                };
                if !is_kernel(self.processes.mode, table) {
                    return None;
                }
                let mut bytes = [0; HANDLE_TABLE_REACH];
                self.space.read_into(VirtAddr::new(table), &mut bytes).ok()?;
                let places = places_of_id(&bytes, process.id);
                common = Some(match common {
                    Some(common) => common.into_iter().filter(|place| places.contains(place)).collect(),
                    None => places,
                });
                owners = owners.saturating_add(usize::from(holds(&bytes, process.object.at, self.width)));
            }
            common.filter(|places| !places.is_empty() && owners > 0)
        };
        let found: Vec<_> = self
            .processes
            .offsets()
            .filter(|&at| at > self.processes.links)
            .filter_map(|at| {
                ids = Some(fits(at)?);
                Some(at)
            })
            .collect();
        only(found.into_iter())
    }

    /// Members of the handle table: the owner, its id, and the table itself, a page with the depth in its lowest two bits.
    fn handle_table(&self, table: usize, findings: &mut Findings) {
        let tables: Vec<_> = self
            .processes
            .all
            .iter()
            .filter_map(|process| {
                let at = process.object.word(table).filter(|&at| at != 0)?;
                let mut bytes = [0; HANDLE_TABLE_REACH];
                self.space.read_into(VirtAddr::new(at), &mut bytes).ok()?;
                Some((process, bytes))
            })
            .collect();
        let words = (0..HANDLE_TABLE_REACH).step_by(self.width);
        let word = |bytes: &[u8; HANDLE_TABLE_REACH], at: usize| {
            let word = bytes.get(at..at.saturating_add(self.width)).unwrap_or_default();
            word.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte))
        };
        let ids = words.clone().filter(|at| tables.iter().all(|(process, bytes)| places_of_id(bytes, process.id).contains(at)));
        findings.record("_HANDLE_TABLE", "UniqueProcessId", only(ids));
        let owners = words.clone().filter(|&at| {
            let mut others = tables.iter().filter(|(process, _)| process.id != SYSTEM_ID);
            others.clone().next().is_some() && others.all(|(process, bytes)| word(bytes, at) == process.object.at.get())
        });
        findings.record("_HANDLE_TABLE", "QuotaProcess", only(owners));
        let is_table = |code: u64| is_kernel(self.processes.mode, code) && code & 0xffc == 0 && code & 3 != 3;
        let codes = words.take(2).filter(|&at| tables.iter().all(|(_, bytes)| is_table(word(bytes, at))));
        findings.record("_HANDLE_TABLE", "TableCode", only(codes));
    }

    /// The token: a pointer with a count in its lowest bits. System's says where it comes from.
    fn token(&self) -> Result<usize, Doubt> {
        let count = if self.width == 8 { 0xf } else { 7 };
        let system = self.processes.system().ok_or(Doubt::None)?;
        only_offset(self.processes, self.processes.links, |at| {
            let token = system.object.word(at).unwrap_or_default() & !count;
            is_kernel(self.processes.mode, token)
                && self.space.read::<[u8; 8]>(VirtAddr::new(token)).is_ok_and(|source| source == *SYSTEM_TOKEN)
        })
    }

    /// When the process started: a time in all of them, and not one for all.
    fn create_time(&self) -> Result<usize, Doubt> {
        let time = |process: &Process, at| process.object.u64(at).filter(|time| TIMES.contains(time));
        let system = self.processes.system().ok_or(Doubt::None)?;
        let times = self.processes.offsets().filter(|at| at % 8 == 0).filter(|&at| {
            let Some(first) = time(system, at) else { return false };
            let mut others = self.processes.others();
            // System is the first; clocks that were set back by hours in the first seconds are not known.
            others.all(|process| time(process, at).is_some_and(|time| time.saturating_add(TIMES.start >> 8) >= first))
        });
        only(times)
    }

    /// The path of the program as audits tell it.
    fn audit(&self) -> Result<usize, Doubt> {
        let is_path = |at: u64| {
            let at = VirtAddr::new(at);
            let len: u16 = self.space.read(at).ok()?;
            let text = self.space.read_pointer(at.checked_add(self.width as u64)?).ok()?;
            let mut bytes = [0; 2 * DEVICE.len()];
            let text = (usize::from(len) >= bytes.len() && is_kernel(self.processes.mode, text.get())).then_some(text)?;
            self.space.read_into(text, &mut bytes).ok()?;
            let device = DEVICE.encode_utf16().flat_map(u16::to_le_bytes);
            Some(device.eq(bytes.iter().copied()))
        };
        only_offset(self.processes, self.processes.links, |at| {
            let pointers = self.processes.others().filter_map(|process| process.object.word(at));
            let pointers = pointers.filter(|&pointer| is_kernel(self.processes.mode, pointer));
            let mut paths = 0usize;
            for pointer in pointers {
                match is_path(pointer) {
                    Some(true) => paths = paths.saturating_add(1),
                    // An empty string, or one that is paged out.
                    None => {}
                    Some(false) => return false,
                }
            }
            paths > 0
        })
    }

    /// The root of the tree of address ranges, in kernels since Windows 8.1: a node whose children name it as their parent. The pointer to the
    /// node that was used last follows, which may be the same.
    fn address_tree(&self) -> Result<usize, Doubt> {
        let width = self.width as u64;
        let read = |at: u64| Some(self.space.read_pointer(VirtAddr::new(at)).ok()?.get());
        // Left, right, parent with flags in the lowest bits.
        let is_root = |node: u64| -> Option<bool> {
            let mut children = 0usize;
            if read(node.checked_add(width.checked_mul(2)?)?)? & !7 != 0 {
                return Some(false);
            }
            for child in [read(node)?, read(node.checked_add(width)?)?] {
                if child != 0 {
                    if !is_kernel(self.processes.mode, child) || read(child.checked_add(width.checked_mul(2)?)?)? & !7 != node {
                        return Some(false);
                    }
                    children = children.saturating_add(1);
                }
            }
            Some(children > 0)
        };
        let fits = |at: usize| {
            let mut trees = 0usize;
            for process in &self.processes.all {
                let node = process.object.word(at)?;
                if node == 0 {
                    continue;
                }
                if !is_kernel(self.processes.mode, node) || node % width != 0 {
                    return None;
                }
                trees = trees.saturating_add(usize::from(is_root(node)?));
            }
            (trees >= MIN_TREES).then_some(trees)
        };
        let counted: Vec<_> =
            self.processes.offsets().filter(|&at| at > self.processes.name).filter_map(|at| Some((at, fits(at)?))).collect();
        let most = counted.iter().map(|&(_, trees)| trees).max().ok_or(Doubt::None)?;
        let mut best = counted.iter().filter(|&&(_, trees)| trees == most).map(|&(at, _)| at);
        let first = best.next().ok_or(Doubt::None)?;
        // The hint behind the root is no other candidate.
        let others = best.filter(|&at| at != first.saturating_add(self.width)).count();
        if others == 0 { Ok(first) } else { Err(Doubt::Several(others.saturating_add(1))) }
    }
}

/// Where the table has the id of its owner.
fn places_of_id(bytes: &[u8; HANDLE_TABLE_REACH], id: u64) -> Vec<usize> {
    let words = bytes.as_chunks::<4>().0.iter().enumerate();
    let same = words.filter(|(_, word)| u64::from(u32::from_le_bytes(**word)) == id);
    same.map(|(index, _)| index.wrapping_mul(4)).collect()
}

/// Whether the table has the address of its owner.
fn holds(bytes: &[u8; HANDLE_TABLE_REACH], owner: VirtAddr, width: usize) -> bool {
    let owner = owner.get().to_le_bytes();
    bytes.chunks_exact(width).any(|word| owner.starts_with(word))
}
