//! Guest memory read and written as the memory of the QEMU process.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use vmi_core::{Address, Error, ErrorKind, PhysAddr, ReadOp, Result};

use super::pieces::Pieces;
use super::{OpenError, PhysicalMemory, RamPiece, permission};

/// Parts of one system call: the kernel takes no more (UIO_MAXIOV in linux/uio.h, IOV_MAX in limits.h).
const PARTS: usize = 1024;

/// How long the identity of the process is taken for granted, in milliseconds. A process id comes round again only after all others were
/// used, which takes longer than this.
const IDENTITY_LASTS: u64 = 50;

/// The memory of a QEMU process, by guest-physical address.
///
/// It needs what a debugger needs: the same user and an undemanding Yama module, or CAP_SYS_PTRACE (ptrace(2), "Ptrace access mode
/// checking", PTRACE_MODE_ATTACH_REALCREDS).
pub struct ProcessMemory {
    pid: u32,
    pieces: Pieces,
    way: Way,
    name: String,
    /// `/proc/PID/stat`, held open: it stays with its process and cannot be read once that is gone.
    stat: File,
    /// When `stat` was last read, in milliseconds of the monotonic clock.
    checked: AtomicU64,
}

/// How the memory of the other process is reached.
#[derive(Debug)]
enum Way {
    /// `process_vm_readv` and `process_vm_writev`.
    SystemCall,
    /// `/proc/PID/mem`, where a seccomp filter or an old kernel has no such system calls.
    File { mem: File, writable: bool },
}

impl ProcessMemory {
    /// Opens the memory of process `pid`, which has the guest's memory as `pieces` tell.
    ///
    /// # Errors
    /// [`OpenError::Ended`], [`OpenError::Refused`] with advice, [`OpenError::Pieces`] if pieces overlap or the process has nothing where
    /// the first one says.
    pub fn open(pid: u32, pieces: Vec<RamPiece>) -> Result<Self, OpenError> {
        let mut opened = Self::with(pid, pieces, Way::SystemCall)?;
        match opened.probe() {
            Err(Errno::EPERM | Errno::ENOSYS) => opened.way = Way::file(pid)?,
            other => return opened.probed(other),
        }
        let probe = opened.probe();
        opened.probed(probe)
    }

    /// As [`ProcessMemory::open`], by `/proc/PID/mem` only.
    ///
    /// # Errors
    /// As [`ProcessMemory::open`].
    pub fn open_file(pid: u32, pieces: Vec<RamPiece>) -> Result<Self, OpenError> {
        let opened = Self::with(pid, pieces, Way::file(pid)?)?;
        let probe = opened.probe();
        opened.probed(probe)
    }

    fn with(pid: u32, pieces: Vec<RamPiece>, way: Way) -> Result<Self, OpenError> {
        let pieces = Pieces::new(pid, pieces)?;
        let stat = File::open(format!("/proc/{pid}/stat")).map_err(|error| OpenError::new(pid, "opening its status", error))?;
        let name = format!("process memory of QEMU (pid {pid})");
        Ok(Self { pid, pieces, way, name, stat, checked: AtomicU64::new(now()) })
    }

    /// Reads one byte, to see whether this way is open.
    fn probe(&self) -> Result<(), Errno> {
        match self.pieces.iter().next() {
            Some(piece) => self.transfer(piece.host, &mut [0]).map(drop),
            None => Ok(()),
        }
    }

    fn probed(self, probe: Result<(), Errno>) -> Result<Self, OpenError> {
        let Err(errno) = probe else { return Ok(self) };
        let first = self.pieces.iter().next().map(|piece| format!("block `{}` at {:#x}", piece.block, piece.host));
        let first = first.unwrap_or_default();
        Err(match errno {
            Errno::EFAULT | Errno::EIO => OpenError::Pieces { pid: self.pid, why: format!("it has no memory for {first}") },
            errno => OpenError::new(self.pid, format!("reading {first}"), errno.into()),
        })
    }

    /// One system call: reads at `host` and says how much.
    fn transfer(&self, host: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        match &self.way {
            Way::SystemCall => {
                let remote = [RemoteIoVec { base: host as usize, len: buf.len() }];
                process_vm_readv(self.raw_pid(), &mut [IoSliceMut::new(buf)], &remote)
            }
            Way::File { mem, .. } => mem.read_at(buf, host).map_err(errno),
        }
    }

