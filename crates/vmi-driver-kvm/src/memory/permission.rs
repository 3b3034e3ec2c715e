//! What stands between this process and the memory of another.
//!
//! The rules are in ptrace(2), "Ptrace access mode checking", and in the kernel's Documentation/admin-guide/LSM/Yama.rst.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// The bit of CAP_SYS_PTRACE in a capability set (capabilities(7), linux/capability.h).
const CAP_SYS_PTRACE: u32 = 19;

/// Says which permission to the memory of process `pid` is missing, as far as can be told, and what to do.
pub(super) fn advice(pid: u32) -> String {
    let owner = fs::metadata(format!("/proc/{pid}")).map(|metadata| metadata.uid()).ok();
    let yama = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    tell(nix::unistd::geteuid().as_raw(), owner, has_ptrace(&status), yama.as_deref().map(str::trim))
}

/// Whether `/proc/self/status` shows the effective capability to trace any process.
fn has_ptrace(status: &str) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set.wrapping_shr(CAP_SYS_PTRACE) & 1 != 0)
}

fn tell(user: u32, owner: Option<u32>, capable: bool, yama: Option<&str>) -> String {
    const GRANT: &str = "run as root, or grant it with `setcap cap_sys_ptrace+ep PROGRAM`";
    match (owner, capable, yama) {
        (_, _, Some("3")) => {
            "the Yama module forbids it to everyone until the next boot (kernel.yama.ptrace_scope is 3)".to_owned()
        }
        (_, true, _) => {
            "this process has CAP_SYS_PTRACE, so a security module, a seccomp filter or a container's user namespace refuses it: \
                         run outside the container, or with a profile that allows ptrace"
                .to_owned()
        }
        (Some(owner), false, _) if owner != user => {
            format!(
                "the process belongs to user {owner} and this one runs as user {user} without CAP_SYS_PTRACE: run as that user, {GRANT}"
            )
        }
        (_, false, Some("2")) => format!("the Yama module asks for CAP_SYS_PTRACE (kernel.yama.ptrace_scope is 2): {GRANT}"),
        (_, false, Some("1")) => {
            format!(
                "the Yama module keeps it to parents (kernel.yama.ptrace_scope is 1): {GRANT}, or `sysctl kernel.yama.ptrace_scope=0`"
            )
        }
        (_, false, _) => format!("CAP_SYS_PTRACE is missing: {GRANT}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_told_with_its_remedy() {
        assert!(tell(1000, Some(64055), false, Some("1")).contains("belongs to user 64055"));
        assert!(tell(1000, Some(1000), false, Some("1")).contains("sysctl kernel.yama.ptrace_scope=0"));
        assert!(tell(1000, Some(1000), false, Some("2")).contains("setcap"));
        assert!(tell(0, Some(0), true, Some("3")).contains("next boot"));
        assert!(tell(0, Some(64055), true, Some("1")).contains("container"));
        assert!(tell(1000, None, false, None).contains("CAP_SYS_PTRACE"));
    }

    #[test]
    fn the_capability_is_bit_19() {
        assert!(has_ptrace("Name:\tx\nCapEff:\t0000000000080000\n"));
        assert!(!has_ptrace("CapPrm:\t0000000000080000\nCapEff:\tfffffffffff7ffff\n"));
        assert!(!has_ptrace("CapEff:\tnonsense\n"));
        assert!(!has_ptrace(""));
    }
}
