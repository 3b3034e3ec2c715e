//! Runs checks one after another, each in a process of its own.

use std::io::Read;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::checks::{self, Check};
use crate::context::{BRIEF, Context, Skip};
use crate::domain::ONE;
use crate::log;

/// Exit status of a process whose check could not be made here.
const SKIPPED: u8 = 42;
/// How long a domain may take to answer after a check.
const ANSWER: Duration = Duration::from_secs(30);

/// The process of one check.
pub(crate) fn one(names: &[&str]) -> ExitCode {
    let Some(check) = checks::all().find(|check| names == [check.name]) else {
        eprintln!("no check {names:?}");
        return ExitCode::from(2);
    };
    log::keep();
    match (check.run)(&Context::new()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast_ref::<Skip>() {
            Some(Skip(why)) => {
                println!("{why}");
                ExitCode::from(SKIPPED)
            }
            None => {
                eprintln!("{error:?}");
                ExitCode::FAILURE
            }
        },
    }
}

/// All checks that are wanted; in a brief run without those that take long.
pub(crate) fn run(wanted: impl Fn(&str) -> bool, brief: bool) -> ExitCode {
    let began = Instant::now();
    let (chosen, others): (Vec<&Check>, Vec<&Check>) =
        checks::all().filter(|check| !check.inner).partition(|check| wanted(check.name));
    println!("running {} tests", chosen.len());
    let (mut passed, mut failed, mut skipped) = (0, Vec::new(), 0);
    for check in chosen {
        if let Some(why) = check.long.filter(|_| brief) {
            skipped += 1;
            println!("test {} ... skipped: {why}", check.name);
            continue;
        }
        let began = Instant::now();
        let (mut result, mut output) = process(check, brief);
        for domain in Context::new().domains() {
            if let Err(error) = domain.answers(ANSWER) {
                output.push_str(&format!("{} does not answer any more ({error:#}); it is made anew\n", domain.name()));
                domain.recreate().unwrap_or_else(|error| output.push_str(&format!("{error:#}\n")));
                result = Ended::Failed;
            }
        }
        let took = began.elapsed().as_secs_f64();
        let lines: String = output.lines().map(|line| format!("    {line}\n")).collect();
        match result {
            Ended::Passed => {
                passed += 1;
                print!("test {} ... ok <{took:.1}s>\n{lines}", check.name);
            }
            Ended::Skipped => {
                skipped += 1;
                println!("test {} ... skipped: {}", check.name, output.trim());
            }
            Ended::Failed => {
                print!("test {} ... FAILED <{took:.1}s>\n{lines}", check.name);
                failed.push((check.name, lines));
            }
        }
    }
    if !failed.is_empty() {
        println!("\nfailures:");
        failed.iter().for_each(|(name, lines)| print!("\n---- {name} stdout ----\n{lines}"));
        println!("\nfailures:");
        failed.iter().for_each(|(name, _)| println!("    {name}"));
    }
    println!(
        "\ntest result: {}. {passed} passed; {} failed; {skipped} ignored; 0 measured; {} filtered out; finished in {:.2}s",
        if failed.is_empty() { "ok" } else { "FAILED" },
        failed.len(),
        others.len(),
        began.elapsed().as_secs_f64()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[derive(Debug)]
enum Ended {
    Passed,
    Failed,
    Skipped,
}

/// Runs a check in its own process, and returns what it printed.
fn process(check: &Check, brief: bool) -> (Ended, String) {
    let program = std::env::current_exe().unwrap();
    let (mut output, input) = std::io::pipe().unwrap();
    let mut command = Command::new(program);
    command.args(["--one", check.name]).stdin(Stdio::null()).stdout(input.try_clone().unwrap()).stderr(input);
    command.env("RUST_LIB_BACKTRACE", "0"); // of panics, but not of errors
    command.env(ONE, "1");
    if brief {
        command.env(BRIEF, "1");
    }
    let child = command.spawn();
    drop(command); // the pipe's writing ends
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return (Ended::Failed, error.to_string()),
    };
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // what its own children keep open must not hold this up for ever: the limit below ends the wait
        let _ = output.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let ended = wait(&mut child, check.limit);
    let mut text = String::new();
    let patience = Instant::now() + Duration::from_secs(5);
    while !reader.is_finished() && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(5));
    }
    if reader.is_finished() {
        text = reader.join().unwrap();
    } else {
        text.push_str("(a process that it started still runs and keeps its output open)\n");
    }
    match ended {
        Some(status) if status.success() => (Ended::Passed, text),
        Some(status) if status.code() == Some(SKIPPED.into()) => (Ended::Skipped, text),
        Some(status) => (Ended::Failed, format!("{text}{status}\n")),
        None => (Ended::Failed, format!("{text}killed: no end after {} s\n", check.limit.as_secs())),
    }
}

/// Waits until the process has ended, or kills it.
fn wait(child: &mut Child, limit: Duration) -> Option<std::process::ExitStatus> {
    let began = Instant::now();
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if began.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
