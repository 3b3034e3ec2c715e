//! Access tokens.
//!
//! Structures: `_TOKEN`, `_SID_AND_ATTRIBUTES`, `_SEP_TOKEN_PRIVILEGES` in the public symbols; SIDs: [MS-DTYP] 2.4.2.2.

use super::ground::{Ground, Writing};
use super::header::{NewObject, ObjectManager};
use super::spec::Token;

/// The bytes of a SID given in text: `S-1-5-18`.
pub fn sid_bytes(text: &str) -> Vec<u8> {
    let parts: Vec<u64> = text.trim_start_matches("S-").split('-').map(|part| part.parse().expect("a number")).collect();
    let mut bytes = vec![parts[0] as u8, (parts.len() - 2) as u8];
    bytes.extend_from_slice(&parts[1].to_be_bytes()[2..]);
    parts[2..].iter().for_each(|part| bytes.extend_from_slice(&(*part as u32).to_le_bytes()));
    bytes
}

/// Writes a token and gives its address.
pub fn write_token(ground: &mut impl Ground, objects: &ObjectManager, token: &Token, session: u32, serial: u64) -> u64 {
    let fixed = ground.size_of("_TOKEN").next_multiple_of(16);
    let each = ground.size_of("_SID_AND_ATTRIBUTES");
    let sids: Vec<&String> = std::iter::once(&token.user).chain(&token.groups).collect();
    let bytes: Vec<Vec<u8>> = sids.iter().map(|sid| sid_bytes(sid)).collect();
    let variable = each * sids.len() as u64 + bytes.iter().map(|sid| sid.len().next_multiple_of(8) as u64).sum::<u64>();
    let address = objects.create(ground, &NewObject { kind: "Token", size: fixed + variable, ..NewObject::default() });
    let mut at = address + fixed + each * sids.len() as u64;
    for (nth, sid) in bytes.iter().enumerate() {
        ground.write(at, sid);
        let entry = address + fixed + each * nth as u64;
        ground.put_pointer(entry, at);
        // SE_GROUP_MANDATORY, ENABLED_BY_DEFAULT, ENABLED; for the integrity level SE_GROUP_INTEGRITY and its ENABLED.
        let attributes = match (nth, sids[nth].starts_with("S-1-16-")) {
            (0, _) => 0,
            (_, false) => 7,
            (_, true) => 0x60,
        };
        ground.put(entry + ground.pointer(), attributes, 4);
        at += sid.len().next_multiple_of(8) as u64;
    }
    ground.fill_pointer("_TOKEN", "UserAndGroups", address, address + fixed);
    ground.fill("_TOKEN", "UserAndGroupCount", address, sids.len() as u64, 4);
    ground.fill("_TOKEN", "VariableLength", address, variable, 4);
    ground.fill("_TOKEN", "SessionId", address, u64::from(session), 4);
    ground.fill("_TOKEN", "TokenId", address, 0x1_0000 + serial * 0x31, 8);
    ground.fill("_TOKEN", "AuthenticationId", address, token.logon, 8);
    // TokenPrimary.
    ground.fill("_TOKEN", "TokenType", address, 1, 4);
    ground.fill("_TOKEN", "IntegrityLevelIndex", address, sids.len() as u64 - 1, 4);
    // Since Windows Vista three masks: present, enabled, enabled by default. Before, an array elsewhere.
    if let Some(privileges) = ground.find("_TOKEN", "Privileges").filter(|_| ground.build_number() >= 6000) {
        for (nth, mask) in [token.privileges.0, token.privileges.1, token.privileges.1].into_iter().enumerate() {
            ground.put(address + privileges + nth as u64 * 8, mask, 8);
        }
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sid_in_bytes() {
        assert_eq!(sid_bytes("S-1-5-18"), [1, 1, 0, 0, 0, 0, 0, 5, 18, 0, 0, 0]);
        assert_eq!(sid_bytes("S-1-5-32-544"), [1, 2, 0, 0, 0, 0, 0, 5, 32, 0, 0, 0, 0x20, 2, 0, 0]);
    }
}
