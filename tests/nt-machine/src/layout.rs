//! Where the members of the kernel's structures are: facts of real builds, read from a table.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

/// One structure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Struct {
    /// Bytes; 0 if the table does not tell.
    pub size: u64,
    /// Offset of each member, in bytes.
    pub members: BTreeMap<String, u64>,
}

/// The structures of one build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// By name.
    pub structs: BTreeMap<String, Struct>,
    /// Those that are not known for this build and were taken from a neighbour, so that a machine can be built at all. They are in no symbol file.
    pub borrowed: Vec<String>,
}

impl Layout {
    /// The `types` of an entry of `offsets.json`: `{"_EPROCESS": {"_size": 2624, "UniqueProcessId": 1088, ..}, ..}`.
    pub fn from_offsets(types: &Value) -> Self {
        let mut layout = Self::default();
        for (name, members) in types.as_object().into_iter().flatten() {
            let mut of = Struct::default();
            for (member, offset) in members.as_object().into_iter().flatten() {
                let Some(offset) = offset.as_u64() else { continue };
                if member == "_size" {
                    of.size = offset;
                } else {
                    of.members.insert(member.clone(), offset);
                }
            }
            layout.structs.insert(name.clone(), of);
        }
        layout
    }

    /// The types of a Volatility 3 symbol file.
    pub fn from_isf(isf: &Value) -> Self {
        let mut layout = Self::default();
        for (name, of) in isf["user_types"].as_object().into_iter().flatten() {
            let members = of["fields"].as_object().into_iter().flatten();
            let members = members.filter_map(|(member, field)| Some((member.clone(), field["offset"].as_u64()?))).collect();
            layout.structs.insert(name.clone(), Struct { size: of["size"].as_u64().unwrap_or(0), members });
        }
        layout
    }

    /// Takes the structures that are missing here from another build.
    pub fn borrow_missing(&mut self, neighbour: &Self) {
        for (name, of) in &neighbour.structs {
            if !self.structs.contains_key(name) {
                self.structs.insert(name.clone(), of.clone());
                self.borrowed.push(name.clone());
            }
        }
    }

    /// The offset of a member, `None` if this build has none such.
    pub fn offset(&self, of: &str, member: &str) -> Option<u64> {
        self.structs.get(of)?.members.get(member).copied()
    }

    /// The offset of the first of these members that the build has.
    pub fn offset_of_any(&self, of: &str, members: &[&str]) -> Option<u64> {
        members.iter().find_map(|member| self.offset(of, member))
    }

    /// The bytes of a structure: the table's, or as many as its last known member needs.
    pub fn size(&self, of: &str) -> u64 {
        let Some(of) = self.structs.get(of) else { return 0 };
        if of.size != 0 { of.size } else { of.members.values().max().map_or(0, |last| last + 0x100) }
    }
}

/// The file of offsets in the directory that `VMI_SHARED_DATA` names.
pub(crate) fn shared_offsets() -> Option<Value> {
    let directory = std::env::var_os("VMI_SHARED_DATA")?;
    let text = std::fs::read(Path::new(&directory).join("windows/offsets.json")).ok()?;
    serde_json::from_slice(&text).ok()
}
