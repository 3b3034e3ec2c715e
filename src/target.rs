//! What [`open`](crate::open()) can be pointed at.

use core::convert::Infallible;
use core::fmt;
use core::str::FromStr;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// A machine to look into: `guest.lime`, `qemu:/run/guest.qmp`, `libvirt:web1`, `xen:web1`.
///
/// As text, a target that starts with the name of a [`BackEnd`] and a colon is a machine of that kind; everything else is the path
/// of a memory image. An image whose name looks like that is written `./qemu:image`.
///
/// ```
/// use vmi::{BackEnd, Target};
///
/// assert_eq!(Target::from("guest.lime"), Target::Image("guest.lime".into()));
/// assert_eq!(Target::from("qemu:/run/guest.qmp"), Target::Live { back_end: BackEnd::Qemu, address: "/run/guest.qmp".into() });
/// assert_eq!(Target::from("./qemu:image").to_string(), "./qemu:image");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Target {
    /// A file that holds the memory of a machine.
    Image(PathBuf),
    /// A virtual machine that exists now.
    Live {
        /// Who runs it.
        back_end: BackEnd,
        /// How the back end names it: a socket, a domain's name, a host and port.
        address: String,
    },
}

/// Who runs a virtual machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackEnd {
    /// A QEMU process, by the path of its QMP socket or by its process id.
    Qemu,
    /// A gdb remote stub, by socket or host and port.
    Gdb,
    /// libvirt, by domain name.
    Libvirt,
    /// Xen, by domain name, number or UUID.
    Xen,
}

impl BackEnd {
    const ALL: [Self; 4] = [Self::Qemu, Self::Gdb, Self::Libvirt, Self::Xen];

    /// What stands before the colon of a target.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Gdb => "gdb",
            Self::Libvirt => "libvirt",
            Self::Xen => "xen",
        }
    }
}

impl fmt::Display for BackEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Target {
    /// The back end and address that `text` names; `None` if it is a path.
    fn parse_live(text: &str) -> Option<Self> {
        let (name, address) = text.split_once(':')?;
        let back_end = BackEnd::ALL.into_iter().find(|back_end| back_end.name() == name)?;
        Some(Self::Live { back_end, address: address.to_owned() })
    }
}

impl From<&str> for Target {
    fn from(text: &str) -> Self {
        Self::parse_live(text).unwrap_or_else(|| Self::Image(text.into()))
    }
}

impl From<String> for Target {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

/// As command lines deliver it; what is not Unicode is a path.
impl From<&OsStr> for Target {
    fn from(text: &OsStr) -> Self {
        text.to_str().and_then(Self::parse_live).unwrap_or_else(|| Self::Image(text.into()))
    }
}

/// As command lines deliver it; what is not Unicode is a path.
impl From<OsString> for Target {
    fn from(text: OsString) -> Self {
        text.as_os_str().into()
    }
}

/// A path is an image, whatever its name.
impl From<&Path> for Target {
    fn from(path: &Path) -> Self {
        Self::Image(path.into())
    }
}

/// A path is an image, whatever its name.
impl From<PathBuf> for Target {
    fn from(path: PathBuf) -> Self {
        Self::Image(path)
    }
}

impl FromStr for Target {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.into())
    }
}

/// As it is parsed; a path that is not Unicode is shown with replacement characters.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(path) => {
                let path = path.to_string_lossy();
                let guard = if Self::parse_live(&path).is_some() { "./" } else { "" };
                write!(f, "{guard}{path}")
            }
            Self::Live { back_end, address } => write!(f, "{back_end}:{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_known_names_before_a_colon_are_back_ends() {
        for path in ["guest.raw", "C:/guest.raw", "kvm:guest", "QEMU:guest", "dir/qemu:guest", ":", ""] {
            assert_eq!(Target::from(path), Target::Image(path.into()), "{path}");
        }
        for back_end in BackEnd::ALL {
            let expected = Target::Live { back_end, address: "a:b".to_owned() };
            assert_eq!(Target::from(format!("{back_end}:a:b")), expected);
            assert_eq!(Target::from(OsString::from(format!("{back_end}:a:b"))), expected);
        }
    }

    #[test]
    fn a_path_is_an_image_whatever_its_name() {
        let target = Target::from(Path::new("qemu:guest"));
        assert_eq!(target, Target::Image("qemu:guest".into()));
        assert_eq!(Target::from(target.to_string()), Target::Image("./qemu:guest".into()));
    }

    proptest! {
        #[test]
        fn text_survives_both_ways(text in "((qemu|gdb|libvirt|xen|file|x):)?\\PC*") {
            prop_assert_eq!(Target::from(text.as_str()).to_string(), text);
        }
    }
}