    /// Reads all of `buf` at `host`, or says how much was read and what stopped it.
    fn fill(&self, host: u64, buf: &mut [u8]) -> Result<(), (usize, Errno)> {
        let mut done = 0usize;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.transfer(host.wrapping_add(done as u64), rest) {
                // Of a process that has ended `/proc/PID/mem` reads as empty.
                Ok(0) if matches!(self.way, Way::File { .. }) => return Err((done, Errno::ESRCH)),
                Ok(0) => return Err((done, Errno::EFAULT)),
                Ok(read) => done = done.saturating_add(read),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err((done, errno)),
            }
        }
        Ok(())
    }

    /// Writes all of `data` at `host`, or says how much was written and what stopped it.
    fn store(&self, host: u64, data: &[u8]) -> Result<(), (usize, Errno)> {
        let mut done = 0usize;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let here = host.wrapping_add(done as u64);
            let written = match &self.way {
                Way::SystemCall => {
                    let remote = [RemoteIoVec { base: here as usize, len: rest.len() }];
                    process_vm_writev(self.raw_pid(), &[IoSlice::new(rest)], &remote)
                }
                Way::File { mem, writable: true } => mem.write_at(rest, here).map_err(errno),
                Way::File { writable: false, .. } => Err(Errno::EACCES),
            };
            match written {
                Ok(0) if matches!(self.way, Way::File { .. }) => return Err((done, Errno::ESRCH)),
                Ok(0) => return Err((done, Errno::EFAULT)),
                Ok(written) => done = done.saturating_add(written),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err((done, errno)),
            }
        }
        Ok(())
    }

    fn raw_pid(&self) -> Pid {
        // The kernel's process ids are positive and below 2^22 (PID_MAX_LIMIT in linux/threads.h).
        Pid::from_raw(self.pid.cast_signed())
    }

    /// Makes sure that the process id still means the process that it meant at the start.
    fn identify(&self) -> Result<()> {
        let now = now();
        if now.wrapping_sub(self.checked.load(Ordering::Relaxed)) < IDENTITY_LASTS {
            return Ok(());
        }
        // The file belongs to the process that was, not to another one with its number.
        self.stat.read_at(&mut [0], 0).map_err(|error| self.failed("looking whether it runs".to_owned(), errno(error)))?;
        self.checked.store(now, Ordering::Relaxed);
        Ok(())
    }

    #[cold]
    fn failed(&self, action: String, errno: Errno) -> Error {
        let machine = format!("QEMU (pid {})", self.pid);
        let source: Box<dyn core::error::Error + Send + Sync> = match errno {
            Errno::ESRCH => {
                return ErrorKind::Ended { machine, why: format!("{action}: the process has ended, and its guest with it") }
                    .into();
            }
            Errno::EPERM | Errno::EACCES => format!("{}; {}", errno.desc(), permission::advice(self.pid)).into(),
            Errno::EFAULT | Errno::EIO => {
                "QEMU has no such memory any more: the block was unplugged or resized; ask for the guest's memory map again"
                    .into()
            }
            errno => Box::new(io::Error::from(errno)),
        };
        ErrorKind::Driver { back_end: machine, action, source }.into()
    }

    /// The failure of a transfer at `at`.
    #[cold]
    fn failed_at(&self, verb: &str, at: PhysAddr, errno: Errno) -> Error {
        let place = match self.pieces.run(at) {
            Some(run) => format!(" (block `{}`, {:#x} in the process)", run.piece.block, run.host),
            None => String::new(),
        };
        self.failed(format!("{verb} guest-physical memory at {at}{place}"), errno)
    }
}

/// Milliseconds of a clock that costs next to nothing to read.
fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

impl Way {
    fn file(pid: u32) -> Result<Self, OpenError> {
        let path = format!("/proc/{pid}/mem");
        if let Ok(mem) = File::options().read(true).write(true).open(&path) {
            return Ok(Self::File { mem, writable: true });
        }
        let mem = File::open(&path).map_err(|error| OpenError::new(pid, format!("opening {path}"), error))?;
        Ok(Self::File { mem, writable: false })
    }
}

/// A part of one read of a batch that lies in one piece.
struct Part<'b> {
    /// Which read of the batch.
    op: usize,
    /// Bytes of that read before this part.
    before: usize,
    at: PhysAddr,
    host: u64,
    buf: &'b mut [u8],
}

