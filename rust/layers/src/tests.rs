//! Whole layers against a real directory.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{symlink, MetadataExt};
use std::path::PathBuf;

use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::*;
use crate::tar::testing::{entry, header, record};

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

fn sha256(data: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(data)))
}

/// A destination beside a file that must never change.
struct Place {
    temp: TempDir,
    root: PathBuf,
}

impl Place {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::create_dir(temp.path().join("outside")).unwrap();
        fs::write(temp.path().join("outside/canary"), "canary").unwrap();
        Self { temp, root }
    }

    fn layer(&self, archive: &[u8]) -> Layer {
        let path = self.temp.path().join("blobs").join(&sha256(archive)[7..]);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, archive).unwrap();
        let digest = sha256(archive);
        Layer {
            path,
            media_type: TAR.into(),
            digest: digest.clone(),
            size: archive.len() as u64,
            diff_id: digest,
        }
    }

    fn apply(&self, archives: &[&[u8]], options: &Options) -> Result<Vec<(Warning, String)>> {
        let layers: Vec<_> = archives.iter().map(|archive| self.layer(archive)).collect();
        apply_layers(&self.root, &layers, options, &Arc::default())
    }

    fn assert_outside_untouched(&self) {
        let names = |path: PathBuf| -> Vec<_> {
            let mut names: Vec<_> = fs::read_dir(path)
                .unwrap()
                .map(|item| item.unwrap().file_name())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(self.temp.path().into()), ["blobs", "outside", "root"]);
        assert_eq!(names(self.temp.path().join("outside")), ["canary"]);
        assert_eq!(
            fs::read(self.temp.path().join("outside/canary")).unwrap(),
            b"canary"
        );
    }
}

fn link(name: &[u8], flag: u8, target: &[u8]) -> Vec<u8> {
    let target = record("linkpath", std::str::from_utf8(target).unwrap());
    [&entry(b"x", b'x', &target)[..], &header(name, flag, 0)].concat()
}

#[test]
fn a_replaced_directory_keeps_the_time_of_what_replaced_it() {
    let place = Place::new();
    let archive = [
        entry(b"a/", b'5', b""),
        link(b"a", b'2', b"b"),
        entry(b"b/", b'5', b""),
    ]
    .concat();
    let warnings = place.apply(&[&archive], &Options::default()).unwrap();
    assert_eq!(warnings, [(Warning::DuplicateEntry, "'a'".into())]);
    assert_eq!(
        fs::read_link(place.root.join("a")).unwrap().to_str(),
        Some("b")
    );
}

#[test]
fn closed_directories_are_closed_at_the_end() {
    let place = Place::new();
    let mut closed = header(b"d/", b'5', 0);
    closed[100..107].copy_from_slice(b"0000555");
    let archive = [
        &crate::tar::testing::sealed(closed)[..],
        &entry(b"d/f", b'0', b"x"),
    ]
    .concat();
    place.apply(&[&archive], &Options::default()).unwrap();
    assert_eq!(
        fs::metadata(place.root.join("d")).unwrap().mode() & 0o7777,
        0o555
    );
    assert_eq!(
        fs::metadata(place.root.join("d")).unwrap().mtime(),
        0o14000000000
    );
}

#[test]
fn a_link_cannot_replace_the_directory_that_holds_its_target() {
    let place = Place::new();
    let archive = [entry(b"d/f", b'0', b"x"), link(b"d", b'1', b"d/f")].concat();
    let error = place.apply(&[&archive], &Options::default()).unwrap_err();
    assert_eq!(error.code(), Some(Code::HardlinkInvalid));
}

#[test]
fn a_link_to_itself_by_another_name_is_refused() {
    let place = Place::new();
    let archive = [
        entry(b"d/f", b'0', b"x"),
        link(b"l", b'2', b"d"),
        link(b"d/f", b'1', b"l/f"),
    ]
    .concat();
    let error = place.apply(&[&archive], &Options::default()).unwrap_err();
    assert_eq!(error.code(), Some(Code::HardlinkInvalid));
    assert_eq!(fs::read(place.root.join("d/f")).unwrap(), b"x");
}

#[test]
fn a_blob_that_changes_between_the_passes_is_noticed() {
    let place = Place::new();
    let archive = entry(b"f", b'0', &[b'x'; 1000]);
    let layer = place.layer(&archive);
    let options = Options::default();
    let mut job = Job {
        root: Root::open(&place.root).unwrap(),
        options: &options,
        progress: &Arc::default(),
        warnings: Warnings::default(),
        closed: Closed::default(),
        bytes: 0,
    };
    let checked = Checked::new(&layer).unwrap();
    let file = checked.open().unwrap();
    job.survey(&checked, &file, &mut Survey::new(&options))
        .unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(&layer.path)
        .unwrap()
        .write_all(&entry(b"g", b'0', b""))
        .unwrap();
    let survey = Survey::new(&options);
    assert_eq!(
        job.place(&checked, &file, &survey).unwrap_err().code(),
        Some(Code::DiffIdMismatch)
    );
}

