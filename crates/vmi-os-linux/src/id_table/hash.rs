//! The hash table of process ids of kernels before 4.15 (kernel/pid.c).
//!
//! `pid_hash` names an array of heads, 2 to the power of `pidhash_shift` many, each of a list of `struct upid` by their `pid_chain`. Such a structure is an id in
//! one namespace and lies in its `struct pid`, that of the first namespace first.

use rustc_hash::FxHashSet;
use vmi_arch_x86::X86Driver;
use vmi_core::{Error, ErrorKind, Memory, Paging, Result, VirtAddr};

use super::INITIAL;
use crate::Linux;
use crate::linux::MAX_TASKS;

/// The kernel makes 4096 lists at most (`pidhash_init`).
const MAX_SHIFT: u32 = 12;

impl<D: X86Driver> Linux<'_, D> {
    /// Where the `struct pid` of each id of the first namespace is, in ascending order of the ids. A list that cannot be read to its end is an error behind them.
    ///
    /// # Errors
    /// A member or symbol that is not known, or the place of the table.
    pub(super) fn hashed_ids(&self) -> Result<Vec<Result<VirtAddr>>> {
        let id = &self.layout.id_number;
        // What is missing is told at once, not by every row.
        for member in [id.number, id.space, id.chain, self.layout.id.numbers] {
            member.offset()?;
        }
        let initial = self.symbol(INITIAL)?;
        let shift: u32 = self.space.read(self.symbol("pidhash_shift")?)?;
        let heads = self.space.read_pointer(self.symbol("pid_hash")?)?;
        if shift > MAX_SHIFT {
            return Err(Error::corrupt("the size of the hash table of process ids", heads));
        }
        let width = self.space.mode().pointer_size() as u64;
        let (mut found, mut problems, mut visited) = (Vec::new(), Vec::new(), FxHashSet::default());
        for list in 0..1u64 << shift {
            let head = heads.wrapping_add(list.wrapping_mul(width));
            if let Err(error) = self.hashed_in(head, initial, &mut visited, &mut found) {
                let is_all = matches!(error.kind(), ErrorKind::Limit { .. });
                problems.push(error);
                if is_all {
                    break;
                }
            }
        }
        found.sort_unstable_by_key(|&(number, _)| number);
        let found = found.into_iter().map(|(_, at)| Ok(at));
        Ok(found.chain(problems.into_iter().map(Err)).collect())
    }

    /// Adds the ids of one list, as numbers and addresses of `struct pid`.
    fn hashed_in(
        &self,
        head: VirtAddr,
        initial: VirtAddr,
        visited: &mut FxHashSet<VirtAddr>,
        found: &mut Vec<(u32, VirtAddr)>,
    ) -> Result<()> {
        let layout = &self.layout.id_number;
        let mut node = self.space.read_pointer(head)?;
        while !node.is_null() {
            if visited.len() >= MAX_TASKS {
                return Err(ErrorKind::Limit { what: "the process ids".to_owned(), limit: MAX_TASKS }.into());
            }
            if !visited.insert(node) {
                return Err(Error::corrupt("the hash table of process ids runs in a circle", node));
            }
            let id = layout.chain.owner(node)?;
            if self.pointer(id, layout.space)? == initial {
                found.push((self.read(id, layout.number)?, self.layout.id.numbers.owner(id)?));
            }
            // A node begins with the pointer to the next one (include/linux/types.h).
            node = self.space.read_pointer(node)?;
        }
        Ok(())
    }
}
