//! Memory of domains: what is read, written and not there.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use vmi::{Driver as _, ErrorKind, Memory as _, PhysAddr, ReadOp, Region, Vmi};
use vmi_driver_xen::{Options, XenDriver};

use super::{Check, CheckResult};
use crate::context::{Context, Skip};
use crate::domain::{Domain, xl};
use crate::truth;

pub(super) const CHECKS: &[Check] = &[
    Check::new("memory::held_pages", held_pages),
    Check::new("memory::writes", writes),
    Check::new("memory::mapped_range", mapped_range),
    Check::new("memory::map_and_holes", map_and_holes),
    Check::new("memory::ways_of_reading", ways_of_reading).limit(300),
    Check::new("memory::dump_core", dump_core).limit(1800).long("xl takes minutes to write cores"),
    Check::new("memory::ballooned", ballooned).limit(300),
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

/// A range that is mapped by itself shows what the domain writes, also when nothing else of the domain is mapped any more.
fn mapped_range(context: &Context) -> CheckResult {
    each(context, |domain| {
        let held = truth::held(domain)?;
        let vmi = open(domain)?;
        let page = Region::new(PhysAddr::new(held.frames[15] * PAGE), PAGE).context("no page")?;
        let at = PhysAddr::new(page.start().get() + 8 * 10);
        let range = vmi.map_range(page)?;
        let before: u64 = range.read(at)?;
        ensure!(before == vmi.read::<u64>(at)?);
        vmi.write(at, &7u64.to_le_bytes())?;
        ensure!(range.read::<u64>(at)? == 7);
        ensure!(range.read::<u8>(page.end()).is_err());
        let end = vmi.machine().memory.end();
        let outside = Region::new(end, 8).context("memory to the last address")?;
        let error = vmi.map_range(outside).unwrap_err();
        ensure!(matches!(error.kind(), ErrorKind::Hole { at } if *at == end), "{error}");
        drop(vmi);
        domain.run("domu set 15 10 0x42")?;
        ensure!(range.read::<u64>(at)? == 0x42);
        open(domain)?.write(at, &before.to_le_bytes())?;
        ensure!(range.read::<u64>(at)? == before);
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
        let _held = vmi.pause()?;
        let whole = open_with(domain, &Options::new().map_whole(true))?;
        let small = open_with(domain, &Options::new().mapped(1 << 20).lifetime(Duration::from_millis(20)))?;
        let regions = vmi.machine().memory.regions().to_vec();
        let same = whole.machine().memory.regions();
        ensure!(regions == same, "{regions:x?}, but with all memory mapped {same:x?}");
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
        if domain.name() == "big" {
            return Err(Skip("a domain of gigabytes takes too long to be read as often as that".into()).into());
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

/// How many pages of the map can be read; each other one is a hole.
fn readable(vmi: &Vmi<XenDriver>) -> Result<u64> {
    let mut count = 0;
    for region in vmi.machine().memory.regions() {
        for page in region.start().get() / PAGE..region.end().get() / PAGE {
            match vmi.read::<u64>(PhysAddr::new(page * PAGE)) {
                Ok(_) => count += 1,
                Err(error) => {
                    ensure!(matches!(error.kind(), ErrorKind::Hole { at } if at.get() == page * PAGE), "{error}");
                }
            }
        }
    }
    Ok(count)
}

/// Pages that the domain gives back while they are mapped are gone after the lifetime of a mapping, and those that it gets again are there.
fn ballooned(context: &Context) -> CheckResult {
    each(context, |domain| {
        if domain.name() == "big" {
            return Err(Skip("a domain of gigabytes takes too long to be read as often as that".into()).into());
        }
        const SIZE: &str = "cat /sys/devices/system/xen_memory/xen_memory0/info/current_kb";
        let size = || -> Result<u64> { Ok(domain.run(SIZE)?.trim().parse()?) };
        let before = size().map_err(|error| Skip(format!("the domain does not tell its size: {error:#}")))?;
        let vmi = open(domain)?;
        let all = readable(&vmi)?;
        let settle = |wanted: &dyn Fn(u64) -> bool| -> Result<bool> {
            let began = Instant::now();
            while !wanted(size()?) {
                if began.elapsed() > Duration::from_secs(30) {
                    return Ok(false);
                }
                // It is read all the time, as far as it is there.
                readable(&vmi)?;
            }
            Ok(true)
        };
        xl(&["mem-set", domain.name(), "112"])?;
        let shrunk = settle(&|now| now <= 113 << 10)?;
        // The lifetime, and what a busy machine takes for it.
        std::thread::sleep(Duration::from_millis(1500));
        let small = readable(&vmi)?;
        let anew = readable(&open(domain)?);
        xl(&["mem-set", domain.name(), "128"])?;
        let grown = settle(&|now| now >= before)?;
        std::thread::sleep(Duration::from_millis(1500));
        let again = readable(&vmi)?;
        println!("{}: of {all} pages {small} while it had 112 MiB, {again} behind it", domain.name());
        ensure!(shrunk && grown, "it does not change its size: {before} KiB before, {} now", size()?);
        ensure!(all - small >= 15 << 8, "{small} of {all} pages can be read while it has 112 MiB");
        ensure!(anew?.abs_diff(small) < 64, "another number of pages by a handle that is opened now");
        ensure!(all.abs_diff(again) < 64, "{again} of {all} pages can be read when it has them again");
        Ok(())
    })
}
