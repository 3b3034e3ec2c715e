//! What the examples that wait for events share: where, for how long, and what is printed of each.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;
use vmi::x86::{Registers, X86};
use vmi::{AnyDriver, Event, EventAbility, Events, Guest, Reply, Trap, TrapId, VirtAddr, What};

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

/// Sets a breakpoint: in a debug register while the back end has one to give, else as an INT3 in the code. Another trap is set as it is.
///
/// Under KVM, QEMU writes an INT3 through the page tables that the vCPU runs on, and under page-table isolation those of a process lack most of the kernel.
pub fn set_breakpoint(events: &mut Events<'_, AnyDriver>, trap: Trap<X86>) -> vmi::Result<TrapId> {
    if events.abilities().has(EventAbility::HardwareBreakpoint)
        && let Ok(id) = events.set(trap.clone().hardware())
    {
        return Ok(id);
    }
    events.set(trap)
}

/// Hands events over until the limits are reached. What `seen` returns true for counts.
pub fn each(
    events: &mut Events<'_, AnyDriver>,
    limits: &Limits,
    mut seen: impl FnMut(Event<'_, '_, AnyDriver>) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut count = 0;
    while limits.count.is_none_or(|most| count < most) {
        let left =
            limits.seconds.map_or(TURN, |seconds| Duration::from_secs_f64(seconds.max(0.0)).saturating_sub(began.elapsed()));
        if left.is_zero() {
            break;
        }
        if let Some(event) = events.next(left.min(TURN))? {
            count += u64::from(seen(event)?);
        }
    }
    Ok(())
}

/// Prints the events of which `detail` makes something, until the limits are reached.
pub fn trace<D: Detail>(
    guest: &dyn Guest,
    events: &mut Events<'_, AnyDriver>,
    limits: &Limits,
    common: &Common,
    detail: impl Fn(&Event<'_, '_, AnyDriver>) -> Option<D>,
) -> anyhow::Result<ExitCode> {
    let mut table: Table = common.table(Occurrence::<D>::columns());
    let began = Instant::now();
    each(events, limits, |event| {
        let Some(detail) = detail(&event) else { return Ok(false) };
        let row = Occurrence::new(guest, &event, began.elapsed(), limits.registers, detail);
        drop(event); // the guest runs on before the row is printed
        table.row(Ok(row))?;
        table.show()?;
        Ok(true)
    })?;
    if events.passed_over() > 0 {
        common.note(format_args!("{} more events happened in other processes", events.passed_over()));
    }
    table.finish()
}

/// Prints events of all kinds until the limits are reached.
pub fn watch(
    guest: &dyn Guest,
    events: &mut Events<'_, AnyDriver>,
    limits: &Limits,
    common: &Common,
) -> anyhow::Result<ExitCode> {
    trace(guest, events, limits, common, |event| Some(Stop::of(event)))
}

/// Prints the steps of a vCPU: of the one that springs the trap `from` first, or, without, of the one whose instructions are all events.
pub fn stepping(
    guest: &dyn Guest,
    events: &mut Events<'_, AnyDriver>,
    mut from: Option<TrapId>,
    limits: &Limits,
    common: &Common,
) -> anyhow::Result<ExitCode> {
    let mut table: Table = common.table(Occurrence::<Stop>::columns());
    let began = Instant::now();
    let orders = from.is_some();
    let mut count = 0;
    let more = |count: u64| limits.count.is_none_or(|most| count < most);
    while more(count) {
        let left =
            limits.seconds.map_or(TURN, |seconds| Duration::from_secs_f64(seconds.max(0.0)).saturating_sub(began.elapsed()));
        if left.is_zero() {
            break;
        }
        let Some(event) = events.next(left.min(TURN))? else { continue };
        let row = Occurrence::new(guest, &event, began.elapsed(), limits.registers, Stop::of(&event));
        count += 1;
        event.reply(if orders && more(count) { Reply::step() } else { Reply::resume() })?;
        if let Some(first) = from.take() {
            events.remove(first)?;
        }
        table.row(Ok(row))?;
        table.show()?;
    }
    table.finish()
}

/// What one kind of event tells beside when and where it happened.
pub trait Detail: Serialize {
    /// Columns of a table, between those of the vCPU and of the instruction.
    const COLUMNS: &[Column];

    /// One cell for each.
    fn cells(&self) -> Vec<String>;
}

/// An event: when, on which vCPU, what, and at which instruction of whom.
#[derive(Serialize)]
pub struct Occurrence<D> {
    microseconds: u64,
    vcpu: u32,
    #[serde(flatten)]
    detail: D,
    instruction: Hex,
    symbol: Option<String>,
    page_table: Option<Hex>,
    pid: Option<u32>,
    process: Option<String>,
    registers: Option<String>,
}

impl<D: Detail> Occurrence<D> {
    fn columns() -> Vec<Column> {
        [&[("seconds", -9), ("vcpu", -4)], D::COLUMNS, &[("instruction", 40), ("pid", -6), ("process", 0)]].concat()
    }

    /// While the vCPU stands still: who it runs is certain.
    fn new(guest: &dyn Guest, event: &Event<'_, '_, AnyDriver>, elapsed: Duration, all: bool, detail: D) -> Self {
        let registers: &Registers = event.registers();
        let instruction = VirtAddr::new(registers.rip);
        let process = guest.running_on(event.vcpu()).ok();
        let symbol = guest.symbols().nearest(instruction).filter(|(_, offset)| *offset < 1 << 20);
        let symbol = symbol
            .map(|(symbol, offset)| if offset > 0 { format!("{}+{offset:#x}", symbol.name) } else { symbol.name.to_owned() });
        Self {
            microseconds: elapsed.as_micros() as u64,
            vcpu: event.vcpu().0,
            detail,
            instruction: Hex(instruction.get()),
            symbol,
            page_table: registers.cr3.map(Hex),
            pid: process.as_ref().map(|process| process.pid),
            process: process.map(|process| process.name),
            registers: all.then(|| registers.to_string()),
        }
    }
}

impl<D: Detail> Row for Occurrence<D> {
    fn cells(&self) -> Vec<String> {
        let mut cells = vec![format!("{:.6}", self.microseconds as f64 / 1e6), self.vcpu.to_string()];
        cells.extend(self.detail.cells());
        cells.push(self.symbol.clone().unwrap_or_else(|| self.instruction.to_string()));
        cells.extend([cell(self.pid), cell(self.process.clone())]);
        cells
    }

    fn below(&self) -> String {
        self.registers.clone().unwrap_or_default()
    }
}

/// Why a vCPU stands still.
#[derive(Serialize)]
struct Stop {
    event: String,
    address: Option<Hex>,
}

impl Stop {
    fn of(event: &Event<'_, '_, AnyDriver>) -> Self {
        let (what, address) = match event.what() {
            What::Trapped { place, at } => (place.kind.to_string(), Some(at)),
            What::Stepped => ("step".to_owned(), None),
            What::Memory(access) => ("memory access".to_owned(), access.linear),
            What::Processor(incident) => (incident.name().to_owned(), None),
            _ => ("stop".to_owned(), None),
        };
        Self { event: what, address: address.map(|at| Hex(at.get())) }
    }
}

impl Detail for Stop {
    const COLUMNS: &[Column] = &[("event", 20), ("address", 18)];

    fn cells(&self) -> Vec<String> {
        vec![self.event.clone(), cell(self.address.map(|at| at.to_string()))]
    }
}
