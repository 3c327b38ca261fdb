//! From the blob on disk to checked, decompressed bytes.
//!
//! The media type alone decides how a blob is decompressed; nothing is sniffed.
//! Source: OCI image-spec 1.1, layer.md, "+gzip" and "+zstd"; RFC 1952; RFC 8878.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;

use crate::digest::{Digest, Hasher};
use crate::error::{shown, Code, Error, Result};

/// Bytes read from disk, or handed on decompressed, at a time.
pub const CHUNK: usize = 128 * 1024;

/// Largest zstd window: 2^27 bytes = 128 MiB.
const ZSTD_WINDOW_LOG: u32 = 27;

/// How far the work is, for another thread to look at, and its way to end the work.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    cancelled: AtomicBool,
}

impl Progress {
    /// Bytes of blobs read so far, every pass counted.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Bytes of blobs to read in all passes; 0 before the work begins.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Ask the work to end soon, with [`Error::Interrupted`].
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub(crate) fn begin(&self, total: u64) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        Ok(())
    }
}

/// Compression of a layer blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Plain tar.
    None,
    /// One or more gzip members.
    Gzip,
    /// Zstandard frames.
    Zstd,
}

impl Compression {
    /// The compression that a layer media type names.
    ///
    /// # Errors
    /// `media_type_unsupported`, among others for nondistributable and Docker layers.
    pub fn of_media_type(media_type: &str) -> Result<Self> {
        match media_type.strip_prefix("application/vnd.oci.image.layer.v1.tar") {
            Some("") => Ok(Self::None),
            Some("+gzip") => Ok(Self::Gzip),
            Some("+zstd") => Ok(Self::Zstd),
            _ => Err(Error::refused(
                Code::MediaTypeUnsupported,
                format!(
                    "layers of media type {} are not supported",
                    shown(media_type.as_bytes())
                ),
            )),
        }
    }
}

/// The blob's file; counts what is read and looks for a request to stop.
struct Source<'a> {
    file: &'a File,
    progress: Arc<Progress>,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.progress.check().map_err(Error::into_io)?;
        let count = (&mut &*self.file)
            .read(buffer)
            .map_err(|error| Error::io("reading a layer blob", error).into_io())?;
        self.progress
            .done
            .fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

fn rewind<'a>(file: &'a File, progress: &Arc<Progress>) -> Result<BufReader<Source<'a>>> {
    (&mut &*file)
        .rewind()
        .map_err(|error| Error::io("reading a layer blob", error))?;
    Ok(BufReader::with_capacity(
        CHUNK,
        Source {
            file,
            progress: progress.clone(),
        },
    ))
}

/// Check size and digest of the blob as it lies on disk.
///
/// # Errors
/// `size_mismatch`, `digest_mismatch`, or the system's own.
pub fn check_blob(file: &File, size: u64, digest: &Digest, progress: &Arc<Progress>) -> Result<()> {
    let found = file
        .metadata()
        .map_err(|error| Error::io("reading a layer blob", error))?
        .len();
    if found != size {
        return Err(Error::refused(
            Code::SizeMismatch,
            format!("layer {digest} has {found} bytes, its descriptor says {size}"),
        ));
    }
    let mut source = rewind(file, progress)?;
    let mut hasher = digest.hasher();
    loop {
        let chunk = source
            .fill_buf()
            .map_err(|error| Error::from_io(error, |e| Error::io("reading a blob", e)))?;
        if chunk.is_empty() {
            break;
        }
        hasher.update(chunk);
        let count = chunk.len();
        source.consume(count);
    }
    let found = hasher.finish();
    if found != *digest {
        return Err(Error::refused(
            Code::DigestMismatch,
            format!("layer {digest} has the digest {found}"),
        ));
    }
    Ok(())
}

/// The decompressed bytes of a blob, hashed and counted as they pass.
pub struct LayerStream<'a> {
    decoder: Box<dyn Read + 'a>,
    hasher: Hasher,
    limit: u64,
    taken: u64,
    progress: Arc<Progress>,
    /// The refusal that ended the stream: decoders may answer anything when asked again.
    failed: Option<(Code, String)>,
}

impl<'a> LayerStream<'a> {
    /// Start at the beginning of `file`.
    ///
    /// Args: `limit` is the largest number of decompressed bytes; `diff_id` gives the hash algorithm.
    pub fn open(
        file: &'a File,
        compression: Compression,
        diff_id: &Digest,
        limit: u64,
        progress: &Arc<Progress>,
    ) -> Result<Self> {
        let mut source = rewind(file, progress)?;
        let empty = source
            .fill_buf()
            .map_err(|error| Error::from_io(error, decompress_error))?
            .is_empty();
        let decoder: Box<dyn Read + 'a> = match compression {
            Compression::None => Box::new(source),
            _ if empty => {
                return Err(Error::refused(
                    Code::DecompressError,
                    "a compressed layer has no bytes at all",
                ));
            }
            Compression::Gzip => Box::new(MultiGzDecoder::new(source)),
            Compression::Zstd => {
                let mut decoder =
                    zstd::stream::read::Decoder::with_buffer(source).map_err(decompress_error)?;
                decoder
                    .window_log_max(ZSTD_WINDOW_LOG)
                    .map_err(decompress_error)?;
                Box::new(decoder)
            }
        };
        Ok(Self {
            decoder,
            hasher: diff_id.hasher(),
            limit,
            taken: 0,
            progress: progress.clone(),
            failed: None,
        })
    }

    /// Read to the end.
    ///
    /// Returns the digest and the number of all decompressed bytes, those after the archive's end included.
    pub fn finish(mut self) -> Result<(Digest, u64)> {
        let mut buffer = vec![0; CHUNK];
        while self
            .read(&mut buffer)
            .map_err(|error| Error::from_io(error, decompress_error))?
            > 0
        {}
        Ok((self.hasher.finish(), self.taken))
    }
}

