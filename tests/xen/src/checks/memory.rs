//! Memory of domains: what is read, written and not there.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use vmi::{Driver as _, ErrorKind, Memory as _, PhysAddr, ReadOp, Vmi};
use vmi_driver_xen::{DomainKind, Options, XenDriver};

use super::{Check, CheckResult};
use crate::context::{Context, Skip};
use crate::domain::{Domain, xl};
use crate::truth;

pub(super) const CHECKS: &[Check] = &[
    Check::new("memory::held_pages", held_pages),
    Check::new("memory::writes", writes),
    Check::new("memory::map_and_holes", map_and_holes),
    Check::new("memory::ways_of_reading", ways_of_reading).limit(300),
    Check::new("memory::dump_core", dump_core).limit(1800),
    Check::new("memory::benchmark", benchmark).limit(300),
];

const PAGE: u64 = 4096;

pub(super) fn open(domain: &Domain) -> Result<Vmi<XenDriver>> {
    open_with(domain, &Options::new())
}

fn open_with(domain: &Domain, options: &Options) -> Result<Vmi<XenDriver>> {
    Ok(Vmi::new(XenDriver::open(domain.name(), options)?))
}

pub(super) fn each(context: &Context, check: impl Fn(&Domain) -> Result<()>) -> CheckResult {
    context.domains().try_for_each(|domain| check(&domain).with_context(|| domain.name().to_owned()))
}

/// Pages whose place and content the domain told.
fn held_pages(context: &Context) -> CheckResult {
    each(context, |domain| {
        let held = truth::held(domain)?;
        let vmi = open(domain)?;
        for (page, frame) in held.frames.iter().enumerate().take(14) {
            let bytes = vmi.read_vec(PhysAddr::new(frame * PAGE), PAGE as usize)?;
            ensure!(bytes[64..] == held.content(page)[64..], "page {page} in frame {frame:#x}");
        }
        Ok(())
    })
}

/// What is written is seen by the domain, and what it writes is seen through the mapping.
fn writes(context: &Context) -> CheckResult {
    each(context, |domain| {
        let held = truth::held(domain)?;
        let vmi = open(domain)?;
        let at = PhysAddr::new(held.frames[15] * PAGE + 8 * 9);
        let before: u64 = vmi.read(at)?;
        let value = 0x1122_3344_5566_7788 ^ before;
        vmi.write(at, &value.to_le_bytes())?;
        let said = domain.run("domu see 15 9")?;
        ensure!(said.contains(&format!("word {value:#x}\n")), "{said}");
        domain.run("domu set 15 9 0x42")?;
        ensure!(vmi.read::<u64>(at)? == 0x42);
        vmi.write(at, &before.to_le_bytes())?;
        // A write across two pages that lie in one chunk or two.
        let end = PhysAddr::new(held.frames[15] * PAGE + PAGE - 8);
        let word: u64 = vmi.read(end)?;
        vmi.write(end, &word.to_le_bytes())?;
        Ok(())
    })
}

fn map_and_holes(context: &Context) -> CheckResult {
    each(context, |domain| {
        let vmi = open(domain)?;
        let map = &vmi.machine().memory;
        println!("{}: {} pages in {} regions to {}", domain.name(), map.total() / PAGE, map.regions().len(), map.end());
        // The kernel's RAM is all there, but what it gave back itself.
        let mut missing = 0;
        for range in truth::ram(domain)? {
            missing += (*range.start() / PAGE..=range.end() / PAGE)
                .filter(|page| map.region_at(PhysAddr::new(page * PAGE)).is_none())
                .count();
        }
        let pages = vmi.driver().info()?.pages;
        let total = map.total() / PAGE;
        ensure!(missing < 64, "{missing} pages that the kernel calls RAM are not in the map");
        ensure!(total.abs_diff(pages) < 64, "{total} pages in the map, {pages} by Xen's count");
        // A hole is one, and says how far the read came.
        let hole = map.end().get() + 0x1_0000_0000;
        let error = vmi.read::<u64>(PhysAddr::new(hole)).unwrap_err();
        ensure!(matches!(error.kind(), ErrorKind::Hole { at } if at.get() == hole), "{error}");
        let first = map.regions()[0];
        let mut bytes = vec![0; 3 * PAGE as usize];
        let start = PhysAddr::new(first.end().get() - PAGE);
        if map.region_at(first.end()).is_none() {
            let error = vmi.read_into(start, &mut bytes).unwrap_err();
            ensure!(
                matches!(error.kind(), ErrorKind::Hole { at } if *at == first.end()) && error.done() == PAGE as usize,
                "{error:?}"
            );
        }
        let error = vmi.write(PhysAddr::new(hole), b"x").unwrap_err();
        ensure!(matches!(error.kind(), ErrorKind::Hole { .. }), "{error}");
        Ok(())
    })
}

