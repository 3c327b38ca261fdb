//! Safe application of OCI image layers to a directory.
//!
//! Layers are hostile input: an archive may name files outside the destination, write through links that it
//! made itself, repeat or hide entries from one reader and show them to another, or grow without end. For each
//! layer the checks come in this order, and nothing in the destination changes before the first four hold for
//! the whole blob: size, blob digest, decompression with diff_id, structure and names. Then a second pass,
//! hashed again because the blob's disk may be hostile too, applies whiteouts and entries.
//!
//! | Threat | Answer | Shown by |
//! |---|---|---|
//! | blob swapped or changed, also between the passes | digests in both passes | `stream`, `tests` |
//! | decompression bomb | limits on bytes and entries, checked as they are counted | `stream::tests` |
//! | archive with two readings | strict reader | `tar::tests` |
//! | names and links that lead out | walk by descriptor, never following the last component | `walk::tests` |
//! | writing through a hard link, set-id by the installer | always new files; owner before mode | vectors |
//! | layer steering the overlay mount above it | `*.overlay.*` attributes refused | vectors |
//! | memory exhaustion | fixed buffers; held names, warnings and extended headers are limited | `tests` |
//!
//! Source: OCI image-spec 1.1, layer.md.

#![forbid(unsafe_code)]

mod admit;
mod apply;
mod digest;
mod error;
mod held;
mod names;
mod remove;
mod stream;
pub mod tar;
#[cfg(test)]
mod tests;
mod walk;
mod warnings;

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use digest::Digest;
pub use error::{Code, Error, Result};
pub use stream::{Compression, Progress};
pub use warnings::Warning;

use admit::Survey;
use apply::Applier;
use held::Closed;
use stream::{check_blob, LayerStream};
use tar::{Entry, TarLimits, TarReader};
use walk::Root;
use warnings::Warnings;

/// Passes over each blob: digest, survey, application.
const PASSES: u64 = 3;

/// What an image may use. Exceeding any of it is `limit_exceeded`.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Decompressed bytes of one layer.
    pub layer_bytes: u64,
    /// Decompressed bytes of all layers.
    pub image_bytes: u64,
    /// Entries of one layer.
    pub entries: u64,
    /// Layers.
    pub layers: usize,
    /// Bytes of one extended header.
    pub extended_bytes: u64,
    /// Memory for the names of directories and whiteouts of one layer, bytes.
    pub held_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layer_bytes: 8 << 30,
            image_bytes: 16 << 30,
            entries: 1_000_000,
            layers: 500,
            extended_bytes: 1 << 20,
            held_bytes: 64 << 20,
        }
    }
}

/// How layers are applied.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Limits.
    pub limits: Limits,
    /// Set owners as the archive has them (needs privileges); else set-id bits are dropped.
    pub ownership: bool,
    /// Leave devices out with a warning instead of refusing the layer.
    pub skip_devices: bool,
}

/// A layer: where its blob lies and what its descriptor and the image configuration say of it.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The blob's file; `/proc/self/fd/N` serves for an open one.
    pub path: PathBuf,
    /// Media type of the descriptor.
    pub media_type: String,
    /// Digest of the descriptor: of the blob as stored.
    pub digest: String,
    /// Size of the descriptor, bytes.
    pub size: u64,
    /// Digest of the decompressed bytes, from the image configuration.
    pub diff_id: String,
}

/// Apply `layers`, lowest first, to the directory `root`.
///
/// When this fails, what was applied so far is left and must not be used.
///
/// # Errors
/// [`Error::Refused`] with the first rule that was broken, [`Error::Io`] from the system,
/// [`Error::Interrupted`] after [`Progress::cancel`].
pub fn apply_layers(
    root: &Path,
    layers: &[Layer],
    options: &Options,
    progress: &Arc<Progress>,
) -> Result<Vec<(Warning, String)>> {
    if layers.len() > options.limits.layers {
        let detail = format!(
            "an image of {} layers has more than {}",
            layers.len(),
            options.limits.layers
        );
        return Err(Error::refused(Code::LimitExceeded, detail));
    }
    let layers = layers
        .iter()
        .map(Checked::new)
        .collect::<Result<Vec<_>>>()?;
    progress.begin(layers.iter().fold(0, |sum: u64, layer| {
        sum.saturating_add(layer.size.saturating_mul(PASSES))
    }));
    let mut job = Job {
        root: Root::open(root)?,
        options,
        progress,
        warnings: Warnings::default(),
        closed: Closed::default(),
        bytes: 0,
    };
    for layer in &layers {
        job.apply(layer)?;
    }
    job.closed.close(&mut job.root)?;
    Ok(job.warnings.finish())
}

/// Read the file at `path` below `root` with links resolved inside it; nothing when it is not there.
///
/// # Errors
/// `not_a_file`, `not_a_directory`, `symlink_loop`; `limit_exceeded` when it has more than `limit` bytes.
pub fn read_in_root(root: &Path, path: &[u8], limit: u64) -> Result<Option<Vec<u8>>> {
    let Some(file) = Root::open(root)?.open_file(path)? else {
        return Ok(None);
    };
    let mut data = Vec::new();
    file.take(limit.saturating_add(1))
        .read_to_end(&mut data)
        .map_err(|e| Error::io(error::shown(path), e))?;
    if data.len() as u64 > limit {
        let detail = format!("{} has more than {limit} bytes", error::shown(path));
        return Err(Error::refused(Code::LimitExceeded, detail));
    }
    Ok(Some(data))
}

