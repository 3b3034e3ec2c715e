//! Processes by every view that their system has of them, in one form for all systems.

use vmi_arch_x86::X86Driver;
use vmi_core::{Error, PhysAddr, VirtAddr};

use crate::{System, linux, windows};

/// A process, and which views of its system know it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SeenProcess {
    /// Process id.
    pub pid: u32,
    /// Short name.
    pub name: String,
    /// Whether something hides it: [`linux::SeenProcess::is_hidden`], [`windows::SeenProcess::is_hidden`].
    pub hidden: bool,
    /// Whether it has ended.
    pub exited: bool,
    /// Each view by its name, and whether it knows the process; `None` if that view could not be had whole. Of Linux `list`, `id_table`, `children`; of Windows
    /// `list`, `id_table`, `threads`, `subsystem`, `pool`: what they are say [`linux::ProcessViews`] and [`windows::ProcessViews`].
    pub views: Vec<(&'static str, Option<bool>)>,
    /// Where its structure is in kernel memory; `None` if only the scan of physical memory has found it, and nothing there tells.
    pub object: Option<VirtAddr>,
    /// Where its structure is in physical memory, if it was found there.
    pub physical: Option<PhysAddr>,
}

/// The processes of all views, by id; and the views that could not be had.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct ProcessSurvey {
    /// The processes, in ascending order of their ids.
    pub processes: Vec<SeenProcess>,
    /// Views that failed, wholly or in part: which, in words, and why.
    pub problems: Vec<(&'static str, Error)>,
}

impl<D: X86Driver> System<'_, D> {
    /// Processes by every view that the system has of them: [`linux::Linux::survey_processes`], [`windows::Windows::survey_processes`]. Of a running guest the
    /// views are of different moments: pause it, or what comes or goes meanwhile seems to hide.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let vmi = vmi::open("guest.dmp")?;
    /// let system = vmi::attach_system(&vmi, &vmi::AttachOptions::new())?;
    /// for process in system.survey_processes().processes.iter().filter(|process| process.hidden) {
    ///     println!("{} {}: {:?}", process.pid, process.name, process.views);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn survey_processes(&self) -> ProcessSurvey {
        match self {
            Self::Linux(linux) => {
                let survey = linux.survey_processes();
                ProcessSurvey { processes: survey.processes.into_iter().map(Into::into).collect(), problems: survey.problems }
            }
            Self::Windows(windows) => {
                let survey = windows.survey_processes();
                ProcessSurvey { processes: survey.processes.into_iter().map(Into::into).collect(), problems: survey.problems }
            }
        }
    }
}

impl From<linux::SeenProcess> for SeenProcess {
    fn from(process: linux::SeenProcess) -> Self {
        let views = process.views;
        Self {
            pid: process.pid,
            hidden: process.is_hidden(),
            name: process.name,
            exited: process.exited,
            views: vec![("list", views.list), ("id_table", views.id_table), ("children", views.children)],
            object: Some(process.object),
            physical: None,
        }
    }
}

impl From<windows::SeenProcess> for SeenProcess {
    fn from(process: windows::SeenProcess) -> Self {
        let views = process.views;
        let all = [
            ("list", views.list),
            ("id_table", views.id_table),
            ("threads", views.threads),
            ("subsystem", views.subsystem),
            ("pool", views.pool),
        ];
        Self {
            pid: process.pid,
            hidden: process.is_hidden(),
            name: process.name,
            exited: process.exited,
            views: all.map(|(name, known)| (name, Some(known))).to_vec(),
            object: process.object,
            physical: process.physical,
        }
    }
}
