//! The directory of objects: `_OBJECT_DIRECTORY`, and the tree from its root on.

use rustc_hash::FxHashSet;
use vmi_arch_x86::X86Driver;
use vmi_core::list::rows;
use vmi_core::{Error, ErrorKind, Result, VirtAddr, live};

use crate::{Object, Windows};

/// Lists of a directory: `_OBJECT_DIRECTORY.HashBuckets` has had 37 in all releases.
const BUCKETS: u64 = 37;
/// More objects than a directory holds.
const MAX_ENTRIES: usize = 1 << 18;
/// More objects with names than a guest has.
const MAX_OBJECTS: usize = 1 << 20;
/// Directories within directories.
const MAX_DEPTH: usize = 64;

/// An object with a name, and its place in the tree of directories.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NamedObject {
    /// Its path: `\Device\HarddiskVolume2`.
    pub path: String,
    /// The name of its type; `None` if it could not be told.
    pub type_name: Option<String>,
    /// Where a symbolic link leads.
    pub target: Option<String>,
    /// Where its body is.
    pub object: VirtAddr,
}

/// A walk over all objects with names, each directory before what is in it.
///
/// A directory that is found again is not entered again. What cannot be read is an error among the other objects.
#[derive(Debug)]
pub struct ObjectTree<'l, 'v, D: X86Driver> {
    windows: &'l Windows<'v, D>,
    /// What is to come, the next one last: the path of the directory that it is in, and how deep that is.
    stack: Vec<(String, usize, Result<VirtAddr>)>,
    seen: FxHashSet<VirtAddr>,
    count: usize,
}

impl<'v, D: X86Driver> Windows<'v, D> {
    /// Where the root of the object directory is.
    pub(crate) fn root_directory(&self) -> Result<VirtAddr> {
        let root = self.pointer_at(self.symbol("ObpRootDirectoryObject")?)?;
        if root.is_null() { Err(Error::corrupt("the root of the object directory is not there", root)) } else { Ok(root) }
    }

    /// All objects with names, from the root of the object directory on.
    ///
    /// The root needs the symbol `ObpRootDirectoryObject`, which the kernel's debugger block holds too. Without it the only row is an error.
    pub fn named_objects(&self) -> ObjectTree<'_, 'v, D> {
        let mut tree = ObjectTree { windows: self, stack: Vec::new(), seen: FxHashSet::default(), count: 0 };
        match self.root_directory() {
            Ok(root) => tree.enter(String::new(), 0, root),
            Err(error) => tree.stack.push((String::new(), 0, Err(error))),
        }
        tree
    }

    /// The object at a path: `\Device\HarddiskVolume2`, in any case. Symbolic links are not followed.
    ///
    /// # Errors
    /// [`ErrorKind::NoObject`] if there is none; the first error of a directory in which it was not found.
    pub fn object(&self, path: &str) -> Result<Object<'_, 'v, D>> {
        let mut object = self.object_at(self.root_directory()?);
        for part in path.split('\\').filter(|part| !part.is_empty()) {
            let mut found = None;
            let mut problem = None;
            for entry in self.directory_entries(object.address()) {
                match entry.and_then(|entry| Ok((entry, entry.name()?))) {
                    Ok((entry, Some(name))) if name.to_uppercase() == part.to_uppercase() => found = Some(entry),
                    Ok(_) => {}
                    Err(error) => problem = problem.or(Some(error)),
                }
            }
            let missing = || problem.unwrap_or_else(|| ErrorKind::NoObject { what: format!("object `{path}`") }.into());
            object = found.ok_or_else(missing)?;
        }
        Ok(object)
    }

    /// The objects in the directory whose body is at `directory`.
    pub fn directory_entries(&self, directory: VirtAddr) -> impl Iterator<Item = Result<Object<'_, 'v, D>>> + use<'_, 'v, D> {
        let read = live::agreed(self.vmi(), "an object directory", || self.read_directory(directory));
        rows(read.map(Vec::into_iter)).map(|object| Ok(self.object_at(object?)))
    }

