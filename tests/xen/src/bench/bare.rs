//! What one writes without the library: a foreign mapping and a loop over the event ring, by Xen's own libraries.

use std::ffi::{c_int, c_uint, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libloading::Library;

const PAGE: usize = 4096;

/// Memory of a domain, mapped by libxenforeignmemory.
pub(super) struct BareMemory {
    address: *const u8,
    len: u64,
    pages: usize,
    handle: *mut c_void,
    library: Library,
}

type Open = unsafe extern "C" fn(*mut c_void, c_uint) -> *mut c_void;
type Close = unsafe extern "C" fn(*mut c_void) -> c_int;
type Map = unsafe extern "C" fn(*mut c_void, u32, c_int, usize, *const u64, *mut c_int) -> *mut c_void;
type Unmap = unsafe extern "C" fn(*mut c_void, *mut c_void, usize) -> c_int;

impl BareMemory {
    /// Maps these frames one behind the other, and shows them up to the first that is not there.
    pub(super) fn map(domain: u32, frames: &[u64]) -> Result<Self> {
        // SAFETY: types are those of xenforeignmemory.h; the array of errors is as long as that of the frames.
        unsafe {
            let library = Library::new("libxenforeignmemory.so.1")?;
            let handle = library.get::<Open>(b"xenforeignmemory_open\0")?(ptr::null_mut(), 0);
            ensure!(!handle.is_null());
            let mut errors = vec![0; frames.len()];
            let map = library.get::<Map>(b"xenforeignmemory_map\0")?;
            let address = map(handle, domain, 1, frames.len(), frames.as_ptr(), errors.as_mut_ptr());
            ensure!(!address.is_null(), "xenforeignmemory_map: {}", std::io::Error::last_os_error());
            let there = errors.iter().take_while(|error| **error == 0).count();
            Ok(Self { address: address.cast(), len: (there * PAGE) as u64, pages: frames.len(), handle, library })
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// A bounds check and a load.
    #[inline(always)]
    pub(super) fn word(&self, at: u64) -> u64 {
        assert!(at & 7 == 0);
        assert!(at < self.len);
        // SAFETY: aligned and mapped.
        unsafe { self.address.add(at as usize).cast::<u64>().read_volatile() }
    }

    /// A bounds check and `memcpy`.
    #[inline(always)]
    pub(super) fn run(&self, at: u64, buffer: &mut [u8]) {
        assert!(at < self.len && self.len - at >= buffer.len() as u64);
        // SAFETY: mapped.
        unsafe { self.address.add(at as usize).copy_to_nonoverlapping(buffer.as_mut_ptr(), buffer.len()) };
    }
}

impl Drop for BareMemory {
    fn drop(&mut self) {
        // SAFETY: as when it was mapped; nobody uses it any more.
        unsafe {
            if let Ok(unmap) = self.library.get::<Unmap>(b"xenforeignmemory_unmap\0") {
                unmap(self.handle, self.address.cast_mut().cast(), self.pages);
            }
            if let Ok(close) = self.library.get::<Close>(b"xenforeignmemory_close\0") {
                close(self.handle);
            }
        }
    }
}

type OpenControl = unsafe extern "C" fn(*mut c_void, *mut c_void, c_uint) -> *mut c_void;
type Enable = unsafe extern "C" fn(*mut c_void, u32, *mut u32) -> *mut c_void;
type Disable = unsafe extern "C" fn(*mut c_void, u32) -> c_int;
type Cpuid = unsafe extern "C" fn(*mut c_void, u32, bool) -> c_int;
type Bind = unsafe extern "C" fn(*mut c_void, u32, u32) -> c_int;
type Pending = unsafe extern "C" fn(*mut c_void) -> c_int;
type Port = unsafe extern "C" fn(*mut c_void, u32) -> c_int;

/// Numbers of vm_event.h and ring.h of Xen 4.17 (interface version 7), in words of four bytes.
mod layout {
    /// An entry has 400 bytes, of which a page holds 8 behind the head of 64 bytes.
    pub(super) const ENTRY: usize = 100;
    pub(super) const ENTRIES: u32 = 8;
    pub(super) const HEAD: usize = 16;
    pub(super) const FLAGS: usize = 1;
    pub(super) const REASON: usize = 2;
    pub(super) const CPUID_LENGTH: usize = 6;
    pub(super) const CPUID_LEAF: usize = 7;
    pub(super) const RIP: usize = 52;
    pub(super) const REASON_CPUID: u32 = 10;
    pub(super) const SET_REGISTERS: u32 = 1 << 8;
}

/// Waits for CPUID events on the ring of a domain and answers each as Xen needs it, with RIP behind the instruction. How long `count` of `leaf` took from the first to the last.
pub(super) fn cpuid_events(domain: u32, leaf: u32, count: u32, begin: impl FnOnce() -> Result<()>) -> Result<Duration> {
    // SAFETY: types are those of xenctrl.h and xenevtchn.h of Xen 4.17 to 4.20. The ring's page is mapped until the monitor is disabled, and used as atomic words within its 4096 bytes.
    unsafe {
        let control =
            ["4.17", "4.18", "4.19", "4.20"].iter().find_map(|version| Library::new(format!("libxenctrl.so.{version}")).ok());
        let control = control.context("no libxenctrl.so of Xen 4.17 to 4.20")?;
        let channels = Library::new("libxenevtchn.so.1")?;
        let interface = control.get::<OpenControl>(b"xc_interface_open\0")?(ptr::null_mut(), ptr::null_mut(), 0);
        let mut port = 0;
        let page = control.get::<Enable>(b"xc_monitor_enable\0")?(interface, domain, &raw mut port);
        ensure!(!page.is_null(), "xc_monitor_enable: {}", std::io::Error::last_os_error());
        let ring = std::slice::from_raw_parts(page.cast::<AtomicU32>(), PAGE / 4);
        for (word, value) in [0, 1, 0, 1].into_iter().enumerate() {
            ring[word].store(value, Ordering::Relaxed);
        }
        let handle = channels.get::<Open>(b"xenevtchn_open\0")?(ptr::null_mut(), 0);
        let local = channels.get::<Bind>(b"xenevtchn_bind_interdomain\0")?(handle, domain, port);
        ensure!(local >= 0, "xenevtchn_bind_interdomain: {}", std::io::Error::last_os_error());
        let pending = channels.get::<Pending>(b"xenevtchn_pending\0")?;
        let unmask = channels.get::<Port>(b"xenevtchn_unmask\0")?;
        let notify = channels.get::<Port>(b"xenevtchn_notify\0")?;
        let cpuid = control.get::<Cpuid>(b"xc_monitor_cpuid\0")?;
        ensure!(cpuid(interface, domain, true) == 0, "xc_monitor_cpuid: {}", std::io::Error::last_os_error());
        begin()?;
        let (mut taken, mut seen, mut began) = (0u32, 0, Instant::now());
        while seen < count {
            unmask(handle, pending(handle) as u32);
            while ring[0].load(Ordering::Acquire) != taken {
                let slot = &ring[layout::HEAD + (taken % layout::ENTRIES) as usize * layout::ENTRY..][..layout::ENTRY];
                let mut entry = [0; layout::ENTRY];
                entry.iter_mut().zip(slot).for_each(|(word, shared)| *word = shared.load(Ordering::Relaxed));
                taken = taken.wrapping_add(1);
                if entry[layout::REASON] == layout::REASON_CPUID {
                    if entry[layout::CPUID_LEAF] == leaf {
                        if seen == 0 {
                            began = Instant::now();
                        }
                        seen += 1;
                    }
                    let rip = u64::from(entry[layout::RIP]) | u64::from(entry[layout::RIP + 1]) << 32;
                    let rip = rip + u64::from(entry[layout::CPUID_LENGTH]);
                    (entry[layout::RIP], entry[layout::RIP + 1]) = (rip as u32, (rip >> 32) as u32);
                    entry[layout::FLAGS] |= layout::SET_REGISTERS;
                }
                slot.iter().zip(entry).for_each(|(shared, word)| shared.store(word, Ordering::Relaxed));
                ring[1].store(taken.wrapping_add(1), Ordering::Relaxed);
                ring[2].store(taken, Ordering::Release);
                notify(handle, local as u32);
            }
        }
        let took = began.elapsed();
        cpuid(interface, domain, false);
        control.get::<Disable>(b"xc_monitor_disable\0")?(interface, domain);
        channels.get::<Close>(b"xenevtchn_close\0")?(handle);
        control.get::<Close>(b"xc_interface_close\0")?(interface);
        Ok(took)
    }
}
