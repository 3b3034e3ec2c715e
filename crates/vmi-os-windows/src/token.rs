//! Tokens: who a process is, which groups it belongs to and what it may (`_TOKEN`).

use core::fmt;

use vmi_arch_x86::X86Driver;
use vmi_core::{Error, ErrorKind, Memory, Result, VirtAddr};

use crate::windows::KernelMemory;
use crate::{Process, Windows};

/// Parts of an identity after its authority: SID_MAX_SUB_AUTHORITIES (winnt.h).
const MAX_PARTS: u8 = 15;
/// More groups than any token has: Windows refuses a log-on with more than 1,015.
const MAX_GROUPS: u32 = 4096;
/// More privileges than there are.
const MAX_PRIVILEGES: u32 = 64;
/// SE_PRIVILEGE_ENABLED (winnt.h).
const ENABLED: u32 = 2;

/// Names of privileges by number, from 2 (winnt.h and wdm.h in Microsoft's SDK and WDK, `SE_..._PRIVILEGE`).
const PRIVILEGES: [&str; 35] = [
    "SeCreateTokenPrivilege",
    "SeAssignPrimaryTokenPrivilege",
    "SeLockMemoryPrivilege",
    "SeIncreaseQuotaPrivilege",
    "SeMachineAccountPrivilege",
    "SeTcbPrivilege",
    "SeSecurityPrivilege",
    "SeTakeOwnershipPrivilege",
    "SeLoadDriverPrivilege",
    "SeSystemProfilePrivilege",
    "SeSystemtimePrivilege",
    "SeProfileSingleProcessPrivilege",
    "SeIncreaseBasePriorityPrivilege",
    "SeCreatePagefilePrivilege",
    "SeCreatePermanentPrivilege",
    "SeBackupPrivilege",
    "SeRestorePrivilege",
    "SeShutdownPrivilege",
    "SeDebugPrivilege",
    "SeAuditPrivilege",
    "SeSystemEnvironmentPrivilege",
    "SeChangeNotifyPrivilege",
    "SeRemoteShutdownPrivilege",
    "SeUndockPrivilege",
    "SeSyncAgentPrivilege",
    "SeEnableDelegationPrivilege",
    "SeManageVolumePrivilege",
    "SeImpersonatePrivilege",
    "SeCreateGlobalPrivilege",
    "SeTrustedCredManAccessPrivilege",
    "SeRelabelPrivilege",
    "SeIncreaseWorkingSetPrivilege",
    "SeTimeZonePrivilege",
    "SeCreateSymbolicLinkPrivilege",
    "SeDelegateSessionUserImpersonatePrivilege",
];

/// A security identifier: a user, a group, a level of integrity (`SID` in winnt.h). Its text is `S-1-5-18`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sid {
    authority: u64,
    parts: Vec<u32>,
}

impl Sid {
    /// Who gives out identifiers of this kind: 5 for most of Windows, 16 for levels of integrity. It has 48 bits.
    pub fn authority(&self) -> u64 {
        self.authority
    }

    /// The numbers behind the authority.
    pub fn parts(&self) -> &[u32] {
        &self.parts
    }

    /// The name of an identifier that is the same in all systems ("Well-known SIDs" in Microsoft's documentation).
    pub fn well_known_name(&self) -> Option<&'static str> {
        Some(match (self.authority, self.parts.as_slice()) {
            (1, [0]) => "Everyone",
            (2, [0]) => "LOCAL",
            (2, [1]) => "CONSOLE LOGON",
            (3, [0]) => "CREATOR OWNER",
            (5, [2]) => "NETWORK",
            (5, [4]) => "INTERACTIVE",
            (5, [6]) => "SERVICE",
            (5, [7]) => "ANONYMOUS LOGON",
            (5, [11]) => "Authenticated Users",
            (5, [18]) => "SYSTEM",
            (5, [19]) => "LOCAL SERVICE",
            (5, [20]) => "NETWORK SERVICE",
            (5, [32, 544]) => "Administrators",
            (5, [32, 545]) => "Users",
            (5, [32, 546]) => "Guests",
            (16, [0]) => "Untrusted integrity",
            (16, [4096]) => "Low integrity",
            (16, [8192]) => "Medium integrity",
            (16, [8448]) => "Medium Plus integrity",
            (16, [12288]) => "High integrity",
            (16, [16384]) => "System integrity",
            (16, [20480]) => "Protected process integrity",
            _ => return None,
        })
    }
}

