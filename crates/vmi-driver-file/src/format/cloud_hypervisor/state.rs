//! `state.json`: a tree of nodes (Cloud Hypervisor, vm-migration/src/lib.rs, `Snapshot`). Each has children by name, and data.
//!
//! The form of the data has changed: today it is JSON as a text under `state`; before, it was a list of bytes under a name ending in
//! `-section`, which was JSON too, or in some versions the memory manager's structure in versionize, numbers as they are.

use core::fmt;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::FormatError;

/// A table of more ranges is none. Each zone of memory has a few.
const MAX_RANGES: usize = 4096;

/// A node of the tree. What is not known of it is skipped.
#[derive(Default, Deserialize)]
pub(super) struct Node {
    #[serde(default)]
    snapshots: Option<BTreeMap<String, Node>>,
    #[serde(default)]
    snapshot_data: Option<BTreeMap<String, Payload>>,
}

/// The data of a node: a text or bytes, at any depth of objects.
#[derive(Default)]
pub(super) struct Payload(Vec<u8>);

/// A range of memory in the order of the file.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Range {
    #[serde(alias = "start_addr")]
    pub(super) gpa: u64,
    #[serde(alias = "size")]
    pub(super) length: u64,
    /// Its own file, in the first versions.
    #[serde(default, alias = "content", alias = "backing_file")]
    pub(super) file: Option<String>,
}

/// What the memory manager keeps.
#[derive(Deserialize)]
struct Manager {
    memory_ranges: Option<Ranges>,
    memory_regions: Option<Vec<Range>>,
}

#[derive(Deserialize)]
struct Ranges {
    data: Vec<Range>,
}

impl Node {
    /// # Errors
    /// [`FormatError::Malformed`] if this is no such tree.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        serde_json::from_slice(bytes).map_err(|error| malformed(format!("the state cannot be read: {error}")))
    }

    /// The node of this name, wherever it is.
    pub(super) fn find(&self, name: &str) -> Option<&Self> {
        let children = self.snapshots.iter().flatten();
        children.clone().find(|(child, _)| *child == name).map(|(_, node)| node).or_else(|| {
            let mut children = children;
            children.find_map(|(_, node)| node.find(name))
        })
    }

    /// The children, by name.
    pub(super) fn children(&self) -> impl Iterator<Item = (&str, &Self)> {
        self.snapshots.iter().flatten().map(|(name, node)| (name.as_str(), node))
    }

    /// The data, if it has any.
    pub(super) fn data(&self) -> Option<&[u8]> {
        self.snapshot_data.iter().flatten().map(|(_, payload)| payload.0.as_slice()).find(|bytes| !bytes.is_empty())
    }

    /// The table of memory.
    pub(super) fn memory(&self) -> Result<Vec<Range>, FormatError> {
        let node = self.find("memory-manager").ok_or_else(|| malformed("no memory manager in the state".to_owned()))?;
        let data = node.data().ok_or_else(|| malformed("the memory manager in the state has no data".to_owned()))?;
        let ranges = if data.trim_ascii_start().starts_with(b"{") {
            let manager: Manager = serde_json::from_slice(data)
                .map_err(|error| malformed(format!("the memory manager's data cannot be read: {error}")))?;
            manager.memory_ranges.map(|ranges| ranges.data).or(manager.memory_regions)
        } else {
            binary(data)
        };
        let ranges = ranges.filter(|ranges| !ranges.is_empty() && ranges.len() <= MAX_RANGES);
        ranges.ok_or_else(|| malformed("the memory manager's data has no table of memory ranges".to_owned()))
    }
}

/// The table in versionize: it is the first member; a count, then address and length of each range.
fn binary(data: &[u8]) -> Option<Vec<Range>> {
    let (words, _) = data.as_chunks::<8>();
    let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
    let count = usize::try_from(words.next()?).ok().filter(|count| *count <= MAX_RANGES)?;
    let mut ranges = Vec::new();
    for _ in 0..count {
        ranges.push(Range { gpa: words.next()?, length: words.next()?, file: None });
    }
    Some(ranges)
}

fn malformed(what: String) -> FormatError {
    FormatError::Malformed { offset: 0, what }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PayloadVisitor)
    }
}

struct PayloadVisitor;

impl<'de> Visitor<'de> for PayloadVisitor {
    type Value = Payload;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the data of a node")
    }

    fn visit_str<E>(self, text: &str) -> Result<Payload, E> {
        Ok(Payload(text.as_bytes().to_vec()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Payload, A::Error> {
        let mut bytes = Vec::new();
        while let Some(byte) = list.next_element::<u8>()? {
            bytes.push(byte);
        }
        Ok(Payload(bytes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Payload, A::Error> {
        let mut found = Payload::default();
        while let Some(key) = map.next_key::<String>()? {
            if key == "snapshot" {
                found = map.next_value()?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_unit<E>(self) -> Result<Payload, E> {
        Ok(Payload::default())
    }
}
