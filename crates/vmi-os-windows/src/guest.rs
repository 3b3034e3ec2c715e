//! A Windows guest as the rows that all operating systems share.

use vmi_arch_x86::X86Driver;
use vmi_core::{
    Error, ErrorKind, Guest, LogRecord, Memory, MemoryArea, Module, Note, PhysAddr, Process as Row, ProcessSurvey, Result, Rows,
    State, Symbols, Thread as ThreadRow, Translation, VcpuId, VirtAddr, list::rows,
};

use crate::peb::arguments;
use crate::{Process, Thread, Windows, triage, version};

/// Bytes of `NtBuildLab`.
const MAX_BUILD_LAB: usize = 256;

/// `Some` of what could be read, `None` where this guest's types do not describe it.
pub(crate) fn known<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), ErrorKind::NoType { .. } | ErrorKind::NoSymbol { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// As [`known`], with memory that is not there (paged out, or left out of a dump) as `None` too.
pub(crate) fn present<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Err(error) if error.is_absent() => Ok(None),
        other => known(other),
    }
}

/// Whether a row failed because its object ended while it was read.
fn is_gone<T>(row: &Result<T>) -> bool {
    row.as_ref().is_err_and(|error| matches!(error.kind(), ErrorKind::Gone { .. }))
}

impl<'v, D: X86Driver> Windows<'v, D> {
    /// Rows, during which the guest is held if each read would stop it anyway. Where it cannot be held, reading says why.
    fn held<'a, T: 'a>(&'a self, rows: impl FnOnce() -> Rows<'a, T>) -> Rows<'a, T> {
        let held = self.vmi().hold_for_reading().ok();
        Box::new(rows().inspect(move |_| _ = &held))
    }
}

impl<D: X86Driver> Process<'_, '_, D> {
    /// The process as a row.
    fn row(&self) -> Result<Row> {
        self.whole(self.unproven().read_row())
    }

    fn read_row(&self) -> Result<Row> {
        let mut row = Row::new(self.pid()?, self.name()?, self.address());
        row.parent_pid = known(self.parent_pid())?;
        row.started = known(self.create_time())?.flatten();
        let exited = known(self.has_exited())?.unwrap_or(false);
        row.state = exited.then_some(State::Zombie);
        row.kernel = known(self.is_kernel_process())?.unwrap_or(false);
        row.page_table = known(self.page_table())?.filter(|root| *root != PhysAddr::ZERO);
        if !row.kernel && !exited {
            row.command_line = present(self.command_line())?.flatten().map(|line| arguments(&line));
        }
        Ok(row)
    }
}

impl<D: X86Driver> Thread<'_, '_, D> {
    /// The thread as a row. Few threads have a name of their own: the others have that of their process.
    fn row(&self) -> Result<ThreadRow> {
        let thread = self.unproven();
        let read = || {
            let own = present(thread.name())?.flatten();
            let name = match own {
                Some(name) => name,
                None => present(thread.process().and_then(|process| process.name()))?.unwrap_or_default(),
            };
            let mut row = ThreadRow::new(thread.tid()?, thread.pid()?, name, thread.address());
            row.state = known(thread.general_state())?;
            Ok(row)
        };
        self.whole(read())
    }
}

