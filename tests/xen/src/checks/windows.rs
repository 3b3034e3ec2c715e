//! What the library finds in a domain's Windows: a synthetic NT kernel, whose processes begin and end all the time and which keeps an account of its list.
//!
//! The kernel boots by firmware and a device model (HVM), which the lab brings when it is asked for; see `nt.cfg` in `tests/lab/xen/prepare.sh`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nt_machine::GuestTruth;
use vmi::windows::discover::{self, Options};
use vmi::windows::{SymbolStore, Windows};
use vmi::x86::{ControlRegister, Incident, Watch};
use vmi::{AnyDriver, Memory, PhysAddr, Trap, VcpuId, Vmi, What};

use super::{Check, CheckResult};
use crate::context::{Context, Skip};
use crate::domain::xl;

pub(super) const CHECKS: &[Check] = &[
    Check::new("windows::processes", processes).limit(400),
    Check::new("windows::each_address_space_is_told_by_its_process", address_spaces).limit(400),
    Check::new("windows::a_function_is_told_once_for_each_call", calls).limit(400),
];

/// The files of `nt-machine-live`, beside this program.
const BOOT_FILE: &str = "/lab/boot.elf";
const TRUTH: &str = "/lab/truth.json";

/// Where its program database is.
const SYMBOLS: &str = "/lab";

const NAME: &str = "nt";

/// The kernel counts in its account how often it was called.
const FUNCTION: &str = "KiTimerInterrupt";

/// How long the firmware and the loader may take under emulation.
const READY: Duration = Duration::from_secs(240);

/// The domain; it is destroyed in the end.
struct NtDomain {
    vmi: Vmi<AnyDriver>,
    /// Guest-physical address of the kernel's account.
    account: PhysAddr,
    /// What the builder wrote of the machine as it starts.
    truth: serde_json::Value,
}

