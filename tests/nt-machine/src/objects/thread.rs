//! What a thread has besides its identity.
//!
//! Structures: `_ETHREAD`, `_KTHREAD`, `_TEB`, `_NT_TIB` in the public symbols. `KTHREAD_STATE` and `KWAIT_REASON`: the documentation of `KWAIT_REASON` in
//! `wdm.h` and of the Win32 class `Win32_Thread`.

use super::ground::{Ground, Writing};
use super::spec::Thread;

/// Fills the `_ETHREAD` of a thread, and its TEB in the space with this root.
pub fn fill_thread(ground: &mut impl Ground, thread: &Thread, pid: u64, root: u64, peb: u64) {
    let at = thread.ethread;
    ground.fill_pointer("_ETHREAD", "StartAddress", at, thread.start);
    ground.fill_pointer("_ETHREAD", "Win32StartAddress", at, thread.win32_start);
    // Until Windows Server 2003 the low three bits of CreateTime are other things.
    let shift = if ground.build_number() < 6000 { 3 } else { 0 };
    ground.fill("_ETHREAD", "CreateTime", at, thread.create_time << shift, 8);
    if thread.exit_time != 0 {
        ground.fill("_ETHREAD", "ExitTime", at, thread.exit_time, 8);
        ground.fill("_ETHREAD", "CrossThreadFlags", at, 1, 4);
    }
    ground.fill("_KTHREAD", "State", at, u64::from(thread.state), 1);
    ground.fill("_KTHREAD", "WaitReason", at, u64::from(thread.wait_reason), 1);
    ground.fill("_KTHREAD", "PreviousMode", at, u64::from(thread.teb != 0), 1);
    ground.fill_pointer("_KTHREAD", "Teb", at, thread.teb);
    let stack = ground.allocate(b"Stak", 0x3000);
    ground.fill_pointer("_KTHREAD", "StackLimit", at, stack);
    for member in ["StackBase", "InitialStack"] {
        ground.fill_pointer("_KTHREAD", member, at, stack + 0x3000);
    }
    ground.fill_pointer("_KTHREAD", "KernelStack", at, stack + 0x2E00);
    if thread.teb != 0 {
        let pointer = ground.pointer();
        let (base, limit) = (0x9_0000 + thread.tid * 0x1_0000, 0x9_0000 + thread.tid * 0x1_0000 - 0x4000);
        for (nth, value) in [(1, base), (2, limit), (6, thread.teb)] {
            ground.put_user(root, thread.teb + nth * pointer, value, pointer);
        }
        if let Some(id) = ground.find("_TEB", "ClientId") {
            ground.put_user(root, thread.teb + id, pid, pointer);
            ground.put_user(root, thread.teb + id + pointer, thread.tid, pointer);
        }
        if let Some(member) = ground.find("_TEB", "ProcessEnvironmentBlock") {
            ground.put_user(root, thread.teb + member, peb, pointer);
        }
    }
}
