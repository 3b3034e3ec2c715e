//! What the examples that wait for events share: where, for how long, and what is printed of each.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;
use vmi::x86::{Registers, X86};
use vmi::{AnyDriver, Event, Events, Guest, Trap, VirtAddr, What};

use super::Common;
use super::table::{Column, Row, Table};
use super::text::{Hex, cell};

/// How long to wait at a time: an interrupted program ends at most that much later.
const TURN: Duration = Duration::from_millis(200);

/// When to stop waiting.
#[derive(clap::Args, Debug)]
pub struct Limits {
    /// End after so many events
    #[arg(long, short = 'n', value_name = "COUNT")]
    count: Option<u64>,
    /// End after so many seconds
    #[arg(long, short, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// Only in this process
    #[arg(long)]
    pub pid: Option<u32>,
    /// Print all registers with each event
    #[arg(long)]
    registers: bool,
}

/// The address that a text names: a number, or a symbol, with `+OFFSET` behind it or not.
pub fn place(guest: &dyn Guest, text: &str) -> anyhow::Result<VirtAddr> {
    if let Ok(at) = text.parse() {
        return Ok(at);
    }
    let (name, offset) = text.split_once('+').unwrap_or((text, "0"));
    let offset: VirtAddr = offset.parse().with_context(|| format!("{text}: what is behind the plus is no number"))?;
    let symbol = guest.symbols().address(name).with_context(|| "`map-symbol '*part*'` looks for names")?;
    symbol.checked_add(offset.get()).context("the address leaves the address space")
}

/// The trap, in the address space of a process if one is asked for.
pub fn within(guest: &dyn Guest, trap: Trap<X86>, pid: Option<u32>) -> anyhow::Result<Trap<X86>> {
    let Some(pid) = pid else { return Ok(trap) };
    let mut found = guest.processes().filter_map(Result::ok).filter(|process| process.pid == pid);
    let process = found.next().with_context(|| format!("no process {pid} in this guest"))?;
    let roots = guest.page_tables(&process);
    anyhow::ensure!(!roots.is_empty(), "process {pid} ({}) has no memory of its own: kernel threads run in any", process.name);
    Ok(roots.into_iter().fold(trap, Trap::in_address_space))
}

/// Prints events until the limits are reached.
pub fn watch(
    guest: &dyn Guest,
    events: &mut Events<'_, AnyDriver>,
    limits: &Limits,
    common: &Common,
) -> anyhow::Result<ExitCode> {
    let mut table: Table = common.table(EventRow::COLUMNS);
    let began = Instant::now();
    let mut count = 0;
    while limits.count.is_none_or(|most| count < most) {
        let left =
            limits.seconds.map_or(TURN, |seconds| Duration::from_secs_f64(seconds.max(0.0)).saturating_sub(began.elapsed()));
        if left.is_zero() {
            break;
        }
        if let Some(event) = events.next(left.min(TURN))? {
            let row = EventRow::new(guest, &event, began.elapsed(), limits.registers);
            drop(event); // the guest runs on before the row is printed
            count += 1;
            table.row(Ok(row))?;
            table.show()?;
        }
    }
    if events.passed_over() > 0 {
        common.note(format_args!("{} more events happened in other processes", events.passed_over()));
    }
    table.finish()
}

/// An event.
#[derive(Serialize)]
pub struct EventRow {
    microseconds: u64,
    vcpu: u32,
    event: String,
    address: Option<Hex>,
    instruction: Hex,
    symbol: Option<String>,
    page_table: Option<Hex>,
    pid: Option<u32>,
    process: Option<String>,
    registers: Option<String>,
}

impl EventRow {
    pub const COLUMNS: &[Column] =
        &[("seconds", -9), ("vcpu", -4), ("event", 20), ("address", 18), ("instruction", 44), ("pid", -6), ("process", 0)];

    fn new(guest: &dyn Guest, event: &Event<'_, '_, AnyDriver>, elapsed: Duration, all: bool) -> Self {
        let registers: &Registers = event.registers();
        let instruction = VirtAddr::new(registers.rip);
        let (what, address) = match event.what() {
            What::Trapped { place, at } => (place.kind.to_string(), Some(at)),
            What::Stepped => ("step".to_owned(), None),
            _ => ("stop".to_owned(), None),
        };
        // While the vCPU stands still: who it runs is certain.
        let process = guest.running_on(event.vcpu()).ok();
        let symbol = guest.symbols().nearest(instruction).filter(|(_, offset)| *offset < 1 << 20);
        let symbol = symbol
            .map(|(symbol, offset)| if offset > 0 { format!("{}+{offset:#x}", symbol.name) } else { symbol.name.to_owned() });
        Self {
            microseconds: elapsed.as_micros() as u64,
            vcpu: event.vcpu().0,
            event: what,
            address: address.map(|at| Hex(at.get())),
            instruction: Hex(instruction.get()),
            symbol,
            page_table: registers.cr3.map(Hex),
            pid: process.as_ref().map(|process| process.pid),
            process: process.map(|process| process.name),
            registers: all.then(|| registers.to_string()),
        }
    }
}

impl Row for EventRow {
    fn cells(&self) -> Vec<String> {
        let instruction = self.symbol.clone().unwrap_or_else(|| self.instruction.to_string());
        vec![
            format!("{:.6}", self.microseconds as f64 / 1e6),
            self.vcpu.to_string(),
            self.event.clone(),
            cell(self.address.map(|at| at.to_string())),
            instruction,
            cell(self.pid),
            cell(self.process.clone()),
        ]
    }

    fn below(&self) -> String {
        self.registers.clone().unwrap_or_default()
    }
}
