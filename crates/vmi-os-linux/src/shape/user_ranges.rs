//! What `mm_struct` says of a process's memory: `start_code` to `env_end` (kernel: include/linux/mm_types.h).
//!
//! Eleven addresses in a row. The kernel sets them when a program is loaded (`load_elf_binary` in fs/binfmt_elf.c): arguments and
//! environment lie above the start of the stack, the environment where the arguments end.

use super::findings::Findings;
use super::page_tables::Spaces;
use super::sample::{Object, Sample, only};
use super::types::Kind;

const NAMES: [&str; 11] = [
    "start_code",
    "end_code",
    "start_data",
    "end_data",
    "start_brk",
    "brk",
    "start_stack",
    "arg_start",
    "arg_end",
    "env_start",
    "env_end",
];

/// Where the eleven members are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ranges {
    /// Offset of `start_code` in `mm_struct`.
    pub(super) start_code: usize,
    width: usize,
}

/// The eleven members of one `mm_struct`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said {
    pub(super) start_code: u64,
    pub(super) end_code: u64,
    start_data: u64,
    end_data: u64,
    pub(super) start_brk: u64,
    pub(super) brk: u64,
    pub(super) start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
}

/// Infers the eleven members.
pub(super) fn infer(spaces: &Spaces, findings: &mut Findings) -> Option<Ranges> {
    let sample = &spaces.sample;
    let width = sample.width;
    let size = sample.objects.first().map_or(0, |mm| mm.bytes.len());
    let start_code = only(spaces.pgd..size, width, |start_code| is_right(sample, Ranges { start_code, width }));
    let start_code = findings.record("mm_struct", "start_code", start_code, Kind::Pointer)?;
    for (index, name) in NAMES.into_iter().enumerate().skip(1) {
        findings.add("mm_struct", name, start_code.saturating_add(index.saturating_mul(width)), Kind::Pointer);
    }
    Some(Ranges { start_code, width })
}

impl Ranges {
    /// What `mm` says.
    pub(super) fn of(self, mm: &Object) -> Option<Said> {
        let word = |index: usize| mm.word(self.start_code.checked_add(index.checked_mul(self.width)?)?, self.width);
        Some(Said {
            start_code: word(0)?,
            end_code: word(1)?,
            start_data: word(2)?,
            end_data: word(3)?,
            start_brk: word(4)?,
            brk: word(5)?,
            start_stack: word(6)?,
            arg_start: word(7)?,
            arg_end: word(8)?,
            env_start: word(9)?,
            env_end: word(10)?,
        })
    }
}

/// Every range ends after its start in every process; and in nearly all, as a program may change it (prctl(2), `PR_SET_MM`), they lie
/// as the kernel laid them.
fn is_right(sample: &Sample, ranges: Ranges) -> bool {
    let sound = sample.all(|mm| {
        let said = ranges.of(mm)?;
        Some(
            said.start_code <= said.end_code
                && said.start_data <= said.end_data
                && said.start_brk <= said.brk
                && said.arg_start <= said.arg_end
                && said.env_start <= said.env_end,
        )
    });
    let usual = sample.count(|mm| {
        let said = ranges.of(mm)?;
        let program = 0 < said.start_code && said.start_code < said.end_code && said.end_code <= said.end_data;
        let stack = said.start_brk < said.start_stack && said.start_stack < said.arg_start;
        let strings = said.arg_start < said.arg_end && said.arg_end == said.env_start && said.env_start < said.env_end;
        Some(program && said.end_data <= said.start_brk && stack && strings)
    });
    sound && usual.saturating_mul(8) >= sample.objects.len().saturating_mul(7)
}
