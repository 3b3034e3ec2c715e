//! The handle on one machine.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use zerocopy::{FromBytes, IntoBytes};

use crate::page_cache::{PageCache, PageCacheCounters};
use crate::{
    Address, AddressSpace, Architecture, Control, Driver, EventSource, Events, GuestMapping, Liveness, MachineInfo, MappedRange,
    Memory, PAGE_SIZE, PhysAddr, ReadOp, Region, Result, VcpuId, Vcpus, WriteMemory, WriteVcpus,
};

/// Pages that a [`Vmi`] over a back end without mapped memory keeps at most, in bytes.
const PAGE_CACHE_BYTES: u64 = 32 << 20;

/// The longest read that goes through the page cache, in bytes.
const CACHED_RUN: usize = 4 * PAGE_SIZE as usize;

/// One machine: a running guest or a memory image. All reading starts here.
///
/// As [`Memory`], it is the guest-physical memory. A `Vmi` is `Send + Sync` if its driver is, and takes `&self` everywhere:
/// one handle serves many threads.
///
/// ```
/// use vmi_core::{Memory, PhysAddr, Vmi};
/// # use vmi_core::synthetic::SyntheticDriver;
/// # fn main() -> vmi_core::Result<()> {
/// let vmi = Vmi::new(SyntheticDriver::new([(PhysAddr::new(0x1000), b"hello".to_vec())]));
/// let byte: u8 = vmi.read(PhysAddr::new(0x1001))?;
/// assert_eq!(byte, b'e');
/// assert!(vmi.read::<u64>(PhysAddr::new(0x1001)).is_err());
/// # Ok(())
/// # }
/// ```
pub struct Vmi<D: Driver> {
    /// Mapped guest RAM, empty if the driver has none. First, as every read looks here.
    ram: GuestMapping,
    frozen: bool,
    mapped: bool,
    /// Whether mapped memory comes and goes, so that the driver brings what is not there.
    windowed: bool,
    /// Whether the page cache is used at all.
    cached: bool,
    /// Whether page tables name other frames than guest-physical ones.
    foreign_frames: bool,
    /// Counts what this handle did to the guest, on top of the driver's own epoch.
    changes: AtomicU64,
    cache: PageCache,
    driver: D,
}

impl<D: Driver> Vmi<D> {
    /// A handle over `driver`.
    pub fn new(driver: D) -> Self {
        Self::with_page_cache(driver, PAGE_CACHE_BYTES)
    }

    /// A handle whose page cache holds at most `bytes`. It is used only with a driver that does not map memory, and only
    /// while the memory holds still.
    pub fn with_page_cache(driver: D, bytes: u64) -> Self {
        let mapping = driver.mapping().cloned();
        Self {
            mapped: mapping.is_some(),
            windowed: mapping.as_ref().is_some_and(GuestMapping::is_window),
            ram: mapping.unwrap_or_else(GuestMapping::empty),
            cached: !driver.reads_are_copies(),
            foreign_frames: driver.page_tables_name_others(),
            frozen: driver.machine().liveness == Liveness::Frozen,
            changes: AtomicU64::new(0),
            cache: PageCache::new(bytes),
            driver,
        }
    }

    /// The back end.
    pub fn driver(&self) -> &D {
        &self.driver
    }

    /// Name, memory map, liveness and notes of the machine.
    pub fn machine(&self) -> &MachineInfo {
        self.driver.machine()
    }

    /// Says whether memory holds still: see [`Driver::epoch`]. What this handle itself changes counts as a change.
    #[inline]
    pub fn epoch(&self) -> Option<u64> {
        if self.frozen {
            return Some(0);
        }
        let epoch = self.driver.epoch()?;
        // Both counters only grow, so the sum returns to a value only if neither changed.
        Some(epoch.wrapping_add(self.changes.load(Ordering::Acquire)))
    }

