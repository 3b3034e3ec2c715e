//! The text that names a domain: `libvirt:NAME`, `libvirt:UUID`, `libvirt:NAME?uri=URI`.

use std::fmt;
use std::str::FromStr;

/// A domain of libvirt, and where libvirt is.
///
/// The text form is `libvirt:NAME`, where the name may be a UUID, optionally with `?uri=` and a connection URI. All behind `?uri=` is the URI,
/// as it stands, with its own `?` and `&`. In the name, `%` and `?` are written `%25` and `%3F`; any byte may be written so.
///
/// ```
/// use vmi_driver_kvm::libvirt::LibvirtTarget;
///
/// let target: LibvirtTarget = "libvirt:web1?uri=qemu+ssh://host/system?no_tty=1".parse()?;
/// assert_eq!(target.name, "web1");
/// assert_eq!(target.uri.as_deref(), Some("qemu+ssh://host/system?no_tty=1"));
/// assert_eq!("libvirt:100%25 mine%3F".parse::<LibvirtTarget>()?.name, "100% mine?");
/// # Ok::<(), vmi_driver_kvm::libvirt::LibvirtTargetError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LibvirtTarget {
    /// Name or UUID of the domain.
    pub name: String,
    /// Connection URI; `None` leaves the choice to libvirt (`LIBVIRT_DEFAULT_URI`, its configuration, or what it finds).
    pub uri: Option<String>,
}

/// Why a text is no target of libvirt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LibvirtTargetError {
    /// Another prefix.
    #[error("`{0}` does not begin with `libvirt:`")]
    Prefix(String),
    /// No name.
    #[error("`{0}` names no domain: write `libvirt:NAME` or `libvirt:UUID`")]
    NoName(String),
    /// `?uri=` without a URI.
    #[error("`{0}` has an empty connection URI: write `?uri=qemu:///system`, or leave `?uri=` out")]
    NoUri(String),
    /// A `?` that begins something else than `?uri=`.
    #[error("`{0}`: the only option is `?uri=URI`; a question mark that belongs to the name is written `%3F`")]
    Option(String),
    /// A `%` without two hexadecimal digits, or what results is not UTF-8 or has a NUL.
    #[error(
        "`{0}`: a percent sign in the name is written `%25`; `%` and two hexadecimal digits stand for a byte of UTF-8 text other than NUL"
    )]
    Percent(String),
}

impl FromStr for LibvirtTarget {
    type Err = LibvirtTargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let shown = || text.chars().map(|c| if c.is_control() { '.' } else { c }).take(200).collect::<String>();
        let rest = text.strip_prefix("libvirt:").ok_or_else(|| LibvirtTargetError::Prefix(shown()))?;
        let (name, uri) = match rest.split_once('?') {
            None => (rest, None),
            Some((name, option)) => match option.strip_prefix("uri=") {
                None => return Err(LibvirtTargetError::Option(shown())),
                Some("") => return Err(LibvirtTargetError::NoUri(shown())),
                Some(uri) => (name, Some(uri.to_owned())),
            },
        };
        if name.is_empty() {
            return Err(LibvirtTargetError::NoName(shown()));
        }
        let name = decode(name).ok_or_else(|| LibvirtTargetError::Percent(shown()))?;
        Ok(Self { name, uri })
    }
}

impl fmt::Display for LibvirtTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "libvirt:{}", self.name.replace('%', "%25").replace('?', "%3F"))?;
        match &self.uri {
            Some(uri) => write!(f, "?uri={uri}"),
            None => Ok(()),
        }
    }
}

fn decode(name: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let [high, low] = [rest.next()?, rest.next()?].map(|digit| char::from(digit).to_digit(16));
                u8::try_from(high?.checked_mul(16)?.checked_add(low?)?).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok().filter(|name| !name.contains('\0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_target_says_why() {
        let error = |text: &str| text.parse::<LibvirtTarget>().unwrap_err();
        assert!(matches!(error("web1"), LibvirtTargetError::Prefix(_)));
        assert!(matches!(error("libvirt:"), LibvirtTargetError::NoName(_)));
        assert!(matches!(error("libvirt:?uri=qemu:///system"), LibvirtTargetError::NoName(_)));
        assert!(matches!(error("libvirt:web1?uri="), LibvirtTargetError::NoUri(_)));
        assert!(matches!(error("libvirt:what?"), LibvirtTargetError::Option(_)));
        for text in ["libvirt:100%", "libvirt:%4", "libvirt:%zz", "libvirt:%+1", "libvirt:%ff", "libvirt:a%00"] {
            assert!(matches!(error(text), LibvirtTargetError::Percent(_)), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "(libvirt:)?[%?=uri0-9a-fA-F\u{0}-\u{ff}]{0,20}") {
            if let Ok(target) = text.parse::<LibvirtTarget>() {
                prop_assert_eq!(target.to_string().parse::<LibvirtTarget>(), Ok(target));
            }
        }

        #[test]
        fn any_name_can_be_written(name in "[^\u{0}]{1,20}", uri in proptest::option::of("[^\u{0}]{1,20}")) {
            let target = LibvirtTarget { name, uri };
            prop_assert_eq!(target.to_string().parse::<LibvirtTarget>(), Ok(target));
        }
    }
}