impl fmt::Display for Sid {
    /// As Windows writes it: an authority that does not fit into 32 bits in hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.authority >> 32 == 0 {
            write!(f, "S-1-{}", self.authority)?;
        } else {
            write!(f, "S-1-{:#014x}", self.authority)?;
        }
        self.parts.iter().try_for_each(|part| write!(f, "-{part}"))
    }
}

/// A group of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The group.
    pub sid: Sid,
    /// `SE_GROUP_...` of winnt.h: 1 mandatory, 2 by default, 4 enabled, 8 owner, 0x10 only for denial, 0x20 a level of integrity.
    pub attributes: u32,
}

/// A privilege of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Privilege {
    /// Its number.
    pub number: u8,
    /// Whether it is in effect; else the process may put it into effect.
    pub enabled: bool,
}

impl Privilege {
    /// Its name: `SeDebugPrivilege`; `None` for a number without one.
    pub fn name(self) -> Option<&'static str> {
        PRIVILEGES.get(usize::from(self.number).checked_sub(2)?).copied()
    }
}

/// Who a process is and what it may.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Token {
    /// Where the token is.
    pub address: VirtAddr,
    /// The user.
    pub user: Sid,
    /// The groups that it belongs to.
    pub groups: Vec<Group>,
    /// Its level of integrity (since Windows Vista).
    pub integrity: Option<Sid>,
    /// What it may beside what its user and groups may. `None` if the types do not describe it.
    pub privileges: Option<Vec<Privilege>>,
    /// The session of the log-on.
    pub session: Option<u32>,
}

impl<D: X86Driver> Process<'_, '_, D> {
    /// Its token.
    ///
    /// # Errors
    /// As reading memory; [`ErrorKind::Corrupt`] for an identity that cannot be; [`ErrorKind::NoObject`] if it has none any more.
    pub fn token(&self) -> Result<Token> {
        let (windows, member) = (self.windows, self.windows.layout.process.token);
        let pointer = || windows.fast_reference(self.address(), member);
        let token = vmi_core::live::behind(windows.vmi(), "the token of a process", pointer, |at| {
            at.map(|at| windows.read_token(at)).transpose()
        });
        let nothing = || Error::from(ErrorKind::NoObject { what: format!("token of the process at {}", self.address()) });
        self.whole(token)?.ok_or_else(nothing)
    }

    /// The user of its token.
    ///
    /// # Errors
    /// As [`Process::token`].
    pub fn user(&self) -> Result<Sid> {
        let (windows, member) = (self.windows, self.windows.layout.process.token);
        let pointer = || windows.fast_reference(self.address(), member);
        let user = vmi_core::live::behind(windows.vmi(), "the user of a process", pointer, |at| {
            let at = at.ok_or_else(|| ErrorKind::NoObject { what: format!("token of the process at {}", self.address()) })?;
            let array = windows.pointer(at, windows.layout.token.user_and_groups)?;
            windows.sid(windows.kernel_pointer(array)?)
        });
        self.whole(user)
    }
}

