use super::testing::{entry, header, record, sealed};
use super::*;
use proptest::prelude::*;

const LIMITS: TarLimits = TarLimits {
    data: 1 << 30,
    extended: 1 << 20,
    entries: 1000,
};

type Found = Vec<(Vec<u8>, Kind, Vec<u8>)>;

fn read(archive: &[u8]) -> Result<Found> {
    let mut reader = TarReader::new(archive, LIMITS);
    let mut entry = Entry::default();
    let mut found = Vec::new();
    while reader.next(&mut entry)? {
        let mut data = Vec::new();
        let mut buffer = [0; 100];
        loop {
            match reader.read_data(&mut buffer)? {
                0 => break,
                count => data.extend_from_slice(&buffer[..count]),
            }
        }
        found.push((entry.name.clone(), entry.kind, data));
    }
    assert!(!reader.next(&mut entry)?);
    Ok(found)
}

fn code(archive: &[u8]) -> Option<Code> {
    read(archive).err().and_then(|error| error.code())
}

#[test]
fn the_size_of_pax_is_the_size() {
    let inner = entry(b"smuggled", b'0', b"evil");
    let mut archive = entry(b"x", b'x', &record("size", &inner.len().to_string()));
    archive.extend(header(b"inner.tar", b'0', 0));
    archive.extend(&inner);
    let found = read(&archive).unwrap();
    assert_eq!(found, [(b"inner.tar".to_vec(), Kind::Regular, inner)]);
}

#[test]
fn only_regular_files_have_data() {
    for flag in [b'1', b'2', b'5', b'6'] {
        let archive = [&header(b"a", flag, 512)[..], &entry(b"b", b'0', b"x")].concat();
        assert_eq!(read(&archive).unwrap().len(), 2);
    }
}

#[test]
fn names_given_twice_are_refused() {
    let file = entry(b"f", b'0', b"");
    for (first, second) in [
        (
            entry(b"x", b'x', &record("path", "a")),
            entry(b"L", b'L', b"b\0"),
        ),
        (
            entry(b"x", b'x', &record("linkpath", "a")),
            entry(b"K", b'K', b"b\0"),
        ),
        (entry(b"K", b'K', b"a\0"), entry(b"K", b'K', b"b\0")),
        (entry(b"x", b'x', b""), entry(b"x", b'x', b"")),
    ] {
        assert_eq!(
            code(&[&first[..], &second, &file].concat()),
            Some(Code::TarMalformed)
        );
        assert_eq!(
            code(&[&second[..], &first, &file].concat()),
            Some(Code::TarMalformed)
        );
    }
    let both = [entry(b"L", b'L', b"a\0"), entry(b"K", b'K', b"b\0"), file].concat();
    assert_eq!(read(&both).unwrap()[0].0, b"a");
}

#[test]
fn numbers() {
    let with = |range: std::ops::Range<usize>, bytes: &[u8]| {
        let mut block = header(b"f", b'0', 0);
        block[range].copy_from_slice(bytes);
        sealed(block).to_vec()
    };
    let owner = |archive: &[u8]| {
        let mut entry = Entry::default();
        TarReader::new(archive, LIMITS)
            .next(&mut entry)
            .map(|_| entry.uid)
    };
    assert_eq!(owner(&with(108..116, b"  1750 \0")).unwrap(), 0o1750);
    assert_eq!(owner(&with(108..116, &[0; 8])).unwrap(), 0);
    assert_eq!(
        owner(&with(108..116, b"\x80\0\0\0\xff\xff\xff\xfe")).unwrap(),
        u32::MAX - 1
    );
    for bad in [
        b"\x80\0\0\0\xff\xff\xff\xff",
        b"\xff\xff\xff\xff\xff\xff\xff\xff",
        b"0000008\0",
        b"00 0000\0",
    ] {
        assert_eq!(
            owner(&with(108..116, bad)).unwrap_err().code(),
            Some(Code::TarMalformed),
            "{bad:?}"
        );
    }
    let mut huge = [0xff; 12];
    huge[0] = 0xbf;
    assert_eq!(code(&with(124..136, &huge)), Some(Code::LimitExceeded));
}

#[test]
fn times() {
    let at = |text: &str| {
        let archive = [
            entry(b"x", b'x', &record("mtime", text)),
            entry(b"f", b'0', b""),
        ]
        .concat();
        let mut entry = Entry::default();
        TarReader::new(&archive[..], LIMITS)
            .next(&mut entry)
            .map(|_| entry.mtime)
    };
    assert_eq!(at("12.5").unwrap(), (12, 500_000_000));
    assert_eq!(at("12.1234567899").unwrap(), (12, 123_456_789));
    assert_eq!(at("-1.25").unwrap(), (-2, 750_000_000));
    assert_eq!(at("-3").unwrap(), (-3, 0));
    for bad in ["", ".5", "1.2.3", "1e3", "+1", "99999999999999999999"] {
        assert_eq!(
            at(bad).unwrap_err().code(),
            Some(Code::TarMalformed),
            "{bad}"
        );
    }
}

#[test]
fn the_end() {
    let file = entry(b"f", b'0', b"data");
    assert_eq!(
        code(&[&file[..], &[0; 511]].concat()),
        Some(Code::TarTruncated)
    );
    assert_eq!(code(&[&file[..], &[0; 700]].concat()), None);
    assert_eq!(
        code(&[&file[..], &[0; 512], &[1]].concat()),
        Some(Code::TarTrailingData)
    );
    assert_eq!(code(&file[..file.len() - 1]), Some(Code::TarTruncated));
    assert_eq!(code(&entry(b"g", b'g', &record("comment", "c"))), None);
}

fn archives() -> impl Strategy<Value = Vec<u8>> {
    let name = "[a-c./]{1,6}";
    let one = prop_oneof![
        (name, prop::collection::vec(any::<u8>(), 0..600)).prop_map(|(n, data)| entry(
            n.as_bytes(),
            b'0',
            &data
        )),
        (name, prop::sample::select(b"125637SxgLKQ".to_vec())).prop_map(|(n, flag)| entry(
            n.as_bytes(),
            flag,
            b""
        )),
        (name, "[a-z]{1,8}").prop_map(|(key, value)| entry(b"x", b'x', &record(&key, &value))),
        name.prop_map(|n| entry(b"L", b'L', n.as_bytes())),
    ];
    prop::collection::vec(one, 0..6).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn mutated_archives_never_panic(
        mut archive in archives(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
    ) {
        for (index, byte) in changes {
            if !archive.is_empty() {
                let at = index.index(archive.len());
                archive[at] = byte;
            }
        }
        let _ = read(&archive);
        let _ = read(&archive[..cut.index(archive.len() + 1)]);
    }

    #[test]
    fn what_is_written_is_read(files in prop::collection::vec(("[a-z]{1,20}", prop::collection::vec(any::<u8>(), 0..1500)), 0..8)) {
        let archive: Vec<u8> = files.iter().flat_map(|(name, data)| entry(name.as_bytes(), b'0', data)).collect();
        let expected: Found = files.into_iter().map(|(name, data)| (name.into_bytes(), Kind::Regular, data)).collect();
        prop_assert_eq!(read(&archive).unwrap(), expected);
    }
}
