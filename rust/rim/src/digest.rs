//! Content digests of granules: hashed on several threads, handed over in order.
//!
//! The calling thread takes what is ready, and hashes like the others while nothing is. Batches are short
//! and only a few may be ahead of the caller, so that memory does not grow with the files.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use islet_granulehash::{Field, Granule, Kernel, FIELD_SIZE};

use crate::payload::GuestMemory;
use crate::{Error, GRANULE_SIZE};

/// Granules of a batch: a multiple of every kernel's width, and small enough for a core's own cache.
const BATCH: usize = 48;
const BATCH_BYTES: u64 = BATCH as u64 * GRANULE_SIZE;
/// Batches per thread that may wait for the caller.
const AHEAD: usize = 4;
/// More threads than this are not started, whatever is asked for: each has a buffer.
const MAX_THREADS: usize = 256;

/// Who computes digests.
#[derive(Debug, Clone, Copy)]
pub struct Hasher {
    kernel: Kernel,
    threads: usize,
}

impl Hasher {
    /// `threads` threads, the calling one included (None: one per processor).
    #[must_use]
    pub fn new(kernel: Kernel, threads: Option<NonZeroUsize>) -> Self {
        let threads = threads
            .or_else(|| std::thread::available_parallelism().ok())
            .map_or(1, NonZeroUsize::get)
            .min(MAX_THREADS);
        Self { kernel, threads }
    }

    /// The digests of pages that are in memory already.
    #[must_use]
    pub fn digest(&self, granules: &[Granule]) -> Vec<Field> {
        let mut fields = vec![[0; FIELD_SIZE]; granules.len()];
        self.kernel.digest(granules, &mut fields);
        fields
    }

    /// Call `take` with the address and the digests of one batch of `pages` after the other, in order.
    ///
    /// # Errors
    /// A file cannot be read; see [`GuestMemory::read`].
    pub fn digest_memory(
        &self,
        memory: &GuestMemory,
        pages: Range<u64>,
        mut take: impl FnMut(u64, &[Field]),
    ) -> Result<(), Error> {
        let batches = (pages.end - pages.start).div_ceil(BATCH_BYTES);
        let threads = self
            .threads
            .min(usize::try_from(batches).unwrap_or(usize::MAX));
        let queue = Queue::new(batches, threads);
        let job = Job {
            kernel: self.kernel,
            memory,
            pages: &pages,
            queue: &queue,
        };
        std::thread::scope(|scope| {
            // However this ends, the threads must not wait for the caller.
            let _closing = Closing(&queue);
            for _ in 1..threads {
                // Where no thread can be started, those that run do its work.
                let _ = std::thread::Builder::new().spawn_scoped(scope, || job.help());
            }
            let mut worker = Worker::new(&job);
            loop {
                match queue.turn() {
                    Turn::Take(batch, fields) => {
                        take(job.address(batch), &fields);
                        queue.taken(fields);
                    }
                    Turn::Hash(batch, fields) => worker.hash(batch, fields),
                    Turn::Failed(error) => return Err(error),
                    Turn::Done => return Ok(()),
                }
            }
        })
    }
}

/// What all threads of one run share.
struct Job<'a> {
    kernel: Kernel,
    memory: &'a GuestMemory,
    pages: &'a Range<u64>,
    queue: &'a Queue,
}

impl Job<'_> {
    fn address(&self, batch: u64) -> u64 {
        self.pages.start + batch * BATCH_BYTES
    }

    /// The life of a thread.
    fn help(&self) {
        let _closing = ClosingOnPanic(self.queue);
        let mut worker = Worker::new(self);
        while let Some((batch, fields)) = self.queue.next() {
            worker.hash(batch, fields);
        }
    }
}

/// One thread with its buffer.
struct Worker<'a> {
    job: &'a Job<'a>,
    buffer: Vec<Granule>,
}

impl<'a> Worker<'a> {
    fn new(job: &'a Job<'a>) -> Self {
        Self {
            job,
            buffer: vec![[0; GRANULE_SIZE as usize]; BATCH],
        }
    }

