//! The scripts of the lab that keep something running.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde_json::Value;

/// How long a script may take to end what it started.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a guest cannot be had here; displayed as the line that counts as a skipped test.
#[derive(Clone, Debug)]
pub(crate) struct Skip(String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "skipped: {}", self.0)
    }
}

/// A script of the lab that ends what it started when its standard input is closed: by a drop, or because this process ended.
#[derive(Debug)]
pub(crate) struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    /// Starts a script of `tests/lab`, and returns what it says of what it started.
    ///
    /// # Panics
    /// If that did not start although nothing is missing.
    pub(crate) fn start<T: DeserializeOwned>(script: &str, arguments: &[&str]) -> Result<(Self, T), Skip> {
        if std::env::var_os("VMI_LAB_LIVE").is_none_or(|live| live != "1") {
            return Err(Skip("live guests are booted where VMI_LAB_LIVE=1, as cargo xtask test sets it".to_owned()));
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab").join(script);
        let mut command = Command::new("python3");
        command.arg("-B").arg(path).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut server = Self(command.spawn().map_err(|error| Skip(format!("python3: {error}")))?);
        let mut line = String::new();
        BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.is_empty() {
            server.0.stderr.take().unwrap().read_to_string(&mut line).unwrap();
            panic!("{script} {arguments:?}: {line}");
        }
        let said: Value = serde_json::from_str(&line).unwrap();
        match said.get("skipped").and_then(Value::as_str) {
            Some(why) => Err(Skip(format!("{script} {}: {why}", arguments.join(" ")))),
            None => Ok((server, serde_json::from_value(said).unwrap())),
        }
    }
}
