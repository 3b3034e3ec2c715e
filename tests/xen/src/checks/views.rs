//! Views of memory: they need VMX, and a domain with `altp2m = "external"`.

use anyhow::{Context as _, Result, ensure};
use vmi::{Accesses, Gfn, ViewId, What};

use super::events::{PATIENCE, collect, open};
use super::{Check, CheckResult};
use crate::context::Context;
use crate::domain::Domain;
use crate::truth;

pub(super) const CHECKS: &[Check] = &[
    Check::new("views::a_view_shows_another_page", remapped).limit(300),
    Check::new("views::accesses_that_a_view_forbids_are_told", forbidden).limit(300),
];

/// A word of a held page, as the guest reads it.
fn word(domain: &Domain, page: usize) -> Result<u64> {
    let said = domain.run(&format!("domu see {page} 1"))?;
    said.split_whitespace().nth(1).and_then(truth::hex).context(said)
}

fn remapped(context: &Context) -> CheckResult {
    context.vmx()?;
    let domain = context.hardware_domain()?;
    let held = truth::held(&domain)?;
    let vmi = open(&domain)?;
    let own = [7, 8].map(|page| word(&domain, page));
    let [own, other] = [own[0].as_ref(), own[1].as_ref()].map(|word| *word.unwrap());
    ensure!(own != other);
    let mut events = vmi.events()?;
    let views = events.views()?;
    let view = views.create(Accesses::ALL)?;
    views.remap(view, Gfn::new(held.frames[7]), Some(Gfn::new(held.frames[8])))?;
    views.switch(view)?;
    let shown = word(&domain, 7)?;
    views.switch(ViewId::HOST)?;
    let back = word(&domain, 7)?;
    views.destroy(view)?;
    ensure!((shown, back) == (other, own), "{shown:#x} in the view, {back:#x} behind it; {own:#x} and {other:#x} by themselves");
    drop(events);
    domain.answers(PATIENCE)
}

fn forbidden(context: &Context) -> CheckResult {
    context.vmx()?;
    let domain = context.hardware_domain()?;
    let held = truth::held(&domain)?;
    let vmi = open(&domain)?;
    let mut events = vmi.events()?;
    let views = events.views()?;
    let view = views.create(Accesses::ALL)?;
    views.allow(view, Gfn::new(held.frames[9]), Accesses::EXECUTE)?;
    views.switch(view)?;
    let running = domain.start("domu touch r 9 20")?;
    let mut count = 0;
    collect(&mut events, PATIENCE, |event| {
        let What::Memory(access) = event.what() else { anyhow::bail!("{:?}", event.what()) };
        ensure!(access.view == Some(view) && access.kinds.read, "{access:?}");
        count += 1;
        drop(event);
        Ok(count == 20)
    })?;
    running.finish(PATIENCE)?;
    ensure!(count == 20, "{count} of 20");
    Ok(())
}