/// Word, page, long read, batch, and the mapping of all memory give the same bytes.
fn ways_of_reading(context: &Context) -> CheckResult {
    each(context, |domain| {
        if domain.name() == "big" {
            return Ok(());
        }
        let vmi = open(domain)?;
        let whole = open_with(domain, &Options::new().map_whole(true))?;
        let small = open_with(domain, &Options::new().mapped(1 << 20).lifetime(Duration::from_millis(20)))?;
        let _held = vmi.pause()?;
        let regions = vmi.machine().memory.regions().to_vec();
        ensure!(regions == whole.machine().memory.regions());
        let mut compared = 0u64;
        for region in regions {
            let mut at = region.start();
            while at < region.end() {
                let len = (region.end().get() - at.get()).min(1 << 20) as usize;
                let long = vmi.read_vec(at, len)?;
                ensure!(long == whole.read_vec(at, len)?, "all memory mapped at {at}");
                if compared.is_multiple_of(8 << 20) {
                    ensure!(long == small.read_vec(at, len)?, "a small cache at {at}");
                    let mut buffers: Vec<Vec<u8>> = long.chunks(1000).map(|part| vec![0; part.len()]).collect();
                    let mut ops: Vec<_> = (0..)
                        .step_by(1000)
                        .zip(&mut buffers)
                        .map(|(from, buffer)| ReadOp::new(PhysAddr::new(at.get() + from), buffer.as_mut_slice()))
                        .collect();
                    vmi.driver().read_batch(&mut ops);
                    ensure!(ops.iter().all(|op| op.result.is_ok()));
                    drop(ops);
                    ensure!(buffers.concat() == long, "a batch at {at}");
                }
                compared += len as u64;
                at = PhysAddr::new(at.get() + len as u64);
            }
        }
        println!("{}: {} MiB, {:?}", domain.name(), compared >> 20, vmi.driver().mapping_counters());
        Ok(())
    })
}

/// Every page is as `xl dump-core` wrote it.
fn dump_core(context: &Context) -> CheckResult {
    each(context, |domain| {
        if !matches!(domain.name(), "pvh" | "pv") {
            return Ok(());
        }
        let vmi = open(domain)?;
        let info = vmi.driver().info()?;
        // Files of dom0 are in its memory, of which they may take half.
        let room = nix::sys::statvfs::statvfs("/tmp")?;
        let free = room.blocks_available() * room.fragment_size();
        if free < info.pages * PAGE + (4 << 20) {
            let why =
                format!("a core of {} MiB does not fit into dom0's {} MiB: XEN_LAB_DOM0_MEMORY=768", info.pages >> 8, free >> 20);
            return Err(Skip(why).into());
        }
        let path = format!("/tmp/{}.core", domain.name());
        let paused = vmi.pause()?;
        xl(&["dump-core", domain.name(), &path])?;
        let image = vmi::open(path.as_str())?;
        let (mut same, mut other, mut only_there) = (0u64, Vec::new(), Vec::new());
        for region in image.machine().memory.regions() {
            for page in region.start().get() / PAGE..region.end().get() / PAGE {
                let at = PhysAddr::new(page * PAGE);
                let expected = image.read_vec(at, PAGE as usize)?;
                match vmi.read_vec(at, PAGE as usize) {
                    Ok(bytes) if bytes == expected => same += 1,
                    Ok(_) => other.push(page),
                    Err(_) => only_there.push(page),
                }
            }
        }
        let mut only_here = Vec::new();
        for region in vmi.machine().memory.regions() {
            for page in region.start().get() / PAGE..region.end().get() / PAGE {
                if image.machine().memory.region_at(PhysAddr::new(page * PAGE)).is_none() {
                    only_here.push(page);
                }
            }
        }
        drop(paused);
        std::fs::remove_file(path)?;
        println!("{}: {same} pages are the same, only in the map: {only_here:x?}", domain.name());
        ensure!(only_there.is_empty(), "pages that cannot be read: {only_there:x?}");
        // What Xen and dom0 write while the domain stands: the page that it shares with Xen, rings of its console and its xenstore.
        ensure!(other.len() <= 8 && same > info.pages - 64, "{} pages differ: {:x?}", other.len(), &other[..other.len().min(40)]);
        println!("{}: differ: {other:x?}", domain.name());
        Ok(())
    })
}