    fn hash(&mut self, batch: u64, mut fields: Vec<Field>) {
        let address = self.job.address(batch);
        let left = (self.job.pages.end - address) / GRANULE_SIZE;
        let count = usize::try_from(left).map_or(BATCH, |left| left.min(BATCH));
        let granules = &mut self.buffer[..count];
        let read = self.job.memory.read(address, granules.as_flattened_mut());
        self.job.queue.hashed(
            batch,
            read.map(|()| {
                fields.resize(count, [0; FIELD_SIZE]);
                self.job.kernel.digest(granules, &mut fields);
                fields
            }),
        );
    }
}

/// What the caller does next.
enum Turn {
    /// Take the digests of this batch.
    Take(u64, Vec<Field>),
    /// Hash this batch into these fields.
    Hash(u64, Vec<Field>),
    /// A file could not be read.
    Failed(Error),
    /// All batches were taken, or the run was closed.
    Done,
}

/// Batches on their way from "to be hashed" to "taken".
struct Queue {
    batches: u64,
    ahead: usize,
    state: Mutex<State>,
    /// The batch that the caller waits for is ready, or has failed.
    ready: Condvar,
    /// There is room ahead of the caller again.
    room: Condvar,
}

#[derive(Default)]
struct State {
    /// The first batch that nobody hashes yet.
    next: u64,
    /// How many batches the caller has taken.
    taken: u64,
    /// Digests of the batches from `taken` on, where they are ready.
    waiting: VecDeque<Option<Vec<Field>>>,
    /// Vectors to be used again.
    spare: Vec<Vec<Field>>,
    failure: Option<Error>,
    closed: bool,
}

impl Queue {
    fn new(batches: u64, threads: usize) -> Self {
        let ahead = threads * AHEAD;
        let mut state = State::default();
        state.waiting.resize(ahead, None);
        Self {
            batches,
            ahead,
            state: Mutex::new(state),
            ready: Condvar::new(),
            room: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No step under the lock leaves the state half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A batch to hash, if there is one and room for it.
    fn claim(&self, state: &mut State) -> Option<(u64, Vec<Field>)> {
        if state.next == self.batches || state.next - state.taken >= self.ahead as u64 {
            return None;
        }
        state.next += 1;
        Some((state.next - 1, state.spare.pop().unwrap_or_default()))
    }

    /// The next batch for a thread; None when there is nothing left to do.
    fn next(&self) -> Option<(u64, Vec<Field>)> {
        let mut state = self.lock();
        loop {
            if state.closed || state.next == self.batches {
                return None;
            }
            if let Some(claimed) = self.claim(&mut state) {
                return Some(claimed);
            }
            state = wait(&self.room, state);
        }
    }

    /// The next step for the caller.
    fn turn(&self) -> Turn {
        let mut state = self.lock();
        loop {
            if let Some(error) = state.failure.take() {
                return Turn::Failed(error);
            }
            if state.closed || state.taken == self.batches {
                return Turn::Done;
            }
            if let Some(fields) = state.waiting[0].take() {
                return Turn::Take(state.taken, fields);
            }
            if let Some((batch, fields)) = self.claim(&mut state) {
                return Turn::Hash(batch, fields);
            }
            state = wait(&self.ready, state);
        }
    }

    fn hashed(&self, batch: u64, result: Result<Vec<Field>, Error>) {
        let mut state = self.lock();
        match result {
            Ok(fields) => {
                let place = (batch - state.taken) as usize;
                state.waiting[place] = Some(fields);
                if place == 0 {
                    self.ready.notify_one();
                }
            }
            Err(error) => {
                state.failure.get_or_insert(error);
                self.ready.notify_one();
            }
        }
    }

    fn taken(&self, fields: Vec<Field>) {
        let mut state = self.lock();
        state.taken += 1;
        state.waiting.rotate_left(1);
        state.spare.push(fields);
        self.room.notify_one();
    }

    fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_all();
        self.room.notify_all();
    }
}

fn wait<'a>(condition: &Condvar, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
    condition
        .wait(state)
        .unwrap_or_else(PoisonError::into_inner)
}