    /// The address space whose page tables start at `root`.
    pub fn address_space(&self, root: PhysAddr, mode: <D::Arch as Architecture>::Paging) -> AddressSpace<'_, D> {
        AddressSpace::new(self, root, mode)
    }

    /// Maps a range of guest memory, for as long as the result or a clone of it lives: the fastest way to look at the same memory again and again, and the only one where a read is but a
    /// bounds check and a load on every back end that can do it.
    ///
    /// ```
    /// use vmi_core::{Memory, PhysAddr, Region, Vmi};
    /// # use vmi_core::synthetic::SyntheticDriver;
    /// # fn main() -> vmi_core::Result<()> {
    /// let vmi = Vmi::new(SyntheticDriver::new([(PhysAddr::new(0x1000), vec![7; 4096])]));
    /// let watched = vmi.map_range(Region::new(PhysAddr::new(0x1000), 64).unwrap())?;
    /// assert_eq!(watched.read::<u32>(PhysAddr::new(0x1010))?, 0x0707_0707);
    /// assert!(watched.read::<u32>(PhysAddr::new(0x1040)).is_err());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Driver::map_range`].
    pub fn map_range(&self, range: Region) -> Result<MappedRange> {
        self.driver.map_range(range)
    }

    /// How the page cache has fared. All zero where memory is mapped: the fast path has no cache.
    pub fn page_cache_counters(&self) -> PageCacheCounters {
        self.cache.counters()
    }

    /// The guest ran, or was written to: what was remembered of it is void.
    pub(crate) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// The back end; the handle and its caches are gone.
    pub fn into_driver(self) -> D {
        self.driver
    }

    /// Mapped guest RAM; empty if there is none.
    #[cfg(target_os = "linux")]
    pub(crate) fn mapping(&self) -> &GuestMapping {
        &self.ram
    }

    /// Reads from mapped RAM or from the back end, past the page cache.
    pub(crate) fn read_uncached(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        if self.windowed {
            let done = self.ram.read_shown(at, buf);
            let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) else { return Ok(()) };
            let len = rest.len();
            let here = at.checked_add(done as u64).ok_or_else(|| at.out_of_range(len).after(done))?;
            return self.driver.read(here, rest).map_err(|error| error.after(done));
        }
        if self.mapped {
            // What no region covers may still be readable through the driver: zero-filled parts, device memory.
            return self.ram.read_run(at, buf).or_else(|_| self.driver.read(at, buf));
        }
        self.driver.read(at, buf)
    }

    /// A value that is no such word: said to be rare, so that the code of who reads words runs straight on.
    #[cold]
    #[inline(never)]
    fn read_value(&self, at: PhysAddr, value: &mut [u8]) -> Result<()> {
        self.read_run(at, value)
    }

    /// A read of anything but an aligned word of the largest mapped region.
    #[inline(never)]
    fn read_run(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        if self.mapped {
            return self.read_uncached(at, buf);
        }
        match self.epoch().filter(|_| self.cached) {
            // A long run would fill the cache with what is read once, at one call of the back end a page.
            Some(_) if buf.len() > CACHED_RUN => self.driver.read(at, buf),
            Some(epoch) => self.cache.read(&self.driver, epoch, at, buf),
            None => self.driver.read(at, buf),
        }
    }
}

impl<D: Vcpus> Vmi<D> {
    /// The registers of one vCPU.
    ///
    /// # Errors
    /// As [`Vcpus::registers`].
    pub fn registers(&self, vcpu: VcpuId) -> Result<<D::Arch as Architecture>::Registers> {
        self.driver.registers(vcpu)
    }
}

impl<D: WriteVcpus> Vmi<D> {
    /// Sets the registers of one vCPU. The guest must stand still: see [`Vmi::pause`].
    ///
    /// # Errors
    /// As [`WriteVcpus::set_registers`].
    pub fn set_registers(&self, vcpu: VcpuId, registers: &<D::Arch as Architecture>::Registers) -> Result<()> {
        self.driver.set_registers(vcpu, registers)
    }
}

impl<D: EventSource> Vmi<D> {
    /// Opens an event session. The guest runs on, with no trap set.
    ///
    /// # Errors
    /// As [`EventSource::subscribe`].
    pub fn events(&self) -> Result<Events<'_, D>> {
        Events::new(self)
    }
}

impl<D: WriteMemory> Vmi<D> {
    /// Writes `data` to guest-physical memory at `at`. What was cached of the guest is forgotten.
    ///
    /// # Errors
    /// As [`WriteMemory::write`].
    pub fn write(&self, at: PhysAddr, data: &[u8]) -> Result<()> {
        let written = self.driver.write(at, data);
        self.changed();
        written
    }
}

