//! Processes by every view that the system has of them.

use std::collections::BTreeMap;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use vmi::{AnyDriver, Result, System, linux, windows};

use crate::rows::{Row, plain_row};

plain_row! {
    /// A process, and which views know it.
    SeenProcess {
        /// Process id.
        pid: u32,
        /// Its short name.
        name: String,
        /// Something hides it: it runs, and a view leaves it out that knows all others.
        hidden: bool,
        /// It has ended.
        exited: bool,
        /// Whether each view knows it; None if the view could not be had whole. Of Linux: list, id_table, children; of Windows: list, id_table, threads,
        /// subsystem, pool.
        views: BTreeMap<String, Option<bool>>,
        /// Where its structure is in kernel memory.
        object: Option<u64>,
        /// Where its structure is in physical memory, if it was found there.
        physical: Option<u64>,
    }
}

fn named<const N: usize>(views: [(&str, Option<bool>); N]) -> BTreeMap<String, Option<bool>> {
    views.into_iter().map(|(name, known)| (name.to_owned(), known)).collect()
}

impl From<linux::SeenProcess> for SeenProcess {
    fn from(process: linux::SeenProcess) -> Self {
        let views = process.views;
        Self {
            pid: process.pid,
            hidden: process.is_hidden(),
            exited: process.exited,
            views: named([("list", views.list), ("id_table", views.id_table), ("children", views.children)]),
            object: Some(process.object.get()),
            physical: None,
            name: process.name,
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
            exited: process.exited,
            views: named(all.map(|(name, known)| (name, Some(known)))),
            object: process.object.map(|at| at.get()),
            physical: process.physical.map(|at| at.get()),
            name: process.name,
        }
    }
}

/// The processes of all views, and behind them why a view failed.
pub(crate) fn survey(system: &System<'_, AnyDriver>) -> Vec<Result<Row>> {
    let (rows, problems): (Vec<SeenProcess>, _) = match system {
        System::Linux(linux) => {
            let survey = linux.survey_processes();
            (survey.processes.into_iter().map(SeenProcess::from).collect(), survey.problems)
        }
        System::Windows(windows) => {
            let survey = windows.survey_processes();
            (survey.processes.into_iter().map(SeenProcess::from).collect(), survey.problems)
        }
        _ => (Vec::new(), Vec::new()),
    };
    rows.into_iter().map(|row| Ok(Row::SeenProcess(row))).chain(problems.into_iter().map(|(_, error)| Err(error))).collect()
}
