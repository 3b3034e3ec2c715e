//! The registers of the vCPUs in `state.json`: each is a child of the node of the CPU manager, by its number.
//!
//! The structures in them have moved from version to version (hypervisor/src/kvm/x86_64/mod.rs, `VcpuKvmState`; hypervisor/src/arch/x86),
//! so they are found by their members: the general registers by `rax` and `rip`, or a list of the bytes of KVM's structure;
//! the others by `cr3` and `efer`.

use serde_json::Value;
use vmi_arch_x86::Registers;
use zerocopy::FromBytes;

use super::state::Node;
use crate::format::kvm::{self, General, Special};

/// A JSON tree of a vCPU's state is made for one after the other; it takes many times the room of its text.
const MAX_LEN: usize = 2 << 20;
/// KVM allows no more.
const MAX_VCPUS: usize = 4096;

/// In the order of the vCPUs; none if those of any vCPU are not found.
pub(super) fn of(root: &Node) -> Vec<Registers> {
    let Some(manager) = root.find("cpu-manager") else { return Vec::new() };
    let mut vcpus: Vec<_> = manager.children().filter_map(|(name, node)| Some((name.parse::<u32>().ok()?, node))).collect();
    vcpus.sort_by_key(|(number, _)| *number);
    let found: Option<Vec<_>> = vcpus.into_iter().take(MAX_VCPUS).map(|(_, node)| vcpu(node.data()?)).collect();
    found.unwrap_or_else(|| {
        tracing::warn!("the registers in the state are of an unknown form");
        Vec::new()
    })
}

fn vcpu(data: &[u8]) -> Option<Registers> {
    let tree: Value = Some(data).filter(|data| data.len() <= MAX_LEN).and_then(|data| serde_json::from_slice(data).ok())?;
    let general = match find(&tree, &|value| value.get("rax").and(value.get("rip")).is_some()) {
        Some(named) => kvm::named_general(|name| named.get(name)?.as_u64()),
        None => General::read_from_bytes(&bytes(&tree, "regs")?).ok(),
    };
    let special = match find(&tree, &|value| value.get("cr3").and(value.get("efer")).is_some()) {
        Some(named) => Special::named(|path| path.iter().try_fold(named, |value, name| value.get(name))?.as_u64()),
        None => Special::read_from_bytes(&bytes(&tree, "sregs")?).ok(),
    };
    special.filter(Special::is_possible).zip(general).map(|(special, general)| special.with(&general))
}

/// The first value in the tree that satisfies `test`. The depth of a tree is bounded by the parser.
fn find<'a>(tree: &'a Value, test: &dyn Fn(&Value) -> bool) -> Option<&'a Value> {
    match tree {
        found if test(found) => Some(found),
        Value::Object(members) => members.values().find_map(|value| find(value, test)),
        Value::Array(items) => items.iter().find_map(|value| find(value, test)),
        _ => None,
    }
}

/// The bytes that are listed under `name`, or below it (under the name of the hypervisor, such as `Kvm`).
fn bytes(tree: &Value, name: &str) -> Option<Vec<u8>> {
    let member = find(tree, &|value| value.get(name).is_some())?.get(name)?;
    let list = find(member, &Value::is_array)?.as_array()?;
    list.iter().map(|value| u8::try_from(value.as_u64()?).ok()).collect()
}