impl<D: Control> Vmi<D> {
    /// Stops the guest until the guard is dropped. Guards nest.
    ///
    /// # Errors
    /// As [`Control::pause`].
    pub fn pause(&self) -> Result<Paused<'_, D>> {
        self.driver.pause()?;
        Ok(Paused { vmi: self })
    }
}

impl<D: Driver> Vmi<D> {
    /// Pauses the guest where each read would stop it anyway ([`Driver::reads_stop_the_guest`]): one long stop costs it less than thousands of short ones, and while it
    /// stands still what was read is remembered. Else it runs on.
    ///
    /// # Errors
    /// As [`Control::pause`].
    pub fn hold_for_reading(&self) -> Result<Held<'_, D>> {
        let control = self.driver.control().filter(|_| self.driver.reads_stop_the_guest());
        control.map(Control::pause).transpose()?;
        Ok(Held { vmi: self, control })
    }
}

/// The guest stands still while this lives, if [`Vmi::hold_for_reading`] paused it.
#[must_use = "the guest runs on when this is dropped"]
pub struct Held<'v, D: Driver> {
    vmi: &'v Vmi<D>,
    control: Option<&'v dyn Control<Arch = D::Arch>>,
}

impl<D: Driver> fmt::Debug for Held<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("paused", &self.control.is_some()).finish_non_exhaustive()
    }
}

impl<D: Driver> Drop for Held<'_, D> {
    fn drop(&mut self) {
        let Some(control) = self.control else { return };
        self.vmi.changed();
        if let Err(error) = control.resume() {
            tracing::error!(%error, machine = %self.vmi.machine().name, "the guest could not be resumed");
        }
    }
}

/// The guest stands still while this lives.
#[must_use = "the guest runs on when this is dropped"]
pub struct Paused<'v, D: Control> {
    vmi: &'v Vmi<D>,
}

impl<D: Control> Drop for Paused<'_, D> {
    fn drop(&mut self) {
        self.vmi.changed();
        if let Err(error) = self.vmi.driver.resume() {
            tracing::error!(%error, machine = %self.vmi.machine().name, "the guest could not be resumed");
        }
    }
}

impl<D: Control> fmt::Debug for Paused<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Paused").field("machine", &self.vmi.machine().name).finish()
    }
}

impl<D: Driver> Memory for Vmi<D> {
    type Addr = PhysAddr;

    #[inline]
    fn read_into(&self, at: PhysAddr, buf: &mut [u8]) -> Result<()> {
        if self.ram.read_word(at, buf) { Ok(()) } else { self.read_run(at, buf) }
    }

    /// As the trait has it, but a word stays in a register: nothing else sees the value that it is read into.
    #[inline]
    fn read<T: FromBytes + IntoBytes>(&self, at: PhysAddr) -> Result<T> {
        let mut word = T::new_zeroed();
        if self.ram.read_word(at, word.as_mut_bytes()) {
            return Ok(word);
        }
        let mut value = T::new_zeroed();
        self.read_value(at, value.as_mut_bytes())?;
        Ok(value)
    }

    fn read_batch(&self, ops: &mut [ReadOp<'_, PhysAddr>]) {
        if self.windowed {
            let shows = |op: &mut ReadOp<'_, PhysAddr>| self.ram.read_shown(op.at, op.buf) == op.buf.len();
            if !ops.iter_mut().all(shows) {
                self.driver.read_batch(ops);
            }
        } else if self.mapped || (self.cached && self.epoch().is_some()) {
            for op in ops {
                op.result = self.read_into(op.at, op.buf);
            }
        } else {
            self.driver.read_batch(ops);
        }
    }

    fn next_present(&self, at: PhysAddr) -> Option<PhysAddr> {
        match self.machine().memory.region_from(at)?.start() {
            // The memory map has it, but it could not be read: a page that the source left out.
            start if start <= at => at.page().checked_add(PAGE_SIZE),
            start => Some(start),
        }
    }

    #[inline(always)]
    fn resolve_frame(&self, named: PhysAddr) -> PhysAddr {
        if self.foreign_frames { self.driver.resolve_frame(named) } else { named }
    }

    fn slice(&self, at: PhysAddr, len: usize) -> Option<&[u8]> {
        self.ram.slice(at, len)
    }
}

impl<D: Driver> fmt::Debug for Vmi<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vmi").field("machine", self.machine()).field("mapped", &self.mapped).finish_non_exhaustive()
    }
}
