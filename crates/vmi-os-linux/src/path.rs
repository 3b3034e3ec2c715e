//! Paths of open files: what d_path() in fs/d_path.c makes of a `struct path`.

use vmi_arch_x86::X86Driver;
use vmi_core::{Error, ErrorKind, Memory, Result, VirtAddr};

use crate::Linux;

/// Names in a path: each takes at least two bytes, and no system call accepts a path of more than 4096 (PATH_MAX).
const MAX_NAMES: usize = 4096;
/// Bytes of one name. File systems allow 255; names of memory files made by the kernel are a little longer.
const MAX_NAME: u32 = 4096;
/// Bytes of a whole path.
const MAX_PATH: usize = 1 << 16;

/// The path of the `struct file` at `file`.
pub(crate) fn of_file<D: X86Driver>(linux: &Linux<'_, D>, file: VirtAddr) -> Result<String> {
    let layout = &linux.layout.file;
    linux.path(linux.pointer(file, layout.mount)?, linux.pointer(file, layout.dentry)?)
}

impl<D: X86Driver> Linux<'_, D> {
    /// The path of the entry `dentry` (`struct dentry`) of the mounted file system `vfsmount` (`struct vfsmount`), from the root of the
    /// mount namespace that it belongs to.
    ///
    /// ` (deleted)` follows a path that is no longer there, as in /proc. What has no path has its kind and number: `pipe:[1234]`,
    /// `socket:[1234]`, `anon_inode:[eventfd]`, or the name it was made with: `/memfd:name (deleted)`.
    ///
    /// # Errors
    /// As [`Memory::read_into`]; [`ErrorKind::NoType`] if the guest's types lack a member; [`ErrorKind::Limit`] for a path
    /// that does not end.
    pub fn path(&self, vfsmount: VirtAddr, dentry: VirtAddr) -> Result<String> {
        if let Some(name) = self.computed_name(dentry)? {
            return Ok(name);
        }
        let (entries, layout) = (&self.layout.dentry, &self.layout.mount);
        let mut mount = layout.vfsmount.owner(vfsmount)?;
        let mut here = dentry;
        let mut names = Vec::new();
        let mut len = 0usize;
        // Two kinds of step, up in a file system and out of it, and a bound for both together.
        for _ in 0..MAX_NAMES {
            let root = self.pointer(layout.vfsmount.of(mount)?, self.layout.vfsmount.root)?;
            let parent = self.pointer(here, entries.parent)?;
            if here == root {
                let outer = self.pointer(mount, layout.parent)?;
                if outer == mount {
                    return self.join(names, dentry);
                }
                here = self.pointer(mount, layout.mountpoint)?;
                mount = outer;
            } else if parent == here {
                // A file system that is not mounted, or a directory moved out of the mounted part.
                return self.join(names, dentry);
            } else {
                let name = self.dentry_name(here)?;
                len = len.saturating_add(name.len());
                if len > MAX_PATH {
                    return Err(ErrorKind::Limit { what: "a path".to_owned(), limit: MAX_PATH }.into());
                }
                names.push(name);
                here = parent;
            }
        }
        Err(ErrorKind::Limit { what: "a path".to_owned(), limit: MAX_NAMES }.into())
    }

    /// The path of these names, the last one first, that belongs to `dentry`.
    fn join(&self, names: Vec<String>, dentry: VirtAddr) -> Result<String> {
        let mut path = String::new();
        for name in names.iter().rev() {
            path.push('/');
            path.push_str(name);
        }
        if path.is_empty() {
            path.push('/');
        }
        // d_unlinked(): not in the hash table, and not a root.
        let hashed = !self.pointer(dentry, self.layout.dentry.hash_back)?.is_null();
        if !hashed && self.pointer(dentry, self.layout.dentry.parent)? != dentry {
            path.push_str(" (deleted)");
        }
        Ok(path)
    }

    fn dentry_name(&self, dentry: VirtAddr) -> Result<String> {
        let layout = &self.layout.dentry;
        let len: u32 = self.read(dentry, layout.name_len)?;
        if len > MAX_NAME {
            return Err(Error::corrupt(format!("a file name of {len} bytes"), dentry));
        }
        let name = self.space.read_vec(self.pointer(dentry, layout.name)?, len as usize)?;
        Ok(String::from_utf8_lossy(&name).into_owned())
    }

    /// The name of an entry that has no path, by which function of the kernel would compute it (`d_op->d_dname`).
    fn computed_name(&self, dentry: VirtAddr) -> Result<Option<String>> {
        let layout = &self.layout;
        let Some(ops) = self.pointer_or_null(dentry, layout.dentry.ops)? else { return Ok(None) };
        let Some(function) = self.pointer_or_null(ops, layout.dentry_ops.name)? else { return Ok(None) };
        let number = || self.pointer(self.pointer(dentry, layout.dentry.inode)?, layout.inode.number);
        let symbols = &self.kernel().symbols;
        Ok(match symbols.at(function).next().map(|symbol| symbol.name) {
            Some("pipefs_dname") => Some(format!("pipe:[{}]", number()?.get())),
            Some("sockfs_dname") => Some(format!("socket:[{}]", number()?.get())),
            Some("anon_inodefs_dname") => Some(format!("anon_inode:{}", self.dentry_name(dentry)?)),
            Some("simple_dname") => Some(format!("/{} (deleted)", self.dentry_name(dentry)?)),
            Some("dmabuffs_dname") => Some(format!("/dmabuf:{}", self.dentry_name(dentry)?)),
            // Another function, as of namespaces: the name of the entry is the best there is.
            _ => Some(self.dentry_name(dentry)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_guest::TestGuest;

    const FUNCTION: u64 = 0x500;

    /// Two mounted file systems, each with one directory under its root: the second is mounted on the directory `data` of the first.
    /// Members of a dentry: d_parent 0, name 8, len 0x10, d_hash.pprev 0x18, d_op 0x20, d_inode 0x28. Of a mount: mnt_parent 0,
    /// mnt_mountpoint 8, mnt 0x10 (mnt_root at its start).
    fn guest() -> TestGuest {
        let mut guest = TestGuest::new();
        for (structure, path, offset) in [
            ("dentry", "d_parent", 0),
            ("dentry", "d_name.name", 8),
            ("dentry", "d_name.len", 0x10),
            ("dentry", "d_hash.pprev", 0x18),
            ("dentry", "d_op", 0x20),
            ("dentry", "d_inode", 0x28),
            ("dentry_operations", "d_dname", 0),
            ("inode", "i_ino", 0),
            ("mount", "mnt_parent", 0),
            ("mount", "mnt_mountpoint", 8),
            ("mount", "mnt", 0x10),
            ("vfsmount", "mnt_root", 0),
        ] {
            guest.types.member(structure, path, offset, 8);
        }
        guest.put(0x20000, &[0x20000, 0x30000, 1, 1]);
        guest.put(0x20100, &[0x20000, 0x30010, 4, 1]);
        guest.put(0x21000, &[0x21000, 0x30000, 1, 1]);
        guest.put(0x21100, &[0x21000, 0x30020, 5, 1]);
        for (at, name) in [(0x30000, "/"), (0x30010, "data"), (0x30020, "known")] {
            guest.text(at, name);
        }
        guest.put(0x22000, &[0x22000, 0x20000, 0x20000]);
        guest.put(0x22100, &[0x22000, 0x20100, 0x21000]);
        guest
    }

    fn path(guest: TestGuest, vfsmount: u64, dentry: u64) -> Result<String> {
        let (vmi, kernel) = guest.build();
        let linux = Linux::with_kernel(&vmi, kernel).unwrap();
        linux.path(VirtAddr::new(vfsmount), VirtAddr::new(dentry))
    }

    #[test]
    fn up_and_out_of_mounted_file_systems() {
        assert_eq!(path(guest(), 0x22010, 0x20000).unwrap(), "/");
        assert_eq!(path(guest(), 0x22010, 0x20100).unwrap(), "/data");
        assert_eq!(path(guest(), 0x22110, 0x21000).unwrap(), "/data");
        assert_eq!(path(guest(), 0x22110, 0x21100).unwrap(), "/data/known");
    }

    #[test]
    fn what_is_gone_is_marked() {
        let mut guest = guest();
        guest.put(0x21118, &[0]);
        assert_eq!(path(guest, 0x22110, 0x21100).unwrap(), "/data/known (deleted)");
    }

    #[test]
    fn what_has_no_path_has_a_name() {
        for (function, expected) in [
            ("pipefs_dname", "pipe:[77]"),
            ("sockfs_dname", "socket:[77]"),
            ("anon_inodefs_dname", "anon_inode:known"),
            ("simple_dname", "/known (deleted)"),
        ] {
            let mut guest = guest();
            guest.symbol(function, FUNCTION);
            guest.put(0x21120, &[0x23000, 0x24000]);
            guest.put(0x23000, &[FUNCTION]);
            guest.put(0x24000, &[77]);
            assert_eq!(path(guest, 0x22110, 0x21100).unwrap(), expected);
        }
    }

    #[test]
    fn paths_in_a_circle_end_in_an_error() {
        let mut parents = guest();
        parents.put(0x21200, &[0x21100, 0x30020, 5, 1]);
        parents.put(0x21100, &[0x21200]);
        let error = path(parents, 0x22110, 0x21100).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Limit { .. }), "{error}");
        let mut mounts = guest();
        mounts.put(0x22200, &[0x22100, 0x21000, 0x20000]);
        mounts.put(0x22100, &[0x22200, 0x20000, 0x21000]);
        let error = path(mounts, 0x22110, 0x21100).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Limit { .. }), "{error}");
    }

    #[test]
    fn a_name_of_impossible_length_is_an_error() {
        let mut guest = guest();
        guest.put32(0x21110, &[u32::MAX]);
        let error = path(guest, 0x22110, 0x21100).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Corrupt { .. }), "{error}");
    }
}
