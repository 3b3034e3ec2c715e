//! What QEMU's human monitor prints.

use vmi_driver_kvm::{human_registers, memory_tree};

/// The memory tree: ranges that were taken are ascending and disjoint.
pub(super) fn memory_tree(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let _ = memory_tree::parse_host_address(&text);
    let Ok(ranges) = memory_tree::parse(&text) else { return false };
    assert!(ranges.windows(2).all(|pair| pair[0].region.end() <= pair[1].region.start()));
    !ranges.is_empty()
}

/// Registers of all vCPUs, which must be usable whatever they hold.
pub(super) fn registers(data: &[u8]) -> bool {
    let Ok(all) = human_registers::parse(&String::from_utf8_lossy(data)) else { return false };
    for registers in &all {
        let _ = (registers.paging_mode(), registers.code_mode(), registers.privilege_level(), registers.to_string());
    }
    true
}
