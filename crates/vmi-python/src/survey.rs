//! Processes by every view that the system has of them.

use std::collections::BTreeMap;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use vmi::{Guest, Result};

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
        views: BTreeMap<&'static str, Option<bool>>,
        /// Where its structure is in kernel memory.
        object: Option<u64>,
        /// Where its structure is in physical memory, if it was found there.
        physical: Option<u64>,
    } from row: vmi::SeenProcess => {
        row.pid, row.name, row.hidden, row.exited, row.views.into_iter().map(|(view, known)| (view.name(), known)).collect(), row.object.map(|at| at.get()), row.physical.map(|at| at.get()),
    }
}

/// The processes of all views, and behind them why a view failed.
pub(crate) fn survey(guest: &dyn Guest) -> Vec<Result<Row>> {
    let survey = guest.survey_processes();
    let processes = survey.processes.into_iter().map(|process| Ok(Row::SeenProcess(process)));
    processes.chain(survey.problems.into_iter().map(|(_, error)| Err(error))).collect()
}
