//! The path of an open file: `struct file`, `dentry`, `mount` (kernel: include/linux/fs.h, include/linux/dcache.h, fs/mount.h).
//!
//! A dentry holds its name, mostly within itself, and names its parent; the topmost is its own parent and is named `/`. A mounted file
//! system (`vfsmount`) names the dentry at its root, which every dentry of a file in it has above it. Judged by the files that the
//! programs are mapped from.

use rustc_hash::FxHashSet;
use vmi_arch_x86::X86Driver;
use vmi_core::{Memory, Symbols, VirtAddr};

use super::findings::Findings;
use super::sample::{Doubt, Object, only};
use super::types::Kind;
use super::view::View;

/// Bytes of each `file` that are judged, on i386 and x86-64: no more than it has, as the next one may follow. Measured: `f_path` at up to 0x98 on x86-64 (6.5 to 6.11).
const FILE_SIZES: [usize; 2] = [0x80, 0xc0];
/// Bytes of each `dentry` that are judged. Measured: `d_sb` at up to 0x68.
const DENTRY_SIZE: usize = 0xc0;
/// Files that are judged at most.
const MAX_FILES: usize = 64;
/// Dentries above a file, and mounts above a mount.
const MAX_DEPTH: usize = 128;
/// The longest name (kernel: `NAME_MAX`).
const MAX_NAME: u32 = 255;
/// Offset of `d_dname` in `dentry_operations`, the tenth function (4.4 to 7.3).
const D_DNAME: usize = 9;

/// Infers what leads from a file to its path. `files` are the addresses of open files.
pub(super) fn infer<D: X86Driver>(
    view: &View<'_, D>,
    files: impl Iterator<Item = u64>,
    symbols: &Symbols,
    findings: &mut Findings,
) {
    let width = view.width();
    let [narrow, wide] = FILE_SIZES;
    let size = if width == 4 { narrow } else { wide };
    let mut seen = FxHashSet::default();
    let different = files.filter(|file| seen.insert(*file)).take(MAX_FILES);
    let files: Vec<Object> = different.filter_map(|at| Some(Object { at, bytes: view.bytes(at, size)? })).collect();
    let mut dentries = None;
    let path = only(0..size.saturating_sub(width), width, |path| {
        let found = opened(view, &files, path).and_then(|opened| Dentries::infer(view, &opened));
        dentries = dentries.take().or(found);
        dentries.as_ref().is_some_and(|dentries| dentries.path_is_right(view, &files, path))
    });
    let Some(_) = findings.record("file", "f_path", path, Kind::Structure("path")) else { return };
    findings.add("path", "mnt", 0, Kind::Pointer);
    findings.add("path", "dentry", width, Kind::Pointer);
    findings.add("vfsmount", "mnt_root", 0, Kind::Pointer);
    findings.add("vfsmount", "mnt_sb", width, Kind::Pointer);
    if let (Some(dentries), Ok(path)) = (dentries, path) {
        dentries.record(findings);
        let opened = opened(view, &files, path).unwrap_or_default();
        mounts(view, &dentries, &opened, findings);
        dentries.operations(view, &opened, symbols, findings);
    }
}

/// A file's mounted file system and dentry.
#[derive(Debug)]
struct Opened {
    mount: u64,
    dentry: Object,
}

/// Whether more than half of the files pass. Those that are in no directory (memory files, System V shared memory) have a name that is
/// not in a path.
fn most(opened: &[Opened], test: impl Fn(&Opened) -> bool) -> bool {
    opened.iter().filter(|opened| test(opened)).count().saturating_mul(2) > opened.len()
}

/// What the files point at if `f_path` is at `path`: all can be read.
fn opened<D: X86Driver>(view: &View<'_, D>, files: &[Object], path: usize) -> Option<Vec<Opened>> {
    let width = view.width();
    let opened = files.iter().map(|file| {
        let mount = file.word(path, width)?;
        let at = file.word(path.checked_add(width)?, width)?;
        view.pointer(mount)?;
        Some(Opened { mount, dentry: Object { at, bytes: view.bytes(at, DENTRY_SIZE)? } })
    });
    opened.collect::<Option<Vec<_>>>().filter(|opened| !opened.is_empty())
}

/// Where a dentry keeps its name and its parent.
#[derive(Clone, Copy, Debug)]
struct Dentries {
    /// Offset of the pointer in `d_name`: behind a hash and the length, of 4 bytes each.
    name: usize,
    width: usize,
}

impl Dentries {
    /// A name of as many bytes as said, and (in most, as names are short) kept behind it and `d_inode` in the dentry itself.
    fn infer<D: X86Driver>(view: &View<'_, D>, opened: &[Opened]) -> Option<Self> {
        let width = view.width();
        let first = width.checked_mul(3)?.checked_add(8)?;
        let name = only(first..DENTRY_SIZE.saturating_sub(width), width, |name| {
            let inside = opened.iter().filter(|opened| {
                let pointed = opened.dentry.word(name, width).and_then(|at| at.checked_sub(opened.dentry.at));
                pointed == Some(name.saturating_add(width.saturating_mul(2)) as u64)
            });
            inside.count().saturating_mul(2) > opened.len()
                && most(opened, |opened| Self { name, width }.topmost(view, opened.dentry.at).is_some())
        });
        Some(Self { name: name.ok()?, width })
    }

    fn parent(self) -> usize {
        self.name.saturating_sub(8).saturating_sub(self.width)
    }

