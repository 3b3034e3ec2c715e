//! From a target to a machine that can be read.

use vmi_core::Vmi;
use vmi_driver_file::OpenOptions;

use crate::{AnyDriver, BackEnd, Target};

/// Opens whatever `target` names: now the path of a memory image, compressed or not.
///
/// Text that names a [`BackEnd`] is a path all the same if there is such a file. Images are told by their content, not by
/// their name, and are mapped rather than read.
///
/// ```no_run
/// let vmi = vmi::open("guest.lime")?;
/// println!("{}: {} bytes of memory", vmi.machine().name, vmi.machine().memory.total());
/// # Ok::<(), vmi::OpenError>(())
/// ```
///
/// # Errors
/// [`OpenError`] says what kept the target from being read.
pub fn open(target: impl Into<Target>) -> Result<Vmi<AnyDriver>, OpenError> {
    open_with(target, OpenOptions::new())
}

/// As [`open()`], with what an image does not tell of itself: see [`OpenOptions`].
///
/// ```no_run
/// use vmi::file::OpenOptions;
///
/// // 4 GiB of RAM, written end to end, of a machine with a hole below 4 GiB.
/// let layout = "0x0-0xc0000000,0x100000000-0x140000000".parse()?;
/// let vmi = vmi::open_with("ram.bin", OpenOptions::new().raw_map(layout))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// As [`open()`].
pub fn open_with(target: impl Into<Target>, options: OpenOptions) -> Result<Vmi<AnyDriver>, OpenError> {
    let path = match target.into() {
        Target::Image(path) => path,
        Target::Live { back_end, address } => {
            let target = Target::Live { back_end, address }.to_string();
            if !std::fs::exists(&target).unwrap_or(false) {
                return Err(OpenError::NoBackEnd { target, back_end });
            }
            target.into()
        }
    };
    Ok(Vmi::new(AnyDriver::new(options.open(path)?)))
}

/// Why a target could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The memory image could not be opened.
    #[error(transparent)]
    Image(#[from] vmi_driver_file::OpenError),
    /// This build has no such back end.
    #[error("{target}: this build has no back end for `{back_end}:`, it reads memory images; nor is there a file of that name")]
    NoBackEnd {
        /// The target, as text.
        target: String,
        /// The missing back end.
        back_end: BackEnd,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_back_end_is_named() {
        for (text, missing) in [
            ("qemu:/run/guest.qmp", BackEnd::Qemu),
            ("gdb:localhost:1234", BackEnd::Gdb),
            ("libvirt:web1", BackEnd::Libvirt),
            ("xen:1", BackEnd::Xen),
        ] {
            let error = open(text).unwrap_err();
            assert!(error.to_string().starts_with(&format!("{text}: ")), "{error}");
            assert!(error.to_string().contains(&format!("`{missing}:`")), "{error}");
            assert!(matches!(error, OpenError::NoBackEnd { back_end, .. } if back_end == missing));
        }
    }

    #[test]
    fn a_missing_image_is_named() {
        let error = open("no/such/image.raw").unwrap_err();
        assert!(matches!(error, OpenError::Image(_)));
        assert!(error.to_string().contains("no/such/image.raw"), "{error}");
    }
}
