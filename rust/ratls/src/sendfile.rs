//! Files that the backend names and this side sends, so that blob bytes never pass through Python.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::sync::mpsc;

/// Bytes read and handed on at once.
const CHUNK_BYTES: usize = 128 << 10;

/// Do not wait for the writer of a named pipe (`O_NONBLOCK`).
const O_NONBLOCK: i32 = 0o4000;

/// The directory below which files may be sent.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    root: PathBuf,
}

impl Store {
    /// Fix the store's real path.
    pub(crate) fn new(root: &Path) -> io::Result<Self> {
        Ok(Self {
            root: fs::canonicalize(root)?,
        })
    }

    /// Open a regular file of the store and place it at `offset`.
    ///
    /// The path is judged after opening, by where the descriptor really points, so that neither `..` nor a
    /// symbolic link exchanged meanwhile leads out.
    fn open(&self, path: &Path, offset: u64, length: u64) -> io::Result<File> {
        let mut file = fs::OpenOptions::new()
            .read(true)
            .custom_flags(O_NONBLOCK)
            .open(path)?;
        let real = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        if !real.starts_with(&self.root) || real == self.root {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the file lies outside the store",
            ));
        }
        let status = file.metadata()?;
        if !status.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        if offset
            .checked_add(length)
            .is_none_or(|end| end > status.len())
        {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file is shorter than announced",
            ));
        }
        file.seek(SeekFrom::Start(offset))?;
        Ok(file)
    }

    /// A body with `length` bytes of `path` from `offset`.
    pub(crate) async fn body(
        &self,
        path: PathBuf,
        offset: u64,
        length: u64,
    ) -> io::Result<FileBody> {
        let store = self.clone();
        let file = tokio::task::spawn_blocking(move || store.open(&path, offset, length))
            .await
            .map_err(io::Error::other)??;
        let (sender, receiver) = mpsc::channel(2);
        tokio::task::spawn_blocking(move || feed(file, length, &sender));
        Ok(FileBody {
            receiver,
            left: length,
        })
    }
}

/// Read the file and pass chunks on until the receiver is gone. Waits while the client is slow.
fn feed(file: File, length: u64, sender: &mpsc::Sender<io::Result<Bytes>>) {
    let mut source = file.take(length);
    let mut left = length;
    while left > 0 {
        let mut chunk = vec![0; CHUNK_BYTES.min(usize::try_from(left).unwrap_or(CHUNK_BYTES))];
        let item = source.read_exact(&mut chunk).map(|()| Bytes::from(chunk));
        let failed = item.is_err();
        left -= item.as_ref().map_or(0, |bytes| bytes.len() as u64);
        if sender.blocking_send(item).is_err() || failed {
            return;
        }
    }
}

/// A response body fed from a file.
#[derive(Debug)]
pub(crate) struct FileBody {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    left: u64,
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.receiver.poll_recv(context).map(|item| {
            item.map(|result| {
                result.map(|bytes| {
                    self.left = self.left.saturating_sub(bytes.len() as u64);
                    Frame::data(bytes)
                })
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_outside_the_store_are_not_sent() {
        let base = std::env::temp_dir().join(format!("islet-ratls-store-{}", std::process::id()));
        let root = base.join("root");
        fs::create_dir_all(&root).unwrap();
        fs::write(root.join("blob"), b"0123456789").unwrap();
        fs::write(base.join("secret"), b"secret").unwrap();
        std::os::unix::fs::symlink(base.join("secret"), root.join("link")).unwrap();
        let store = Store::new(&root).unwrap();
        let kind = |path: &str, offset, length| {
            store
                .open(&root.join(path), offset, length)
                .map(|_| ())
                .map_err(|error| error.kind())
        };
        assert_eq!(kind("blob", 2, 8), Ok(()));
        assert_eq!(kind("blob", 2, 9), Err(io::ErrorKind::UnexpectedEof));
        assert_eq!(kind("blob", u64::MAX, 2), Err(io::ErrorKind::UnexpectedEof));
        assert_eq!(
            kind("../secret", 0, 1),
            Err(io::ErrorKind::PermissionDenied)
        );
        assert_eq!(kind("link", 0, 1), Err(io::ErrorKind::PermissionDenied));
        assert_eq!(kind("absent", 0, 1), Err(io::ErrorKind::NotFound));
        fs::remove_dir_all(&base).unwrap();
    }
}
