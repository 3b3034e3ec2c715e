//! Symbol paths, the layouts of stores, and what a miss says.

use proptest::prelude::*;

use super::*;

const KEY: &str = "5278AFF86C341677D7D7835C85B7B8441";

pub(super) fn identity() -> PdbIdentity {
    PdbIdentity::from_key("ntkrnlmp.pdb", KEY).unwrap()
}

/// The smallest Volatility symbol file of that kernel.
pub(super) fn isf() -> String {
    let (guid, _) = KEY.split_at(32);
    format!(
        r#"{{"metadata":{{"format":"6.2.0","windows":{{"pdb":{{"GUID":"{guid}","age":1,"database":"ntkrnlmp.pdb","machine_type":34404}}}}}},
        "base_types":{{"pointer":{{"size":8,"signed":false,"kind":"int","endian":"little"}}}},"enums":{{}},"user_types":{{}},
        "symbols":{{"PsActiveProcessHead":{{"address":12706304}}}}}}"#
    )
}

fn put(path: PathBuf, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn symbol_paths_of_the_debuggers() {
    let store = SymbolStore::parse(
        "srv*/var/sym*https://msdl.microsoft.com/download/symbols/;cache*/tmp/c; /plain ;symsrv*symsrv.dll*/a*HTTP://mirror;;SRV**/b;symsrv*",
    );
    let directories: Vec<_> = store.directories().iter().map(|path| path.display().to_string()).collect();
    assert_eq!(directories, ["/var/sym", "/tmp/c", "/plain", "/a", "/b"]);
    assert_eq!(store.servers(), ["https://msdl.microsoft.com/download/symbols", "HTTP://mirror"]);
}

#[test]
fn files_are_found_in_every_layout() {
    let key = KEY.to_lowercase();
    for path in [
        format!("ntkrnlmp.pdb/{KEY}/ntkrnlmp.pdb"),
        format!("ntkrnlmp.pdb/{key}/ntkrnlmp.pdb"),
        "ntkrnlmp.pdb".to_owned(),
        "5278AFF86C341677D7D7835C85B7B844-1.json".to_owned(),
        "ntkrnlmp.pdb/5278AFF86C341677D7D7835C85B7B844-1.json".to_owned(),
        "windows/ntkrnlmp.pdb/5278AFF86C341677D7D7835C85B7B844-1.json".to_owned(),
    ] {
        let directory = tempfile::tempdir().unwrap();
        put(directory.path().join(&path), isf().as_bytes());
        let store = SymbolStore::parse("/nowhere").with_directory(directory.path());
        let file = store.load(&identity()).unwrap_or_else(|missing| panic!("{path}: {missing}"));
        assert_eq!(file.offsets().collect::<Vec<_>>(), [("PsActiveProcessHead", 12706304)]);
        assert_eq!(store.needed([identity(), identity()]).len(), 1);
        assert_eq!(store.needed([identity()])[0].here, Some(directory.path().join(&path)));
    }
    let directory = tempfile::tempdir().unwrap();
    put(directory.path().join("index2.txt"), b"");
    put(directory.path().join(format!("nt/ntkrnlmp.pdb/{KEY}/ntkrnlmp.pdb")), isf().as_bytes());
    assert!(SymbolStore::parse("").with_directory(directory.path()).load(&identity()).is_ok(), "two tiers");
}

#[test]
fn a_compressed_file_is_unpacked() {
    let mut builder = cab::CabinetBuilder::new();
    builder.add_folder(cab::CompressionType::MsZip).add_file("ntkrnlmp.pdb");
    let mut writer = builder.build(std::io::Cursor::new(Vec::new())).unwrap();
    std::io::Write::write_all(&mut writer.next_file().unwrap().unwrap(), isf().as_bytes()).unwrap();
    let cabinet = writer.finish().unwrap().into_inner();
    let directory = tempfile::tempdir().unwrap();
    put(directory.path().join(format!("ntkrnlmp.pdb/{KEY}/ntkrnlmp.pd_")), &cabinet);
    assert_eq!(SymbolStore::parse("").with_directory(directory.path()).load(&identity()).unwrap().offsets().len(), 1);
}

#[test]
fn a_miss_says_what_was_looked_for_where_and_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().display();
    put(directory.path().join(format!("ntkrnlmp.pdb/{KEY}/ntkrnlmp.pd_")), b"MSCF");
    put(directory.path().join("ntkrnlmp.pdb.old"), b"");
    let missing = SymbolStore::parse(&format!("srv*{root}*https://symbols.example")).load(&identity()).unwrap_err().to_string();
    for part in [
        format!("no symbols for ntkrnlmp.pdb (key {KEY})"),
        format!("{root}/ntkrnlmp.pdb/{KEY}/ntkrnlmp.pdb: not there"),
        format!("{root}/ntkrnlmp.pdb/{KEY}/ntkrnlmp.pd_: not a usable cabinet: "),
        format!("{root}/5278AFF86C341677D7D7835C85B7B844-1.json.xz: not there"),
        format!(
            "fetch https://symbols.example/ntkrnlmp.pdb/{KEY}/ntkrnlmp.pdb and put it at {root}/ntkrnlmp.pdb/{KEY}/ntkrnlmp.pdb"
        ),
    ] {
        assert!(missing.contains(&part), "{part}\n{missing}");
    }
    let nothing = SymbolStore::parse("").load(&identity()).unwrap_err().to_string();
    assert!(nothing.contains("_NT_SYMBOL_PATH") && nothing.contains(PUBLIC_SERVER), "{nothing}");
}