impl<D: X86Driver> Guest for Windows<'_, D> {
    /// The release that the build belongs to, and the width: `Windows 10 19041 x64`; where the kernel's own name of its build is in memory, that too:
    /// `Windows 10 19041 x64 (19041.1.amd64fre.vb_release.191206-1406)`.
    fn version(&self) -> String {
        let width = if self.space.mode().is_long() { "x64" } else { "x86" };
        let name = match self.build() {
            Some(build) => version::name(build),
            None => "Windows of an unknown version".to_owned(),
        };
        match self.c_string("NtBuildLab", MAX_BUILD_LAB) {
            Ok(lab) if !lab.is_empty() && lab.bytes().all(|byte| byte.is_ascii_graphic()) => format!("{name} {width} ({lab})"),
            _ => format!("{name} {width}"),
        }
    }

    fn remarks(&self) -> Vec<String> {
        let layout = &self.layout;
        let features = [
            ("the parents of processes", layout.process.parent.exists()),
            ("the paths of programs", layout.process.audit.exists()),
            ("the start of processes", layout.process.created.exists()),
            ("the end of processes", layout.process.exited.exists()),
            ("command lines", layout.process.peb.exists()),
            ("the users of processes", layout.process.token.exists() && layout.token.user_and_groups.exists()),
            ("threads", layout.thread.tid.exists()),
            ("memory areas", layout.process.vad_root.exists() && layout.vad.start.exists()),
            ("modules", layout.kernel_module.base.exists() || layout.module.base.exists()),
        ];
        let lacking: Vec<_> = features.into_iter().filter(|(_, exists)| !exists).map(|(feature, _)| feature).collect();
        let mut remarks = self.kernel().remarks.clone();
        if !lacking.is_empty() {
            remarks.push(format!("the type information says nothing about {}", lacking.join(", ")));
        }
        remarks
    }

    fn dump_notes(&self) -> Vec<Note> {
        Vec::new()
    }

    fn processes(&self) -> Rows<'_, Row> {
        // One that ended after it was listed is no process any more.
        self.held(move || Box::new(Windows::processes(self).map(|process| process?.row()).filter(|row| !is_gone(row))))
    }

    fn survey_processes(&self) -> ProcessSurvey {
        self.survey_processes()
    }

    fn threads(&self) -> Rows<'_, ThreadRow> {
        self.held(move || Box::new(Windows::threads(self).map(|thread| thread?.row()).filter(|row| !is_gone(row))))
    }

    fn modules(&self) -> Rows<'_, Module> {
        self.held(move || {
            let read = |module: crate::KernelModule<'_, '_, D>| {
                let mut row = Module::new(module.name()?, module.base()?, module.size()?, module.address());
                row.references = known(module.load_count())?.map(u32::from);
                Ok(row)
            };
            if triage::parts(self.vmi()).is_some() {
                let row = |driver: crate::DumpedDriver| {
                    let name = driver.name().to_owned();
                    Ok(Module::new(name, driver.base, driver.size, VirtAddr::ZERO))
                };
                return Box::new(rows(self.dumped_drivers().map(|drivers| drivers.into_iter().map(row))));
            }
            Box::new(self.kernel_modules().map(move |module| read(module?)).filter(|row| !is_gone(row)))
        })
    }

    fn memory_areas(&self, pid: u32) -> Rows<'_, MemoryArea> {
        self.held(move || Box::new(rows(self.process(pid).map(|process| process.memory_areas()))))
    }

    /// Windows has no kernel log in memory: the only row is the error that says so.
    fn kernel_log(&self) -> Rows<'_, LogRecord> {
        let what = "kernel log: Windows keeps events in files, not in the kernel's memory".to_owned();
        Box::new(std::iter::once(Err(Error::from(ErrorKind::NoObject { what }))))
    }

    fn symbols(&self) -> &Symbols {
        Windows::symbols(self)
    }

    fn running_on(&self, vcpu: VcpuId) -> Result<Row> {
        self.process_on(vcpu)?.row()
    }

    fn process_of(&self, root: PhysAddr) -> Result<Option<Row>> {
        self.process_of_tables(root)?.map(|process| process.row()).transpose()
    }

    fn page_tables(&self, process: &Row) -> Vec<PhysAddr> {
        let user = self.process_at(process.object).user_page_table().ok().flatten();
        process.page_table.into_iter().chain(user).collect()
    }

    fn translate(&self, pid: Option<u32>, at: VirtAddr) -> Result<Translation> {
        match pid {
            Some(pid) => self.process(pid)?.memory()?.translate(at),
            None => self.space.translate(at),
        }
    }

    fn read_virtual(&self, pid: Option<u32>, at: VirtAddr, buf: &mut [u8]) -> Result<()> {
        match pid {
            Some(pid) => self.process(pid)?.memory()?.read_into(at, buf),
            None => self.read_kernel(at, buf),
        }
    }
}
