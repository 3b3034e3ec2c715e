//! Runs the examples that cargo built beside this test.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

/// A run of an example that is being put together.
pub(crate) struct Run(Command);

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The example of this name. `cargo test` builds all of them; `cargo test --test examples` does not.
pub(crate) fn example(name: &str) -> Run {
    let test = std::env::current_exe().unwrap();
    let program: PathBuf = test.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(program.exists(), "{} is not built: run `cargo build --examples` first", program.display());
    Run(Command::new(program))
}

impl Run {
    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.0.arg(argument);
        self
    }

    pub(crate) fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.0.args(arguments);
        self
    }

    pub(crate) fn env(mut self, variable: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(variable, value);
        self
    }

    /// Sends standard error to a file instead of the output.
    pub(crate) fn stderr(mut self, file: File) -> Self {
        self.0.stderr(file);
        self
    }

    /// Sends standard output to a file.
    pub(crate) fn stdout(mut self, file: File) -> Self {
        self.0.stdout(file);
        self
    }

    pub(crate) fn run(mut self) -> Output {
        let output = self.0.output().unwrap();
        Output {
            code: output.status.code().expect("ended by a signal"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Closes standard output after one line, as `| head -1` does.
    pub(crate) fn run_until_first_line(mut self) -> Output {
        let mut child = self.0.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (mut stdout, mut stderr) = (String::new(), String::new());
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut stdout).unwrap();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        Output { code: child.wait().unwrap().code().expect("ended by a signal"), stdout, stderr }
    }
}

impl Output {
    /// The rows of JSON output.
    pub(crate) fn rows(&self) -> Vec<Value> {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Nothing was printed, and a message that holds `text` says why.
    pub(crate) fn assert_failed_with(&self, text: &str) {
        assert_eq!((self.code, self.stdout.as_str()), (1, ""), "{self:?}");
        let message = self.stderr.lines().find(|line| line.starts_with("error: "));
        assert!(message.is_some() && self.stderr.contains(text), "{text} is not named: {self:?}");
    }
}