    fn hash(self) -> usize {
        self.parent().saturating_sub(self.width.saturating_mul(2))
    }

    /// The name of the dentry at `at`, if it is as long as it says.
    fn name<D: X86Driver>(self, view: &View<'_, D>, at: u64) -> Option<Vec<u8>> {
        let len: u32 = view.read(VirtAddr::new(at.checked_add(self.name as u64)?.checked_sub(4)?)).ok()?;
        let text = view.pointer(at.checked_add(self.name as u64)?)?;
        let name = view.read_c_string(VirtAddr::new(text), MAX_NAME.saturating_add(1) as usize).ok()?;
        (len > 0 && name.len() == len as usize).then_some(name)
    }

    /// The dentries from `at` up, the topmost last; it is named `/`.
    fn topmost<D: X86Driver>(self, view: &View<'_, D>, at: u64) -> Option<Vec<u64>> {
        let mut here = at;
        let mut all = Vec::new();
        while all.len() < MAX_DEPTH {
            let name = self.name(view, here)?;
            let parent = view.pointer(here.checked_add(self.parent() as u64)?)?;
            all.push(here);
            if parent == here {
                return (name == b"/").then_some(all);
            }
            here = parent;
        }
        None
    }

    /// Whether every file's dentry is below the root of its mounted file system.
    fn path_is_right<D: X86Driver>(self, view: &View<'_, D>, files: &[Object], path: usize) -> bool {
        opened(view, files, path).is_some_and(|opened| {
            most(&opened, |opened| {
                let root = view.pointer(opened.mount);
                root.is_some_and(|root| self.topmost(view, opened.dentry.at).is_some_and(|above| above.contains(&root)))
            })
        })
    }

    fn record(self, findings: &mut Findings) {
        findings.add("qstr", "len", 4, Kind::Number(4));
        findings.add("qstr", "name", 8, Kind::Pointer);
        findings.add("hlist_bl_node", "next", 0, Kind::Pointer);
        findings.add("hlist_bl_node", "pprev", self.width, Kind::Pointer);
        findings.add("dentry", "d_hash", self.hash(), Kind::Structure("hlist_bl_node"));
        findings.add("dentry", "d_parent", self.parent(), Kind::Pointer);
        findings.add("dentry", "d_name", self.name.saturating_sub(8), Kind::Structure("qstr"));
        findings.add("dentry", "d_inode", self.name.saturating_add(self.width), Kind::Pointer);
    }

    /// `d_op` before `d_sb`, which is the same as the mounted file system's.
    fn operations<D: X86Driver>(self, view: &View<'_, D>, opened: &[Opened], symbols: &Symbols, findings: &mut Findings) {
        let width = self.width;
        let same = |opened: &Opened, offset: usize| {
            let block = view.pointer(opened.mount.checked_add(width as u64)?)?;
            Some(opened.dentry.word(offset, width)? == block)
        };
        let first = self.name.saturating_add(width.saturating_mul(3));
        let block = only(first..DENTRY_SIZE, width, |offset| most(opened, |opened| same(opened, offset) == Some(true)));
        let Some(block) = findings.record("dentry", "d_sb", block, Kind::Pointer) else { return };
        let operations = block.saturating_sub(width);
        // Either there are none, or the tenth is none or a function named so, where symbols tell.
        let slot = D_DNAME.saturating_mul(width);
        let sound = most(opened, |opened| match opened.dentry.word(operations, width) {
            Some(0) => true,
            Some(at) => match at.checked_add(slot as u64).and_then(|at| view.pointer(at)) {
                Some(0) => true,
                Some(function) => {
                    symbols.is_empty() || symbols.at(VirtAddr::new(function)).any(|symbol| symbol.name.ends_with("_dname"))
                }
                None => false,
            },
            None => false,
        });
        if findings.record("dentry", "d_op", sound.then_some(operations).ok_or(Doubt::None), Kind::Pointer).is_some() {
            findings.add("dentry_operations", "d_dname", slot, Kind::Pointer);
        }
    }
}

/// `struct mount` holds `mnt_hash` (two pointers), `mnt_parent`, `mnt_mountpoint` and then its `vfsmount`. The topmost is its own
/// parent; every other is mounted on a dentry of its parent.
fn mounts<D: X86Driver>(view: &View<'_, D>, dentries: &Dentries, opened: &[Opened], findings: &mut Findings) {
    let width = dentries.width;
    let [parent, mountpoint, vfsmount] = [2usize, 3, 4].map(|index| index.saturating_mul(width));
    let sound = most(opened, |opened| {
        let mut at = opened.mount.wrapping_sub(vfsmount as u64);
        for _ in 0..MAX_DEPTH {
            let Some(above) = view.pointer(at.wrapping_add(parent as u64)) else { return false };
            let root = view.pointer(above.wrapping_add(vfsmount as u64));
            let on = view.pointer(at.wrapping_add(mountpoint as u64));
            let Some(chain) = on.and_then(|on| dentries.topmost(view, on)) else { return false };
            if above == at {
                return true;
            }
            if !root.is_some_and(|root| chain.contains(&root)) {
                return false;
            }
            at = above;
        }
        false
    });
    let place = |offset| if sound { Ok(offset) } else { Err(Doubt::None) };
    findings.record("mount", "mnt_parent", place(parent), Kind::Pointer);
    findings.record("mount", "mnt_mountpoint", place(mountpoint), Kind::Pointer);
    findings.record("mount", "mnt", place(vfsmount), Kind::Structure("vfsmount"));
}
