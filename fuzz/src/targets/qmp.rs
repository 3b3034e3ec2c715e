//! What answers on a QMP socket.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, send};
use vmi_driver_kvm::processes;
use vmi_driver_kvm::qmp::{Monitor, MonitorError, QmpOptions, QmpSocket};

/// A socket that is there as long as this process.
fn server() -> &'static (tempfile::TempDir, PathBuf, UnixListener) {
    static SERVER: OnceLock<(tempfile::TempDir, PathBuf, UnixListener)> = OnceLock::new();
    SERVER.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a directory for the socket");
        let path = directory.path().join("qmp");
        let listener = UnixListener::bind(&path).expect("the socket");
        (directory, path, listener)
    })
}

/// Says all that the input says at once, whatever it is asked, and hears all.
pub(super) fn serve(mut stream: UnixStream, says: &[u8]) {
    let mut left = says;
    while !left.is_empty() {
        match send(stream.as_raw_fd(), left, MsgFlags::MSG_NOSIGNAL) {
            Ok(sent) => left = &left[sent..],
            Err(_) => return,
        }
    }
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut heard = [0; 4096];
    while matches!(stream.read(&mut heard), Ok(1..)) {}
}

/// The greeting, the state of the guest and its memory. Accepted if the greeting is.
pub fn qmp(data: &[u8]) -> bool {
    let (_, path, listener) = server();
    std::thread::scope(|scope| {
        scope.spawn(|| listener.accept().map(|(stream, _)| serve(stream, data)));
        let patience = QmpOptions { greeting: Duration::from_secs(5), answer: Duration::from_secs(5) };
        let socket = match QmpSocket::connect(path, patience) {
            Ok(socket) => socket,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                return false;
            }
        };
        let _ = socket.status();
        let _ = vmi_driver_kvm::exercise_layout(&socket);
        let end = socket.human("info version");
        let again = socket.cont();
        if matches!(end, Err(MonitorError::Closed { .. })) {
            assert!(matches!(again, Err(MonitorError::Closed { .. })), "who has hung up stays away");
        }
        true
    })
}

/// A command line as /proc shows it.
pub fn command_line(data: &[u8]) -> bool {
    processes::exercise(data) > 0
}
