//! Where the numbers live: dense arrays of cells, one array per worker thread, summed when read.
//!
//! A worker is the only writer of its own cells, so counting is a plain load and store on a cache line that no other
//! core touches. Threads that were not adopted share one array and pay for an atomic addition. Cells are known by id
//! only; names, tags and kinds are the registry's business.

use super::histogram::{BINS, Bins, bin_of};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

/// Cells per chunk: 8 KiB, two pages, so that a thread which counts little stays small.
const CHUNK: usize = 1024;
/// Bounds the table at two million counters and gauges; the directory costs 32 KiB per thread.
const CHUNKS: usize = 2048;
/// Histograms per chunk.
const HISTOGRAM_CHUNK: usize = 128;
/// Bounds the table at 128 thousand histograms.
const HISTOGRAM_CHUNKS: usize = 1024;
/// A decade has 90 bins: two significant digits, 10 to 99.
const DECADE: usize = 90;
/// `u64::MAX` has 20 digits.
const DECADES: usize = BINS.div_ceil(DECADE);

type Chunk = [AtomicU64; CHUNK];

/// One thread's histogram: bins by decade, made when the first value falls into it.
struct HistogramCells {
    zero: AtomicU64,
    decades: [OnceLock<Box<[AtomicU64; DECADE]>>; DECADES],
}

type HistogramChunk = [OnceLock<Box<HistogramCells>>; HISTOGRAM_CHUNK];

/// The cells of one thread, or of all threads that have none of their own.
struct Shard {
    chunks: Box<[OnceLock<Box<Chunk>>]>,
    histograms: Box<[OnceLock<Box<HistogramChunk>>]>,
}

impl Shard {
    fn new() -> Shard {
        Shard {
            chunks: (0..CHUNKS).map(|_| OnceLock::new()).collect(),
            histograms: (0..HISTOGRAM_CHUNKS).map(|_| OnceLock::new()).collect(),
        }
    }

    #[inline]
    fn cell(&self, id: u32) -> &AtomicU64 {
        let id = id as usize;
        let chunk = &self.chunks[id / CHUNK];
        match chunk.get() {
            Some(cells) => &cells[id % CHUNK],
            None => Self::first_cell(chunk, id),
        }
    }

    #[cold]
    fn first_cell(chunk: &OnceLock<Box<Chunk>>, id: usize) -> &AtomicU64 {
        &chunk.get_or_init(|| Box::new([const { AtomicU64::new(0) }; CHUNK]))[id % CHUNK]
    }

    /// The cell, unless nothing was ever counted near it.
    fn peek(&self, id: u32) -> Option<&AtomicU64> {
        let id = id as usize;
        Some(&self.chunks[id / CHUNK].get()?[id % CHUNK])
    }

    fn bin(&self, id: u32, value: u64) -> &AtomicU64 {
        let id = id as usize;
        let chunk = self.histograms[id / HISTOGRAM_CHUNK]
            .get_or_init(|| Box::new([const { OnceLock::new() }; HISTOGRAM_CHUNK]));
        let cells = chunk[id % HISTOGRAM_CHUNK].get_or_init(|| {
            Box::new(HistogramCells { zero: AtomicU64::new(0), decades: [const { OnceLock::new() }; DECADES] })
        });
        match bin_of(value) {
            None => &cells.zero,
            Some(bin) => {
                let decade =
                    cells.decades[bin / DECADE].get_or_init(|| Box::new([const { AtomicU64::new(0) }; DECADE]));
                &decade[bin % DECADE]
            }
        }
    }

    fn peek_histogram(&self, id: u32) -> Option<&HistogramCells> {
        let id = id as usize;
        self.histograms[id / HISTOGRAM_CHUNK].get()?[id % HISTOGRAM_CHUNK].get().map(|cells| &**cells)
    }
}

/// Ids in use and free again.
#[derive(Default)]
struct Ids {
    next: u32,
    free: Vec<u32>,
}

impl Ids {
    fn take(&mut self, bound: usize) -> Option<u32> {
        self.free.pop().or_else(|| {
            let id = self.next;
            ((id as usize) < bound).then(|| {
                self.next += 1;
                id
            })
        })
    }
}

struct Table {
    /// Cells of all threads without their own.
    shared: &'static Shard,
    /// Every shard there ever was, the shared one first. Shards are never freed: the counts of a thread outlive it.
    all: RwLock<Vec<&'static Shard>>,
    /// Shards whose thread has ended, for the next thread.
    idle: Mutex<Vec<&'static Shard>>,
    numbers: Mutex<Ids>,
    histograms: Mutex<Ids>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let shared: &'static Shard = Box::leak(Box::new(Shard::new()));
    Table {
        shared,
        all: RwLock::new(vec![shared]),
        idle: Mutex::default(),
        numbers: Mutex::default(),
        histograms: Mutex::default(),
    }
});

