//! The files of a launch, and the guest memory that they fill.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::Error;

/// A regular file with the size that it had when it was opened.
#[derive(Debug)]
pub struct Payload {
    what: &'static str,
    path: PathBuf,
    file: File,
    size: u64,
}

impl Payload {
    /// Open `path`; `what` names its role in errors.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NotAFile`], or [`Error::TooShort`] when it has fewer than `least` bytes.
    pub fn open(what: &'static str, path: &Path, least: u64) -> Result<Self, Error> {
        let io = |source| Error::Io {
            what,
            path: path.to_owned(),
            source,
        };
        // Asked before opening, because opening a pipe would wait for its other end.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(Error::NotAFile {
                what,
                path: path.to_owned(),
            });
        }
        let file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        if size < least {
            return Err(Error::TooShort {
                what,
                path: path.to_owned(),
                size,
                least,
            });
        }
        Ok(Self {
            what,
            path: path.to_owned(),
            file,
            size,
        })
    }

    /// Bytes of the file.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fill `buffer` from `offset`, which together lie within [`Payload::size`].
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Changed`] when the file has become shorter.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|source| match source.kind() {
                std::io::ErrorKind::UnexpectedEof => Error::Changed {
                    what: self.what,
                    path: self.path.clone(),
                },
                _ => Error::Io {
                    what: self.what,
                    path: self.path.clone(),
                    source,
                },
            })
    }

    /// The first `N` bytes, zero padded when the file is shorter.
    ///
    /// # Errors
    /// See [`Payload::read`].
    pub fn head<const N: usize>(&self) -> Result<[u8; N], Error> {
        let mut head = [0; N];
        let available = usize::try_from(self.size).map_or(N, |size| size.min(N));
        self.read(0, &mut head[..available])?;
        Ok(head)
    }
}

/// Guest memory: zero, but for the payloads loaded so far.
#[derive(Debug, Default)]
pub struct GuestMemory {
    loaded: Vec<(u64, Payload)>,
}

impl GuestMemory {
    /// Copy `payload` to `address`, over whatever was there.
    ///
    /// The address range must not wrap; the layout has checked that.
    pub fn load(&mut self, address: u64, payload: Payload) {
        self.loaded.push((address, payload));
    }

    /// Fill `buffer` with the memory from `address` on.
    ///
    /// # Errors
    /// See [`Payload::read`].
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let end = address + buffer.len() as u64;
        let covers =
            |(start, payload): &(u64, Payload)| *start <= address && end <= start + payload.size();
        if !self.loaded.iter().any(covers) {
            buffer.fill(0);
        }
        for (start, payload) in &self.loaded {
            let from = address.max(*start);
            let to = end.min(start + payload.size());
            if from < to {
                let window = (from - address) as usize..(to - address) as usize;
                payload.read(from - start, &mut buffer[window])?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    static NEXT: AtomicU32 = AtomicU32::new(0);

    /// A file that goes away at the end of the test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(content: &[u8]) -> Self {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path =
                std::env::temp_dir().join(format!("islet-rim-{}-{number}", std::process::id()));
            std::fs::write(&path, content).unwrap();
            Self(path)
        }

        fn open(&self) -> Payload {
            Payload::open("kernel", &self.0, 0).unwrap()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            std::fs::remove_file(&self.0).unwrap();
        }
    }

    #[test]
    fn only_regular_files() {
        assert_eq!(
            Payload::open("kernel", Path::new("/"), 0)
                .unwrap_err()
                .code(),
            "not-a-file"
        );
        assert_eq!(
            Payload::open("kernel", Path::new("/dev/null"), 0)
                .unwrap_err()
                .code(),
            "not-a-file"
        );
        let missing = Payload::open("kernel", Path::new("/no/such"), 0).unwrap_err();
        assert_eq!(
            missing.to_string(),
            "kernel /no/such: No such file or directory"
        );
    }

    #[test]
    fn a_file_may_be_too_short() {
        let file = Scratch::new(b"1234");
        let refused = Payload::open("initrd", &file.0, 5).unwrap_err();
        assert!(refused
            .to_string()
            .ends_with(": 4 bytes; at least 5 are needed"));
    }

    #[test]
    fn a_shrinking_file_is_noticed() {
        let file = Scratch::new(&[1; 8192]);
        let payload = file.open();
        std::fs::write(&file.0, b"short").unwrap();
        assert_eq!(
            payload.read(0, &mut [0; 4096]).unwrap_err().code(),
            "file-changed"
        );
    }

    #[test]
    fn memory_is_zero_around_files_and_later_files_win() {
        let (first, second) = (Scratch::new(b"aaaa"), Scratch::new(b"bb"));
        let mut memory = GuestMemory::default();
        memory.load(10, first.open());
        let mut buffer = [9; 8];
        memory.read(8, &mut buffer).unwrap();
        assert_eq!(&buffer, b"\0\0aaaa\0\0");
        memory.load(13, second.open());
        memory.read(8, &mut buffer).unwrap();
        assert_eq!(&buffer, b"\0\0aaabb\0");
    }
}
