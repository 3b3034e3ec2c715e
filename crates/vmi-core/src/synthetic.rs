//! A machine made of byte runs, and types made of a table, for tests and examples.

mod types;

use core::convert::Infallible;
use core::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    Access, Architecture, Driver, Error, EventAbility, GuestMapping, Liveness, MachineInfo, Memory, MemoryMap, Note, Paging,
    PhysAddr, Piece, Region, Result, Translation, VirtAddr, WriteMemory,
};

pub use types::SyntheticTypes;

/// An architecture without paging and registers: every virtual address is its physical one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Unpaged;

impl Architecture for Unpaged {
    type Registers = ();
    type Paging = Self;
    type Watch = Infallible;
    type Incident = Infallible;
    type Injection = Infallible;

    fn runs_on((): &(), _root: PhysAddr) -> Option<bool> {
        None
    }

    fn springs(watch: &Infallible, _incident: &Infallible) -> bool {
        match *watch {}
    }

    fn ability(watch: &Infallible) -> EventAbility {
        match *watch {}
    }
}

impl Paging for Unpaged {
    fn pointer_size(self) -> usize {
        8
    }

    fn translate<M>(self, _memory: &M, _root: PhysAddr, at: VirtAddr) -> Result<Translation>
    where
        M: Memory<Addr = PhysAddr> + ?Sized,
    {
        let access = Access { write: true, execute: true, user: true };
        Ok(Translation { at: PhysAddr::new(at.get()), page_shift: 12, access })
    }
}

/// A frozen machine of byte runs or of any mapped memory: the fast path.
#[derive(Debug)]
pub struct SyntheticDriver<A: Architecture = Unpaged> {
    machine: MachineInfo,
    mapping: GuestMapping,
    arch: PhantomData<A>,
}

impl SyntheticDriver {
    /// A machine without paging. Runs that overlap each other, are empty or leave the address range are left out.
    pub fn new(runs: impl IntoIterator<Item = (PhysAddr, Vec<u8>)>) -> Self {
        Self::with_arch(runs)
    }
}

impl<A: Architecture> SyntheticDriver<A> {
    /// As [`SyntheticDriver::new`], of any architecture.
    pub fn with_arch(runs: impl IntoIterator<Item = (PhysAddr, Vec<u8>)>) -> Self {
        let mut store = Vec::new();
        let mut pieces = Vec::new();
        for (start, bytes) in runs {
            if let Some(region) = Region::new(start, bytes.len() as u64) {
                pieces.push(Piece { region, offset: store.len() as u64 });
                store.extend(bytes);
            }
        }
        Self::over(GuestMapping::frozen(Arc::new(store), &pieces).unwrap_or_else(|_| GuestMapping::empty()))
    }

    /// A frozen machine whose memory is what `mapping` maps.
    pub fn over(mapping: GuestMapping) -> Self {
        let machine = MachineInfo {
            name: "synthetic machine".to_owned(),
            memory: mapping.memory_map(),
            liveness: Liveness::Frozen,
            notes: Vec::new(),
        };
        Self { machine, mapping, arch: PhantomData }
    }

    /// The same machine with notes.
    #[must_use]
    pub fn with_notes(mut self, notes: Vec<Note>) -> Self {
        self.machine.notes = notes;
        self
    }
}

impl<A: Architecture> Driver for SyntheticDriver<A> {
    type Arch = A;

    fn machine(&self) -> &MachineInfo {
        &self.machine
    }

    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        self.mapping.read_into(at, buf)
    }

    fn mapping(&self) -> Option<&GuestMapping> {
        Some(&self.mapping)
    }
}

/// A live machine of one byte run from address zero, not mapped: the slow path, with writes.
#[derive(Debug)]
pub struct LiveDriver<A: Architecture = Unpaged> {
    machine: MachineInfo,
    bytes: Mutex<Vec<u8>>,
    epoch: Option<u64>,
    arch: PhantomData<A>,
}

impl<A: Architecture> LiveDriver<A> {
    /// A machine with these bytes at address zero; `epoch` is what [`Driver::epoch`] answers.
    pub fn new(bytes: Vec<u8>, epoch: Option<u64>) -> Self {
        let memory = MemoryMap::new(Region::new(PhysAddr::ZERO, bytes.len() as u64));
        let machine =
            MachineInfo { name: "live synthetic machine".to_owned(), memory, liveness: Liveness::Live, notes: Vec::new() };
        Self { machine, bytes: Mutex::new(bytes), epoch, arch: PhantomData }
    }

    /// The length of the part of `len` bytes at `at` that exists, and its start.
    fn part(at: PhysAddr, len: usize, size: usize) -> (usize, usize) {
        let start = usize::try_from(at.get()).unwrap_or(usize::MAX);
        (start, size.saturating_sub(start).min(len))
    }
}

impl<A: Architecture> Driver for LiveDriver<A> {
    type Arch = A;

    fn machine(&self) -> &MachineInfo {
        &self.machine
    }

    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, len) = Self::part(at, buf.len(), bytes.len());
        if let (Some(target), Some(source)) = (buf.get_mut(..len), bytes.get(start..start.saturating_add(len))) {
            target.copy_from_slice(source);
        }
        if len == buf.len() { Ok(()) } else { Err(Error::hole(at.wrapping_add(len as u64)).after(len)) }
    }

    fn epoch(&self) -> Option<u64> {
        self.epoch
    }

    fn write_memory(&self) -> Option<&dyn WriteMemory<Arch = A>> {
        Some(self)
    }
}

impl<A: Architecture> WriteMemory for LiveDriver<A> {
    fn write(&self, at: PhysAddr, data: &[u8]) -> Result<()> {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let size = bytes.len();
        let (start, len) = Self::part(at, data.len(), size);
        if let (Some(target), Some(source)) = (bytes.get_mut(start..start.saturating_add(len)), data.get(..len)) {
            target.copy_from_slice(source);
        }
        if len == data.len() { Ok(()) } else { Err(Error::hole(at.wrapping_add(len as u64)).after(len)) }
    }
}
