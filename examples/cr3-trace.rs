//! Prints which address spaces the vCPUs of a running guest go through.

mod common;

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use common::events::set_breakpoint;
use common::table::{Column, Row};
use common::text::{Hex, cell};
use common::{Common, EXIT_CODES};
use serde::Serialize;
use vmi::x86::{ControlRegister, Incident, Watch};
use vmi::{AnyDriver, EventAbility, EventSource, Guest, PhysAddr, Reply, Trap, VcpuId, Vcpus, Vmi, What};

/// Print which address spaces the vCPUs of a running guest go through
///
/// Xen tells of each load of CR3. QEMU does not; three ways come near: the registers are looked at from time to time (the guest runs on, short turns
/// are missed); a breakpoint on the kernel's function that switches tasks (every switch is seen, the guest stands still for each); or every
/// instruction is stepped (everything is seen, and the guest all but stands still).
#[derive(Parser)]
#[command(after_help = EXIT_CODES, after_long_help = format!("\
Examples:
  cr3-trace --seconds 5 xen:web1                       every load of CR3
  cr3-trace --seconds 5 qemu:/run/guest.qmp            look every 10 ms
  cr3-trace --switches -n 100 qemu:/run/guest.qmp      the next 100 task switches
  cr3-trace --step -n 3 qemu:/run/guest.qmp            step until CR3 has changed three times

{EXIT_CODES}"))]
struct Args {
    /// Break on each task switch
    #[arg(long, conflicts_with = "step")]
    switches: bool,
    /// Step vCPU 0 instruction by instruction
    #[arg(long)]
    step: bool,
    /// Look so often, in milliseconds; the default is 10 where the hypervisor does not tell of each load
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    interval: Option<u64>,
    /// End after so many rows
    #[arg(long, short = 'n', value_name = "COUNT")]
    count: Option<u64>,
    /// End after so many seconds
    #[arg(long, short, value_name = "SECONDS", default_value_t = 10.0)]
    seconds: f64,
    #[command(flatten)]
    common: Common,
}

fn main() -> ExitCode {
    let args = Args::parse();
    common::run(|| {
        let vmi = args.common.open()?;
        let guest = args.common.attach(&vmi)?;
        let mut trace = Trace { args: &args, guest: &*guest, began: Instant::now(), rows: 0, last: HashMap::new() };
        let mut table = args.common.table(TraceRow::COLUMNS);
        let mut print = |row: TraceRow| -> anyhow::Result<()> {
            table.row(Ok(row))?;
            Ok(table.show()?)
        };
        if args.switches {
            trace.switches(&vmi, &mut print)?;
        } else if args.step {
            trace.steps(&vmi, &mut print)?;
        } else if args.interval.is_none() && vmi.driver().abilities().is_ok_and(|there| there.has(EventAbility::ControlRegister))
        {
            trace.loads(&vmi, &mut print)?;
        } else {
            trace.looks(&vmi, &mut print)?;
        }
        table.finish()
    })
}

/// What is known so far.
struct Trace<'t> {
    args: &'t Args,
    guest: &'t dyn Guest,
    began: Instant,
    rows: u64,
    last: HashMap<VcpuId, u64>,
}

type Print<'p> = &'p mut dyn FnMut(TraceRow) -> anyhow::Result<()>;