/// Closes the queue when the caller leaves.
struct Closing<'a>(&'a Queue);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Closes the queue when a thread panics; the panic then leaves the scope.
struct ClosingOnPanic<'a>(&'a Queue);

impl Drop for ClosingOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::Payload;
    use islet_granulehash::Algorithm;
    use sha2::{Digest, Sha256};
    use std::path::{Path, PathBuf};

    struct File(PathBuf);

    impl File {
        fn new(name: &str, content: &[u8]) -> Self {
            let name = format!("islet-digest-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::write(&path, content).unwrap();
            Self(path)
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            std::fs::remove_file(&self.0).unwrap();
        }
    }

    fn content(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|i| (i % 251 + i / 4096) as u8).collect()
    }

    fn memory(path: &Path, address: u64) -> GuestMemory {
        let mut memory = GuestMemory::default();
        memory.load(address, Payload::open("kernel", path, 1).unwrap());
        memory
    }

    fn hasher(threads: usize) -> Hasher {
        Hasher::new(Kernel::best(Algorithm::Sha256), NonZeroUsize::new(threads))
    }

    #[test]
    fn digests_come_in_order_whatever_the_threads() {
        let content = content(3 * BATCH * 4096 + 5 * 4096 + 17);
        let file = File::new("order", &content);
        let memory = memory(&file.0, 0x1000);
        let end = 0x1000 + (content.len() as u64).next_multiple_of(4096);
        let expected: Vec<Vec<u8>> = content
            .chunks(4096)
            .map(|page| {
                let mut page = page.to_vec();
                page.resize(4096, 0);
                Sha256::digest(&page).to_vec()
            })
            .collect();
        for threads in [1, 2, 3, 8] {
            let mut seen = Vec::new();
            let mut next = 0x1000;
            hasher(threads)
                .digest_memory(&memory, 0x1000..end, |address, fields| {
                    assert_eq!(address, next);
                    next += fields.len() as u64 * 4096;
                    seen.extend(fields.iter().map(|field| field[..32].to_vec()));
                })
                .unwrap();
            assert_eq!(next, end);
            assert_eq!(seen, expected, "{threads} threads");
        }
    }

    #[test]
    fn absurdly_many_threads_are_not_started() {
        assert_eq!(hasher(usize::MAX).threads, MAX_THREADS);
    }

    #[test]
    fn more_batches_than_may_wait() {
        let file = File::new("many", &content(40 * BATCH * 4096));
        let memory = memory(&file.0, 0);
        let mut batches = 0;
        hasher(4)
            .digest_memory(&memory, 0..40 * BATCH_BYTES, |_, _| {
                std::thread::sleep(std::time::Duration::from_micros(200));
                batches += 1;
            })
            .unwrap();
        assert_eq!(batches, 40);
    }

    #[test]
    fn a_file_that_shrinks_ends_all_threads() {
        let file = File::new("shrinks", &content(30 * BATCH * 4096));
        let memory = memory(&file.0, 0);
        std::fs::write(&file.0, content(20 * BATCH * 4096)).unwrap();
        for threads in [1, 2, 5] {
            let failed = hasher(threads).digest_memory(&memory, 0..30 * BATCH_BYTES, |_, _| {});
            assert_eq!(failed.unwrap_err().code(), "file-changed");
        }
    }

    #[test]
    #[should_panic(expected = "enough")]
    fn a_caller_that_panics_ends_all_threads() {
        let file = File::new("panics", &content(30 * BATCH * 4096));
        let memory = memory(&file.0, 0);
        let _ = hasher(3).digest_memory(&memory, 0..30 * BATCH_BYTES, |_, _| panic!("enough"));
    }

    #[test]
    fn no_pages_no_digests() {
        let memory = GuestMemory::default();
        let mut called = false;
        hasher(2)
            .digest_memory(&memory, 8192..8192, |_, _| called = true)
            .unwrap();
        assert!(!called);
    }
}
