//! The table of process ids: a way to the tasks besides their list.
//!
//! It leads from the ids to `struct pid` (include/linux/pid.h), and that to the thread which has the id. Since 4.15 it is a [tree] in `init_pid_ns`, before a
//! [hash] table.

mod hash;
mod tree;

use vmi_arch_x86::X86Driver;
use vmi_core::{Error, Result, Rows, VirtAddr, list::rows, live};

use crate::{Linux, Task};
use tree::Ids;

/// The symbol of the namespace in which each task has an id.
pub(crate) const INITIAL: &str = "init_pid_ns";

impl<'v, D: X86Driver> Linux<'v, D> {
    /// The threads that the kernel's table of process ids knows, in ascending order of their ids; of each process one is the first, whose own id is that of
    /// the process. Compared with [`Linux::threads`] this tells what hides from either: see [`Linux::survey_processes`].
    ///
    /// Where the table is not described, [`ErrorKind::NoType`](vmi_core::ErrorKind::NoType) or [`ErrorKind::NoSymbol`](vmi_core::ErrorKind::NoSymbol) is the
    /// only row. In a running guest each row is of its own moment: threads that came or went meanwhile may be there or not.
    pub fn threads_by_id(&self) -> impl Iterator<Item = Result<Task<'_, 'v, D>>> {
        rows(self.ids()).filter_map(|id| id.and_then(|id| self.thread_of(id)).transpose())
    }

    /// Where the `struct pid` of each id is, in ascending order of the ids.
    fn ids(&self) -> Result<Rows<'_, VirtAddr>> {
        let (task, space) = (&self.layout.task, &self.layout.id_space);
        // What is missing is told at once, not by every row.
        self.layout.id.tasks.offset()?;
        task.id_links.offset()?;
        if !task.id.exists() {
            self.layout.id_link.id.offset()?;
        }
        let hashed = self.layout.id_number.chain.exists() && !space.array.exists() && !space.radix_tree.exists();
        Ok(if hashed { Box::new(self.hashed_ids()?.into_iter()) } else { Box::new(Ids::of(self)?) })
    }

    /// The thread that has the id `id`, a `struct pid`; `None` if it is only the id of a group or a session whose first thread has ended.
    fn thread_of(&self, id: VirtAddr) -> Result<Option<Task<'_, 'v, D>>> {
        let (task, link_of_id) = (&self.layout.task, self.layout.id_link.id);
        let read = || {
            let Some(link) = self.pointer_or_null(id, self.layout.id.tasks)? else { return Ok(None) };
            let at = task.id_links.owner(link)?;
            let own = if task.id.exists() { self.pointer(at, task.id)? } else { self.pointer(link, link_of_id)? };
            if own != id {
                return Err(Error::corrupt("a task that does not have the id which leads to it", at));
            }
            let found = if live::runs(self.vmi()) { Some(self.read(at, task.pid)?) } else { None };
            Ok(Some(Task::new(self, at, found)))
        };
        match read() {
            // It ended meanwhile.
            Err(_) if live::runs(self.vmi()) => Ok(None),
            read => read,
        }
    }
}

#[cfg(test)]
mod tests;