impl Trace<'_> {
    fn left(&self) -> Duration {
        let enough = self.args.count.is_some_and(|most| self.rows >= most);
        let limit = if enough { 0.0 } else { self.args.seconds.max(0.0) };
        Duration::from_secs_f64(limit).saturating_sub(self.began.elapsed())
    }

    /// Prints a row if the vCPU runs on other page tables than before.
    fn seen(&mut self, vcpu: VcpuId, cr3: Option<u64>, print: Print<'_>) -> anyhow::Result<()> {
        let Some(cr3) = cr3 else { return Ok(()) };
        if self.left().is_zero() || self.last.insert(vcpu, cr3) == Some(cr3) {
            return Ok(());
        }
        let process = self.guest.process_of(PhysAddr::new(cr3)).ok().flatten();
        self.rows += 1;
        print(TraceRow {
            microseconds: self.began.elapsed().as_micros() as u64,
            vcpu: vcpu.0,
            cr3: Hex(cr3),
            pid: process.as_ref().map(|process| process.pid),
            process: process.map(|process| process.name),
        })
    }

    fn looks(&mut self, vmi: &Vmi<AnyDriver>, print: Print<'_>) -> anyhow::Result<()> {
        while !self.left().is_zero() {
            for vcpu in (0..vmi.driver().vcpu_count()).map(VcpuId) {
                self.seen(vcpu, vmi.registers(vcpu)?.cr3, print)?;
            }
            std::thread::sleep(Duration::from_millis(self.args.interval.unwrap_or(10)).min(self.left()));
        }
        Ok(())
    }

    fn loads(&mut self, vmi: &Vmi<AnyDriver>, print: Print<'_>) -> anyhow::Result<()> {
        let mut events = vmi.events()?;
        events.set(Trap::processor(Watch::ControlRegister { register: ControlRegister::Cr3, on_change: true }))?;
        loop {
            let left = self.left();
            if left.is_zero() {
                return Ok(());
            }
            if let Some(event) = events.next(left.min(Duration::from_millis(200)))?
                && let What::Processor(Incident::ControlRegister { new, .. }) = event.what()
            {
                self.seen(event.vcpu(), Some(new), print)?;
            }
        }
    }

    fn switches(&mut self, vmi: &Vmi<AnyDriver>, print: Print<'_>) -> anyhow::Result<()> {
        let mut events = vmi.events()?;
        // Comes just after the kernel has loaded CR3 for the next task (Linux: kernel/sched/core.c, context_switch).
        set_breakpoint(&mut events, Trap::breakpoint(self.guest.symbols().address("__switch_to")?))?;
        loop {
            let left = self.left();
            if left.is_zero() {
                return Ok(());
            }
            if let Some(event) = events.next(left.min(Duration::from_millis(200)))? {
                let (vcpu, cr3) = (event.vcpu(), event.registers().cr3);
                self.seen(vcpu, cr3, print)?;
            }
        }
    }

    fn steps(&mut self, vmi: &Vmi<AnyDriver>, print: Print<'_>) -> anyhow::Result<()> {
        let mut events = vmi.events()?;
        // Something that comes soon: whatever a vCPU runs first. Stepping goes on from there.
        let first = set_breakpoint(&mut events, Trap::breakpoint(self.guest.symbols().address("__switch_to")?))?;
        let mut removed = false;
        loop {
            let left = self.left();
            if left.is_zero() {
                return Ok(());
            }
            let Some(event) = events.next(left)? else { continue };
            let (vcpu, cr3) = (event.vcpu(), event.registers().cr3);
            self.seen(vcpu, cr3, print)?;
            event.reply(if self.left().is_zero() { Reply::resume() } else { Reply::step() })?;
            if !removed {
                events.remove(first)?;
                removed = true;
            }
        }
    }
}

#[derive(Serialize)]
struct TraceRow {
    microseconds: u64,
    vcpu: u32,
    cr3: Hex,
    pid: Option<u32>,
    process: Option<String>,
}

impl TraceRow {
    const COLUMNS: &[Column] = &[("seconds", -9), ("vcpu", -4), ("cr3", 18), ("pid", -6), ("process", 0)];
}

impl Row for TraceRow {
    fn cells(&self) -> Vec<String> {
        let process = cell(self.process.clone());
        vec![
            format!("{:.6}", self.microseconds as f64 / 1e6),
            self.vcpu.to_string(),
            self.cr3.to_string(),
            cell(self.pid),
            process,
        ]
    }
}