    fn read_directory(&self, directory: VirtAddr) -> Vec<Result<VirtAddr>> {
        let mut objects = Vec::new();
        let mut seen = FxHashSet::default();
        for bucket in 0..BUCKETS {
            if let Err(error) = self.read_bucket(directory, bucket, &mut objects, &mut seen) {
                let full = matches!(error.kind(), ErrorKind::Limit { .. });
                objects.push(Err(error));
                if full {
                    break;
                }
            }
        }
        objects
    }

    fn read_bucket(
        &self,
        directory: VirtAddr,
        bucket: u64,
        objects: &mut Vec<Result<VirtAddr>>,
        seen: &mut FxHashSet<VirtAddr>,
    ) -> Result<()> {
        let layout = &self.objects.layout;
        let pointer = self.pointer_size();
        // `_OBJECT_DIRECTORY_ENTRY` has begun with the next one and the object in all releases.
        let next = layout.directory_entry.next.offset().unwrap_or(0);
        let object = layout.directory_entry.object.offset().unwrap_or(pointer);
        let mut entry = self.pointer_at(layout.directory.buckets.of(directory)?.wrapping_add(bucket.wrapping_mul(pointer)))?;
        while !entry.is_null() {
            if !seen.insert(entry) {
                return Err(Error::corrupt("an object directory runs in a circle", entry));
            }
            if objects.len() >= MAX_ENTRIES {
                return Err(ErrorKind::Limit { what: "an object directory".to_owned(), limit: MAX_ENTRIES }.into());
            }
            objects.push(Ok(self.pointer_at(entry.wrapping_add(object))?));
            entry = self.pointer_at(entry.wrapping_add(next))?;
        }
        Ok(())
    }

    /// Where the symbolic link (an `_OBJECT_SYMBOLIC_LINK`) at `link` leads. Links that a driver answers anew each time have no target here.
    ///
    /// # Errors
    /// As [`Memory::read_into`](vmi_core::Memory::read_into).
    pub fn link_target(&self, link: VirtAddr) -> Result<String> {
        // The target has been behind the time of creation in all releases.
        let target = self.objects.layout.symbolic_link.target.offset().unwrap_or(8);
        self.string(link.wrapping_add(target))
    }
}

impl<D: X86Driver> ObjectTree<'_, '_, D> {
    /// Makes the objects of a directory the next ones.
    fn enter(&mut self, path: String, depth: usize, directory: VirtAddr) {
        if !self.seen.insert(directory) {
            return;
        }
        let start = self.stack.len();
        for entry in self.windows.directory_entries(directory) {
            self.stack.push((path.clone(), depth, entry.map(|entry| entry.address())));
        }
        if let Some(new) = self.stack.get_mut(start..) {
            new.reverse();
        }
    }

    fn row(&mut self, above: &str, depth: usize, at: VirtAddr) -> Result<NamedObject> {
        let object = self.windows.object_at(at);
        let name = object.name()?.ok_or_else(|| Error::corrupt("an object in a directory without a name", at))?;
        let path = format!("{above}\\{name}");
        let type_name = object.type_name().ok();
        let is = |name| type_name.as_deref() == Some(name);
        let target = if is("SymbolicLink") { self.windows.link_target(at).ok() } else { None };
        if is("Directory") {
            if depth >= MAX_DEPTH {
                return Err(ErrorKind::Limit { what: format!("the path of `{path}`"), limit: MAX_DEPTH }.into());
            }
            self.enter(path.clone(), depth.saturating_add(1), at);
        }
        Ok(NamedObject { path, type_name, target, object: at })
    }
}

impl<D: X86Driver> Iterator for ObjectTree<'_, '_, D> {
    type Item = Result<NamedObject>;

    fn next(&mut self) -> Option<Self::Item> {
        let (above, depth, entry) = self.stack.pop()?;
        if self.count >= MAX_OBJECTS {
            self.stack.clear();
            return Some(Err(ErrorKind::Limit { what: "the tree of objects".to_owned(), limit: MAX_OBJECTS }.into()));
        }
        self.count = self.count.saturating_add(1);
        Some(entry.and_then(|at| self.row(&above, depth, at)))
    }
}
