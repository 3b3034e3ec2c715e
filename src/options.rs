//! How a target is opened.

use vmi_driver_file::OpenOptions as ImageOptions;
use vmi_driver_kvm::Options as QemuOptions;

/// What a target does not tell of itself, for each kind of target. Features of this crate add fields, so a literal ends with `..Options::default()`. Made of either part:
///
/// ```
/// use vmi::Options;
///
/// let options: Options = vmi::file::OpenOptions::new().allow_truncated(true).into();
/// let options: Options = vmi::kvm::Options::new().road(vmi::kvm::Road::Process).into();
/// # let _ = options;
/// ```
#[derive(Debug, Default)]
pub struct Options {
    /// For memory images.
    pub image: ImageOptions,
    /// For running guests of QEMU.
    pub qemu: QemuOptions,
    /// For domains of Xen.
    #[cfg(feature = "xen")]
    pub xen: vmi_driver_xen::Options,
}

impl From<ImageOptions> for Options {
    fn from(image: ImageOptions) -> Self {
        Self { image, ..Self::default() }
    }
}

impl From<QemuOptions> for Options {
    fn from(qemu: QemuOptions) -> Self {
        Self { qemu, ..Self::default() }
    }
}

#[cfg(feature = "xen")]
impl From<vmi_driver_xen::Options> for Options {
    fn from(xen: vmi_driver_xen::Options) -> Self {
        Self { xen, ..Self::default() }
    }
}
