//! Whether the lab itself is what the other checks take it for.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use super::{Check, CheckResult};
use crate::context::Context;
use crate::domain::Domain;
use crate::truth;

pub(super) const CHECKS: &[Check] = &[
    Check::new("lab::processes", processes),
    Check::new("lab::modules", modules),
    Check::new("lab::symbols", symbols),
    Check::new("lab::held_pages", held_pages),
    Check::new("lab::orders", orders),
    Check::new("lab::load", load),
    Check::new("lab::shapes", shapes),
];

fn each(context: &Context, check: impl Fn(&Domain) -> Result<()>) -> CheckResult {
    context.domains().try_for_each(|domain| check(&domain).map_err(|error| error.context(domain.name().to_owned())))
}

fn processes(context: &Context) -> CheckResult {
    each(context, |domain| {
        let processes = truth::processes(domain)?;
        let names: BTreeSet<&str> = processes.iter().map(|process| &*process.name).collect();
        for name in ["init", "kthreadd", "sleep", "witness", "wit-zombie", "wit-user1000", "domu"] {
            ensure!(names.contains(name), "no {name}: {names:?}");
        }
        let find = |name: &str| processes.iter().find(|process| process.name == name).unwrap();
        ensure!(find("wit-zombie").state == 'Z' && find("wit-user1000").uid == 1000 && find("witness").threads == 4);
        ensure!(find("init").pid == 1 && find("domu").pid == truth::held(domain)?.pid);
        println!("{}: {} processes", domain.name(), processes.len());
        Ok(())
    })
}

fn modules(context: &Context) -> CheckResult {
    each(context, |domain| {
        let modules = truth::modules(domain)?;
        let llc = modules.iter().find(|module| module.name == "llc");
        ensure!(llc.is_some_and(|llc| llc.users == ["stp"] && llc.address != 0), "{modules:?}");
        ensure!(["stp", "dummy", "msr"].iter().all(|name| modules.iter().any(|module| module.name == *name)), "{modules:?}");
        Ok(())
    })
}

fn symbols(context: &Context) -> CheckResult {
    each(context, |domain| {
        let symbols = truth::symbols(domain, &["_text", "init_task", "linux_banner", "stp_proto_register"])?;
        ensure!(symbols.len() == 4 && symbols.values().flatten().all(|address| *address >> 63 == 1), "{symbols:x?}");
        let sample = truth::sample_of_symbols(domain, 500)?;
        ensure!(sample.len() > 200 && sample.contains_key("stp_proto_register"), "{}", sample.len());
        println!("{}: _text {:x?}, {} symbols in the sample", domain.name(), symbols["_text"], sample.len());
        Ok(())
    })
}

fn held_pages(context: &Context) -> CheckResult {
    each(context, |domain| {
        let held = truth::held(domain)?;
        let frames: BTreeSet<u64> = held.frames.iter().copied().collect();
        ensure!(frames.len() == 16 && !frames.contains(&0), "{held:x?}");
        let word = domain.run("domu see 3 7")?;
        let expected = u64::from_le_bytes(held.content(3)[56..64].try_into()?);
        ensure!(word.contains(&format!("word {expected:#x}\n")), "{word}");
        let ram = truth::ram(domain)?;
        ensure!(frames.iter().all(|frame| ram.iter().any(|range| range.contains(&(frame << 12)))), "{held:x?} {ram:x?}");
        Ok(())
    })
}

fn orders(context: &Context) -> CheckResult {
    each(context, |domain| {
        for (order, says) in [
            ("domu set 15 1 0x1234", "done 1"),
            ("domu see 15 1", "word 0x1234"),
            ("domu touch r 14 5", "done 5"),
            ("domu touch w 14 6", "done 6"),
            ("domu touch x 14 7", "rip 0x4000efff\n"),
            ("domu touch x 14 8", "done 8"),
            ("domu see 14 0", "word 0x5\n"),
            ("domu cpuid 0 0 3", "done 3"),
            ("domu gsbase 0x10000000 4", "done 4"),
            ("domu steps 100", "done 100"),
            ("domu call 9", "done 9"),
        ] {
            let said = domain.run(order)?;
            ensure!(said.contains(says), "{order}: {said}");
        }
        if domain.name() != "pv" {
            // the compatibility handler's MSR: the value is the kernel's own again after the next boot of a processor only, and nothing here uses it
            let said = domain.run("domu msr 0x175 0x1234000 3")?;
            ensure!(said.contains("done 3"), "{said}");
        }
        ensure!(domain.run("false").is_err());
        Ok(())
    })
}

fn load(context: &Context) -> CheckResult {
    each(context, |domain| {
        domain.run("load on")?;
        let before = truth::context_switches(domain)?;
        std::thread::sleep(std::time::Duration::from_secs(1));
        let switches = truth::context_switches(domain)? - before;
        domain.run("load off")?;
        println!("{}: {switches} context switches in a second of load", domain.name());
        ensure!(switches > 10);
        Ok(())
    })
}

fn shapes(context: &Context) -> CheckResult {
    each(context, |domain| {
        let processors = domain.run("grep -c ^processor /proc/cpuinfo")?;
        ensure!(processors.trim() == if domain.name() == "smp" { "2" } else { "1" }, "{processors}");
        let high = truth::ram(domain)?.iter().any(|range| *range.start() >= 1 << 32);
        ensure!(high == (domain.name() == "big"));
        Ok(())
    })
}
