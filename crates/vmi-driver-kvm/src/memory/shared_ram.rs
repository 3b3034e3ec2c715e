//! Guest RAM that QEMU has mapped shared from a file, mapped here too.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use nix::fcntl::OFlag;
use procfs::ProcError;
use procfs::process::{MMPermissions, MMapPath, MemoryMap, Process};
use vmi_core::{Address, Error, ErrorKind, GuestMapping, LivePiece, PhysAddr, Result, SharedRam};

use super::pieces::Pieces;
use super::{OpenError, PhysicalMemory, ProcessMemory, RamPiece};

/// Guest RAM that lies in files which QEMU has mapped shared, mapped into this process, and the rest of the guest's memory (ROMs,
/// video memory, a BIOS) as process memory.
///
/// Opening the file needs the same user as QEMU's, or CAP_SYS_PTRACE (ptrace(2), PTRACE_MODE_READ_FSCREDS); the Yama module does not
/// come into it. Only the rest needs what [`ProcessMemory`] needs: if that is refused, reads of the rest fail and say so.
#[derive(Debug)]
pub struct SharedMemory {
    mapping: GuestMapping,
    rest: Rest,
    name: String,
}

/// What is not mapped.
#[derive(Debug)]
enum Rest {
    Nothing,
    Process(ProcessMemory),
    /// Process memory is refused.
    Refused {
        pid: u32,
        pieces: Pieces,
        why: Arc<OpenError>,
    },
}

impl SharedMemory {
    /// Maps what of `pieces` lies in files that process `pid` has mapped shared. It is mapped for writing where the file may be opened so.
    ///
    /// # Errors
    /// [`OpenError::NotShared`] if none does; [`OpenError::Refused`] with advice if the process' mappings or the file are out of reach;
    /// [`OpenError::Pieces`] if pieces contradict each other or the process.
    pub fn open(pid: u32, pieces: Vec<RamPiece>) -> Result<Self, OpenError> {
        let pieces = Pieces::new(pid, pieces)?;
        let mappings = Mappings::of(pid)?;
        let mut files: Vec<SharedFile> = Vec::new();
        let (mut live, mut rest, mut reasons) = (Vec::new(), Vec::new(), Vec::new());
        for piece in pieces.iter() {
            match mappings.place(piece).and_then(|place| map(pid, piece, &place, &mut files)) {
                Ok(ram) => {
                    // A ROM is not written by any road. RAM whose file may only be read is written as process memory.
                    if !ram.writable() && !piece.read_only {
                        rest.push(piece.clone());
                    }
                    live.push(LivePiece { region: piece.region, ram: Arc::new(ram), offset: 0 });
                }
                Err(why) => {
                    tracing::debug!(pid, block = %piece.block, %why, "not mapped");
                    reasons.push((piece.region.len(), why));
                    rest.push(piece.clone());
                }
            }
        }
        if live.is_empty() {
            // The largest piece is RAM; why a ROM is not shared is nothing to act on.
            let why = reasons.into_iter().max_by_key(|(len, _)| *len).map(|(_, why)| why);
            return Err(match why {
                Some(NotMapped::Failed(error)) => error,
                Some(NotMapped::Elsewhere(why)) => OpenError::NotShared { pid, why },
                None => OpenError::NotShared { pid, why: "the guest has no memory at all".to_owned() },
            });
        }
        let mapping = GuestMapping::live(&live).map_err(|error| OpenError::Pieces { pid, why: error.to_string() })?;
        let rest = Rest::open(pid, rest)?;
        Ok(Self { mapping, rest, name: format!("shared RAM of QEMU (pid {pid})") })
    }

    /// What of the guest's memory is mapped.
    pub fn guest_mapping(&self) -> &GuestMapping {
        &self.mapping
    }

    /// Why the memory that is not mapped (ROMs, video memory) cannot be read as process memory either; `None` if it can.
    pub fn refused(&self) -> Option<&OpenError> {
        match &self.rest {
            Rest::Refused { why, .. } => Some(why),
            Rest::Nothing | Rest::Process(_) => None,
        }
    }
}

impl Rest {
    fn open(pid: u32, pieces: Vec<RamPiece>) -> Result<Self, OpenError> {
        if pieces.is_empty() {
            return Ok(Self::Nothing);
        }
        match ProcessMemory::open(pid, pieces.clone()) {
            Ok(memory) => Ok(Self::Process(memory)),
            Err(why @ OpenError::Refused { .. }) => {
                tracing::warn!(%why, "guest memory outside shared RAM cannot be read");
                Ok(Self::Refused { pid, pieces: Pieces::new(pid, pieces)?, why: Arc::new(why) })
            }
            Err(other) => Err(other),
        }
    }