#[test]
fn a_file_of_another_build_is_not_taken() {
    let directory = tempfile::tempdir().unwrap();
    put(directory.path().join("ntkrnlmp.pdb"), isf().replace("5278AFF8", "11111111").as_bytes());
    let missing = SymbolStore::parse("").with_directory(directory.path()).load(&identity()).unwrap_err();
    assert!(missing.to_string().contains("is of 111111116C341677"), "{missing}");
}

#[test]
fn what_was_read_is_kept_and_damage_is_not_trusted() {
    let directory = tempfile::tempdir().unwrap();
    let cache = SymbolCache::new(directory.path().join("cache"));
    let source = directory.path().join("symbols/ntkrnlmp.pdb");
    put(source.clone(), isf().as_bytes());
    let store = SymbolStore::parse("").with_directory(directory.path().join("symbols")).with_cache(cache.clone());
    store.load(&identity()).unwrap();
    let kept = cache.path(&identity()).unwrap();
    let good = std::fs::read(&kept).unwrap();
    std::fs::remove_file(&source).unwrap();
    assert_eq!(store.load(&identity()).unwrap().offsets().len(), 1, "from the cache alone");
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        std::fs::write(&kept, &bad).unwrap();
        assert!(store.load(&identity()).is_err(), "byte {at} of the cache is damaged");
    }
    std::fs::write(&kept, &good[..good.len() - 1]).unwrap();
    assert!(store.load(&identity()).is_err(), "cut off");
    put(source, isf().as_bytes());
    store.load(&identity()).unwrap();
    assert_eq!(std::fs::read(&kept).unwrap(), good, "written anew");
}

#[test]
fn a_file_that_came_later_is_read_instead_of_what_was_kept() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (directory.path().join("first"), directory.path().join("second"));
    let names =
        |store: &SymbolStore| -> Vec<_> { store.load(&identity()).unwrap().offsets().map(|(name, _)| name.to_owned()).collect() };
    put(second.join("ntkrnlmp.pdb"), isf().as_bytes());
    // Files of one tick of the file system's clock count as changed together.
    std::thread::sleep(std::time::Duration::from_millis(50));
    let cache = SymbolCache::new(directory.path().join("cache"));
    let store = SymbolStore::parse("").with_directory(&first).with_directory(&second).with_cache(cache);
    assert_eq!(names(&store), ["PsActiveProcessHead"]);
    // As old as the first by its own date, as a copy that keeps dates makes it.
    let better = first.join(format!("ntkrnlmp.pdb/{KEY}/ntkrnlmp.pdb"));
    put(better.clone(), isf().replace("PsActiveProcessHead", "PsLoadedModuleList").as_bytes());
    std::fs::File::options().append(true).open(&better).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(names(&store), ["PsLoadedModuleList"]);
    std::fs::remove_file(&better).unwrap();
    assert_eq!(names(&store), ["PsLoadedModuleList"], "kept");
    std::fs::write(second.join("ntkrnlmp.pdb"), "no symbols").unwrap();
    assert_eq!(names(&store), ["PsLoadedModuleList"], "better than nothing");
}

#[test]
fn a_name_that_leads_elsewhere_is_no_path() {
    let directory = tempfile::tempdir().unwrap();
    put(directory.path().join("secret"), isf().as_bytes());
    std::fs::create_dir_all(directory.path().join("store")).unwrap();
    for name in ["../secret", "..", "", "/etc/passwd", "a\\b", "a\nb"] {
        let identity = PdbIdentity { name: name.to_owned(), ..identity() };
        let missing = SymbolStore::parse("").with_directory(directory.path().join("store")).load(&identity).unwrap_err();
        assert!(missing.tried.iter().all(|(path, _)| path.to_string_lossy().contains(".json")), "{missing}");
        assert!(missing.to_string().contains("as no file can be named"));
    }
}

/// Real Windows bytes: the image of this database names age 1, the database says 3 and 1.
#[test]
fn real_windows_bytes_a_database_is_found_and_kept_by_the_age_that_the_image_names() {
    let source = std::env::var_os("VMI_SHARED_DATA").map(|data| PathBuf::from(data).join("windows/pdb/ntdll.pdb"));
    let Some(source) = source.filter(|source| source.exists()) else {
        eprintln!("skipped: VMI_SHARED_DATA names no directory with windows/pdb/ntdll.pdb");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(source, directory.path().join("ntdll.pdb")).unwrap();
    let store = SymbolStore::parse("").with_directory(directory.path()).with_cache(SymbolCache::new(directory.path()));
    for age in [1, 3] {
        let identity = PdbIdentity::from_key("ntdll.pdb", &format!("CCC0E36120F424BE044DE630C3BD80C4{age}")).unwrap();
        for _ in 0..2 {
            assert_eq!(store.load(&identity).unwrap().identity(), Some(&identity));
        }
    }
    let other = PdbIdentity::from_key("ntdll.pdb", "CCC0E36120F424BE044DE630C3BD80C42").unwrap();
    assert!(store.load(&other).is_err());
}

proptest! {
    #[test]
    fn any_symbol_path_is_taken(path in "[srvcahe*;:/.a-z]{0,80}") {
        exercise(&path);
    }
}