/// Swap two names in one step, as `renameat2` with `RENAME_EXCHANGE` does.
///
/// Returns false when the kernel or the file system cannot do that.
///
/// # Errors
/// Those of the system.
pub fn exchange(one: &Path, other: &Path) -> Result<bool> {
    use rustix::fs::{renameat_with, RenameFlags, CWD};
    use rustix::io::Errno;

    match renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(Error::io(one.display().to_string(), error)),
    }
}

/// Flush the whole file system that holds `directory`.
///
/// # Errors
/// Those of the system.
pub fn flush_file_system(directory: &Path) -> Result<()> {
    let root = Root::open(directory)?;
    rustix::fs::syncfs(root.directory())
        .map_err(|error| Error::io(directory.display().to_string(), error))
}

/// A layer whose descriptor makes sense.
struct Checked<'a> {
    path: &'a Path,
    compression: Compression,
    digest: Digest,
    size: u64,
    diff_id: Digest,
}

impl<'a> Checked<'a> {
    fn new(layer: &'a Layer) -> Result<Self> {
        Ok(Self {
            path: &layer.path,
            compression: Compression::of_media_type(&layer.media_type)?,
            digest: Digest::parse(&layer.digest)?,
            size: layer.size,
            diff_id: Digest::parse(&layer.diff_id)?,
        })
    }

    fn open(&self) -> Result<File> {
        let missing = |why: &str| {
            Error::refused(
                Code::BlobMissing,
                format!("the blob of layer {} {why}", self.digest),
            )
        };
        let open = OpenOptions::new()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
            .open(self.path);
        let file = match open {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(missing("is not there"))
            }
            other => other.map_err(|error| Error::io(self.path.display().to_string(), error))?,
        };
        let status = file
            .metadata()
            .map_err(|error| Error::io(self.path.display().to_string(), error))?;
        if status.is_file() {
            Ok(file)
        } else {
            Err(missing("is no regular file"))
        }
    }
}

/// The application of one image.
struct Job<'a> {
    root: Root,
    options: &'a Options,
    progress: &'a Arc<Progress>,
    warnings: Warnings,
    closed: Closed,
    /// Decompressed bytes of the layers so far.
    bytes: u64,
}

impl Job<'_> {
    fn apply(&mut self, layer: &Checked<'_>) -> Result<()> {
        let file = layer.open()?;
        check_blob(&file, layer.size, &layer.digest, self.progress)?;
        let mut survey = Survey::new(self.options);
        let bytes = self.survey(layer, &file, &mut survey)?;
        self.place(layer, &file, &survey)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Apply a layer that was surveyed. Its bytes are hashed once more: the disk may not give the same twice.
    fn place(&mut self, layer: &Checked<'_>, file: &File, survey: &Survey<'_>) -> Result<()> {
        let mut reader = self.reader(layer, file)?;
        let mut applier = Applier::new(
            &mut self.root,
            self.options,
            &mut self.warnings,
            &mut self.closed,
        );
        let outcome = applier
            .hide(&survey.whiteouts)
            .and_then(|()| applier.add(&mut reader));
        let outcome = outcome.and_then(|()| applier.finish_directories());
        if let Err(error @ (Error::Io { .. } | Error::Interrupted)) = outcome {
            return Err(error);
        }
        // Other bytes than those surveyed may break any rule; that they are others is what matters.
        check_diff_id(layer, &reader.into_inner().finish()?.0)?;
        outcome
    }

    /// Check the whole layer without touching the destination. Returns its decompressed size.
    fn survey(&mut self, layer: &Checked<'_>, file: &File, survey: &mut Survey<'_>) -> Result<u64> {
        let mut reader = self.reader(layer, file)?;
        let mut entry = Entry::default();
        let mut refused = None;
        let structure = loop {
            match reader.next(&mut entry) {
                Ok(true) if refused.is_none() => {
                    refused = survey.add(&entry, &mut self.warnings).err()
                }
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        if let Err(error @ (Error::Io { .. } | Error::Interrupted)) = structure {
            return Err(error);
        }
        // What the archive says counts only once its bytes are known to be the right ones.
        let (found, bytes) = reader.into_inner().finish()?;
        check_diff_id(layer, &found)?;
        structure?;
        refused.map_or(Ok(bytes), Err)
    }

    fn reader<'f>(
        &self,
        layer: &Checked<'_>,
        file: &'f File,
    ) -> Result<TarReader<LayerStream<'f>>> {
        let limits = &self.options.limits;
        let limit = limits
            .layer_bytes
            .min(limits.image_bytes.saturating_sub(self.bytes));
        let stream = LayerStream::open(
            file,
            layer.compression,
            &layer.diff_id,
            limit,
            self.progress,
        )?;
        let limits = TarLimits {
            data: limit,
            extended: limits.extended_bytes,
            entries: limits.entries,
        };
        Ok(TarReader::new(stream, limits))
    }
}

fn check_diff_id(layer: &Checked<'_>, found: &Digest) -> Result<()> {
    if *found == layer.diff_id {
        return Ok(());
    }
    let detail = format!(
        "layer {} has the diff_id {found}, the configuration says {}",
        layer.digest, layer.diff_id
    );
    Err(Error::refused(Code::DiffIdMismatch, detail))
}
