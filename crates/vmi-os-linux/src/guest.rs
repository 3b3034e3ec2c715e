//! A Linux guest as the rows that all operating systems share.

use std::time::SystemTime;

use vmi_arch_x86::X86Driver;
use vmi_core::{
    Error, Guest, LogRecord, Memory, MemoryArea, Module, Note, PhysAddr, Process, ProcessSurvey, Result, Rows, Symbols, Thread,
    Translation, VcpuId, VirtAddr, list::rows,
};

use crate::{Linux, ProcessMemory, Task};

/// `Some` of what could be read, `None` where this guest's types do not describe it.
fn known<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), vmi_core::ErrorKind::NoType { .. } | vmi_core::ErrorKind::NoSymbol { .. }) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// As [`known`], with user memory that is not there (paged out, or never touched) as `None` too.
fn present<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Err(error) if error.is_absent() => Ok(None),
        other => known(other),
    }
}

impl<'v, D: X86Driver> Linux<'v, D> {
    /// Rows, during which the guest is held if each read would stop it anyway. Where it cannot be held, reading says why.
    fn held<'a, T: 'a>(&'a self, rows: impl FnOnce() -> Rows<'a, T>) -> Rows<'a, T> {
        let held = self.vmi().hold_for_reading().ok();
        Box::new(rows().inspect(move |_| _ = &held))
    }
}

/// Whether a row failed because its object ended while it was read.
fn is_gone<T>(row: &Result<T>) -> bool {
    row.as_ref().is_err_and(|error| matches!(error.kind(), vmi_core::ErrorKind::Gone { .. }))
}

impl<D: X86Driver> Task<'_, '_, D> {
    /// The process as a row; `boot` is when the guest booted.
    fn row(&self, boot: Option<SystemTime>) -> Result<Process> {
        self.whole(self.unproven().read_row(boot))
    }

    fn read_row(&self, boot: Option<SystemTime>) -> Result<Process> {
        let mut row = Process::new(self.tgid()?, self.name()?, self.address());
        row.parent_pid = known(self.parent_pid())?;
        row.state = known(self.state())?;
        row.uid = known(self.uid())?;
        row.gid = known(self.gid())?;
        row.kernel = self.is_kernel_thread()?;
        row.page_table = known(self.page_table())?.flatten();
        row.started = known(self.start_time())?.and_then(|start| boot?.checked_add(start));
        if self.mm()?.is_some() {
            row.command_line = present(self.command_line())?;
        }
        Ok(row)
    }

    /// The thread as a row.
    fn thread_row(&self) -> Result<Thread> {
        let task = self.unproven();
        let read = || {
            let mut row = Thread::new(task.pid()?, task.tgid()?, task.name()?, task.address());
            row.state = known(task.state())?;
            Ok(row)
        };
        self.whole(read())
    }
}

impl<'v, D: X86Driver> Linux<'v, D> {
    /// The memory of a process.
    fn process_memory(&self, pid: u32) -> Result<ProcessMemory<'v, D>> {
        let nothing = || Error::from(vmi_core::ErrorKind::NoObject { what: format!("user memory of process {pid}") });
        self.process(pid)?.memory()?.ok_or_else(nothing)
    }
}

impl<D: X86Driver> Guest for Linux<'_, D> {
    fn version(&self) -> String {
        let release = self.banner().strip_prefix("Linux version ").and_then(|rest| rest.split(' ').next());
        format!("Linux {}", release.unwrap_or("of an unknown version"))
    }

    fn remarks(&self) -> Vec<String> {
        let layout = &self.layout;
        let features = [
            ("the states of processes", layout.task.state.exists()),
            ("the parents of processes", layout.task.real_parent.exists()),
            ("the users of processes", layout.cred.euid.exists()),
            ("the start of processes", layout.task.start.exists()),
            ("threads", layout.signal.thread_head.exists()),
            ("command lines", layout.mm.arg_start.exists()),
            ("memory areas", layout.area.start.exists()),
            ("modules", layout.module.list.exists()),
            ("the kernel log", layout.log.descriptors.exists() || layout.log_record.len.exists()),
            ("the boot time", layout.timekeeper.real.exists()),
        ];
        let lacking: Vec<_> = features.into_iter().filter(|(_, exists)| !exists).map(|(feature, _)| feature).collect();
        let mut remarks = self.kernel().remarks.clone();
        if !lacking.is_empty() {
            remarks.push(format!("the type information says nothing about {}", lacking.join(", ")));
        }
        if let Err(error) = known(self.boot_time()) {
            remarks.push(format!("the boot time cannot be told: {error}"));
        }
        if let Some(symbols) = self.symbol_remarks_so_far() {
            remarks.extend_from_slice(symbols);
        }
        remarks
    }

    fn dump_notes(&self) -> Vec<Note> {
        self.vmcoreinfo().map(Note::VmCoreInfo).into_iter().collect()
    }

    fn processes(&self) -> Rows<'_, Process> {
        // One that cannot be read is told by `remarks`.
        let boot = self.boot_time().ok();
        // One that ended after it was listed is no process any more.
        self.held(move || Box::new(Linux::processes(self).map(move |task| task?.row(boot)).filter(|row| !is_gone(row))))
    }

    fn survey_processes(&self) -> ProcessSurvey {
        self.survey_processes()
    }

    fn threads(&self) -> Rows<'_, Thread> {
        self.held(move || Box::new(Linux::threads(self).map(|task| task?.thread_row()).filter(|row| !is_gone(row))))
    }

    fn modules(&self) -> Rows<'_, Module> {
        self.held(move || {
            Box::new(Linux::modules(self).map(|module| {
                let module = module?;
                let (base, size) = module.place()?;
                let mut row = Module::new(module.name()?, base, size, module.address());
                row.references = module.references()?;
                Ok(row)
            }))
        })
    }

    fn memory_areas(&self, pid: u32) -> Rows<'_, MemoryArea> {
        self.held(move || Box::new(rows(self.process(pid).map(|task| task.memory_areas()))))
    }

    fn kernel_log(&self) -> Rows<'_, LogRecord> {
        self.held(move || Box::new(Linux::kernel_log(self)))
    }

    fn symbols(&self) -> &Symbols {
        Linux::symbols(self)
    }

    fn running_on(&self, vcpu: VcpuId) -> Result<Process> {
        let task = self.task_on(vcpu)?;
        // A row is that of a process; the task may be another of its threads.
        self.process(task.tgid()?).or(Ok(task)).and_then(|process: Task<'_, '_, D>| process.row(self.boot_time().ok()))
    }

    fn process_of(&self, root: PhysAddr) -> Result<Option<Process>> {
        self.task_of(root)?.map(|task| task.row(self.boot_time().ok())).transpose()
    }

    fn page_tables(&self, process: &Process) -> Vec<PhysAddr> {
        process.page_table.map_or(Vec::new(), |root| self.roots(root))
    }

    fn translate(&self, pid: Option<u32>, at: VirtAddr) -> Result<Translation> {
        match pid {
            Some(pid) => self.process_memory(pid)?.translate(at),
            None => self.space.translate(at),
        }
    }

    fn read_virtual(&self, pid: Option<u32>, at: VirtAddr, buf: &mut [u8]) -> Result<()> {
        match pid {
            Some(pid) => self.process_memory(pid)?.read_into(at, buf),
            None => self.space.read_into(at, buf),
        }
    }
}
