//! Work for several threads: those of the rayon pool that a call is made in, the global one outside of any.
//!
//! Rayon takes some microseconds to hand work to a thread that sleeps, and as many to wake the one that waits for it; many kernels
//! are done by then. So the thread that makes a call works itself, and whoever has helped it stays for 50 µs and looks for more: to
//! give that helper a piece of work takes some hundred nanoseconds, and it is always the same helper that gets the same piece,
//! whose cache has what belongs to it. Nobody waits for a helper that does not come: what it has not begun is taken back.
//! Small work is kept from a helper that takes long to begin, being on a core that is far away.

use core::any::Any;
use core::cell::{Cell, UnsafeCell};
use core::hint::spin_loop;
use core::ops::Range;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, Ordering};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use faer::Par;

/// Work of fewer multiply-adds than this wakes nobody, unless more of it follows soon.
pub const SEQUENTIAL: usize = 1 << 21;

/// Work of fewer multiply-adds than this stays on the calling thread even if a helper is awake.
pub const ALONE: usize = 1 << 15;

/// How long a helper looks for more work: a few times what it would cost to wake it.
const LINGER: Duration = Duration::from_micros(50);

/// How long a helper stays at most before rayon may give its thread other work first.
const STAY: Duration = Duration::from_millis(10);

/// Nanoseconds in which a helper who is awake begins what it is asked for, if its core is near: between cores that share a cache some 100, else
/// 250 to 500.
const NEAR: u64 = 180;

/// Times in a row that a helper must be slow to be far.
const SLOW: u32 = 4;

/// Nanoseconds in which small work stays alone after that.
const REST: u64 = 10_000_000;

/// Helpers of a thread: enough for 2⁸ threads, since each takes over half of what its caller has left.
const HELPERS: usize = 8;

/// The number of tasks that work of so many multiply-adds is best cut into.
pub fn tasks(par: Par, multiplications: usize) -> usize {
    match par {
        Par::Rayon(threads) if multiplications >= SEQUENTIAL || (multiplications >= ALONE && is_busy()) => threads.get(),
        _ => 1,
    }
}

/// The most that [`tasks`] can say, which changes with who is awake: what memory is made for.
pub(crate) fn most(par: Par, multiplications: usize) -> usize {
    match par {
        Par::Rayon(threads) if multiplications >= ALONE => threads.get(),
        _ => 1,
    }
}

/// Runs both, on two threads if a helper has time. They share nothing that would let one wait for the other.
///
/// # Panics
/// If one of them does. Then the other is done or was never begun; of two panics the first one's goes on.
pub fn join<A, B: Send>(first: impl FnOnce() -> A, second: impl FnOnce() -> B + Send) -> (A, B) {
    let level = LEVEL.get();
    TEAM.with(|team| {
        let Some(helper) = team.get(level) else { return (first(), second()) };
        let mut result = None;
        let work = Work::new(|| result = Some(second()));
        let task = ptr::from_ref(&work).cast();
        let first = {
            LEVEL.set(level + 1);
            let _settled = Settle { helper, task, level };
            helper.ask(task);
            first()
        };
        match (work.closure.into_inner(), work.panic.into_inner()) {
            (Some(second), _) => second(),
            (None, Some(panic)) => resume_unwind(panic),
            (None, None) => {}
        }
        (first, result.expect("the second is done"))
    })
}

/// What `each` gives for parts of a range, as many as tasks, merged in their order.
pub fn fold<R: Send>(tasks: usize, range: Range<usize>, each: &(impl Fn(Range<usize>) -> R + Sync), merge: fn(R, R) -> R) -> R {
    if tasks <= 1 {
        return each(range);
    }
    let left = tasks / 2;
    let middle = range.start + range.len() * left / tasks;
    let (a, b) = join(|| fold(left, range.start..middle, each, merge), || fold(tasks - left, middle..range.end, each, merge));
    merge(a, b)
}

thread_local! {
    static TEAM: [Arc<Helper>; HELPERS] = core::array::from_fn(|_| Arc::default());
    /// Pieces of work that this thread has given away: the number of its next helper.
    static LEVEL: Cell<usize> = const { Cell::new(0) };
    /// When there was no helper for a small piece of work.
    static ASKED: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Whether the next helper of this thread is near, and is awake or would have been if it had been called when this was asked last.
fn is_busy() -> bool {
    TEAM.with(|team| {
        let Some(helper) = team.get(LEVEL.get()) else { return false };
        let far_until = helper.far_until.load(Ordering::Relaxed);
        if far_until > 0 && clock() < far_until {
            return false;
        }
        if helper.state.load(Ordering::Relaxed) == AWAKE {
            return true;
        }
        let now = Instant::now();
        ASKED.replace(Some(now)).is_some_and(|last| now - last < LINGER)
    })
}

/// Nanoseconds since the first call, at least 1.
fn clock() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64 + 1
}

/// What a helper can be.
const ASLEEP: u8 = 0;
const CALLED: u8 = 1;
const AWAKE: u8 = 2;

/// The place where a thread leaves work for a helper; on two cache lines of its own, since two is what some processors fetch.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Helper {
    /// What nobody has begun; null for nothing.
    task: AtomicPtr<Task>,
    state: AtomicU8,
    /// By [`clock`] when it was asked last, 0 if it was not awake then.
    asked: AtomicU64,
    /// By [`clock`] the end of the time in which small work is kept from it, 0 for no such time yet. Threads move, so it ends.
    far_until: AtomicU64,
}

/// A piece of work without its type: the beginning of a [`Work`].
#[derive(Debug)]
#[repr(C)]
struct Task {
    /// Does it. To be called once, with a pointer to the whole [`Work`].
    run: unsafe fn(*const Task),
    /// Set when nobody but its owner will touch it any more.
    is_done: AtomicBool,
}

