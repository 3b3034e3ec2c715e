//! Who runs: from a vCPU's registers to the task.

use vmi_arch_x86::{Registers, X86Driver};
use vmi_core::{Capability, Error, ErrorKind, Memory, PhysAddr, Result, VcpuId, VirtAddr};

use crate::{Linux, Task};

/// With page-table isolation, the tables that user code runs on lie one page behind those of the kernel, in one block of two pages (Linux:
/// `PTI_USER_PGTABLE_BIT`, arch/x86/entry/calling.h).
const USER_TABLES: u64 = 0x1000;

/// The entries of a top table that map user memory, in bytes.
const USER_HALF: usize = 2048;

impl<'v, D: X86Driver> Linux<'v, D> {
    /// The task that a vCPU runs. Certain only while the vCPU stands still.
    ///
    /// In the kernel it is asked for the per-CPU variable `current_task` (since Linux 6.2, `pcpu_hot`, whose first member it is until 6.14), by the base of GS;
    /// in user code, or where that variable is not known, the page tables tell.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if the back end does not show registers, [`ErrorKind::NoObject`] if they fit no task.
    pub fn task_on(&self, vcpu: VcpuId) -> Result<Task<'_, 'v, D>> {
        let lacks = || Error::unsupported(Capability::Vcpus, &self.vmi().machine().name);
        let registers = self.vmi().driver().vcpus().ok_or_else(lacks)?.registers(vcpu)?;
        if let Some(task) = self.current_task(&registers) {
            return Ok(task);
        }
        let root = registers.page_table_root().ok_or_else(lacks)?;
        self.task_of(root)?.ok_or_else(|| ErrorKind::NoObject { what: format!("task on {vcpu}, whose CR3 is {root}") }.into())
    }

    /// The process whose page tables start at `root`, flags left aside.
    ///
    /// # Errors
    /// What reading the processes reports.
    pub fn task_of(&self, root: PhysAddr) -> Result<Option<Task<'_, 'v, D>>> {
        let root = root.get() & 0x000f_ffff_ffff_f000;
        let mut user = None;
        for task in self.processes() {
            let task = task?;
            let Ok(Some(own)) = task.page_table() else { continue };
            let own = own.get();
            if own == root {
                return Ok(Some(task));
            }
            if own & USER_TABLES == 0 && own | USER_TABLES == root {
                user = Some(task);
            }
        }
        Ok(user)
    }

    /// All page tables that the process with this one runs on.
    pub(crate) fn roots(&self, root: PhysAddr) -> Vec<PhysAddr> {
        let mut roots = vec![root];
        let user = PhysAddr::new(root.get() | USER_TABLES);
        // Without isolation the page behind is anything: only tables that map the same user memory are its other half.
        if user != root && self.maps_the_same(root, user) {
            roots.push(user);
        }
        roots
    }

    /// Whether two top tables have the same tables below them for user memory; flags differ (isolation makes the kernel's not executable).
    fn maps_the_same(&self, kernel: PhysAddr, user: PhysAddr) -> bool {
        let mut halves = [[0u8; USER_HALF]; 2];
        let [left, right] = &mut halves;
        if self.vmi().read_into(kernel, left).is_err() || self.vmi().read_into(user, right).is_err() {
            return false;
        }
        let frame = |entry: &[u8; 8]| {
            let entry = u64::from_le_bytes(*entry);
            if entry & 1 == 0 { 0 } else { entry & 0x000f_ffff_ffff_f000 }
        };
        let (left, right) = (left.as_chunks::<8>().0, right.as_chunks::<8>().0);
        left.iter().any(|entry| frame(entry) != 0) && left.iter().map(frame).eq(right.iter().map(frame))
    }

    /// What the kernel on a vCPU says that it runs; `None` if the vCPU is in user code or the answer is no task.
    fn current_task(&self, registers: &Registers) -> Option<Task<'_, 'v, D>> {
        let symbols = &self.kernel().symbols;
        let variable = symbols.find("current_task").or_else(|| symbols.find("pcpu_hot"))?.address;
        // On the first instructions of an entry the kernel has not swapped the bases yet.
        let bases = [registers.segments.gs.map(|gs| gs.base), registers.kernel_gs_base];
        let is_kernel = |base: &u64| base >> 63 == 1;
        bases.into_iter().flatten().filter(is_kernel).find_map(|base| {
            let at = VirtAddr::new(base.wrapping_add(variable.get()));
            let task: u64 = self.kernel_space().read(at).ok()?;
            let task = self.task_at(VirtAddr::new(task));
            // Something that is read as a task must be one: its process is in the list, or it is an idle task, whose process id is 0.
            let tgid = task.tgid().ok().filter(|_| task.address().get() >> 63 == 1)?;
            (tgid == 0 || self.process(tgid).is_ok()).then_some(task)
        })
    }
}
