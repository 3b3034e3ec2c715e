//! Fetching from symbol servers, whose form is that of a symbol store behind HTTP ("Using SymSrv" on learn.microsoft.com).

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::NamedTempFile;
use ureq::tls::{RootCerts, TlsConfig};

use super::{Finding, Wanted};
use crate::symbol_files::MAX_LEN;
use crate::{SymbolFile, SymbolFileError};

/// How long the whole of a file may take.
const LIMIT: Duration = Duration::from_secs(600);

/// How long a server may take to be reached.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// Fetches what is wanted from the first server that has it, also in a cabinet, and puts it into the store; gives what `open` makes of it.
///
/// # Errors
/// What came of each address that was asked.
pub(super) fn fetch(
    wanted: &Wanted,
    open: impl Fn(&Path) -> Result<SymbolFile, SymbolFileError>,
) -> Result<SymbolFile, Vec<(PathBuf, Finding)>> {
    let Some(put) = &wanted.put else {
        let why = "no directory to put it into: name one in _NT_SYMBOL_PATH".to_owned();
        return Err(vec![("download".into(), Finding::NotFetched(why))]);
    };
    let certificates = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
    let config = ureq::Agent::config_builder().timeout_global(Some(LIMIT)).timeout_connect(Some(CONNECT_LIMIT));
    let config = config.tls_config(certificates).user_agent(concat!("vmi/", env!("CARGO_PKG_VERSION")));
    let agent = config.build().new_agent();
    let mut failures = Vec::new();
    for url in &wanted.urls {
        for (url, path) in [(url.clone(), put.clone()), (compressed(url), compressed(&put.to_string_lossy()).into())] {
            let file = from(&agent, &url, &path).map_err(Finding::NotFetched).and_then(|fetched| {
                // Only what was asked for gets its name.
                let file = open(fetched.path()).map_err(Finding::Unusable)?;
                fetched.persist(&path).map_err(|error| Finding::NotFetched(format!("{}: {}", path.display(), error.error)))?;
                Ok(file.with_origin(path.display().to_string()))
            });
            match file {
                Ok(file) => return Ok(file),
                Err(finding) => failures.push((url.into(), finding)),
            }
        }
    }
    Err(failures)
}

/// The name that a store gives to the compressed form.
fn compressed(name: &str) -> String {
    let mut name = name.to_owned();
    name.pop();
    name + "_"
}

/// Fetches `url` into a file beside `put`, which goes if it is not given that name.
fn from(agent: &ureq::Agent, url: &str, put: &Path) -> Result<NamedTempFile, String> {
    let response = agent.get(url).call().map_err(|error| match error {
        ureq::Error::StatusCode(404) => "the server does not have it".to_owned(),
        error => error.to_string(),
    })?;
    let mut body = response.into_body().into_with_config().limit(MAX_LEN).reader();
    let directory = put.parent().ok_or("its place has no directory")?;
    let io = |error: std::io::Error| format!("{}: {error}", directory.display());
    std::fs::create_dir_all(directory).map_err(io)?;
    let mut file = NamedTempFile::new_in(directory).map_err(io)?;
    std::io::copy(&mut body, &mut file).map_err(|error| error.to_string())?;
    file.flush().map_err(io)?;
    tracing::info!(url, "fetched a symbol file");
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

    use super::super::tests::{identity, isf};
    use super::super::*;
    use super::*;

    /// A server that answers `answers.len()` requests: each with the body if there is one, else that it has no such file. Gives its address, and what it was asked.
    fn serve(answers: Vec<Option<Vec<u8>>>) -> (String, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                asked.push(lines.next().unwrap().unwrap());
                while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
                let (status, body) = answer.map_or(("404 Not Found", Vec::new()), |body| ("200 OK", body));
                write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len()).unwrap();
                stream.write_all(&body).unwrap();
            }
            asked
        });
        (address, thread)
    }

    #[test]
    fn a_file_is_fetched_once_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let (address, server) = serve(vec![Some(isf().into_bytes())]);
        let path = format!("srv*{}*{address}", directory.path().display());
        assert!(SymbolStore::parse(&path).load(&identity()).is_err(), "nothing is fetched unless it is asked for");
        let store = SymbolStore::parse(&path).with_downloads();
        assert_eq!(store.load(&identity()).unwrap().offsets().len(), 1);
        let key = identity().key();
        assert_eq!(server.join().unwrap(), [format!("GET /ntkrnlmp.pdb/{key}/ntkrnlmp.pdb HTTP/1.1")]);
        // The server is gone.
        assert_eq!(store.load(&identity()).unwrap().offsets().len(), 1);
        assert!(directory.path().join(format!("ntkrnlmp.pdb/{key}/ntkrnlmp.pdb")).is_file());
    }

    #[test]
    fn what_each_server_said_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let (first, asked_first) = serve(vec![None, None]);
        let (second, asked_second) = serve(vec![None, Some(isf().replace("5278AFF8", "11111111").into_bytes())]);
        let path = format!("srv*{}*{first}*{second}", directory.path().display());
        let missing = SymbolStore::parse(&path).with_downloads().load(&identity()).unwrap_err().to_string();
        let key = identity().key();
        for part in [
            format!("{first}/ntkrnlmp.pdb/{key}/ntkrnlmp.pdb: not fetched: the server does not have it"),
            format!("{first}/ntkrnlmp.pdb/{key}/ntkrnlmp.pd_: not fetched: "),
            format!("{second}/ntkrnlmp.pdb/{key}/ntkrnlmp.pd_: "),
            "is of 111111116C341677".to_owned(),
        ] {
            assert!(missing.contains(&part), "{part}\n{missing}");
        }
        assert_eq!(std::fs::read_dir(directory.path().join(format!("ntkrnlmp.pdb/{key}"))).unwrap().count(), 0);
        assert!(asked_first.join().unwrap()[1].ends_with("/ntkrnlmp.pd_ HTTP/1.1"));
        assert_eq!(asked_second.join().unwrap().len(), 2);
        let nowhere = SymbolStore::parse("srv*http://127.0.0.1:1").with_downloads().load(&identity()).unwrap_err().to_string();
        assert!(nowhere.contains("no directory to put it into"), "{nowhere}");
        let path = format!("srv*{}*http://127.0.0.1:1", directory.path().join("other").display());
        let refused = SymbolStore::parse(&path).with_downloads().load(&identity()).unwrap_err().to_string();
        assert!(refused.contains("http://127.0.0.1:1/ntkrnlmp.pdb/") && refused.contains("not fetched: "), "{refused}");
    }

    #[test]
    fn a_file_that_breaks_off_is_not_kept() {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{").unwrap();
            }
        });
        let path = format!("srv*{}*http://{address}", directory.path().display());
        assert!(SymbolStore::parse(&path).with_downloads().load(&identity()).is_err());
        server.join().unwrap();
        let place = directory.path().join(format!("ntkrnlmp.pdb/{}", identity().key()));
        assert_eq!(std::fs::read_dir(place).unwrap().count(), 0);
    }
}
