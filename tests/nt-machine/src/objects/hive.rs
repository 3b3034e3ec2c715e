//! Hives of the registry in memory.

use serde_json::{Value, json};

use super::header::ObjectManager;
use crate::{NtMachine, ProcessId};

/// A hive.
#[derive(Clone, Debug)]
pub struct Hive {
    /// Key objects for handles: path and address.
    pub key_objects: Vec<(String, u64)>,
}

impl Hive {
    /// As JSON.
    pub fn to_json(&self) -> Value {
        json!({})
    }
}

/// The hives of a typical machine.
pub fn typical(_machine: &mut NtMachine, _objects: &mut ObjectManager, _ids: &[ProcessId]) -> Vec<Hive> {
    Vec::new()
}
