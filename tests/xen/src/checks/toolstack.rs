//! What the tool stack says: names, numbers, memory.

use anyhow::ensure;

use super::{Check, CheckResult};
use crate::context::Context;
use crate::domain::{xenstore, xl};

pub(super) const CHECKS: &[Check] = &[Check::new("toolstack::names", names)];

fn names(context: &Context) -> CheckResult {
    let list = xl(&["list"])?;
    for domain in context.domains() {
        let id = domain.id()?;
        ensure!(xenstore(&format!("/local/domain/{id}/name"))? == domain.name());
        ensure!(list.lines().any(|line| line.split_whitespace().take(2).eq([domain.name(), &id.to_string()])), "{list}");
    }
    Ok(())
}