impl NtDomain {
    /// Makes the domain, and waits until its kernel changes the list of processes.
    fn start() -> Result<Self> {
        if !Path::new(BOOT_FILE).exists() {
            return Err(Skip("no synthetic NT machine in this boot: cargo xtask xen windows".into()).into());
        }
        let truth: serde_json::Value = serde_json::from_slice(&fs::read(TRUTH)?)?;
        let account = truth["account"]["physical"].as_u64().context("the account's place")?;
        let began = Instant::now();
        xl(&["create", "-q", &format!("/etc/xen/{NAME}.cfg")])?;
        let vmi = vmi::open(format!("xen:{NAME}"))?;
        let domain = Self { vmi, account: PhysAddr::new(account), truth };
        while domain.account()?.is_none_or(|account| account.ended < 5) {
            ensure!(began.elapsed() < READY, "the kernel does not run after {READY:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
        println!("its kernel runs {:.1?} after it was made", began.elapsed());
        Ok(domain)
    }

    /// The kernel's account at this moment; none before it has begun.
    fn account(&self) -> Result<Option<GuestTruth>> {
        Ok(GuestTruth::parse(&self.vmi.read_vec(self.account, GuestTruth::SIZE)?))
    }
}

impl Drop for NtDomain {
    fn drop(&mut self) {
        let _ = xl(&["destroy", NAME]); // it may have ended by itself
    }
}

/// Address, process id and name of each process of the list.
type Rows = Vec<(u64, u32, String)>;

fn rows(account: &GuestTruth) -> Rows {
    account.processes.iter().map(|process| (process.eprocess, process.pid as u32, process.name.clone())).collect()
}

fn listed(windows: &Windows<'_, AnyDriver>) -> Result<Rows> {
    windows
        .processes()
        .map(|process| {
            let process = process?;
            Ok((process.address().get(), process.pid()?, process.name()?))
        })
        .collect()
}

/// Nothing is given but the domain's name: the kernel's place and build, and in pauses the list of processes, are those of the guest.
fn processes(_: &Context) -> CheckResult {
    let domain = NtDomain::start()?;
    let began = Instant::now();
    let windows = Windows::attach(&domain.vmi)?;
    println!("attached in {:.1?}; {:?}", began.elapsed(), windows.kernel().remarks);
    ensure!(
        Some(windows.kernel().base.get()) == domain.truth["kernel"]["base"].as_u64(),
        "the kernel is at {}",
        windows.kernel().base
    );
    ensure!(windows.build().map(u64::from) == domain.truth["build_number"].as_u64(), "build {:?}", windows.build());
    let (mut compared, mut between, mut changes) = (0, 0, 0);
    while compared < 20 {
        let _paused = domain.vmi.pause()?;
        let account = domain.account()?.context("the account is gone")?;
        // A pause in the midst of a change, of which the account says that it is not whole.
        if account.generation % 2 == 1 {
            between += 1;
            ensure!(between < 1000, "the guest changes its list without a pause");
            continue;
        }
        let (found, expected) = (listed(&windows)?, rows(&account));
        ensure!(found == expected, "found {found:x?}\nthere {expected:x?}");
        let current = windows.process_on(VcpuId(0))?.address().get();
        ensure!(
            expected.iter().any(|row| row.0 == current),
            "the vCPU runs the process at {current:#x}, which is none of the list"
        );
        (compared, changes) = (compared + 1, account.generation / 2);
    }
    println!("{compared} pauses: the list is the guest's own; {changes} changes of it, {between} pauses in the midst of one");
    ensure!(changes > 20, "the list has hardly changed");
    Ok(())
}

/// Writes of CR3 name the processes whose page tables are loaded: those that the machine was built with.
fn address_spaces(_: &Context) -> CheckResult {
    let domain = NtDomain::start()?;
    let roots: BTreeMap<u64, &str> = domain.truth["processes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|process| Some((process["dtb"].as_u64()?, process["name"].as_str()?)))
        .collect();
    let mut events = domain.vmi.events()?;
    events.set(Trap::processor(Watch::ControlRegister { register: ControlRegister::Cr3, on_change: true }))?;
    let (mut last, mut seen) = (None, BTreeMap::new());
    for _ in 0..200 {
        let event = events.next(Duration::from_secs(30))?.context("no write of CR3 in 30 seconds")?;
        let What::Processor(Incident::ControlRegister { register: ControlRegister::Cr3, new, old }) = event.what() else {
            bail!("{:?}", event.what());
        };
        ensure!(last.is_none_or(|last| last == old), "after {last:x?} came {old:#x} -> {new:#x}: one was lost");
        let name = roots.get(&(new & !0xfff)).with_context(|| format!("CR3 is {new:#x}, which is the table of no process"))?;
        *seen.entry((new, *name)).or_insert(0) += 1;
        last = Some(new);
    }
    println!("200 writes of CR3, to {} tables", seen.len());
    ensure!(seen.len() > 4, "{seen:x?}");
    Ok(())
}

/// A breakpoint on a function by its name in the program database stops the guest at each of its calls.
fn calls(context: &Context) -> CheckResult {
    context.vmx()?;
    let domain = NtDomain::start()?;
    let options = Options { store: SymbolStore::parse(SYMBOLS), ..Options::default() };
    let windows = Windows::with_kernel(&domain.vmi, discover::find_with(&domain.vmi, &options)?)?;
    let at = windows.symbols().address(FUNCTION)?;
    ensure!(Some(at.get()) == domain.truth["symbols"][FUNCTION].as_u64(), "{FUNCTION} is not at {at}");
    let mut events = domain.vmi.events()?;
    let id = events.set(Trap::breakpoint(at))?;
    let mut last = None;
    for _ in 0..50 {
        let event = events.next(Duration::from_secs(30))?.context("no call in 30 seconds")?;
        ensure!(event.trap() == Some(id) && event.registers().rip == at.get(), "{event:?}");
        let count = domain.account()?.context("the account is gone")?.ticks;
        ensure!(last.is_none_or(|last| count == last + 1), "{count} calls after {last:?}");
        last = Some(count);
    }
    drop(events);
    let began = Instant::now();
    while domain.account()?.map(|account| account.ticks) < last.map(|last| last + 50) {
        ensure!(began.elapsed() < READY, "the guest does not go on");
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("50 calls of {FUNCTION} at {at}, as the kernel counts them; it goes on behind them");
    Ok(())
}
