//! A QMP server that does as a script says.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::thread;

use proptest::prelude::*;

use super::*;

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 10}}, "capabilities": ["oob"]}}"#;
const OK: &str = r#"{"return": {}, "id": ID}"#;
const QUICK: QmpOptions = QmpOptions { greeting: Duration::from_millis(200), answer: Duration::from_millis(200) };

/// Serves one connection: sends `greeting`, then for each line that comes one of `answers`, in which `ID` stands for the request's number. Closes
/// when no answer is left, after waiting so long.
fn serve(greeting: &str, answers: &[&str], wait: Duration) -> (tempfile::TempDir, PathBuf, thread::JoinHandle<Vec<Value>>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    let (greeting, answers) = (greeting.to_owned(), answers.iter().map(|&a| a.to_owned()).collect::<Vec<_>>());
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(greeting.as_bytes()).unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let mut requests = Vec::new();
        for answer in answers {
            let Some(Ok(line)) = lines.next() else { return requests };
            let request: Value = serde_json::from_str(&line).unwrap();
            let answer = answer.replace("ID", &request["id"].to_string());
            requests.push(request);
            if stream.write_all(answer.as_bytes()).is_err() {
                return requests;
            }
        }
        thread::sleep(wait);
        requests
    });
    (directory, path, server)
}

fn lines(parts: &[&str]) -> String {
    parts.iter().map(|part| format!("{part}\r\n")).collect()
}

#[test]
fn answers_are_told_from_events_and_stale_answers() {
    let mixed = lines(&[
        r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#,
        r#"{"return": "stale", "id": 77}"#,
        r#"{"return": {"running": false, "status": "a word from the future", "more": 1}, "id": ID}"#,
    ]);
    let ok = lines(&[OK]);
    let (_directory, path, server) = serve(&lines(&[GREETING]), &[&ok, &mixed, &ok], Duration::ZERO);
    let socket = QmpSocket::connect(&path, QUICK).unwrap();
    assert_eq!(socket.peer_pid(), Some(std::process::id() as i32));
    let state = socket.status().unwrap();
    assert_eq!(state, RunState { running: false, status: "a word from the future".to_owned() });
    socket.execute("x", json!({"path": "/a"})).unwrap();
    let requests = server.join().unwrap();
    let commands: Vec<_> = requests.iter().map(|request| request["execute"].as_str().unwrap()).collect();
    assert_eq!(commands, ["qmp_capabilities", "query-status", "x"]);
    assert_eq!(requests[2]["arguments"], json!({"path": "/a"}));
}

use crate::qmp::RunState;

#[test]
fn refusals_carry_qemus_words() {
    let refused = lines(&[r#"{"id": ID, "error": {"class": "CommandNotFound", "desc": "The command x has not been found"}}"#]);
    let (_directory, path, _server) = serve(&lines(&[GREETING]), &[&lines(&[OK]), &refused], Duration::ZERO);
    let socket = QmpSocket::connect(&path, QUICK).unwrap();
    let error = socket.execute("x", json!({})).unwrap_err();
    assert!(matches!(&error, MonitorError::Refused { class, .. } if class == "CommandNotFound"));
    assert!(error.to_string().ends_with("QEMU refuses `x`: The command x has not been found"), "{error}");
    // the server has closed by now
    let error = socket.execute("y", json!({})).unwrap_err();
    assert!(error.is_closed(), "{error}");
    assert!(socket.execute("z", json!({})).unwrap_err().is_closed());
}

#[test]
fn silence_has_an_end() {
    let (_directory, path, _server) = serve("", &[""], Duration::from_secs(1));
    let error = QmpSocket::connect(&path, QUICK).unwrap_err();
    assert!(matches!(error, MonitorError::Taken { .. }), "{error}");

    // no answer to the second command in time; its answer, late, is not taken for that of the third
    let ok = lines(&[OK]);
    let late = lines(&[r#"{"return": "late", "id": 1}"#, r#"{"return": "mine", "id": ID}"#]);
    let (_directory, path, _server) = serve(&lines(&[GREETING]), &[&ok, "", &late], Duration::from_secs(1));
    let socket = QmpSocket::connect(&path, QUICK).unwrap();
    assert!(matches!(socket.execute("slow", json!({})).unwrap_err(), MonitorError::TimedOut { .. }));
    assert_eq!(socket.execute("next", json!({})).unwrap(), json!("mine"));
}

#[test]
fn what_is_not_qmp_is_named() {
    for said in ["QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) ", "{}\n", "\x1b[31m\n", "[1, 2]\n"] {
        let (_directory, path, _server) = serve(said, &[], Duration::ZERO);
        let error = QmpSocket::connect(&path, QUICK).unwrap_err();
        assert!(matches!(error, MonitorError::NotQmp { .. }), "{said}: {error}");
        assert!(!error.to_string().contains('\x1b'));
    }
    let directory = tempfile::tempdir().unwrap();
    let error = QmpSocket::connect(&directory.path().join("none"), QUICK).unwrap_err();
    assert!(error.to_string().contains("Is the guest running"), "{error}");
    let path = directory.path().join("left");
    drop(UnixListener::bind(&path).unwrap());
    let error = QmpSocket::connect(&path, QUICK).unwrap_err();
    assert!(error.to_string().contains("has ended"), "{error}");
}

#[test]
fn long_paths_are_reached() {
    let directory = tempfile::tempdir().unwrap();
    let deep = directory.path().join("d".repeat(120));
    std::fs::create_dir(&deep).unwrap();
    let short = directory.path().join("s");
    let _listener = UnixListener::bind(&short).unwrap();
    std::fs::rename(&short, deep.join("qmp")).unwrap();
    connect(&deep.join("qmp")).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_comes_there_is_an_answer_or_an_error(greeting in any::<bool>(), noise in proptest::collection::vec("[ -~]{0,40}|\\{\"return\": [0-9]{0,3}, \"id\": [0-3]\\}", 0..8)) {
        let noise: Vec<String> = noise.iter().map(|line| format!("{line}\n")).collect();
        let noise: Vec<&str> = noise.iter().map(String::as_str).collect();
        let first = if greeting { lines(&[GREETING]) } else { String::new() };
        let (_directory, path, server) = serve(&first, &noise, Duration::ZERO);
        if let Ok(socket) = QmpSocket::connect(&path, QmpOptions { greeting: Duration::from_millis(50), answer: Duration::from_millis(50) }) {
            let _ = socket.execute("one", json!({}));
            let _ = socket.human("two");
        }
        drop(server.join());
    }
}
