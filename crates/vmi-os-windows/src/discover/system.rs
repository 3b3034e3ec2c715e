//! The process System, against which symbols and types are checked: they must describe it, or they belong to another kernel.

use vmi_arch_x86::X86Driver;
use vmi_core::{AddressSpace, Error, Memory, Paging, PhysAddr, Region, Result, Symbols, TypeSource, VirtAddr, list};

use super::image::KernelImage;
use super::lead::is_kernel_address;

/// More processes than a kernel can have.
const MAX_PROCESSES: usize = 1 << 20;
/// The type of a process object in the header of each object that can be waited for, and the bits of the byte that hold it
/// (`DISPATCHER_HEADER.Type`; "Windows Internals", 7th edition, part 2, chapter 8).
pub(crate) const PROCESS_OBJECT: u8 = 3;
pub(crate) const OBJECT_TYPE: u8 = 0x7f;
/// What System is called. Its id is 4 in all releases since XP.
pub(crate) const NAME: &[u8; 7] = b"System\0";
pub(crate) const ID: u64 = 4;

/// The process System, read by symbols and types.
#[derive(Clone, Debug)]
pub(super) struct System {
    /// Its page tables.
    pub(super) root: PhysAddr,
    /// The head of the list of processes, if that was found in the image.
    pub(super) head: Option<VirtAddr>,
    /// Why the list of processes could not be followed, if so.
    pub(super) list: Result<(), String>,
}

/// How symbols and types fit a kernel.
#[derive(Clone, Debug)]
pub(super) enum Fit {
    /// They describe the process System, and the list of processes closes unless [`System::list`] says otherwise.
    Fits(System),
    /// What they describe is not in memory.
    Unknown(String),
    /// They describe something else.
    Contradicts(String),
}

/// Where System may be beside where symbols say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Where inference found it.
    pub(super) inferred: Option<VirtAddr>,
    /// Physical memory with a process that a dump saved by itself: it may be System.
    pub(super) saved: Option<Region>,
}

/// Where the members are that the check reads.
struct Members {
    links: u64,
    id: u64,
    name: u64,
    page_table: u64,
}

impl Members {
    fn of(types: &dyn TypeSource) -> Result<Self> {
        let offset = |path| types.field("_EPROCESS", path).map(|field| field.offset);
        Ok(Self {
            links: offset("ActiveProcessLinks")?,
            id: offset("UniqueProcessId")?,
            name: offset("ImageFileName")?,
            page_table: offset("Pcb.DirectoryTableBase")?,
        })
    }
}

/// Whether `types` describe the process System where `symbols` say that it is, or at a place that is known otherwise.
pub(super) fn check<D: X86Driver>(
    space: &AddressSpace<'_, D>,
    image: &KernelImage,
    symbols: &Symbols,
    types: &dyn TypeSource,
    place: Place,
) -> Fit {
    let members = match Members::of(types) {
        Ok(members) => members,
        Err(error) => return Fit::Contradicts(error.to_string()),
    };
    let head = symbols.find("PsActiveProcessHead").map(|symbol| symbol.address);
    let named = symbols.find("PsInitialSystemProcess").map(|symbol| symbol.address);
    let mut why = Vec::new();
    let mut contradiction = None;
    let places = [
        ("PsInitialSystemProcess", named.map(|at| space.read_pointer(at))),
        ("PsActiveProcessHead", head.map(|at| space.read_pointer(at).map(|first| first.wrapping_sub(members.links)))),
        ("its content", place.inferred.map(Ok)),
    ];
    for (by, at) in places {
        match at {
            None => {}
            Some(Err(error)) => why.push(format!("{by}: {error}")),
            Some(Ok(at)) => match read_at(space, image, &members, at) {
                Ok(root) => {
                    let (head, list) = ring(space, image, &members, at, head);
                    return Fit::Fits(System { root, head, list });
                }
                Err(error) if error.is_absent() => why.push(format!("{by}: {error}")),
                Err(error) => contradiction = contradiction.or(Some(format!("{by}: {error}"))),
            },
        }
    }
    // A triage dump has the process that ran by itself, without its address.
    if let Some(saved) = place.saved {
        let member = |offset: u64, buf: &mut [u8]| {
            let inside = offset.checked_add(buf.len() as u64).is_some_and(|end| end <= saved.len());
            let at = saved.start().wrapping_add(offset);
            if inside { space.vmi().read_into(at, buf) } else { Err(Error::hole(at)) }
        };
        if let Ok(root) = read(space, image, &members, VirtAddr::ZERO, member) {
            let list = Err("this dump holds the process System by itself, but not the list".to_owned());
            return Fit::Fits(System { root, head, list });
        }
    }
    match contradiction {
        Some(contradiction) => Fit::Contradicts(contradiction),
        None if why.is_empty() => Fit::Unknown("nothing names the process System".to_owned()),
        None => Fit::Unknown(why.join("; ")),
    }
}

