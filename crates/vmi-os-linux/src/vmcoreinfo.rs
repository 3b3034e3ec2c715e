//! What the kernel tells tools that read its dumps.

use vmi_arch_x86::X86Driver;
use vmi_core::{Error, Memory, Result};

use crate::Linux;

/// The text fills at most one page (kernel: VMCOREINFO_BYTES), which may become more.
const MAX_TEXT: u64 = 64 << 10;
/// How it starts.
const START: &[u8; 10] = b"OSRELEASE=";

impl<D: X86Driver> Linux<'_, D> {
    /// The kernel's VMCOREINFO (kernel: Documentation/admin-guide/kdump/vmcoreinfo.rst), lines of `KEY=value`. Dumps that have it in a note are read
    /// by crash, drgn and makedumpfile without help.
    ///
    /// # Errors
    /// [`ErrorKind::NoSymbol`](vmi_core::ErrorKind::NoSymbol) if the kernel was built without it or its symbols do not tell,
    /// [`ErrorKind::Corrupt`](vmi_core::ErrorKind::Corrupt) if there is something else in its place.
    pub fn vmcoreinfo(&self) -> Result<Vec<u8>> {
        let space = self.kernel_space();
        let data = self.symbol("vmcoreinfo_data")?;
        // An array before 4.13 (commit 203e9e41219b), a pointer since.
        let at = if space.read::<[u8; START.len()]>(data)? == *START { data } else { space.read_pointer(data)? };
        let len = space.read_pointer(self.symbol("vmcoreinfo_size")?)?.get();
        if len > MAX_TEXT {
            return Err(Error::corrupt(format!("a VMCOREINFO of {len} bytes"), at));
        }
        let text = space.read_vec(at, usize::try_from(len).unwrap_or_default())?;
        if text.starts_with(START) { Ok(text) } else { Err(Error::corrupt("no VMCOREINFO where it should be", at)) }
    }
}