#[test]
fn nothing_is_written_before_the_whole_layer_was_read() {
    for (tail, code) in [
        (entry(b"../x", b'0', b""), Code::PathEscape),
        (entry(b"d", b'3', b""), Code::DeviceNode),
        (vec![1; 512], Code::TarMalformed),
        (vec![0; 100], Code::TarTruncated),
    ] {
        let place = Place::new();
        let archive = [entry(b"f", b'0', b"x"), entry(b".wh.g", b'0', b""), tail].concat();
        fs::write(place.root.join("g"), "lower").unwrap();
        assert_eq!(
            place
                .apply(&[&archive], &Options::default())
                .unwrap_err()
                .code(),
            Some(code)
        );
        let names: Vec<_> = fs::read_dir(&place.root)
            .unwrap()
            .map(|item| item.unwrap().file_name())
            .collect();
        assert_eq!(names, ["g"], "{code:?}");
    }
}

#[test]
fn structure_comes_before_names() {
    let place = Place::new();
    let archive = [entry(b"../x", b'0', b""), vec![0; 100]].concat();
    assert_eq!(
        place
            .apply(&[&archive], &Options::default())
            .unwrap_err()
            .code(),
        Some(Code::TarTruncated)
    );
}

#[test]
fn held_names_and_layers_are_limited() {
    let place = Place::new();
    let mut options = Options::default();
    options.limits.held_bytes = 1000;
    let archive: Vec<u8> = (0..20)
        .flat_map(|n| entry(format!("d{n}/").as_bytes(), b'5', b""))
        .collect();
    assert_eq!(
        place.apply(&[&archive], &options).unwrap_err().code(),
        Some(Code::LimitExceeded)
    );
    options.limits.layers = 1;
    assert_eq!(
        place.apply(&[b"", b""], &options).unwrap_err().code(),
        Some(Code::LimitExceeded)
    );
}

#[test]
fn missing_and_odd_blobs() {
    let place = Place::new();
    let mut layer = place.layer(b"");
    for path in [
        place.temp.path().join("none"),
        place.root.clone(),
        PathBuf::from("/dev/null"),
    ] {
        layer.path = path;
        let error = apply_layers(
            &place.root,
            std::slice::from_ref(&layer),
            &Options::default(),
            &Arc::default(),
        )
        .unwrap_err();
        assert_eq!(error.code(), Some(Code::BlobMissing));
    }
}

#[test]
fn progress_counts_every_pass() {
    let place = Place::new();
    let layer = place.layer(&entry(b"f", b'0', &[1; 300_000]));
    let progress: Arc<Progress> = Arc::default();
    apply_layers(
        &place.root,
        std::slice::from_ref(&layer),
        &Options::default(),
        &progress,
    )
    .unwrap();
    assert_eq!(
        (progress.done(), progress.total()),
        (3 * layer.size, 3 * layer.size)
    );
}

#[test]
fn exchange_swaps_names() {
    let place = Place::new();
    let (one, other) = (
        place.temp.path().join("one"),
        place.temp.path().join("other"),
    );
    fs::write(&one, "1").unwrap();
    fs::write(&other, "2").unwrap();
    if exchange(&one, &other).unwrap() {
        assert_eq!(
            (fs::read(&one).unwrap(), fs::read(&other).unwrap()),
            (b"2".to_vec(), b"1".to_vec())
        );
    }
    assert!(matches!(
        exchange(&one, &place.temp.path().join("none")),
        Err(Error::Io { .. })
    ));
    flush_file_system(&place.root).unwrap();
}

/// Few names, so that entries meet. Most layers must get past the survey, so `..` is for link targets.
fn name(last: &'static [&'static str]) -> impl Strategy<Value = String> {
    let above = prop::sample::select(PLAIN);
    (
        prop::collection::vec(above, 0..4),
        prop::sample::select(last),
    )
        .prop_map(|(mut parts, last)| {
            parts.push(last);
            parts.join("/")
        })
}

const PLAIN: &[&str] = &["a", "b", "c", "outside", "canary"];
const FILES: &[&str] = &[
    "a",
    "b",
    "c",
    "outside",
    "canary",
    ".wh.a",
    ".wh.c",
    ".wh..wh..opq",
];

/// Targets that lead everywhere.
fn target() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "a", "b", "c", "outside", "canary", ".", "..", "..", "",
    ]);
    prop::collection::vec(part, 1..6).prop_map(|parts| parts.join("/"))
}

fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let one = prop_oneof![
        4 => name(FILES).prop_map(|name| entry(name.as_bytes(), b'0', b"evil")),
        2 => name(PLAIN).prop_map(|name| entry(name.as_bytes(), b'5', b"")),
        4 => (name(PLAIN), target()).prop_map(|(name, target)| link(name.as_bytes(), b'2', target.as_bytes())),
        1 => (name(PLAIN), name(PLAIN)).prop_map(|(name, target)| link(name.as_bytes(), b'1', target.as_bytes())),
        1 => name(PLAIN).prop_map(|name| entry(name.as_bytes(), b'6', b"")),
    ];
    prop::collection::vec(one, 0..7).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn whatever_is_applied_stays_inside(first in hostile(), second in hostile(), plant in target()) {
        let place = Place::new();
        if !plant.is_empty() {
            let _ = symlink(&plant, place.root.join("c"));
        }
        let _ = place.apply(&[&first, &second], &Options::default());
        place.assert_outside_untouched();
    }

    #[test]
    fn mutated_layers_stay_inside(
        mut archive in hostile(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        for (index, byte) in changes {
            if !archive.is_empty() {
                let at = index.index(archive.len());
                archive[at] = byte;
            }
        }
        let place = Place::new();
        let _ = place.apply(&[&archive], &Options::default());
        place.assert_outside_untouched();
    }
}
