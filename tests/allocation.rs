//! A training step allocates nothing after the first one.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{SCHEDULES, labels, methods, network, runtime, uniform};
use dualprop::network::{Damping, Method, Optimizer, Schedule, Settings, Targets, Trainer};
use dualprop::{Activation, Isa, Par, Real, Runtime};

/// The system's allocator, counting the requests of threads that asked for it.
struct Counting;

thread_local! {
    /// Where the requests of this thread are counted, and from how many bytes on.
    static COUNT: Cell<Option<(&'static AtomicUsize, usize)>> = const { Cell::new(None) };
}

fn count(size: usize) {
    // A thread that is being torn down has no cell any more.
    if let Ok(Some((count, least))) = COUNT.try_with(Cell::get) {
        count.fetch_add(usize::from(size >= least), Ordering::Relaxed);
    }
}

// SAFETY: every call goes to `System` as it came; counting touches an atomic and a thread-local without destructor, and does not
// allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller keeps the contract of `GlobalAlloc::realloc`.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Counts the requests of this thread for at least so many bytes from now on.
fn watch(count: Option<(&'static AtomicUsize, usize)>) {
    COUNT.set(count);
}

fn counter() -> &'static AtomicUsize {
    Box::leak(Box::new(AtomicUsize::new(0)))
}

/// Allocations of each of some steps.
fn steps<T: Real>(widths: &[usize], batch: usize, settings: &Settings, runtime: &Runtime, count: &AtomicUsize) -> Vec<usize> {
    const STEPS: u64 = 6;
    let network = network::<T>(widths, Activation::Relu, true, 1);
    let mut trainer = Trainer::new(network, settings, batch, runtime).expect("sound settings");
    let n_out = widths[widths.len() - 1];
    let batches: Vec<_> = (0..STEPS).map(|i| (uniform::<T>(batch, widths[0], [0.0, 1.0], i), labels(batch, n_out, i))).collect();
    let mut allocations = Vec::with_capacity(batches.len());
    for (x, labels) in &batches {
        let before = count.load(Ordering::Relaxed);
        trainer.step(x.as_ref(), Targets::Classes(labels), 1e-3).expect("a sound step");
        allocations.push(count.load(Ordering::Relaxed) - before);
    }
    allocations
}

/// Every method with a schedule without repetitions, and with all others one method that is damped and one that is not; optimizers in turn.
fn all_settings() -> Vec<Settings> {
    let optimizers = [Optimizer::Sgd, Optimizer::MOMENTUM, Optimizer::ADAM];
    let damped = Method::DpDamped { alpha: 0.25, beta: 0.25, damping: Damping::Plain };
    let plain = methods(0.25, 0.25).into_iter().map(|method| (method, Schedule::Rounds(0)));
    let repeated = SCHEDULES
        .into_iter()
        .flat_map(|schedule| [damped, Method::DpTranspose { alpha: 0.25, beta: 0.25 }].map(|method| (method, schedule)));
    let settings = |(i, (method, schedule)): (usize, (Method, Schedule))| Settings {
        schedule,
        optimizer: optimizers[i % 3],
        alignment: i % 2 == 0,
        ..Settings::new(method)
    };
    plain.chain(repeated).enumerate().map(settings).collect()
}

#[test]
fn the_counter_counts() {
    let count = counter();
    watch(Some((count, 1)));
    let vector = std::hint::black_box(vec![1u8; 100]);
    watch(None);
    drop(vector);
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

#[test]
fn steps_on_one_thread_allocate_nothing() {
    let count = counter();
    watch(Some((count, 1)));
    for settings in all_settings() {
        // Below and above the batch up to which weights are read in place.
        for batch in [5, 40] {
            let allocations = [
                steps::<f32>(&[30, 20, 24, 10], batch, &settings, &runtime(), count),
                steps::<f64>(&[30, 20, 24, 10], batch, &settings, &runtime(), count),
            ];
            for allocations in allocations {
                assert!(allocations[1..].iter().all(|&n| n == 0), "{allocations:?}: batch {batch}, {settings:?}");
            }
        }
    }
    watch(None);
}

#[test]
fn steps_on_two_threads_allocate_no_memory_to_work_in() {
    let count = counter();
    // Smaller ones are rayon's, to call a helper who has gone to sleep.
    const LEAST: usize = 65;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
    pool.broadcast(|_| watch(Some((count, LEAST))));
    let runtime = Runtime::new(Isa::best(), Par::rayon(2));
    pool.install(|| {
        for settings in all_settings() {
            // 20·256·256 multiply-adds: enough that threads share them.
            let allocations = steps::<f32>(&[256, 256, 256, 10], 20, &settings, &runtime, count);
            assert!(allocations[1..].iter().all(|&n| n == 0), "{allocations:?}: {settings:?}");
        }
        let settings = Settings::new(Method::DpTranspose { alpha: 0.5, beta: 0.5 });
        let allocations = steps::<f64>(&[256, 256, 256, 10], 20, &settings, &runtime, count);
        assert!(allocations[1..].iter().all(|&n| n == 0), "{allocations:?}: {settings:?}");
    });
}