/// The page tables of the process at `at`, if it is System.
fn read_at<D: X86Driver>(space: &AddressSpace<'_, D>, image: &KernelImage, members: &Members, at: VirtAddr) -> Result<PhysAddr> {
    if !is_kernel_address(image.mode, at) || image.contains(at) || !at.is_aligned(8) {
        return Err(Error::corrupt("no process can be at this place", at));
    }
    read(space, image, members, at, |offset, buf| space.read_into(at.wrapping_add(offset), buf))
}

/// The page tables of the process at `at` whose bytes at an offset `bytes` reads, if it is System.
fn read<D: X86Driver>(
    space: &AddressSpace<'_, D>,
    image: &KernelImage,
    members: &Members,
    at: VirtAddr,
    bytes: impl Fn(u64, &mut [u8]) -> Result<()>,
) -> Result<PhysAddr> {
    let wrong = |what: &str| Error::corrupt(format!("{what} at this place"), at);
    let word = |offset: u64| {
        let mut word = [0; 8];
        let (word_bytes, _) = word.split_at_mut(image.mode.pointer_size().min(8));
        bytes(offset, word_bytes).map(|()| u64::from_le_bytes(word))
    };
    let mut kind = [0];
    bytes(0, &mut kind)?;
    if kind.map(|kind| kind & OBJECT_TYPE) != [PROCESS_OBJECT] {
        return Err(wrong("no process object is"));
    }
    let mut name = [0; NAME.len()];
    bytes(members.name, &mut name)?;
    if name != *NAME {
        return Err(wrong("no process of the name `System` is"));
    }
    if word(members.id)? != ID {
        return Err(wrong("no process with the id 4 is"));
    }
    let root = image.mode.top_table(PhysAddr::new(word(members.page_table)?));
    let place = |root| image.mode.translate(space.vmi(), root, image.base).map(|page| page.at);
    if root != image.root && (root.is_null() || place(root).ok() != place(image.root).ok()) {
        return Err(wrong("no process with page tables that map the kernel is"));
    }
    Ok(root)
}

/// The head of the list of processes: where symbols say, or the one node of System's ring that lies in the image; and whether the ring closes.
fn ring<D: X86Driver>(
    space: &AddressSpace<'_, D>,
    image: &KernelImage,
    members: &Members,
    system: VirtAddr,
    known: Option<VirtAddr>,
) -> (Option<VirtAddr>, Result<(), String>) {
    let start = system.wrapping_add(members.links);
    let identity = |node: VirtAddr| {
        let id = space.read_pointer(node.wrapping_sub(members.links).wrapping_add(members.id))?;
        Ok(id.get() as u32)
    };
    let mut head = None;
    for node in list::nodes(space, start, "the list of processes", MAX_PROCESSES, identity) {
        match node {
            Ok(node) if image.contains(node.at) => {
                if head.is_some_and(|head| head != node.at) {
                    return (known, Err("more than one node of the list of processes lies in the kernel".to_owned()));
                }
                head = Some(node.at);
            }
            Ok(_) => {}
            Err(error) => return (known.or(head), Err(error.to_string())),
        }
    }
    match (known, head) {
        (Some(known), Some(head)) if known != head => {
            (Some(head), Err(format!("the head of the list of processes is at {head}, not at {known} where the symbols have it")))
        }
        (None, None) => (None, Err("no node of the list of processes lies in the kernel".to_owned())),
        (known, head) => (head.or(known), Ok(())),
    }
}