    /// The error for an access at `at`, which is not mapped.
    fn refuse(&self, at: PhysAddr) -> Error {
        match self {
            Self::Refused { pid, pieces, why } if pieces.run(at).is_some() => ErrorKind::Driver {
                back_end: format!("QEMU (pid {pid})"),
                action: format!("reaching guest-physical memory at {at}, which is not shared, as process memory"),
                source: Box::new(Arc::clone(why)),
            }
            .into(),
            _ => Error::hole(at),
        }
    }

    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        match self {
            Self::Process(memory) => memory.read(at, buf),
            _ => Err(self.refuse(at)),
        }
    }

    fn write(&self, at: PhysAddr, data: &[u8]) -> Result<()> {
        match self {
            Self::Process(memory) => memory.write(at, data),
            _ => Err(self.refuse(at)),
        }
    }
}

/// Does an operation by two means that each serve a part of the memory: each is told how many bytes are done and goes as far as it
/// gets, then the other goes on.
fn in_turns(mut first: impl FnMut(usize) -> Result<()>, mut second: impl FnMut(usize) -> Result<()>) -> Result<()> {
    let elsewhere = |error: &Error| matches!(error.kind(), ErrorKind::Hole { .. } | ErrorKind::ReadOnly { .. });
    let mut done = 0usize;
    loop {
        let Err(error) = first(done) else { return Ok(()) };
        let error = error.after(done);
        if !elsewhere(&error) {
            return Err(error);
        }
        done = error.done();
        let Err(other) = second(done) else { return Ok(()) };
        let other = other.after(done);
        if other.done() == done || !elsewhere(&other) {
            // That mapped memory cannot be written says more than that the other means does not know the address.
            let read_only = matches!(error.kind(), ErrorKind::ReadOnly { .. }) && matches!(other.kind(), ErrorKind::Hole { .. });
            return Err(if read_only { error } else { other });
        }
        done = other.done();
    }
}

impl PhysicalMemory for SharedMemory {
    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        // The whole range is checked here, so that the sums below stay within it.
        at.checked_add(buf.len() as u64).ok_or_else(|| at.out_of_range(buf.len()))?;
        let buf = core::cell::RefCell::new(buf);
        in_turns(
            |done| self.mapping.read_into(at.wrapping_add(done as u64), buf.borrow_mut().get_mut(done..).unwrap_or_default()),
            |done| self.rest.read(at.wrapping_add(done as u64), buf.borrow_mut().get_mut(done..).unwrap_or_default()),
        )
    }

    fn write(&self, at: PhysAddr, data: &[u8]) -> Result<()> {
        at.checked_add(data.len() as u64).ok_or_else(|| at.out_of_range(data.len()))?;
        let rest = |done: usize| data.get(done..).unwrap_or_default();
        in_turns(
            |done| self.mapping.write(at.wrapping_add(done as u64), rest(done)),
            |done| self.rest.write(at.wrapping_add(done as u64), rest(done)),
        )
    }

    fn mapping(&self) -> Option<&GuestMapping> {
        Some(&self.mapping)
    }
}

/// Why a piece is not mapped.
#[derive(Debug, thiserror::Error)]
enum NotMapped {
    /// It does not lie in a shared file.
    #[error("{0}")]
    Elsewhere(String),
    /// It does, but the file cannot be had.
    #[error(transparent)]
    Failed(OpenError),
}

/// What makes a file the same file to the kernel: device and inode, as `/proc/PID/maps` shows them. `fstat` may show another device for the
/// same file (overlayfs, btrfs), so it is not asked.
type Identity = ((i32, i32), u64);

/// A part of a shared file.
struct Place {
    identity: Identity,
    /// Where the piece starts in the file.
    offset: u64,
    /// Where to look for the file, best first.
    paths: Vec<PathBuf>,
}

/// The mappings of a process, ascending.
struct Mappings {
    pid: u32,
    list: Vec<MemoryMap>,
}

impl Mappings {
    fn of(pid: u32) -> Result<Self, OpenError> {
        let raw = i32::try_from(pid).map_err(|_| OpenError::Ended { pid })?;
        let list = Process::new(raw).and_then(|process| process.maps());
        Ok(Self { pid, list: list.map_err(|error| proc_error(pid, "reading its list of mappings", error))?.0 })
    }

