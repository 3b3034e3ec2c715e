//! Where a stub listens.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// The address of a gdb stub.
///
/// Read from text as QEMU's option `-gdb` takes it, or as gdb's `target remote` does: `:1234`, `host:1234`, `tcp::1234`,
/// `tcp:host:1234`, `/run/guest.gdb`, `unix:/run/guest.gdb,server=on,wait=off`. Options after a comma belong to QEMU's side.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GdbAddress {
    /// A unix socket.
    Unix(PathBuf),
    /// Host and port: `localhost:1234`, `[::1]:1234`.
    Tcp(String),
}

/// A text is no address of a gdb stub.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("no address of a gdb stub: {text:?}: {why}; write host:port, :port, or the path of a unix socket with a slash in it")]
pub struct AddressError {
    text: String,
    why: &'static str,
}

impl FromStr for GdbAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let bad = |why| AddressError { text: text.to_owned(), why };
        let socket = text.strip_prefix("unix:").map(|rest| rest.strip_prefix("path=").unwrap_or(rest));
        if let Some(path) = socket {
            // QEMU doubles a comma that belongs to the path.
            let path = path.replace(",,", "\0");
            let path = path.split(',').next().unwrap_or_default().replace('\0', ",");
            return if path.is_empty() { Err(bad("the path is empty")) } else { Ok(Self::Unix(path.into())) };
        }
        if text.contains('/') {
            return Ok(Self::Unix(text.into()));
        }
        let rest = text.strip_prefix("tcp:").unwrap_or(text);
        let rest = rest.split(',').next().unwrap_or_default();
        let (host, port) = rest.rsplit_once(':').ok_or_else(|| bad("no colon before a port"))?;
        if port.parse::<u16>().ok().filter(|port| *port != 0).is_none() {
            return Err(bad("the port is no number from 1 to 65535"));
        }
        if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
            return Err(bad("an IPv6 address wants brackets"));
        }
        let host = if host.is_empty() { "localhost" } else { host };
        Ok(Self::Tcp(format!("{host}:{port}")))
    }
}

impl fmt::Display for GdbAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display().to_string().replace(',', ",,")),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_qemu_and_of_gdb() {
        for (text, expected) in [
            (":1234", "tcp:localhost:1234"),
            ("tcp::1234", "tcp:localhost:1234"),
            ("tcp:vm7:99,server=on", "tcp:vm7:99"),
            ("10.0.0.1:1", "tcp:10.0.0.1:1"),
            ("[::1]:1234", "tcp:[::1]:1234"),
            ("/run/g.sock", "unix:/run/g.sock"),
            ("./g:1234", "unix:./g:1234"),
            ("unix:/run/g.sock,server=on,wait=off", "unix:/run/g.sock"),
            ("unix:path=g,,h,server=on", "unix:g,,h"),
        ] {
            let address: GdbAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), expected, "{text}");
            assert_eq!(expected.parse::<GdbAddress>().unwrap(), address);
        }
        for text in ["", "1234", "host:", ":0", ":65536", "::1:1234", "unix:", "unix:,server=on", "host:12x"] {
            assert!(text.parse::<GdbAddress>().unwrap_err().to_string().contains("write host:port"), "{text}");
        }
    }
}