/// A closure on the stack of the thread that waits for it.
#[repr(C)]
struct Work<F> {
    task: Task,
    closure: UnsafeCell<Option<F>>,
    panic: UnsafeCell<Option<Box<dyn Any + Send>>>,
}

impl<F: FnOnce() + Send> Work<F> {
    fn new(closure: F) -> Self {
        let task = Task { run: Self::run, is_done: AtomicBool::new(false) };
        Self { task, closure: UnsafeCell::new(Some(closure)), panic: UnsafeCell::new(None) }
    }

    /// # Safety
    /// `task` is the beginning of a `Work<F>` that is alive until `is_done`, and whose closure and panic nobody else touches until then.
    unsafe fn run(task: *const Task) {
        // SAFETY: a `Work<F>`, alive until `is_done`, as the caller promises; it is not used after that.
        let work = unsafe { &*task.cast::<Self>() };
        // SAFETY: ours alone until `is_done`, as the caller promises.
        let closure = unsafe { &mut *work.closure.get() };
        // SAFETY: as above.
        let panic = unsafe { &mut *work.panic.get() };
        *panic = catch_unwind(AssertUnwindSafe(|| closure.take().map(|closure| closure()))).err();
        work.task.is_done.store(true, Ordering::Release);
    }
}

impl Helper {
    /// Leaves work, and calls the helper if it is asleep.
    fn ask(self: &Arc<Self>, task: *const Task) {
        let state = self.state.load(Ordering::Relaxed);
        self.asked.store(if state == AWAKE { clock() } else { 0 }, Ordering::Relaxed);
        self.task.store(task.cast_mut(), Ordering::Release);
        if state == ASLEEP {
            self.state.store(CALLED, Ordering::Relaxed);
            let helper = Arc::clone(self);
            rayon::spawn(move || helper.help());
        }
    }

    /// Takes the work away, for one who then does it or knows that nobody will.
    fn take(&self, task: *mut Task) -> bool {
        !task.is_null() && self.task.compare_exchange(task, ptr::null_mut(), Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// The number of times in a row, `slow` of them before, that it took long to begin.
    fn distance(&self, slow: u32) -> u32 {
        let (now, asked) = (clock(), self.asked.load(Ordering::Relaxed));
        if asked == 0 || now.saturating_sub(asked) <= NEAR {
            return 0;
        }
        if slow + 1 >= SLOW {
            self.far_until.store(now + REST, Ordering::Relaxed);
        }
        slow + 1
    }

    /// Does what is left here, until there has been nothing for a while, or others had better have a turn.
    fn help(&self) {
        self.state.store(AWAKE, Ordering::Relaxed);
        let begun = Instant::now();
        let (mut idle_since, mut slow) = (begun, 0);
        while idle_since.elapsed() < LINGER && begun.elapsed() < STAY {
            for _ in 0..64 {
                let task = self.task.load(Ordering::Relaxed);
                if self.take(task) {
                    slow = self.distance(slow);
                    // SAFETY: alive until `is_done`: `Settle` waits for that if another than itself has taken the task away.
                    let run = unsafe { (*task).run };
                    // SAFETY: as above, the beginning of the `Work` that `run` belongs to, as `join` has left it; who takes it away is the only one
                    // who touches it before `is_done`.
                    unsafe { run(task) };
                    idle_since = Instant::now();
                } else {
                    spin_loop();
                }
            }
        }
        self.state.store(ASLEEP, Ordering::Relaxed);
    }
}

/// Takes work back when the other half is done, or waits for who has begun it; also while a panic unwinds.
struct Settle<'a> {
    helper: &'a Helper,
    task: *const Task,
    level: usize,
}

impl Drop for Settle<'_> {
    fn drop(&mut self) {
        LEVEL.set(self.level);
        if self.helper.take(self.task.cast_mut()) {
            return;
        }
        // SAFETY: `join` keeps it alive until this is dropped.
        let is_done = unsafe { &(*self.task).is_done };
        let mut patience = 1 << 12;
        while !is_done.load(Ordering::Acquire) {
            if patience > 0 {
                patience -= 1;
                spin_loop();
            } else {
                // It may wait for this very core.
                thread::yield_now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small work is kept from a helper after some slow beginnings in a row, for a while.
    #[test]
    fn far_helpers_get_no_small_work() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
        pool.install(|| {
            let par = Par::rayon(2);
            let helper = TEAM.with(|team| Arc::clone(&team[0]));
            let begin = |slow, delay| {
                helper.asked.store(clock().saturating_sub(delay).max(1), Ordering::Relaxed);
                helper.distance(slow)
            };
            // As long ago as the clock has run: it starts with the first call.
            while clock() < 100 * NEAR {}
            helper.state.store(AWAKE, Ordering::Relaxed);
            assert_eq!(tasks(par, ALONE), 2);
            let slow = (1..SLOW).fold(0, |slow, _| begin(slow, 90 * NEAR));
            assert_eq!((slow, tasks(par, ALONE)), (SLOW - 1, 2), "not yet");
            helper.asked.store(0, Ordering::Relaxed);
            assert_eq!(helper.distance(slow), 0, "one that had been asleep says nothing");
            begin(slow, 90 * NEAR);
            assert_eq!([tasks(par, ALONE), tasks(par, SEQUENTIAL)], [1, 2], "far");
            thread::sleep(Duration::from_nanos(REST));
            assert_eq!(tasks(par, ALONE), 2, "another try");
            helper.state.store(ASLEEP, Ordering::Relaxed);
        });
    }
}
