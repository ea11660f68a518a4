//! Work that two threads share: done once, whole, and before the call returns, whoever does it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{hint, thread};

use dualprop_kernels::threads::{ALONE, SEQUENTIAL, join, tasks};
use faer::Par;
use rayon::{ThreadPool, ThreadPoolBuilder};

fn pool(threads: usize) -> ThreadPool {
    ThreadPoolBuilder::new().num_threads(threads).build().expect("threads")
}

/// Adds 1 to every element, `tasks` of them at the same time.
fn count(tasks: usize, elements: &mut [u64]) {
    if tasks <= 1 {
        elements.iter_mut().for_each(|x| *x += 1);
        return;
    }
    let left = tasks / 2;
    let (a, b) = elements.split_at_mut(elements.len() * left / tasks);
    join(|| count(left, a), || count(tasks - left, b));
}

/// Everything that borrows from the stack of a caller is written when the call returns, time after time.
#[test]
fn all_is_done_once() {
    let run = |tasks: usize, rounds: u64| {
        let mut elements = vec![0; 1000];
        for _ in 0..rounds {
            count(tasks, &mut elements);
        }
        assert!(elements.iter().all(|&x| x == rounds), "{tasks} tasks, {rounds} rounds");
    };
    let rounds = if cfg!(miri) { 20 } else { 10_000 };
    for threads in [1, 2, 3] {
        pool(threads).install(|| [2, 3, 8].into_iter().for_each(|tasks| run(tasks, rounds)));
    }
    // From outside of a pool, and deeper than there are helpers.
    [2, 7].into_iter().for_each(|tasks| run(tasks, rounds));
    run(1 << 10, 5);
}

#[test]
fn results_come_back_in_their_order() {
    let name = String::from("first");
    for second in 0..100 {
        assert_eq!(join(|| name.len(), || vec![second; 3]), (5, vec![second; 3]));
    }
}

/// Several threads at once, in one pool and outside, each with helpers of its own.
#[test]
fn callers_do_not_meet() {
    let pool = pool(2);
    let rounds = if cfg!(miri) { 10 } else { 2_000 };
    let caller = |inside: bool| {
        let mut elements = vec![0; 100];
        for _ in 0..rounds {
            if inside { pool.install(|| count(4, &mut elements)) } else { count(4, &mut elements) }
        }
        assert!(elements.iter().all(|&x| x == rounds));
    };
    thread::scope(|scope| {
        for number in 0..4 {
            let caller = &caller;
            scope.spawn(move || caller(number % 2 == 0));
        }
    });
}

/// A helper that has gone to sleep is called again.
#[test]
fn helpers_come_back() {
    let pool = pool(2);
    pool.install(|| {
        let came = |_: &i32| {
            let caller = thread::current().id();
            let start = Instant::now();
            let begun = AtomicBool::new(false);
            let wait = || {
                while !begun.load(Ordering::Acquire) && start.elapsed() < Duration::from_millis(100) {
                    thread::yield_now();
                }
            };
            let second = || {
                begun.store(true, Ordering::Release);
                thread::current().id()
            };
            let (_, helper) = join(wait, second);
            thread::sleep(Duration::from_millis(1));
            helper != caller
        };
        let times = (0..20).filter(came).count();
        assert!(times >= 10, "the other thread of the pool has helped {times} times of 20");
    });
}

/// A panic of either half comes out when both are done, and what comes next works.
#[test]
fn panics_come_out() {
    let pool = pool(2);
    let message = |panic: Box<dyn std::any::Any + Send>| *panic.downcast::<&str>().expect("a message");
    pool.install(|| {
        for _ in 0..200 {
            let done = AtomicUsize::new(0);
            let other = || {
                (0..100).for_each(|_| hint::spin_loop());
                done.fetch_add(1, Ordering::Relaxed);
            };
            let panic = catch_unwind(AssertUnwindSafe(|| join(other, || panic!("second")))).expect_err("a panic");
            assert_eq!((message(panic), done.swap(0, Ordering::Relaxed)), ("second", 1));
            let panic = catch_unwind(AssertUnwindSafe(|| join(|| panic!("first"), other))).expect_err("a panic");
            assert_eq!(message(panic), "first");
            let panic = catch_unwind(AssertUnwindSafe(|| join(|| panic!("first"), || panic!("second")))).expect_err("a panic");
            assert_eq!(message(panic), "first");
            let mut elements = vec![0; 64];
            count(8, &mut elements);
            assert_eq!(elements, vec![1; 64]);
        }
    });
}

#[test]
fn small_work_stays_with_its_caller() {
    let par = Par::rayon(3);
    assert_eq!([tasks(Par::Seq, usize::MAX), tasks(par, ALONE - 1), tasks(par, SEQUENTIAL)], [1, 1, 3]);
    thread::scope(|scope| {
        // A thread that has had nothing to share yet.
        scope.spawn(|| assert_eq!(tasks(par, SEQUENTIAL - 1), 1));
    });
}
