//! Log files: each thread fills a buffer of its own, one thread of the process writes them out.
//!
//! A worker never waits for a disk or for whoever reads our standard output: when what waits to be written has reached
//! its bound, buffers are dropped and counted.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::config::ConfigError;
use crate::config::model::AccessLogSink;

/// A thread's buffer is handed over at this size, as in Envoy.
const FLUSH_BYTES: usize = 64 * 1024;
/// What may wait for a slow disk or reader: a few seconds of a busy proxy's lines.
const MOST_WAITING: usize = 8 * 1024 * 1024;
/// How long `flush` waits for the writer: a stuck reader must not hold the control thread up.
const FLUSH_WAIT: Duration = Duration::from_millis(100);
/// How long `close` waits: the process is ending and lines would be lost.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// Open log files, shared by all that write to them; flushes every `flush_interval` or 64 KiB.
pub struct LogFiles {
    flush_interval: Duration,
    files: Mutex<Vec<Weak<LogFile>>>,
    queue: Arc<Queue>,
}

/// What waits to be written.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    drained: Condvar,
    dropped: AtomicU64,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(Arc<LogFile>, Vec<u8>)>,
    bytes: usize,
    /// The writer holds a buffer that is not written yet.
    writing: bool,
    running: bool,
}

impl LogFiles {
    pub fn new(flush_interval: Duration) -> Arc<LogFiles> {
        Arc::new(LogFiles { flush_interval, files: Mutex::default(), queue: Arc::default() })
    }

    /// How often the owner should call [`LogFiles::flush`].
    pub fn flush_interval(&self) -> Duration {
        self.flush_interval
    }

    /// Reopens every file (SIGUSR1, /reopen_logs). A file that cannot be opened stays as it was.
    pub fn reopen(&self) {
        self.flush();
        for file in self.open_files() {
            match open(&file.sink) {
                Ok(fresh) => *lock(&file.file) = fresh,
                Err(error) => tracing::warn!(target: "file", "cannot reopen {}: {error}", describe(&file.sink)),
            }
        }
    }

    /// Writes out what is buffered; called by the control thread. Returns when it is written, or after 100 ms if whoever
    /// reads is slow: then it is written later.
    pub fn flush(&self) {
        self.hand_over();
        self.queue.wait(FLUSH_WAIT);
    }

    /// Writes out what is buffered before the process ends; gives up after two seconds.
    pub fn close(&self) {
        self.hand_over();
        self.queue.wait(CLOSE_WAIT);
    }

    /// Buffers that were dropped because nobody took what was written before.
    pub fn dropped_buffers(&self) -> u64 {
        self.queue.dropped.load(Relaxed)
    }

    fn hand_over(&self) {
        for file in self.open_files() {
            let mut slots = lock(&file.slots);
            for slot in slots.iter() {
                // Handed over under the slot's lock: what its thread writes next must queue behind it.
                let mut buffer = lock(slot);
                self.queue.push(&file, std::mem::take(&mut buffer));
            }
            // A slot that only we hold belonged to a thread that has ended.
            slots.retain(|slot| Arc::strong_count(slot) > 1 || !lock(slot).is_empty());
        }
    }

    fn open_files(&self) -> Vec<Arc<LogFile>> {
        let mut files = lock(&self.files);
        files.retain(|file| file.strong_count() > 0);
        files.iter().filter_map(Weak::upgrade).collect()
    }

    /// The log of this sink: the same sink gives the same file.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub(super) fn open(&self, sink: &AccessLogSink) -> Result<Arc<LogFile>, ConfigError> {
        if let Some(file) = self.open_files().into_iter().find(|file| file.sink == *sink) {
            return Ok(file);
        }
        let file = open(sink).map_err(|error| {
            ConfigError::new("path", format!("cannot open {} for writing: {error}", describe(sink)))
        })?;
        let file = Arc::new(LogFile {
            sink: sink.clone(),
            file: Mutex::new(file),
            slots: Mutex::default(),
            queue: self.queue.clone(),
        });
        lock(&self.files).push(Arc::downgrade(&file));
        Ok(file)
    }
}

impl Queue {
    /// Hands a buffer to the writer thread, which the first one starts.
    fn push(self: &Arc<Queue>, file: &Arc<LogFile>, buffer: Vec<u8>) {
        if buffer.is_empty() {
            return;
        }
        let mut state = lock(&self.state);
        if state.bytes + buffer.len() > MOST_WAITING {
            self.dropped.fetch_add(1, Relaxed);
            return;
        }
        state.bytes += buffer.len();
        state.waiting.push_back((file.clone(), buffer));
        if !state.running {
            let queue = self.clone();
            let started = std::thread::Builder::new().name("access-log".into()).spawn(move || queue.write_out());
            state.running = started.is_ok();
            if !state.running {
                // No thread to be had: better to write here than to lose lines.
                while let Some((file, buffer)) = state.waiting.pop_front() {
                    file.write(&buffer);
                }
                state.bytes = 0;
                return;
            }
        }
        self.filled.notify_one();
    }

