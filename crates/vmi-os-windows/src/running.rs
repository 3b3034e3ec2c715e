//! Who runs: from a vCPU's registers to the thread and the process.

use vmi_arch_x86::{Registers, X86Driver};
use vmi_core::{Capability, Error, ErrorKind, Memory, PhysAddr, Result, VcpuId, VirtAddr};

use crate::unicode_string::Width;
use crate::windows::KernelMemory;
use crate::{Process, Thread, Windows};

impl<'v, D: X86Driver> Windows<'v, D> {
    /// The thread that a vCPU runs. Certain only while the vCPU stands still.
    ///
    /// The control region of the processor (`_KPCR`) tells it, to which GS leads in a 64-bit kernel and FS in a 32-bit one. While user code of a 32-bit
    /// system runs, FS leads elsewhere and the thread cannot be told.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if the back end does not show registers, [`ErrorKind::NoObject`] if they lead to no control region.
    pub fn thread_on(&self, vcpu: VcpuId) -> Result<Thread<'_, 'v, D>> {
        let registers = self.registers(vcpu)?;
        self.current_thread(&registers)
            .ok_or_else(|| ErrorKind::NoObject { what: format!("control region of a processor that {vcpu} leads to") }.into())
    }

    /// The process that a vCPU runs: that of its thread, or where it cannot be told, the one on whose page tables it runs.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if the back end does not show registers, [`ErrorKind::NoObject`] if they fit no process.
    pub fn process_on(&self, vcpu: VcpuId) -> Result<Process<'_, 'v, D>> {
        let registers = self.registers(vcpu)?;
        let by_thread = self.current_thread(&registers).and_then(|thread| {
            let process = thread.process().ok()?;
            // The idle process, which is in no list, has no id.
            (process.name().is_ok() && process.pid().is_ok()).then_some(process)
        });
        if let Some(process) = by_thread {
            return Ok(process);
        }
        let root = registers.page_table_root().ok_or_else(|| self.lacks_registers())?;
        self.process_of_tables(root)?
            .ok_or_else(|| ErrorKind::NoObject { what: format!("process on {vcpu}, whose CR3 is {root}") }.into())
    }

    /// The process whose page tables start at `root`, flags left aside: those of the kernel's mode or, under KVA shadow, those of user mode.
    ///
    /// # Errors
    /// What reading the processes reports.
    pub fn process_of_tables(&self, root: PhysAddr) -> Result<Option<Process<'_, 'v, D>>> {
        let root = self.space.mode().top_table(root);
        for process in self.processes() {
            let process = process?;
            if process.page_table().is_ok_and(|own| own == root) || process.user_page_table().is_ok_and(|own| own == Some(root)) {
                return Ok(Some(process));
            }
        }
        Ok(None)
    }

    fn registers(&self, vcpu: VcpuId) -> Result<Registers> {
        self.vmi().driver().vcpus().ok_or_else(|| self.lacks_registers())?.registers(vcpu)
    }

    fn lacks_registers(&self) -> Error {
        Error::unsupported(Capability::Vcpus, &self.vmi().machine().name)
    }

    /// What the control region of a vCPU says that it runs; `None` if there is none where the registers lead.
    fn current_thread(&self, registers: &Registers) -> Option<Thread<'_, 'v, D>> {
        // On the first instructions of an entry a 64-bit kernel has not swapped the bases of GS yet; a 32-bit kernel has not loaded FS yet.
        let bases = match self.width() {
            Width::Bits64 => [registers.segments.gs.map(|gs| gs.base), registers.kernel_gs_base],
            Width::Bits32 => [registers.segments.fs.map(|fs| fs.base), None],
        };
        let bases = bases.into_iter().flatten().map(VirtAddr::new).filter(|&base| self.is_kernel_address(base));
        bases.into_iter().find_map(|region| {
            let layout = &self.layout;
            let itself = self.pointer(region, layout.control_region.itself).ok()?;
            if itself != region {
                return None;
            }
            let block = self.pointer(region, layout.control_region.block).ok()?;
            let thread = self.pointer_or_null(block, layout.control_block.thread).ok()??;
            Some(self.thread_at(thread)).filter(|thread| thread.tid().is_ok())
        })
    }

    /// Reads a zero-terminated string of the kernel's own.
    pub(crate) fn c_string(&self, symbol: &str, limit: usize) -> Result<String> {
        let bytes = KernelMemory(self).read_c_string(self.symbol(symbol)?, limit)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}