/// The data behind every lock here stays whole if a holder panics: each change is one push, pop or store.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the shard when its thread ends.
struct Adopted(&'static Shard);

impl Drop for Adopted {
    fn drop(&mut self) {
        OWN.set(None);
        lock(&TABLE.idle).push(self.0);
    }
}

thread_local! {
    static OWN: Cell<Option<&'static Shard>> = const { Cell::new(None) };
    static ADOPTED: Cell<Option<Adopted>> = const { Cell::new(None) };
}

/// Gives the calling thread cells of its own until it ends. Doing it twice changes nothing.
pub(super) fn adopt_thread() {
    if OWN.get().is_some() {
        return;
    }
    let idle = lock(&TABLE.idle).pop();
    let shard = idle.unwrap_or_else(|| {
        let shard: &'static Shard = Box::leak(Box::new(Shard::new()));
        TABLE.all.write().unwrap_or_else(PoisonError::into_inner).push(shard);
        shard
    });
    ADOPTED.set(Some(Adopted(shard)));
    OWN.set(Some(shard));
}

/// Adds to a counter's cell.
#[inline]
pub(super) fn add(id: u32, n: u64) {
    match OWN.get() {
        Some(shard) => {
            let cell = shard.cell(id);
            cell.store(cell.load(Relaxed).wrapping_add(n), Relaxed);
        }
        None => {
            TABLE.shared.cell(id).fetch_add(n, Relaxed);
        }
    }
}

/// The sum over all threads.
pub(super) fn sum(id: u32) -> u64 {
    let all = TABLE.all.read().unwrap_or_else(PoisonError::into_inner);
    all.iter().filter_map(|shard| shard.peek(id)).fold(0, |sum, cell| sum.wrapping_add(cell.load(Relaxed)))
}

/// Sets every thread's cell to zero. A thread that counts at the same moment may keep its count.
pub(super) fn zero(id: u32) {
    let all = TABLE.all.read().unwrap_or_else(PoisonError::into_inner);
    for cell in all.iter().filter_map(|shard| shard.peek(id)) {
        cell.store(0, Relaxed);
    }
}

// The cell of a gauge that is counted holds its number in the upper 63 bits; the lowest says that it was ever written.
// One that is only ever set has all 64 bits of its number in the shared cell.

/// Adds to a gauge's cell.
#[inline]
pub(super) fn gauge_add(id: u32, n: i64) {
    let step = (n as u64) << 1;
    match OWN.get() {
        Some(shard) => {
            let cell = shard.cell(id);
            cell.store(cell.load(Relaxed).wrapping_add(step) | 1, Relaxed);
        }
        None => {
            let cell = TABLE.shared.cell(id);
            if cell.fetch_add(step, Relaxed) & 1 == 0 {
                cell.fetch_or(1, Relaxed);
            }
        }
    }
}

/// Sets a gauge that is only ever set.
pub(super) fn gauge_set(id: u32, n: u64) {
    TABLE.shared.cell(id).store(n, Relaxed);
}

/// What a gauge that is only ever set was set to last.
pub(super) fn gauge_get(id: u32) -> u64 {
    TABLE.shared.peek(id).map_or(0, |cell| cell.load(Relaxed))
}

/// What a gauge was counted to by all threads, and whether any of them ever wrote.
pub(super) fn gauge_sum(id: u32) -> (i64, bool) {
    let all = TABLE.all.read().unwrap_or_else(PoisonError::into_inner);
    all.iter().filter_map(|shard| shard.peek(id)).fold((0, false), |(sum, used), cell| {
        let cell = cell.load(Relaxed);
        (sum.wrapping_add((cell as i64) >> 1), used || cell & 1 == 1)
    })
}

/// Counts a value into a histogram.
#[inline]
pub(super) fn record(id: u32, value: u64) {
    match OWN.get() {
        Some(shard) => {
            let bin = shard.bin(id, value);
            bin.store(bin.load(Relaxed).wrapping_add(1), Relaxed);
        }
        None => {
            TABLE.shared.bin(id, value).fetch_add(1, Relaxed);
        }
    }
}

/// The bins of a histogram, summed over all threads, in ascending order.
pub(super) fn bins(id: u32) -> Bins {
    let all = TABLE.all.read().unwrap_or_else(PoisonError::into_inner);
    let mut zero = 0;
    let mut decades: [Option<Box<[u64; DECADE]>>; DECADES] = [const { None }; DECADES];
    for cells in all.iter().filter_map(|shard| shard.peek_histogram(id)) {
        zero += cells.zero.load(Relaxed);
        for (sum, decade) in decades.iter_mut().zip(&cells.decades) {
            let Some(decade) = decade.get() else { continue };
            let sum = sum.get_or_insert_with(|| Box::new([0; DECADE]));
            for (to, from) in sum.iter_mut().zip(&**decade) {
                *to += from.load(Relaxed);
            }
        }
    }
    let filled = decades.iter().enumerate().filter_map(|(at, decade)| Some((at, decade.as_ref()?)));
    let counts = filled.flat_map(|(at, decade)| {
        decade.iter().enumerate().filter(|(_, n)| **n > 0).map(move |(bin, n)| ((at * DECADE + bin) as u16, *n))
    });
    Bins { zero, counts: counts.collect() }
}

/// A number's place, zeroed; `None` when the table is full.
pub(super) fn allocate_number() -> Option<u32> {
    lock(&TABLE.numbers).take(CHUNK * CHUNKS)
}

/// Gives a number's place back. Nobody may hold its id any more.
pub(super) fn release_number(id: u32) {
    zero(id);
    lock(&TABLE.numbers).free.push(id);
}

/// A histogram's place, empty; `None` when the table is full.
pub(super) fn allocate_histogram() -> Option<u32> {
    lock(&TABLE.histograms).take(HISTOGRAM_CHUNK * HISTOGRAM_CHUNKS)
}

/// Gives a histogram's place back. Nobody may hold its id any more.
pub(super) fn release_histogram(id: u32) {
    {
        let all = TABLE.all.read().unwrap_or_else(PoisonError::into_inner);
        for cells in all.iter().filter_map(|shard| shard.peek_histogram(id)) {
            cells.zero.store(0, Relaxed);
            for cell in cells.decades.iter().filter_map(|d| d.get()).flat_map(|d| d.iter()) {
                cell.store(0, Relaxed);
            }
        }
    }
    lock(&TABLE.histograms).free.push(id);
}