impl ProcessMemory {
    /// Cuts the reads of a batch into parts; the reads that end in a hole get their result at once.
    fn parts<'b>(&self, ops: &'b mut [ReadOp<'_, PhysAddr>]) -> (Vec<Part<'b>>, Vec<(usize, Error)>) {
        let mut parts = Vec::with_capacity(ops.len());
        let mut failures = Vec::new();
        for (op, ReadOp { at, buf, result }) in ops.iter_mut().enumerate() {
            *result = Ok(());
            let len = buf.len();
            let mut rest: &mut [u8] = buf;
            let mut before = 0usize;
            while !rest.is_empty() {
                let Some(here) = at.checked_add(before as u64) else {
                    failures.push((op, at.out_of_range(len).after(before)));
                    break;
                };
                let Some(run) = self.pieces.run(here) else {
                    failures.push((op, Error::hole(here).after(before)));
                    break;
                };
                let cut = usize::try_from(run.len).unwrap_or(usize::MAX).min(rest.len());
                let (buf, tail) = rest.split_at_mut(cut);
                parts.push(Part { op, before, at: here, host: run.host, buf });
                before = before.saturating_add(cut);
                rest = tail;
            }
        }
        (parts, failures)
    }

    /// Reads as many of `parts` as one system call does, finishes the one that it broke off in, and says how many are settled.
    fn read_parts(&self, parts: &mut [Part<'_>], failures: &mut Vec<(usize, Error)>) -> usize {
        let count = parts.len().min(PARTS);
        let remote: Vec<_> =
            parts.iter().take(count).map(|part| RemoteIoVec { base: part.host as usize, len: part.buf.len() }).collect();
        let mut local: Vec<_> = parts.iter_mut().take(count).map(|part| IoSliceMut::new(part.buf)).collect();
        let mut left = process_vm_readv(self.raw_pid(), &mut local, &remote).unwrap_or(0);
        drop(local);
        for (index, part) in parts.iter_mut().take(count).enumerate() {
            if let Some(rest) = left.checked_sub(part.buf.len()) {
                left = rest;
                continue;
            }
            // Here it stopped. Alone, this part says why; what follows is tried by the next call.
            if let Some(rest) = part.buf.get_mut(left..)
                && let Err((done, errno)) = self.fill(part.host.wrapping_add(left as u64), rest)
            {
                let done = left.saturating_add(done);
                let at = part.at.wrapping_add(done as u64);
                failures.push((part.op, self.failed_at("reading", at, errno).after(part.before.saturating_add(done))));
            }
            return index.saturating_add(1);
        }
        count
    }
}

impl PhysicalMemory for ProcessMemory {
    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        self.identify()?;
        let len = buf.len();
        let mut done = 0usize;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let here = at.checked_add(done as u64).ok_or_else(|| at.out_of_range(len).after(done))?;
            let run = self.pieces.run(here).ok_or_else(|| Error::hole(here).after(done))?;
            let cut = usize::try_from(run.len).unwrap_or(usize::MAX).min(rest.len());
            let (part, _) = rest.split_at_mut(cut);
            if let Err((good, errno)) = self.fill(run.host, part) {
                let done = done.saturating_add(good);
                return Err(self.failed_at("reading", at.wrapping_add(done as u64), errno).after(done));
            }
            done = done.saturating_add(cut);
        }
        Ok(())
    }

    fn read_batch(&self, ops: &mut [ReadOp<'_, PhysAddr>]) {
        if ops.len() < 2 || matches!(self.way, Way::File { .. }) || self.identify().is_err() {
            for op in ops {
                op.result = self.read(op.at, op.buf);
            }
            return;
        }
        let (mut parts, mut failures) = self.parts(ops);
        let mut rest = parts.as_mut_slice();
        while !rest.is_empty() {
            let settled = self.read_parts(rest, &mut failures);
            rest = rest.get_mut(settled..).unwrap_or_default();
        }
        drop(parts);
        for (op, error) in failures {
            if let Some(ReadOp { result, .. }) = ops.get_mut(op)
                // Of several failures of one read the first counts: all before it is good.
                && result.as_ref().err().is_none_or(|known| error.done() < known.done())
            {
                *result = Err(error);
            }
        }
    }

    fn write(&self, at: PhysAddr, data: &[u8]) -> Result<()> {
        self.identify()?;
        let mut done = 0usize;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let here = at.checked_add(done as u64).ok_or_else(|| at.out_of_range(data.len()).after(done))?;
            let run = self.pieces.run(here).ok_or_else(|| Error::hole(here).after(done))?;
            if run.piece.read_only {
                return Err(Error::read_only(here).after(done));
            }
            let cut = usize::try_from(run.len).unwrap_or(usize::MAX).min(rest.len());
            let (part, _) = rest.split_at(cut);
            if let Err((good, errno)) = self.store(run.host, part) {
                let done = done.saturating_add(good);
                return Err(self.failed_at("writing", at.wrapping_add(done as u64), errno).after(done));
            }
            done = done.saturating_add(cut);
        }
        Ok(())
    }
}

impl fmt::Debug for ProcessMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessMemory")
            .field("pid", &self.pid)
            .field("pieces", &self.pieces)
            .field("way", &self.way)
            .finish_non_exhaustive()
    }
}