    /// Finds the file that holds all of `piece`. It may be mapped in several parts that continue each other, as QEMU gives parts of
    /// a block attributes of their own.
    fn place(&self, piece: &RamPiece) -> Result<Place, NotMapped> {
        let block = &piece.block;
        let lacks = |at: u64| NotMapped::Elsewhere(format!("block `{block}`: the process has no memory at {at:#x}"));
        let mut at = piece.host;
        let end = at.saturating_add(piece.region.len());
        let mut found: Option<Place> = None;
        while at < end {
            let map = self.list.iter().find(|map| map.address.0 <= at && at < map.address.1).ok_or_else(|| lacks(at))?;
            if !map.perms.contains(MMPermissions::SHARED) || map.inode == 0 {
                return Err(NotMapped::Elsewhere(format!("block `{block}` is private memory of the process")));
            }
            let offset = map.offset.saturating_add(at.saturating_sub(map.address.0));
            let identity = (map.dev, map.inode);
            match &found {
                None => found = Some(Place { identity, offset, paths: self.paths(map) }),
                Some(place)
                    if place.identity == identity && Some(offset) == place.offset.checked_add(at.saturating_sub(piece.host)) => {}
                Some(_) => return Err(NotMapped::Elsewhere(format!("block `{block}` lies in several files or in parts of one"))),
            }
            at = map.address.1;
        }
        found.ok_or_else(|| lacks(at))
    }

    /// Where the file of a mapping may be opened: by its path, as this process and as that one sees it; by the mapping (since Linux 4.3,
    /// needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN: proc(5)); by an open descriptor of the process.
    fn paths(&self, map: &MemoryMap) -> Vec<PathBuf> {
        let pid = self.pid;
        let mut paths = Vec::new();
        let same_inode = |path: &PathBuf| fs::metadata(path).is_ok_and(|metadata| metadata.ino() == map.inode);
        if let MMapPath::Path(path) = &map.pathname {
            paths.push(path.clone());
            if let Ok(inside) = path.strip_prefix("/") {
                paths.push(PathBuf::from(format!("/proc/{pid}/root")).join(inside));
            }
        }
        paths.push(PathBuf::from(format!("/proc/{pid}/map_files/{:x}-{:x}", map.address.0, map.address.1)));
        if let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) {
            paths.extend(descriptors.flatten().map(|entry| entry.path()));
        }
        // Most are settled by the inode alone, without opening anything. What remains is compared for good once it is mapped.
        paths.retain(same_inode);
        paths
    }
}

fn proc_error(pid: u32, action: &str, error: ProcError) -> OpenError {
    let source = match error {
        ProcError::PermissionDenied(_) => io::Error::from_raw_os_error(nix::errno::Errno::EACCES as i32),
        ProcError::NotFound(_) => return OpenError::Ended { pid },
        ProcError::Io(source, _) => source,
        other => io::Error::other(other.to_string()),
    };
    OpenError::new(pid, action, source)
}

/// A file that was opened and found to be the one that the process has mapped.
struct SharedFile {
    identity: Identity,
    file: File,
    writable: bool,
}

/// Maps a piece from its place; `files` has the files that are open already.
fn map(pid: u32, piece: &RamPiece, place: &Place, files: &mut Vec<SharedFile>) -> Result<SharedRam, NotMapped> {
    let len = piece.region.len();
    if let Some(known) = files.iter().find(|known| known.identity == place.identity) {
        return SharedRam::map(&known.file, place.offset, len, known.writable && !piece.read_only).map_err(|error| {
            NotMapped::Failed(OpenError::new(pid, format!("mapping the file of block `{}`", piece.block), error))
        });
    }
    let mut last: Option<io::Error> = None;
    for path in &place.paths {
        for writable in [true, false] {
            let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
            let opened = File::options().read(true).write(writable).custom_flags(flags).open(path);
            let mapped = opened.and_then(|file| {
                let ram = SharedRam::map(&file, place.offset, len, writable && !piece.read_only)?;
                if identity_of(&ram)? != place.identity {
                    return Err(io::Error::other("another file has its place"));
                }
                Ok((file, ram))
            });
            match mapped {
                Ok((file, ram)) => {
                    tracing::debug!(pid, block = %piece.block, path = %path.display(), writable, "mapped");
                    files.push(SharedFile { identity: place.identity, file, writable });
                    return Ok(ram);
                }
                Err(error) => {
                    tracing::debug!(pid, path = %path.display(), writable, %error, "the file of the guest's RAM is not to be had here");
                    last = Some(error);
                }
            }
        }
    }
    let error = last.unwrap_or_else(|| {
        let why = "neither its path nor a descriptor of the process leads to it";
        io::Error::new(io::ErrorKind::PermissionDenied, why)
    });
    let action = format!("opening the shared file of block `{}` (inode {})", piece.block, place.identity.1);
    Err(NotMapped::Failed(OpenError::new(pid, action, error)))
}

/// Which file this process has mapped as `ram`.
fn identity_of(ram: &SharedRam) -> io::Result<Identity> {
    let address = ram.address() as u64;
    let maps = Process::myself().and_then(|process| process.maps()).map_err(|error| io::Error::other(error.to_string()))?;
    maps.0
        .iter()
        .find(|map| map.address.0 <= address && address < map.address.1)
        .map(|map| (map.dev, map.inode))
        .ok_or_else(|| io::Error::other("the mapping is not listed"))
}
