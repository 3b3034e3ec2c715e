//! What a check can know of the machine it runs on.

use std::fmt;

use crate::domain::Domain;

/// Why a check cannot be made here. As an error of a check, it makes it skipped instead of failed.
#[derive(Debug)]
pub(crate) struct Skip(pub(crate) String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Skip {}

/// Set in a brief run.
pub(crate) const BRIEF: &str = "XEN_CHECKS_BRIEF";

/// The machine.
#[derive(Debug)]
pub(crate) struct Context {
    domains: Vec<String>,
    emulator: String,
}

impl Context {
    pub(crate) fn new() -> Self {
        let variable = |name| std::env::var(name).unwrap_or_default();
        Self {
            domains: variable("XEN_LAB_DOMUS").split_whitespace().map(str::to_owned).collect(),
            emulator: variable("XEN_LAB_EMU"),
        }
    }

    /// How often to do something that is done `all` times unless the run is brief; says so if it is.
    pub(crate) fn times(&self, all: usize, brief: usize) -> usize {
        if std::env::var_os(BRIEF).is_none() {
            return all;
        }
        println!("skipped: {} of {all} times, in a brief run", all - brief);
        brief
    }

    /// The domains of this boot.
    pub(crate) fn domains(&self) -> impl Iterator<Item = Domain> + '_ {
        self.domains.iter().map(|name| Domain::new(name))
    }

    /// The first domain of this boot that runs in hardware: `pvh`, or `hvm` where that was started instead.
    ///
    /// # Errors
    /// [`Skip`] if there is none.
    pub(crate) fn hardware_domain(&self) -> Result<Domain, Skip> {
        self.domains().find(|domain| domain.name() != "pv").ok_or_else(|| Skip("no domain but pv in this boot".into()))
    }

    /// The domain of that name.
    ///
    /// # Errors
    /// [`Skip`] if it was not started in this boot.
    pub(crate) fn domain(&self, name: &str) -> Result<Domain, Skip> {
        self.domains().find(|domain| domain.name() == name).ok_or_else(|| Skip(format!("no domain {name} in this boot")))
    }

    /// What needs Intel's VMX with EPT: traps on memory, single steps, software breakpoints, views.
    ///
    /// # Errors
    /// [`Skip`] in QEMU, which emulates AMD's SVM.
    pub(crate) fn vmx(&self) -> Result<(), Skip> {
        if self.emulator == "bochs" { Ok(()) } else { Err(Skip("needs Intel VMX with EPT: cargo xtask xen --bochs".into())) }
    }

    /// The opposite of [`Context::vmx`]: what is to be seen on a processor without VMX.
    ///
    /// # Errors
    /// [`Skip`] in Bochs.
    pub(crate) fn svm(&self) -> Result<(), Skip> {
        if self.emulator == "bochs" { Err(Skip("needs AMD SVM: cargo xtask xen".into())) } else { Ok(()) }
    }
}
