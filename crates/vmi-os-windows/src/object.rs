//! Objects of the kernel: what their headers say.

use core::fmt;

use vmi_arch_x86::X86Driver;
use vmi_core::{Error, ErrorKind, Result, VirtAddr};

use crate::Windows;

/// A path of directories longer than this is none.
const MAX_DEPTH: usize = 64;
/// The bit of `InfoMask` of the creator's information, which lies behind the name.
const CREATOR: u8 = 1;
/// The bit of `InfoMask` of the name.
const NAME: u8 = 2;

/// An object that the kernel's object manager keeps: a process, a file, a mutex. Its parts are read when asked for.
pub struct Object<'l, 'v, D: X86Driver> {
    pub(crate) windows: &'l Windows<'v, D>,
    at: VirtAddr,
}

impl<D: X86Driver> Clone for Object<'_, '_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: X86Driver> Copy for Object<'_, '_, D> {}

impl<D: X86Driver> fmt::Debug for Object<'_, '_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Object").field(&self.at).finish()
    }
}

impl<'v, D: X86Driver> Windows<'v, D> {
    /// The object whose body (an `_EPROCESS`, a `_FILE_OBJECT`) is at `at`. Nothing is checked.
    pub fn object_at(&self, at: VirtAddr) -> Object<'_, 'v, D> {
        Object { windows: self, at }
    }

    /// The object whose header is at `header`.
    pub(crate) fn object_of_header(&self, header: VirtAddr) -> Result<Object<'_, 'v, D>> {
        Ok(self.object_at(self.objects.layout.header.body.of(header)?))
    }
}

impl<D: X86Driver> Object<'_, '_, D> {
    /// Where its body is.
    pub fn address(&self) -> VirtAddr {
        self.at
    }

    /// Where its header is.
    ///
    /// # Errors
    /// [`ErrorKind::NoType`] if the guest's types do not describe headers.
    pub fn header(&self) -> Result<VirtAddr> {
        self.windows.objects.layout.header.body.owner(self.at)
    }

    /// How many pointers and handles keep it, as its header counts them. Since Windows 8.1 each handle counts several times.
    ///
    /// # Errors
    /// As [`Memory::read_into`](vmi_core::Memory::read_into); [`ErrorKind::NoType`] if the guest's types do not have the member. The same holds for all methods that follow.
    pub fn pointer_count(&self) -> Result<i64> {
        self.count(self.windows.objects.layout.header.pointer_count)
    }

    /// How many handles to it are open.
    ///
    /// # Errors
    /// As [`Object::pointer_count`].
    pub fn handle_count(&self) -> Result<i64> {
        self.count(self.windows.objects.layout.header.handle_count)
    }

    fn count(&self, member: vmi_core::KernelField) -> Result<i64> {
        let header = self.header()?;
        if self.windows.pointer_size() == 4 {
            return self.windows.read::<i32>(header, member).map(i64::from);
        }
        self.windows.read(header, member)
    }

    /// Where its `_OBJECT_HEADER_NAME_INFO` is; `None` if it has no name.
    fn name_info(&self) -> Result<Option<VirtAddr>> {
        let (windows, header) = (self.windows, self.header()?);
        let layout = &windows.objects.layout;
        if !layout.header.info_mask.exists() {
            let offset: u8 = windows.read(header, layout.header.name_info_offset)?;
            return Ok((offset != 0).then(|| header.wrapping_sub(u64::from(offset))));
        }
        let mask: u8 = windows.read(header, layout.header.info_mask)?;
        if mask & NAME == 0 {
            return Ok(None);
        }
        // Optional headers lie in the order of their bits, the lowest next to the header. What is known of their sizes without symbols: those
        // with their pointers and numbers have not changed since Windows 7.
        let default = windows.pointer_size().wrapping_mul(4);
        let size = |whole: vmi_core::KernelField| whole.size().unwrap_or(default);
        let creator = if mask & CREATOR == 0 { 0 } else { size(layout.creator_info.whole) };
        Ok(Some(header.wrapping_sub(creator).wrapping_sub(size(layout.name_info.whole))))
    }

    /// Its own name, without the directory that it is in; `None` if it has none.
    ///
    /// # Errors
    /// As [`Object::pointer_count`].
    pub fn name(&self) -> Result<Option<String>> {
        let Some(info) = self.name_info()? else { return Ok(None) };
        let name = self.windows.string(self.windows.objects.layout.name_info.name.of(info)?)?;
        Ok(Some(name).filter(|name| !name.is_empty()))
    }

    /// The directory that it is in; `None` if it is in none.
    ///
    /// # Errors
    /// As [`Object::pointer_count`].
    pub fn directory(&self) -> Result<Option<Self>> {
        let Some(info) = self.name_info()? else { return Ok(None) };
        let directory = self.windows.pointer_or_null(info, self.windows.objects.layout.name_info.directory)?;
        Ok(directory.map(|directory| Self { windows: self.windows, at: directory }))
    }

    /// Its path from the root of the object directory: `\Device\HarddiskVolume2`. `None` if it has no name; just that name if it is in no directory.
    ///
    /// # Errors
    /// As [`Object::pointer_count`]; [`ErrorKind::Limit`] if directories lead on without an end.
    pub fn path(&self) -> Result<Option<String>> {
        let Some(mut path) = self.name()? else { return Ok(None) };
        let mut above = self.directory()?;
        for _ in 0..MAX_DEPTH {
            let Some(directory) = above else { return Ok(Some(path)) };
            let name = directory.name()?.ok_or_else(|| Error::corrupt("an object directory without a name", directory.at))?;
            // The root is named by the backslash that starts all paths.
            path = if name == "\\" { format!("\\{path}") } else { format!("{name}\\{path}") };
            above = directory.directory()?;
        }
        Err(ErrorKind::Limit { what: format!("the path of the object at {}", self.at), limit: MAX_DEPTH }.into())
    }
}
