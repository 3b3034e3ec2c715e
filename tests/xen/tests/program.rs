//! The program as it is where there is no Xen.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xen-checks")).args(arguments).output().unwrap()
}

#[test]
fn checks_have_names_of_their_own() {
    let output = run(&["--list"]);
    assert!(output.status.success());
    let list = String::from_utf8(output.stdout).unwrap();
    let names: BTreeSet<&str> = list.lines().collect();
    assert!(names.len() > 30 && names.len() == list.lines().count(), "{list}");
    assert!(names.iter().all(|name| name.contains("::")), "{list}");
}

#[test]
fn what_it_does_not_know_is_refused() {
    let output = run(&["--no-such-option"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("usage: xen-checks"));
}
