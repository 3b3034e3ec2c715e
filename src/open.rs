//! From a target to a machine that can be read.

use vmi_core::Vmi;
use vmi_driver_kvm::QemuDriver;
use vmi_driver_kvm::gdb::{AddressError, GdbAddress};

use crate::{AnyDriver, BackEnd, Options, Target};

/// Opens whatever `target` names: a memory image, compressed or not, or a running guest.
///
/// Text that names a [`BackEnd`] is a path all the same if there is such a file. Images are told by their content, not by
/// their name, and are mapped rather than read. A running guest runs on.
///
/// ```no_run
/// let vmi = vmi::open("guest.lime")?;
/// println!("{}: {} bytes of memory", vmi.machine().name, vmi.machine().memory.total());
/// let vmi = vmi::open("qemu:/run/guest.qmp")?;
/// # Ok::<(), vmi::OpenError>(())
/// ```
///
/// # Errors
/// [`OpenError`] says what kept the target from being read.
pub fn open(target: impl Into<Target>) -> Result<Vmi<AnyDriver>, OpenError> {
    open_with(target, Options::default())
}

/// As [`open()`], with what the target does not tell of itself, or what to insist on: see [`Options`].
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
pub fn open_with(target: impl Into<Target>, options: impl Into<Options>) -> Result<Vmi<AnyDriver>, OpenError> {
    let options = options.into();
    let (back_end, address) = match target.into() {
        Target::Image(path) => return Ok(Vmi::new(AnyDriver::new(options.image.open(path)?))),
        Target::Live { back_end, address } => (back_end, address),
    };
    let text = Target::Live { back_end, address: address.clone() }.to_string();
    if std::fs::exists(&text).unwrap_or(false) {
        return Ok(Vmi::new(AnyDriver::new(options.image.open(text)?)));
    }
    let driver = match back_end {
        BackEnd::Qemu => match address.parse() {
            Ok(pid) => QemuDriver::attach(pid, &options.qemu)?,
            Err(_) => QemuDriver::connect(address, &options.qemu)?,
        },
        BackEnd::Gdb => QemuDriver::gdb(address.parse::<GdbAddress>()?, &options.qemu)?,
        #[cfg(feature = "libvirt")]
        BackEnd::Libvirt => libvirt(&text, &options.qemu)?,
        #[cfg(feature = "xen")]
        BackEnd::Xen => {
            return Ok(Vmi::new(AnyDriver::new(vmi_driver_xen::XenDriver::open(&address, &options.xen)?)));
        }
        #[allow(unreachable_patterns, reason = "with all features there is no other")]
        _ => return Err(OpenError::NoBackEnd { target: text, back_end }),
    };
    Ok(Vmi::new(AnyDriver::new(driver)))
}

/// Opens a domain of libvirt. Its process is known only where it is on this host.
#[cfg(feature = "libvirt")]
fn libvirt(target: &str, options: &vmi_driver_kvm::Options) -> Result<QemuDriver, OpenError> {
    use vmi_driver_kvm::libvirt::LibvirtDomain;

    /// How long libvirt may take for a call.
    const LIMIT: std::time::Duration = std::time::Duration::from_secs(30);
    let domain = LibvirtDomain::open(&target.parse()?, LIMIT)?;
    let pid = domain.process().inspect_err(|error| tracing::debug!(%error, "QEMU's process is not known")).ok();
    let pid = pid.and_then(|pid| u32::try_from(pid.as_raw()).ok());
    Ok(QemuDriver::over(std::sync::Arc::new(domain), pid, options)?)
}

/// Why a target could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The memory image could not be opened.
    #[error(transparent)]
    Image(#[from] vmi_driver_file::OpenError),
    /// The QEMU guest could not be opened.
    #[error(transparent)]
    Qemu(#[from] vmi_driver_kvm::OpenError),
    /// What stands after `gdb:` is no address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// libvirt does not give the domain.
    #[cfg(feature = "libvirt")]
    #[error(transparent)]
    Libvirt(#[from] vmi_driver_kvm::libvirt::LibvirtError),
    /// What stands after `libvirt:` is no domain.
    #[cfg(feature = "libvirt")]
    #[error(transparent)]
    Domain(#[from] vmi_driver_kvm::libvirt::LibvirtTargetError),
    /// The domain of Xen could not be opened.
    #[cfg(feature = "xen")]
    #[error(transparent)]
    Xen(#[from] vmi_driver_xen::OpenError),
    /// This build has no such back end.
    #[error("{target}: this build has no back end for `{back_end}:`{}; nor is there a file of that name", feature(*back_end))]
    NoBackEnd {
        /// The target, as text.
        target: String,
        /// The missing back end.
        back_end: BackEnd,
    },
}

/// What brings a back end into the build.
fn feature(back_end: BackEnd) -> &'static str {
    match back_end {
        BackEnd::Libvirt => ", which comes with the cargo feature `libvirt`",
        BackEnd::Xen => ", which comes with the cargo feature `xen`",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_back_end_is_named() {
        for (text, missing) in [("libvirt:web1", BackEnd::Libvirt), ("xen:1", BackEnd::Xen)] {
            // A build that has the back end says something else.
            if (missing == BackEnd::Libvirt && cfg!(feature = "libvirt")) || (missing == BackEnd::Xen && cfg!(feature = "xen")) {
                continue;
            }
            let error = open(text).unwrap_err();
            assert!(error.to_string().starts_with(&format!("{text}: ")), "{error}");
            assert!(error.to_string().contains(&format!("`{missing}:`")), "{error}");
            assert!(matches!(error, OpenError::NoBackEnd { back_end, .. } if back_end == missing));
        }
    }

    #[test]
    fn a_guest_that_is_not_there_is_named() {
        for (text, said) in [
            ("qemu:/no/such/guest.qmp", "/no/such/guest.qmp: cannot connect"),
            ("qemu:0", "process 0: "),
            ("gdb:/no/such/guest.gdb", "/no/such/guest.gdb"),
            ("gdb:here", "no address of a gdb stub"),
        ] {
            let error = open(text).unwrap_err();
            assert!(error.to_string().contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn a_missing_image_is_named() {
        let error = open("no/such/image.raw").unwrap_err();
        assert!(matches!(error, OpenError::Image(_)));
        assert!(error.to_string().contains("no/such/image.raw"), "{error}");
    }
}