/// Reads through the driver against reads of a bare mapping of the same page.
fn benchmark(context: &Context) -> CheckResult {
    each(context, |domain| {
        if domain.name() == "big" {
            return Ok(());
        }
        let held = truth::held(domain)?;
        let at = PhysAddr::new(held.frames[3] * PAGE);
        let cached = open(domain)?;
        let whole = open_with(domain, &Options::new().map_whole(true))?;
        let frame = match cached.driver().domain().info.kind {
            DomainKind::Hardware => Some(held.frames[3]),
            DomainKind::Paravirtual => None,
        };
        let bare = frame.map(|frame| bare::Page::map(cached.driver().domain().info.id, frame)).transpose()?;
        for (what, len) in [("8 bytes", 8usize), ("4 KiB", 4096)] {
            let rounds = if len == 8 { 200_000 } else { 20_000 };
            let mut buffer = vec![0u8; len];
            let mut time = |read: &mut dyn FnMut(&mut [u8])| {
                read(&mut buffer);
                // The best of some: the machine does other things too.
                (0..5)
                    .map(|_| {
                        let began = Instant::now();
                        (0..rounds).for_each(|_| read(std::hint::black_box(&mut buffer)));
                        began.elapsed() / rounds
                    })
                    .min()
                    .unwrap()
            };
            let by_cache = time(&mut |buffer| cached.read_into(at, buffer).unwrap());
            let by_load = time(&mut |buffer| whole.read_into(at, buffer).unwrap());
            let Some(bare) = &bare else {
                println!("{}: {what}: cache {by_cache:?}, all mapped {by_load:?}", domain.name());
                continue;
            };
            let by_hand = time(&mut |buffer| bare.copy(buffer));
            let ratio = |time: Duration| time.as_secs_f64() / by_hand.as_secs_f64();
            println!(
                "{}: {what}: bare mapping {by_hand:?}, all mapped {by_load:?} ({:.2}x), cache {by_cache:?} ({:.2}x)",
                domain.name(),
                ratio(by_load),
                ratio(by_cache)
            );
        }
        Ok(())
    })
}

/// The library that is under the driver, used by hand.
mod bare {
    use std::ffi::{c_int, c_uint, c_void};
    use std::ptr;

    use anyhow::{Result, ensure};

    pub(super) struct Page {
        address: *const u8,
        _library: libloading::Library,
    }

    type Open = unsafe extern "C" fn(*mut c_void, c_uint) -> *mut c_void;
    type Map = unsafe extern "C" fn(*mut c_void, u32, c_int, usize, *const u64, *mut c_int) -> *mut c_void;

    impl Page {
        pub(super) fn map(domain: u32, frame: u64) -> Result<Self> {
            // SAFETY: types are those of xenforeignmemory.h; the mapping is kept until the process ends.
            unsafe {
                let library = libloading::Library::new("libxenforeignmemory.so.1")?;
                let handle = library.get::<Open>(b"xenforeignmemory_open\0")?(ptr::null_mut(), 0);
                ensure!(!handle.is_null());
                let mut error = 0;
                let address =
                    library.get::<Map>(b"xenforeignmemory_map\0")?(handle, domain, 1, 1, &raw const frame, &raw mut error);
                ensure!(!address.is_null() && error == 0);
                Ok(Self { address: address.cast(), _library: library })
            }
        }

        pub(super) fn copy(&self, buffer: &mut [u8]) {
            // SAFETY: the buffer has at most a page, which is mapped. Words are loaded one by one, as the driver has to.
            unsafe {
                for (index, word) in buffer.chunks_exact_mut(8).enumerate() {
                    word.copy_from_slice(&self.address.cast::<u64>().add(index).read_volatile().to_le_bytes());
                }
            }
        }
    }
}
