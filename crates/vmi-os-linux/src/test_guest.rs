//! A synthetic guest for tests: a few structures in identity-mapped memory, described by a table of members.

use std::sync::{Arc, Mutex};

use vmi_arch_x86::{PagingMode, X86};
use vmi_core::synthetic::{SyntheticDriver, SyntheticTypes};
use vmi_core::{
    Control, Driver, Error, Liveness, MachineInfo, MemoryMap, PhysAddr, Region, Result, SymbolsBuilder, VirtAddr, Vmi,
};

use crate::Kernel;

/// Everything lies below this address; the lowest pages hold the page tables.
const SIZE: usize = 0x10_0000;
const ROOT: usize = 0x1000;
pub(crate) const INIT_TASK: u64 = 0x8000;

/// Memory, symbols and types under construction. Virtual addresses are physical ones.
pub(crate) struct TestGuest {
    pub(crate) bytes: Vec<u8>,
    pub(crate) types: SyntheticTypes,
    symbols: SymbolsBuilder,
}

impl TestGuest {
    /// A guest whose `init_task` is alone in the task list. Where members of a task lie:
    /// tasks 0x10, pid 0x20, tgid 0x24, comm 0x30, state 0x40, exit_state 0x48, flags 0x4c, real_parent 0x50, mm 0x58.
    pub(crate) fn new() -> Self {
        let types = SyntheticTypes::default();
        let mut guest = Self { bytes: vec![0; SIZE], types, symbols: SymbolsBuilder::default() };
        // One page of 1 GiB, present, writable and for user mode.
        guest.put(ROOT as u64, &[0x2007]);
        guest.put(0x2000, &[0x87]);
        for (name, offset, size) in [
            ("tasks", 0x10, 16),
            ("pid", 0x20, 4),
            ("tgid", 0x24, 4),
            ("comm", 0x30, 16),
            ("state", 0x40, 8),
            ("exit_state", 0x48, 4),
            ("flags", 0x4c, 4),
            ("real_parent", 0x50, 8),
            ("mm", 0x58, 8),
        ] {
            guest.types.member("task_struct", name, offset, size);
        }
        guest.symbol("init_task", INIT_TASK);
        guest.put(INIT_TASK + 0x10, &[INIT_TASK + 0x10]);
        guest.text(INIT_TASK + 0x30, "swapper/0");
        guest
    }

    /// Writes 64-bit words.
    pub(crate) fn put(&mut self, at: u64, words: &[u64]) {
        for (index, word) in words.iter().enumerate() {
            self.bytes[at as usize + 8 * index..][..8].copy_from_slice(&word.to_le_bytes());
        }
    }

    /// Writes 32-bit words.
    pub(crate) fn put32(&mut self, at: u64, words: &[u32]) {
        for (index, word) in words.iter().enumerate() {
            self.bytes[at as usize + 4 * index..][..4].copy_from_slice(&word.to_le_bytes());
        }
    }

    pub(crate) fn text(&mut self, at: u64, text: &str) {
        self.bytes[at as usize..][..text.len()].copy_from_slice(text.as_bytes());
    }

    pub(crate) fn symbol(&mut self, name: &str, at: u64) {
        self.symbols.push(name, VirtAddr::new(at), b'D');
    }

    /// A task at `at` that `previous` leads to and that leads back to `init_task`.
    pub(crate) fn task(&mut self, at: u64, previous: u64, pid: u32, name: &str) {
        self.put(previous + 0x10, &[at + 0x10]);
        self.put(at + 0x10, &[INIT_TASK + 0x10]);
        self.put32(at + 0x20, &[pid, pid]);
        self.text(at + 0x30, name);
    }

    fn kernel(types: SyntheticTypes, symbols: SymbolsBuilder) -> Kernel {
        Kernel {
            mode: PagingMode::Level4,
            root: PhysAddr::new(ROOT as u64),
            symbols: Arc::new(symbols.build()),
            types: Arc::new(types),
            banner: "Linux version 0.0-test (nobody) #1".to_owned(),
            remarks: Vec::new(),
        }
    }

    /// The frozen machine, and its kernel.
    pub(crate) fn build(self) -> (Vmi<SyntheticDriver<X86>>, Kernel) {
        (Vmi::new(SyntheticDriver::with_arch([(PhysAddr::ZERO, self.bytes)])), Self::kernel(self.types, self.symbols))
    }

    /// A running machine that writes these words (address, word) as soon as `watched` has been read.
    pub(crate) fn build_racing(self, watched: u64, words: &[(u64, u64)]) -> (Vmi<RunningDriver>, Kernel) {
        let words = words.to_vec();
        self.build_running(move |bytes, at| {
            for (to, word) in words.iter().filter(|_| at == watched) {
                bytes[*to as usize..][..8].copy_from_slice(&word.to_le_bytes());
            }
        })
    }

    /// A running machine whose memory `change` changes after every read; it is told the address that was read.
    pub(crate) fn build_running(self, change: impl FnMut(&mut [u8], u64) + Send + 'static) -> (Vmi<RunningDriver>, Kernel) {
        let memory = MemoryMap::new(Region::new(PhysAddr::ZERO, SIZE as u64));
        let machine = MachineInfo { name: "running".to_owned(), memory, liveness: Liveness::Live, notes: Vec::new() };
        let driver = RunningDriver { machine, guest: Mutex::new((self.bytes, Box::new(change))), pauses: Mutex::new((0, 0)) };
        (Vmi::new(driver), Self::kernel(self.types, self.symbols))
    }
}

type Change = Box<dyn FnMut(&mut [u8], u64) + Send>;

/// See [`TestGuest::build_running`]. It stands still while it is paused.
pub(crate) struct RunningDriver {
    machine: MachineInfo,
    guest: Mutex<(Vec<u8>, Change)>,
    /// How many pauses hold it, and how many there have been.
    pauses: Mutex<(u32, u64)>,
}

impl Control for RunningDriver {
    fn pause(&self) -> Result<()> {
        let mut pauses = self.pauses.lock().unwrap();
        *pauses = (pauses.0 + 1, pauses.1 + 1);
        Ok(())
    }

    fn resume(&self) -> Result<()> {
        self.pauses.lock().unwrap().0 -= 1;
        Ok(())
    }
}

impl Driver for RunningDriver {
    type Arch = X86;

    fn machine(&self) -> &MachineInfo {
        &self.machine
    }

    fn read(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        let mut guest = self.guest.lock().unwrap();
        let (bytes, change) = &mut *guest;
        let start = at.get() as usize;
        let from = bytes.get(start..start + buf.len()).ok_or_else(|| Error::hole(at))?;
        buf.copy_from_slice(from);
        if self.epoch().is_none() {
            change(bytes, at.get());
        }
        Ok(())
    }

    fn epoch(&self) -> Option<u64> {
        let (held, paused) = *self.pauses.lock().unwrap();
        (held > 0).then_some(paused)
    }
}
