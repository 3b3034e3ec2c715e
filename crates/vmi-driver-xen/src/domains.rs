//! Which domains there are, and which one a name means.

use core::fmt;

use crate::domain_info::{DomainInfo, parse_uuid, uuid_text};
use crate::libraries::control::Control;
use crate::libraries::xenstore::XenStore;
use crate::{InterfaceError, OpenError};

/// More domains than Xen has numbers (xen/include/public/xen.h, DOMID_FIRST_RESERVED).
pub(crate) const MAX_DOMAINS: u32 = 0x7ff0;

/// The longest name that is taken over from xenstore.
const MAX_NAME: usize = 256;

/// A domain, named.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Domain {
    /// What Xen says of it.
    pub info: DomainInfo,
    /// Its name in xenstore; `None` if it has none, or if xenstore cannot be read.
    pub name: Option<String>,
}

impl Domain {
    /// Its UUID as the toolstack writes it.
    pub fn uuid(&self) -> String {
        uuid_text(&self.info.uuid)
    }
}

/// `3 "web1"`.
impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{} \"{name}\"", self.info.id),
            None => write!(f, "{}", self.info.id),
        }
    }
}

/// All domains but the one that this runs in, dom0.
///
/// # Errors
/// A library of Xen that is missing; no Xen, or no right to use it.
pub fn domains() -> Result<Vec<Domain>, OpenError> {
    list(&Control::open()?, names().as_ref())
}

/// The connection to xenstore; domains have numbers and UUIDs without it.
pub(crate) fn names() -> Option<XenStore> {
    let store = XenStore::open();
    store.inspect_err(|error: &InterfaceError| tracing::warn!(%error, "xenstore tells no names of domains")).ok()
}

pub(crate) fn list(control: &Control, names: Option<&XenStore>) -> Result<Vec<Domain>, OpenError> {
    let mut domains = Vec::new();
    let mut next = 1;
    while next < MAX_DOMAINS {
        let Some(info) = control.domain_from(next).map_err(InterfaceError::from)? else { break };
        if info.id < next {
            break;
        }
        next = info.id.saturating_add(1);
        let name = names.and_then(|names| name(names, info.id));
        domains.push(Domain { info, name });
    }
    Ok(domains)
}

/// The domain that `text` means: a number, a UUID, or else a name.
pub(crate) fn find(control: &Control, names: Option<&XenStore>, text: &str) -> Result<Domain, OpenError> {
    let domains = list(control, names)?;
    match choose(&domains, text) {
        Some(domain) => Ok(domain.clone()),
        None => Err(OpenError::NoDomain { wanted: text.to_owned(), running: domains.iter().map(Domain::to_string).collect() }),
    }
}

fn choose<'d>(domains: &'d [Domain], text: &str) -> Option<&'d Domain> {
    let by_number = text.parse().ok().and_then(|id: u32| domains.iter().find(|domain| domain.info.id == id));
    let by_uuid = || parse_uuid(text).and_then(|uuid| domains.iter().find(|domain| domain.info.uuid == uuid));
    let by_name = || domains.iter().find(|domain| domain.name.as_deref() == Some(text));
    by_number.or_else(by_name).or_else(by_uuid)
}

fn name(names: &XenStore, id: u32) -> Option<String> {
    let value = names.read(&name_path(id));
    decode_name(&value.inspect_err(|error| tracing::debug!(%error, id, "no name of a domain")).ok()??)
}

/// Where the toolstack keeps the name of a domain (docs/misc/xenstore-paths.pandoc, `~/name`).
fn name_path(id: u32) -> String {
    format!("/local/domain/{id}/name")
}

/// A name out of xenstore. dom0 writes it, but a domain may have been allowed to.
pub(crate) fn decode_name(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let name: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(MAX_NAME).collect();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain_info::RawDomainInfo;

    fn domain(id: u32, name: Option<&str>, uuid: u8) -> Domain {
        let info = DomainInfo { id, uuid: [uuid; 16], ..RawDomainInfo::new().decode() };
        Domain { info, name: name.map(str::to_owned) }
    }

    #[test]
    fn a_domain_is_found_by_number_name_and_uuid() {
        let domains =
            [domain(3, Some("web1"), 0xaa), domain(4, Some("7"), 0xbb), domain(5, None, 0xcc), domain(6, Some("3"), 0xdd)];
        let id = |text: &str| choose(&domains, text).map(|domain| domain.info.id);
        assert_eq!(id("web1"), Some(3));
        assert_eq!(id("3"), Some(3), "a number is a number first");
        assert_eq!(id("7"), Some(4), "a name may be one too");
        assert_eq!(id("cccccccc-cccc-cccc-cccc-cccccccccccc"), Some(5));
        assert_eq!((id("web"), id("8"), id("")), (None, None, None));
        assert_eq!(domains[0].to_string(), "3 \"web1\"");
        assert_eq!(name_path(12), "/local/domain/12/name");
    }

    proptest! {
        #[test]
        fn any_name_can_be_printed(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            if let Some(name) = decode_name(&bytes) {
                prop_assert!(!name.is_empty() && name.chars().count() <= MAX_NAME && !name.contains(char::is_control));
            }
        }
    }
}
