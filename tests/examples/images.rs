//! Images that the examples are run on.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use vmi::linux::Linux;
use vmi::{Memory, PhysAddr, VirtAddr};

use crate::run::example;

/// The image that this repository carries.
pub(crate) const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/debian-6.12.raw.zst");

/// A file of this name in a folder that cargo keeps for tests.
fn file(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("examples");
    std::fs::create_dir_all(&directory).unwrap();
    directory.join(name)
}

/// The demo image in another format, made once for each run of the tests: raw by the library, others by the example `dump-memory`.
pub(crate) fn demo_as(format: &str) -> PathBuf {
    static MADE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let path = file(&format!("demo.{format}"));
    let mut made = MADE.lock().unwrap();
    if !made.contains(format) {
        if format == "raw" {
            let vmi = vmi::open(DEMO).unwrap();
            let mut memory = vmi.reader(PhysAddr::ZERO..vmi.machine().memory.end());
            io::copy(&mut memory, &mut File::create(&path).unwrap()).unwrap();
        } else {
            let output = example("dump-memory").args(["--force", "--format", format, "-o"]).arg(&path).arg(DEMO).run();
            assert_eq!(output.code, 0, "{output:?}");
        }
        made.insert(format.to_owned());
    }
    path
}

/// The first `length` bytes of an image.
pub(crate) fn cut(image: &Path, length: u64) -> PathBuf {
    let extension = image.extension().unwrap().to_string_lossy();
    let path = file(&format!("cut-to-{length}.{extension}"));
    io::copy(&mut io::Read::take(File::open(image).unwrap(), length), &mut File::create(&path).unwrap()).unwrap();
    path
}

/// A file of `length` bytes of which nothing is stored.
pub(crate) fn holes(length: u64) -> PathBuf {
    let path = file("holes.raw");
    File::create(&path).unwrap().set_len(length).unwrap();
    path
}

/// The demo image without the process `pid` in the list of tasks: those beside it are linked with each other.
pub(crate) fn without_in_list(pid: u32) -> PathBuf {
    let vmi = vmi::open(demo_as("raw")).unwrap();
    let linux = Linux::attach(&vmi).unwrap();
    let at = linux.process(pid).unwrap().address().wrapping_add(linux.types().field("task_struct", "tasks").unwrap().offset);
    let space = linux.kernel_space();
    let (next, previous): (u64, u64) = (space.read(at).unwrap(), space.read(at.wrapping_add(8)).unwrap());
    let path = file("without-one.raw");
    std::fs::copy(demo_as("raw"), &path).unwrap();
    let image = File::options().write(true).open(&path).unwrap();
    for (at, value) in [(previous, next), (next + 8, previous)] {
        // The image is raw: a place in it is a physical address.
        let place = space.translate(VirtAddr::new(at)).unwrap().at;
        image.write_all_at(&value.to_le_bytes(), place.get()).unwrap();
    }
    path
}

/// What no example that needs an operating system can read, each with what it is.
pub(crate) fn hopeless() -> Vec<(&'static str, PathBuf)> {
    let write = |name: &str, bytes: &[u8]| {
        let path = file(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let mut state = 1u64;
    let random: Vec<u8> = std::iter::repeat_with(|| {
        // xorshift64: the bytes need not be good, only without meaning.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .take(1 << 17)
    .flatten()
    .collect();
    vec![
        ("nothing", write("empty.raw", b"")),
        ("one byte", write("byte.raw", b"x")),
        ("random bytes", write("random.raw", &random)),
        ("zeros", write("zeros.raw", &[0; 1 << 20])),
        ("text", write("text.raw", &b"Linux version 6.1.0 \n".repeat(1000))),
        ("a packed image, cut short", cut(Path::new(DEMO), 3 << 20)),
        ("the start of a packed image", cut(Path::new(DEMO), 10)),
        ("a LiME image, cut short", cut(&demo_as("lime"), 40 << 20)),
        ("the start of an ELF image", cut(&demo_as("elf"), 64)),
        ("an ELF image, cut short", cut(&demo_as("elf"), 40 << 20)),
        ("a program", std::env::current_exe().unwrap()),
        ("a directory", std::env::temp_dir()),
        ("nothing at all", file("no-such-file.raw")),
    ]
}
