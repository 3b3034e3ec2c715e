//! The image that all rows share.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use vmi::prelude::*;

pub struct BenchImage {
    pub path: PathBuf,
    /// Removes a made image at the end.
    _made: Option<tempfile::TempDir>,
}

/// What is behind the demo's memory.
#[derive(Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "each benchmark uses one")]
pub enum Rest {
    /// Noise: a real machine's memory is touched, and a hole in the file would be cheaper to read.
    Noise,
    /// The demo's memory again and again, each time a little different: what packing makes of noise says nothing.
    Copies,
}

/// `VMI_BENCH_IMAGE`, else the demo image made 1 GiB long.
pub fn open(rest: Rest) -> BenchImage {
    if let Some(path) = std::env::var_os("VMI_BENCH_IMAGE") {
        return BenchImage { path: path.into(), _made: None };
    }
    const LEN: u64 = 1 << 30;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("demo-1g.raw");
    let mut file = File::create_new(&path).unwrap();
    let demo = vmi::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../demo/debian-6.12.raw.zst")).unwrap();
    for region in demo.machine().memory.regions() {
        file.seek(SeekFrom::Start(region.start().get())).unwrap();
        std::io::copy(&mut demo.reader(region.start()..region.end()), &mut file).unwrap();
    }
    if rest == Rest::Copies {
        copies(&demo, &file, LEN);
        return BenchImage { path, _made: Some(directory) };
    }
    let mut state = 1u64;
    let mut noise = vec![0u8; 1 << 20];
    while file.stream_position().unwrap() < LEN {
        for word in noise.chunks_exact_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&state.to_le_bytes());
        }
        let left = (LEN - file.stream_position().unwrap()).min(noise.len() as u64) as usize;
        file.write_all(&noise[..left]).unwrap();
    }
    drop(file);
    assert_eq!(fs::metadata(&path).unwrap().len(), LEN);
    BenchImage { path, _made: Some(directory) }
}

/// Fills `file` up to `len` with the memory of `demo`; of each page that is not zero, a word tells which copy it is.
fn copies(demo: &Vmi<vmi::AnyDriver>, file: &File, len: u64) {
    let mut all = vec![0; demo.machine().memory.end().get() as usize];
    demo.read_lossy(vmi::PhysAddr::ZERO, &mut all).unwrap();
    file.set_len(len).unwrap();
    for copy in 1..len.div_ceil(all.len() as u64) {
        let at = copy * all.len() as u64;
        for page in all.chunks_mut(4096).filter(|page| page.iter().any(|&byte| byte != 0)) {
            page[2048..2056].copy_from_slice(&copy.to_le_bytes());
        }
        let end = all.len().min((len - at) as usize);
        file.write_all_at(&all[..end], at).unwrap();
    }
}