impl<D: X86Driver> Windows<'_, D> {
    fn read_token(&self, at: VirtAddr) -> Result<Token> {
        let layout = &self.layout.token;
        let count = self.number(at, layout.count)? as u32;
        if count == 0 || count > MAX_GROUPS {
            return Err(Error::corrupt(format!("a token of {count} users and groups"), at));
        }
        let array = self.pointer(at, layout.user_and_groups)?;
        let mut groups = Vec::new();
        for index in 0..u64::from(count) {
            // SID_AND_ATTRIBUTES: a pointer and 32 bits, in the room of two pointers.
            let pair = array.wrapping_add(index.wrapping_mul(self.width().bytes().wrapping_mul(2)));
            let sid = self.sid(self.kernel_pointer(pair)?)?;
            let attributes = KernelMemory(self).read::<u32>(pair.wrapping_add(self.width().bytes()))?;
            groups.push(Group { sid, attributes });
        }
        let integrity = if layout.integrity.exists() {
            let index = usize::try_from(self.number(at, layout.integrity)?).unwrap_or(usize::MAX);
            groups.get(index).map(|group| group.sid.clone()).filter(|sid| sid.authority == 16)
        } else {
            None
        };
        let user = groups.remove(0).sid;
        let session = crate::guest::known(self.number(at, layout.session))?.map(|session| session as u32);
        let privileges = crate::guest::known(self.privileges(at))?;
        Ok(Token { address: at, user, groups, integrity, privileges, session })
    }

    /// Since Windows Vista two sets of 64 bits; before, an array of a number (`LUID`) and attributes each.
    fn privileges(&self, at: VirtAddr) -> Result<Vec<Privilege>> {
        let layout = &self.layout.token;
        let place = layout.privileges.of(at)?;
        if layout.integrity.exists() || layout.present.exists() {
            let [present, enabled]: [u64; 2] = KernelMemory(self).read(place)?;
            let held = (0..64u8).filter(|number| present >> number & 1 == 1);
            return Ok(held.map(|number| Privilege { number, enabled: enabled >> number & 1 == 1 }).collect());
        }
        let count = self.number(at, layout.privilege_count)? as u32;
        if count > MAX_PRIVILEGES {
            return Err(Error::corrupt(format!("a token of {count} privileges"), at));
        }
        let array = self.kernel_pointer(place)?;
        let read = |index: u32| {
            let [low, _, attributes]: [u32; 3] =
                KernelMemory(self).read(array.wrapping_add(u64::from(index).wrapping_mul(12)))?;
            Ok(Privilege { number: u8::try_from(low).unwrap_or(u8::MAX), enabled: attributes & ENABLED != 0 })
        };
        (0..count).map(read).collect()
    }

    /// The security identifier at `at`: revision 1, how many parts it has, 6 bytes of authority with the highest first, the parts.
    fn sid(&self, at: VirtAddr) -> Result<Sid> {
        let head: [u8; 8] = KernelMemory(self).read(at)?;
        let [revision, count, authority @ ..] = head;
        if revision != 1 || count > MAX_PARTS {
            return Err(Error::corrupt(format!("a security identifier of revision {revision} with {count} parts"), at));
        }
        let bytes = KernelMemory(self).read_vec(at.wrapping_add(8), usize::from(count) * 4)?;
        let parts = bytes.as_chunks::<4>().0.iter().map(|part| u32::from_le_bytes(*part)).collect();
        let authority = authority.iter().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
        Ok(Sid { authority, parts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_as_text() {
        let sid = |authority, parts: &[u32]| Sid { authority, parts: parts.to_vec() };
        assert_eq!(sid(5, &[18]).to_string(), "S-1-5-18");
        assert_eq!(sid(5, &[18]).well_known_name(), Some("SYSTEM"));
        assert_eq!(sid(5, &[21, 1, 2, 3, 1001]).to_string(), "S-1-5-21-1-2-3-1001");
        // The example of RtlConvertSidToUnicodeString: an authority of more than 32 bits is written in hexadecimal.
        assert_eq!(sid(0x1_0000_0000, &[]).to_string(), "S-1-0x000100000000");
    }

    #[test]
    fn privileges_by_name() {
        let name = |number| Privilege { number, enabled: false }.name();
        assert_eq!(name(20), Some("SeDebugPrivilege"));
        assert_eq!(name(2), Some("SeCreateTokenPrivilege"));
        assert_eq!(name(36), Some("SeDelegateSessionUserImpersonatePrivilege"));
        assert_eq!((name(1), name(37)), (None, None));
    }
}