impl LayerStream<'_> {
    fn decode(&mut self, buffer: &mut [u8]) -> Result<usize> {
        // Few compressed bytes may make many: looking when they are read is not enough.
        self.progress.check()?;
        let count = self
            .decoder
            .read(buffer)
            .map_err(|error| Error::from_io(error, decompress_error))?;
        self.taken += count as u64;
        if self.taken > self.limit {
            let detail = format!(
                "a layer has more than {} bytes when decompressed",
                self.limit
            );
            return Err(Error::refused(Code::LimitExceeded, detail));
        }
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

impl Read for LayerStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some((code, detail)) = &self.failed {
            return Err(Error::refused(*code, detail.clone()).into_io());
        }
        self.decode(buffer).map_err(|error| {
            if let Error::Refused { code, detail } = &error {
                self.failed = Some((*code, detail.clone()));
            }
            error.into_io()
        })
    }
}

fn decompress_error(error: io::Error) -> Error {
    Error::refused(
        Code::DecompressError,
        format!("a layer cannot be decompressed: {error}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const GZIP: Compression = Compression::Gzip;
    const ZSTD: Compression = Compression::Zstd;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(data).unwrap();
        out.finish().unwrap()
    }

    fn decompress(blob: &[u8], compression: Compression, limit: u64) -> Result<(Digest, u64)> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(blob).unwrap();
        let kind = Digest::Sha256([0; 32]);
        let stream = LayerStream::open(&file, compression, &kind, limit, &Arc::default())?;
        stream.finish()
    }

    fn code(blob: &[u8], compression: Compression) -> Option<Code> {
        decompress(blob, compression, 1 << 20)
            .err()
            .and_then(|error| error.code())
    }

    #[test]
    fn members_and_frames_are_one_stream() {
        let one = gzip(b"one");
        let both = [one.clone(), gzip(b""), gzip(b"two")].concat();
        let plain = decompress(b"onetwo", Compression::None, 100).unwrap();
        assert_eq!(decompress(&both, GZIP, 100).unwrap(), plain);
        let frames = [
            zstd::encode_all(&b"one"[..], 1).unwrap(),
            zstd::encode_all(&b"two"[..], 1).unwrap(),
        ]
        .concat();
        assert_eq!(decompress(&frames, ZSTD, 100).unwrap(), plain);
    }

    #[test]
    fn whatever_follows_a_member_is_refused() {
        for tail in [
            &b"\0"[..],
            b"\0\0\0\0\0\0\0\0\0\0\0\0",
            b"garbage",
            b"\x1f",
            b"\x1f\x8b",
        ] {
            let blob = [&gzip(b"data")[..], tail].concat();
            assert_eq!(code(&blob, GZIP), Some(Code::DecompressError), "{tail:?}");
            let blob = [&zstd::encode_all(&b"data"[..], 1).unwrap()[..], tail].concat();
            assert_eq!(code(&blob, ZSTD), Some(Code::DecompressError), "{tail:?}");
        }
    }

    #[test]
    fn empty_blobs_are_refused() {
        assert_eq!(code(b"", GZIP), Some(Code::DecompressError));
        assert_eq!(code(b"", ZSTD), Some(Code::DecompressError));
        assert_eq!(code(b"", Compression::None), None);
    }

    #[test]
    fn every_truncation_is_refused() {
        let blob = gzip(b"some data that is long enough");
        let frame = zstd::encode_all(&b"some data that is long enough"[..], 3).unwrap();
        for length in 0..blob.len() {
            assert_eq!(
                code(&blob[..length], GZIP),
                Some(Code::DecompressError),
                "{length}"
            );
        }
        for length in 0..frame.len() {
            assert_eq!(
                code(&frame[..length], ZSTD),
                Some(Code::DecompressError),
                "{length}"
            );
        }
    }

    #[test]
    fn the_content_checksum_of_a_frame_counts() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.include_checksum(true).unwrap();
        encoder.write_all(b"data").unwrap();
        let mut frame = encoder.finish().unwrap();
        assert_eq!(code(&frame, ZSTD), None);
        *frame.last_mut().unwrap() ^= 1;
        assert_eq!(code(&frame, ZSTD), Some(Code::DecompressError));
    }

    #[test]
    fn windows_over_128_mib_are_refused() {
        // Magic, descriptor (window, no content size), window byte, one empty last raw block.
        let frame = |window: u8| [0x28, 0xb5, 0x2f, 0xfd, 0x00, window, 1, 0, 0];
        assert_eq!(code(&frame(17 << 3), ZSTD), None);
        assert_eq!(code(&frame(17 << 3 | 1), ZSTD), Some(Code::DecompressError));
    }

    #[test]
    fn the_limit_holds_on_the_byte() {
        let blob = gzip(&[7; 1000]);
        assert_eq!(decompress(&blob, GZIP, 1000).unwrap().1, 1000);
        assert_eq!(
            decompress(&blob, GZIP, 999).unwrap_err().code(),
            Some(Code::LimitExceeded)
        );
    }

    #[test]
    fn a_cancelled_reader_ends() {
        let progress: Arc<Progress> = Arc::default();
        progress.cancel();
        let file = tempfile::tempfile().unwrap();
        let digest = Digest::Sha256([0; 32]);
        assert!(matches!(
            check_blob(&file, 0, &digest, &progress),
            Err(Error::Interrupted)
        ));
    }
}
