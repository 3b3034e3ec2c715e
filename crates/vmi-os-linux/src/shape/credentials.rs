//! `cred` in `task_struct`, and `struct cred` (kernel: include/linux/cred.h).
//!
//! `real_cred` and `cred` are two pointers just before `comm`, equal but where a task has borrowed credentials for a moment. The
//! structure starts with a reference count, eight ids and `securebits`; then five capability sets. In those of the kernel
//! (`init_cred`) all ids are zero, and three sets are full.

use rustc_hash::FxHashSet;
use vmi_arch_x86::X86Driver;

use super::findings::Findings;
use super::sample::{Doubt, Object, Sample, only};
use super::tasks::Tasks;
use super::types::Kind;
use super::view::View;

/// Bytes of each `cred` that are judged.
const CRED_SIZE: usize = 0x80;
/// The ids, in their order.
const IDS: [&str; 8] = ["uid", "gid", "suid", "sgid", "euid", "egid", "fsuid", "fsgid"];
/// Where the ids and `cap_permitted` may be. The count has 4 bytes before 6.7 (kernel commit f8fa5d769259), those of a `long` since (and
/// in stable kernels that took it over); sets are aligned to 4 bytes before 6.3 (f122a08b197d), to 8 bytes since on x86-64.
const LAYOUTS: [(usize, usize); 3] = [(4, 48), (8, 52), (8, 56)];
/// The capabilities that there are at least: 37 since 3.5 (kernel: include/uapi/linux/capability.h).
const LEAST_FULL: u64 = (1 << 37) - 1;

/// Infers `real_cred`, `cred` and the ids.
pub(super) fn infer<D: X86Driver>(view: &View<'_, D>, tasks: &Tasks, findings: &mut Findings) {
    let sample = &tasks.sample;
    let width = sample.width;
    // `cached_requested_key` may lie between (CONFIG_KEYS, since 5.3).
    let start = tasks.comm.saturating_sub(width.saturating_mul(4));
    let mut ids = None;
    let real = only(start..tasks.comm.saturating_sub(width), width, |offset| {
        let found = same_pointers(sample, offset).then(|| layout(&credentials(view, sample, offset))).flatten();
        ids = ids.or(found);
        found.is_some()
    });
    let Some(real) = findings.record("task_struct", "real_cred", real, Kind::Pointer) else {
        findings.missing("task_struct", "cred", Doubt::None);
        return;
    };
    findings.add("task_struct", "cred", real.saturating_add(width), Kind::Pointer);
    findings.add("kuid_t", "val", 0, Kind::Number(4));
    findings.add("kgid_t", "val", 0, Kind::Number(4));
    for (index, name) in IDS.into_iter().enumerate() {
        let kind = if index.is_multiple_of(2) { "kuid_t" } else { "kgid_t" };
        findings.add("cred", name, ids.unwrap_or(0).saturating_add(index.saturating_mul(4)), Kind::Structure(kind));
    }
}

/// Whether the pointers at `offset` and behind it are the same in nearly all tasks, and in the first three.
fn same_pointers(sample: &Sample, offset: usize) -> bool {
    let same = |task: &Object| {
        let (first, second) = (task.word(offset, sample.width)?, task.word(offset.checked_add(sample.width)?, sample.width)?);
        Some(first == second && first != 0)
    };
    let count = sample.objects.len();
    sample.objects.iter().take(3).all(|task| same(task) == Some(true))
        && sample.count(same).saturating_mul(16) >= count.saturating_mul(15)
}

/// The different credentials that the tasks point at; swapper's first.
fn credentials<D: X86Driver>(view: &View<'_, D>, tasks: &Sample, offset: usize) -> Sample {
    let mut seen = FxHashSet::default();
    let different = tasks.words(offset).flatten().filter(|at| seen.insert(*at));
    let objects = different.filter_map(|at| Some(Object { at, bytes: view.bytes(at, CRED_SIZE)? })).collect();
    Sample { width: tasks.width, objects }
}

/// The offset of `uid`, if one layout alone is right for all credentials.
fn layout(credentials: &Sample) -> Option<usize> {
    let kernel = credentials.objects.first()?;
    let mut found = None;
    for (ids, permitted) in LAYOUTS {
        let Some(full) = full_set(kernel, ids, permitted) else { continue };
        let sound = |cred: &Object| {
            let permitted_caps = cred.u64(permitted)?;
            let effective = cred.u64(permitted.checked_add(8)?)?;
            Some(cred.u32(0)? != 0 && permitted_caps & !full == 0 && effective & !permitted_caps == 0)
        };
        if credentials.all(sound) {
            if found.is_some() {
                return None;
            }
            found = Some(ids);
        }
    }
    found
}

/// The full set of capabilities, if the kernel's credentials have this layout.
fn full_set(kernel: &Object, ids: usize, permitted: usize) -> Option<u64> {
    let inheritable = kernel.u64(permitted.checked_sub(8)?)?;
    // The ids and `securebits`.
    let zeros = kernel.bytes.get(ids..ids.checked_add(36)?)?;
    let full = kernel.u64(permitted)?;
    let effective = kernel.u64(permitted.checked_add(8)?)?;
    let bounding = kernel.u64(permitted.checked_add(16)?)?;
    let all_ones = full.count_ones() == full.trailing_ones();
    (zeros.iter().all(|byte| *byte == 0)
        && inheritable == 0
        && effective == full
        && bounding == full
        && all_ones
        && full >= LEAST_FULL)
        .then_some(full)
}