    /// The writer thread: runs as long as the process.
    fn write_out(&self) {
        let mut state = lock(&self.state);
        loop {
            match state.waiting.pop_front() {
                Some((file, buffer)) => {
                    state.writing = true;
                    drop(state);
                    file.write(&buffer);
                    state = lock(&self.state);
                    state.writing = false;
                    state.bytes -= buffer.len();
                }
                None => {
                    self.drained.notify_all();
                    state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Returns when nothing waits any more, or after `most`.
    fn wait(&self, most: Duration) {
        let state = lock(&self.state);
        let busy = |state: &mut State| state.writing || !state.waiting.is_empty();
        drop(self.drained.wait_timeout_while(state, most, busy));
    }
}

/// One open log.
pub(super) struct LogFile {
    sink: AccessLogSink,
    file: Mutex<File>,
    /// The buffers of all threads that wrote to it.
    slots: Mutex<Vec<Slot>>,
    queue: Arc<Queue>,
}

/// A thread's buffer. Its lock is only ever contended by a flush.
type Slot = Arc<Mutex<Vec<u8>>>;

thread_local! {
    /// This thread's slots, by the address of their file.
    static SLOTS: RefCell<Vec<(Weak<LogFile>, Slot)>> = const { RefCell::new(Vec::new()) };
}

impl LogFile {
    /// Lets `line` append to this thread's buffer.
    pub fn append(self: &Arc<LogFile>, line: impl FnOnce(&mut Vec<u8>)) {
        SLOTS.with_borrow_mut(|slots| {
            let found = slots.iter().position(|(file, _)| std::ptr::eq(file.as_ptr(), Arc::as_ptr(self)));
            let at = found.unwrap_or_else(|| {
                slots.retain(|(file, _)| file.strong_count() > 0);
                let slot = Slot::default();
                lock(&self.slots).push(slot.clone());
                slots.push((Arc::downgrade(self), slot));
                slots.len() - 1
            });
            let mut buffer = lock(&slots[at].1);
            line(&mut buffer);
            if buffer.len() >= FLUSH_BYTES {
                // Lines are short against this size: the next buffer will be as long.
                let full = std::mem::replace(&mut *buffer, Vec::with_capacity(FLUSH_BYTES + 1024));
                self.queue.push(self, full);
            }
        });
    }

    fn write(&self, bytes: &[u8]) {
        if let Err(error) = lock(&self.file).write_all(bytes) {
            tracing::debug!(target: "file", "cannot write to {}: {error}", describe(&self.sink));
        }
    }
}

impl Drop for LogFile {
    /// The last log of this file is gone; what its threads have buffered is not.
    fn drop(&mut self) {
        for slot in std::mem::take(&mut *lock(&self.slots)) {
            self.write(&lock(&slot));
        }
    }
}

/// Opens a sink. A standard stream that cannot be opened by its name (a socket, or a file of another user) is duplicated.
fn open(sink: &AccessLogSink) -> io::Result<File> {
    let path = match sink {
        AccessLogSink::File(path) => path.clone(),
        AccessLogSink::Stdout => PathBuf::from("/dev/stdout"),
        AccessLogSink::Stderr => PathBuf::from("/dev/stderr"),
    };
    let opened = File::options().append(true).create(true).open(&path);
    opened.or_else(|error| match path.to_str() {
        Some("/dev/stdout") => Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?)),
        Some("/dev/stderr") => Ok(File::from(io::stderr().as_fd().try_clone_to_owned()?)),
        _ => Err(error),
    })
}

fn describe(sink: &AccessLogSink) -> String {
    match sink {
        AccessLogSink::File(path) => path.display().to_string(),
        AccessLogSink::Stdout => "standard output".into(),
        AccessLogSink::Stderr => "standard error".into(),
    }
}

/// What these locks guard stays whole if a holder panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_all_threads_arrive_whole_and_in_order() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let files = LogFiles::new(Duration::from_secs(10));
        let log = files.open(&AccessLogSink::File(path.clone())).expect("opens");
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let log = log.clone();
                scope.spawn(move || {
                    for i in 0..5_000 {
                        log.append(|out| out.extend_from_slice(format!("{thread} {i} some filling\n").as_bytes()));
                    }
                });
            }
        });
        files.close();
        let text = std::fs::read_to_string(&path).expect("reads");
        for thread in 0..3 {
            let own: Vec<_> = text.lines().filter(|l| l.starts_with(&format!("{thread} "))).collect();
            let expected: Vec<_> = (0..5_000).map(|i| format!("{thread} {i} some filling")).collect();
            assert_eq!(own, expected);
        }
        assert_eq!(files.dropped_buffers(), 0);
    }

    #[test]
    fn a_reopened_file_is_a_new_one_and_dropping_a_log_loses_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let files = LogFiles::new(Duration::from_secs(10));
        let sink = AccessLogSink::File(path.clone());
        let log = files.open(&sink).expect("opens");
        assert!(Arc::ptr_eq(&log, &files.open(&sink).expect("opens")));
        log.append(|out| out.extend_from_slice(b"one\n"));
        std::fs::rename(&path, dir.path().join("old")).expect("renames");
        files.reopen();
        log.append(|out| out.extend_from_slice(b"two\n"));
        drop(log);
        assert_eq!(std::fs::read_to_string(dir.path().join("old")).expect("reads"), "one\n");
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "two\n");
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let files = LogFiles::new(Duration::from_secs(10));
        let error = files.open(&AccessLogSink::File("/nowhere/log".into())).err().expect("refused");
        assert!(error.to_string().starts_with("path: cannot open /nowhere/log for writing: "), "{error}");
    }
}
