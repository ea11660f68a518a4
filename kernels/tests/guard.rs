//! Nothing outside the operands: every kernel on operands that lie flush against protected pages, at their beginning and at their
//! end, with poison between their lines.
//!
//! * An access outside an operand that lies flush dies of SIGSEGV; the handler prints the case that ran.
//! * Lines are either together, with padding of poison that is checked to the bit afterwards, or each on a page of its own between
//!   protected pages: then even a read of padding is noticed.
//! * Buffers of the kernels (packed operands, unfinished sums) come from [`Guarding`], which ends them at a protected page; so do, on demand
//!   ([`fenced`]), the vectors of a sparse matrix.
//! * The numbers are small integers, so that results are exact: each element of each output is compared with its value, which also
//!   proves that what is overwritten was not read (it was a signalling NaN) and that inputs stay as they were.
//!
//! `the_harness_notices` proves that all of this has teeth.
#![cfg(unix)]

mod common;

use common::{Scalar, assert_panics, same, tests_of_both_types};
use core::cell::{Cell, RefCell};
use core::fmt::{self, Write as _};
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use dualprop_kernels::activation::Activation;
use dualprop_kernels::elementary::{Function, log_sum_exp, map, softmax, softmax_rows};
use dualprop_kernels::epilogue::{Epilogue, Nudge};
use dualprop_kernels::gram::{abs_gram, gram, image, wide_gram};
use dualprop_kernels::isa::Isa;
use dualprop_kernels::online::online;
use dualprop_kernels::optimizer::{Decay, Descent, Optimizer, Update};
use dualprop_kernels::pack::{Bands, Panels};
use dualprop_kernels::product::{Blocking, Lanes, Rows, Scratch, product};
use dualprop_kernels::reduce::{arg_max, dot, max_abs, norm, square_distance, sum};
use dualprop_kernels::scan::scan;
use dualprop_kernels::selected::{OUTPUTS, Selected, crossing, inner, selected};
use dualprop_kernels::sparse::{self, Matrix, Pattern};
use dualprop_kernels::strided::{Input, Output};
use dualprop_reference::generate::SplitMix64;
use faer::{MatMut, MatRef, Par};
use std::alloc::{GlobalAlloc, Layout, System};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, Once};
use std::time::Instant;

tests_of_both_types!(products, deep_products, sweeps, online_steps, sparse_sweeps, selections, vector_kernels);

/// A multiple of the size of a page: 4 KiB on x86-64, at most 64 KiB elsewhere.
const PAGE: usize = if cfg!(target_arch = "x86_64") { 1 << 12 } else { 1 << 16 };

/// Maps `count` stretches of `pages` pages, `pages + 1` pages apart, with a protected page before and behind each; returns the first.
/// They stay mapped.
fn map_stretches(pages: usize, count: usize) -> *mut u8 {
    let (apart, protection) = ((pages + 1) * PAGE, libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: an anonymous mapping at an address of the system's choice touches no other memory.
    let all = unsafe {
        libc::mmap(core::ptr::null_mut(), count * apart + PAGE, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    };
    assert!(all != libc::MAP_FAILED, "no memory for {count} stretches of {pages} pages");
    let first = all.cast::<u8>().wrapping_add(PAGE);
    for stretch in 0..count {
        // SAFETY: whole pages of the mapping above, which nobody uses yet.
        let failed = unsafe { libc::mprotect(first.wrapping_add(stretch * apart).cast(), pages * PAGE, protection) };
        assert_eq!(failed, 0, "mprotect");
    }
    first
}

/// The system's allocator, except that the kernels' buffers (which alone are aligned to lines of 64 bytes) end at a protected page and
/// have one before their first page.
struct Guarding;

#[global_allocator]
static ALLOCATOR: Guarding = Guarding;

/// The alignment of the kernels' buffers.
const LINE: usize = 64;

/// Stretches that are free again: address and pages.
static FREE: Mutex<[Option<(usize, usize)>; 64]> = Mutex::new([None; 64]);

/// Buffers that were given out with a protected page behind them.
static GUARDED: AtomicUsize = AtomicUsize::new(0);

impl Guarding {
    fn pages(layout: Layout) -> usize {
        layout.size().div_ceil(PAGE)
    }

    /// Whether such a buffer belongs at the end of a page: those of the kernels, and everything within [`fenced`].
    fn is_guarded(layout: Layout) -> bool {
        layout.size().is_multiple_of(layout.align()) && (layout.align() == LINE || FENCED.get())
    }
}

thread_local! {
    /// Whether all memory of this thread comes with protected pages.
    static FENCED: Cell<bool> = const { Cell::new(false) };
}

/// What `make` makes, with every vector in it ending at a protected page. It is never freed.
fn fenced<R>(make: impl FnOnce() -> R) -> ManuallyDrop<R> {
    FENCED.set(true);
    let made = make();
    FENCED.set(false);
    ManuallyDrop::new(made)
}

// SAFETY: a buffer is `layout.size()` bytes at the end of a stretch of enough pages that belongs to it until it is freed; its size is a
// multiple of its alignment, which is checked, so that it is aligned as the end of a page is. Everything else is the system's.
unsafe impl GlobalAlloc for Guarding {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !Self::is_guarded(layout) {
            // SAFETY: passed on.
            return unsafe { System.alloc(layout) };
        }
        GUARDED.fetch_add(1, Ordering::Relaxed);
        let pages = Self::pages(layout);
        let mut free = FREE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let kept = free.iter_mut().find(|place| place.is_some_and(|(_, size)| size == pages)).and_then(Option::take);
        let stretch =
            kept.map_or_else(|| map_stretches(pages, 1), |(address, _)| core::ptr::with_exposed_provenance_mut(address));
        stretch.wrapping_add(pages * PAGE - layout.size())
    }

    unsafe fn dealloc(&self, buffer: *mut u8, layout: Layout) {
        if !Self::is_guarded(layout) {
            // SAFETY: passed on; `alloc` took the same branch for this layout: what is made within `fenced` is freed there or not at all.
            return unsafe { System.dealloc(buffer, layout) };
        }
        // Where `alloc` found its stretch, which need not be at a multiple of `PAGE`. One that finds no place here is never used again.
        let pages = Self::pages(layout);
        let stretch = buffer.expose_provenance() + layout.size() - pages * PAGE;
        let mut free = FREE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(place) = free.iter_mut().find(|place| place.is_none()) {
            *place = Some((stretch, pages));
        }
    }
}

/// A line of text that needs no memory of its own, for the handler.
struct Text {
    bytes: [u8; 2048],
    len: usize,
}

impl fmt::Write for Text {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let fits = part.len().min(self.bytes.len() - self.len);
        self.bytes[self.len..self.len + fits].copy_from_slice(&part.as_bytes()[..fits]);
        self.len += fits;
        Ok(())
    }
}

thread_local! {
    /// The case that this thread runs. Without a destructor, so that the handler may look at it at any time.
    static CASE: RefCell<Text> = const { RefCell::new(Text { bytes: [0; 2048], len: 0 }) };
}

/// What an access to a protected page raises: the second on macOS.
const FAULTS: [libc::c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// Says which case comes, should it fault. The handler is installed with the first one.
fn announce(case: fmt::Arguments<'_>) {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: all-zero is a value of this plain C structure.
        let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
        action.sa_sigaction = report as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // Once only: when `report` returns, the access faults again and the process dies of it.
        action.sa_flags = libc::SA_RESETHAND | libc::SA_ONSTACK;
        for signal in FAULTS {
            // SAFETY: `report` does only what handlers may do: it reads memory of its thread and calls `write`.
            let failed = unsafe { libc::sigaction(signal, &action, core::ptr::null_mut()) };
            assert_eq!(failed, 0, "sigaction");
        }
    });
    CASE.with_borrow_mut(|text| {
        text.len = 0;
        text.write_fmt(case).expect("a text takes everything");
    });
}

/// The handler of [`FAULTS`].
extern "C" fn report(_signal: libc::c_int) {
    let print = |bytes: &[u8]| {
        // SAFETY: `bytes` are readable. If they cannot be printed, nothing can be done about it.
        let _ = unsafe { libc::write(libc::STDERR_FILENO, bytes.as_ptr().cast(), bytes.len()) };
    };
    print(b"\naccess outside the operands: ");
    CASE.with(|text| text.try_borrow().map(|text| print(&text.bytes[..text.len])).unwrap_or_default());
    print(b"\n");
}

/// The end of an operand that lies flush against a protected page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    Beginning,
    End,
}

/// How an operand lies in memory.
#[derive(Clone, Copy, Debug)]
struct Place {
    flush: Flush,
    /// Elements of poison between the operand and the protected page, to vary the alignment; mostly 0.
    gap: usize,
    /// Each line on a page of its own.
    apart: bool,
    /// Elements of poison between lines that are not apart.
    padding: usize,
    /// Lines are columns.
    by_columns: bool,
    rows_reversed: bool,
    cols_reversed: bool,
}

impl Place {
    /// A row-major operand without padding.
    fn plain(flush: Flush) -> Place {
        Place { flush, gap: 0, apart: false, padding: 0, by_columns: false, rows_reversed: false, cols_reversed: false }
    }

    /// Any place; every other one has contiguous rows as they come.
    fn any(flush: Flush, random: &mut SplitMix64) -> Place {
        let bits = random.bits();
        let bit = |number: u32| bits >> number & 1 == 1;
        Place {
            flush,
            gap: if bits >> 32 & 7 == 0 { (bits >> 36 & 7) as usize } else { 0 },
            apart: bit(0),
            padding: if bit(1) { (bits >> 40 & 7) as usize } else { 0 },
            by_columns: bit(2) && bit(3),
            rows_reversed: bit(4) && bit(5),
            cols_reversed: bit(6) && bit(7) && bit(8),
        }
    }
}

/// Memory for one operand at a time.
struct Slot<T> {
    /// A stretch of [`Slot::PAGES`] pages.
    together: *mut T,
    /// [`Slot::LINES`] stretches of a page.
    apart: *mut T,
}

impl<T: Scalar> Slot<T> {
    const PAGES: usize = 32;
    const LINES: usize = 200;

    fn new() -> Self {
        Self { together: map_stretches(Self::PAGES, 1).cast(), apart: map_stretches(1, Self::LINES).cast() }
    }

    /// An operand full of poison.
    fn put(&mut self, rows: usize, cols: usize, place: Place) -> Operand<'_, T> {
        let (count, len) = if place.by_columns { (cols, rows) } else { (rows, cols) };
        let count = if len == 0 { 0 } else { count };
        let elements = |pages: usize| pages * PAGE / size_of::<T>();
        let (first, stride, room) = if place.apart {
            (self.apart, elements(2), elements(1) - len)
        } else {
            let stride = len + place.padding;
            (self.together, stride, elements(Self::PAGES) - (count * stride).saturating_sub(place.padding))
        };
        assert!(room > place.gap + SPARE && count <= Self::LINES, "the operand is too large");
        let before = if place.flush == Flush::End { room - place.gap } else { place.gap };
        let mut operand = Operand { first: first.wrapping_add(before), stride, count, len, rows, cols, place, slot: PhantomData };
        (0..count).for_each(|line| operand.framed_mut(line).fill(poison()));
        operand
    }

    /// A vector of these elements.
    fn put_vector(&mut self, elements: &[T], flush: Flush, gap: usize) -> Operand<'_, T> {
        let mut operand = self.put(1, elements.len(), Place { gap, ..Place::plain(flush) });
        operand.vector_mut().copy_from_slice(elements);
        operand
    }
}

/// Elements that are checked beside an operand on the side that is not flush.
const SPARE: usize = 19;

/// A signalling NaN that no arithmetic makes: all of it returns quiet ones.
fn poison<T: Scalar>() -> T {
    let quiet = T::CANARY.to_bits();
    let bits = if size_of::<T>() == 4 { quiet & !(1 << 22) } else { quiet & !(1 << 51) };
    let bytes = bits.to_ne_bytes();
    let at = if cfg!(target_endian = "little") { 0 } else { 8 - size_of::<T>() };
    bytemuck::pod_read_unaligned(&bytes[at..at + size_of::<T>()])
}

/// A matrix at a [`Place`] of a [`Slot`].
struct Operand<'a, T> {
    /// The first element of the first line.
    first: *mut T,
    /// Elements from one line to the next.
    stride: usize,
    /// Lines; none if they would be empty.
    count: usize,
    /// Elements of a line.
    len: usize,
    rows: usize,
    cols: usize,
    place: Place,
    slot: PhantomData<&'a mut Slot<T>>,
}

impl<T: Scalar> Operand<'_, T> {
    /// Elements of poison before and behind a line that belong to its frame.
    fn margins(&self, line: usize) -> (usize, usize) {
        let (mut before, mut behind) =
            if self.place.flush == Flush::End { (SPARE, self.place.gap) } else { (self.place.gap, SPARE) };
        if !self.place.apart {
            before = if line == 0 { before } else { 0 };
            behind = if line + 1 == self.count { behind } else { self.place.padding };
        }
        (before, behind)
    }

    /// A line with its margins.
    fn framed(&self, line: usize) -> &[T] {
        assert!(line < self.count);
        let (before, behind) = self.margins(line);
        let from = self.first.wrapping_add(line * self.stride).wrapping_sub(before);
        // SAFETY: `put` has left room for the line and its margins on the stretch, and borrows the slot.
        unsafe { core::slice::from_raw_parts(from, before + self.len + behind) }
    }

    /// A line with its margins.
    fn framed_mut(&mut self, line: usize) -> &mut [T] {
        assert!(line < self.count);
        let (before, behind) = self.margins(line);
        let from = self.first.wrapping_add(line * self.stride).wrapping_sub(before);
        // SAFETY: as in `framed`; `self` is borrowed mutably.
        unsafe { core::slice::from_raw_parts_mut(from, before + self.len + behind) }
    }

    /// Line and place in the frame of element `(i, j)`.
    fn at(&self, i: usize, j: usize) -> (usize, usize) {
        assert!(i < self.rows && j < self.cols);
        let i = if self.place.rows_reversed { self.rows - 1 - i } else { i };
        let j = if self.place.cols_reversed { self.cols - 1 - j } else { j };
        let (line, at) = if self.place.by_columns { (j, i) } else { (i, j) };
        (line, self.margins(line).0 + at)
    }

    fn get(&self, i: usize, j: usize) -> T {
        let (line, at) = self.at(i, j);
        self.framed(line)[at]
    }

    /// Element `(i, j)` becomes `element(i, j)`.
    fn fill(&mut self, element: impl Fn(usize, usize) -> T) {
        for i in 0..self.rows {
            for j in 0..self.cols {
                let (line, at) = self.at(i, j);
                self.framed_mut(line)[at] = element(i, j);
            }
        }
    }

    /// The only line of a vector.
    fn vector(&self) -> &[T] {
        assert!(self.rows == 1 && !self.place.by_columns);
        // SAFETY: the elements of the line, of which an empty vector has none; the slot is borrowed.
        unsafe { core::slice::from_raw_parts(self.first, self.cols) }
    }

    /// The only line of a vector.
    fn vector_mut(&mut self) -> &mut [T] {
        assert!(self.rows == 1 && !self.place.by_columns);
        // SAFETY: as in `vector`; `self` is borrowed mutably.
        unsafe { core::slice::from_raw_parts_mut(self.first, self.cols) }
    }

    /// Address of element `(0, 0)` and the strides.
    fn strides(&self) -> (*mut T, isize, isize) {
        let (row, col) = if self.place.by_columns { (1, self.stride as isize) } else { (self.stride as isize, 1) };
        let (mut at, mut strides) = (self.first, [row, col]);
        for (stride, size, reversed) in [(0, self.rows, self.place.rows_reversed), (1, self.cols, self.place.cols_reversed)] {
            if reversed && self.count > 0 {
                at = at.wrapping_offset((size as isize - 1) * strides[stride]);
                strides[stride] = -strides[stride];
            }
        }
        (at, strides[0], strides[1])
    }

    /// The operand as kernels read it.
    fn view(&self) -> MatRef<'_, T> {
        let (at, row, col) = self.strides();
        // SAFETY: every element of the matrix is in the slot, which is borrowed.
        unsafe { MatRef::from_raw_parts(at, self.rows, self.cols, row, col) }
    }

    /// The operand as kernels write it.
    fn view_mut(&mut self) -> MatMut<'_, T> {
        let (at, row, col) = self.strides();
        // SAFETY: as in `view`; `self` is borrowed mutably, and no two elements share memory as lines do not overlap.
        unsafe { MatMut::from_raw_parts_mut(at, self.rows, self.cols, row, col) }
    }

    fn input(&self) -> Input<'_, T> {
        Input::new(self.view())
    }

    fn output(&mut self) -> Output<'_, T> {
        Output::new(self.view_mut())
    }

    /// Fails if poison was overwritten.
    fn check_frame(&self) {
        for line in 0..self.count {
            let (before, behind) = self.margins(line);
            let framed = self.framed(line);
            let intact = |part: &[T]| part.iter().all(|x| x.to_bits() == poison::<T>().to_bits());
            let is_intact = intact(&framed[..before]) && intact(&framed[framed.len() - behind..]);
            assert!(is_intact, "poison overwritten beside line {line}: {}", case());
        }
    }

    /// Fails unless element `(i, j)` is `wanted(i, j)`, or a number if that is `None`, and all poison is there.
    fn check(&self, what: &str, wanted: impl Fn(usize, usize) -> Option<f64>) {
        self.check_frame();
        for i in 0..self.rows {
            for j in 0..self.cols {
                let (got, wanted) = (self.get(i, j).to_f64(), wanted(i, j));
                let is_right = wanted.map_or(got.is_finite(), |wanted| got == wanted);
                assert!(is_right, "{what} ({i}, {j}) is {got:e}, not {wanted:?}: {}", case());
            }
        }
    }
}

/// What was announced.
fn case() -> String {
    CASE.with_borrow(|text| String::from_utf8_lossy(&text.bytes[..text.len]).into_owned())
}

/// The epilogues, with parameters that leave nothing to round but in Adam.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Store,
    Accumulate,
    Drive,
    Forward,
    Dyad,
    DampedDyad,
    DyadFromBelow,
    Derivative,
    Sgd,
    Momentum,
    Adam,
}

impl Kind {
    const ALL: [Kind; 11] = [
        Kind::Store,
        Kind::Accumulate,
        Kind::Drive,
        Kind::Forward,
        Kind::Dyad,
        Kind::DampedDyad,
        Kind::DyadFromBelow,
        Kind::Derivative,
        Kind::Sgd,
        Kind::Momentum,
        Kind::Adam,
    ];

    /// For each operand whether it is read.
    fn reads(self) -> &'static [bool] {
        match self {
            Kind::Store => &[false],
            Kind::Accumulate | Kind::Sgd => &[true],
            Kind::Drive | Kind::Forward => &[false, true, false][..if self == Kind::Drive { 2 } else { 3 }],
            Kind::Dyad => &[true, false, false, false],
            Kind::DyadFromBelow => &[false, true, true, false, false],
            Kind::DampedDyad | Kind::Adam => &[true; 3],
            Kind::Derivative => &[true, false],
            Kind::Momentum => &[true; 2],
        }
    }

    /// The epilogue on operands in the order of its fields.
    fn epilogue<'a, T: Scalar>(self, operands: &'a mut [Operand<'_, T>], activation: Activation) -> Epilogue<'a, T> {
        let c = |x: f64| T::from_f64(x);
        let nudge = Nudge { up: c(0.5), down: c(-0.5), gain: c(1.0), alpha: c(0.5) };
        let damping = (self == Kind::DampedDyad).then_some(1.0);
        let optimizer = match self {
            Kind::Momentum => Optimizer::Momentum { mu: 0.5 },
            Kind::Adam => Optimizer::ADAM,
            _ => Optimizer::Sgd,
        };
        match (self, operands) {
            (Kind::Store, [out]) => Epilogue::Store { out: out.output(), scale: c(2.0) },
            (Kind::Accumulate, [out]) => Epilogue::Accumulate { out: out.output(), scale: c(-1.0) },
            (Kind::Drive, [drive, bias]) => Epilogue::Drive { drive: drive.output(), bias: bias.input() },
            (Kind::Forward, [drive, bias, mean]) => {
                Epilogue::Forward { drive: drive.output(), bias: bias.input(), mean: mean.output(), activation }
            }
            (Kind::Dyad, [drive, feedback, mean, diff]) => {
                let (drive, feedback, mean, diff) = (drive.input(), Some(feedback.output()), mean.output(), diff.output());
                Epilogue::Dyad { drive, feedback, mean, diff, nudge, damping, activation }
            }
            (Kind::DampedDyad, [drive, mean, diff]) => {
                let (drive, mean, diff) = (drive.input(), mean.output(), diff.output());
                Epilogue::Dyad { drive, feedback: None, mean, diff, nudge, damping, activation }
            }
            (Kind::DyadFromBelow, [drive, bias, feedback, mean, diff]) => {
                let (drive, bias, feedback) = (drive.output(), bias.input(), feedback.input());
                let (mean, diff) = (mean.output(), diff.output());
                Epilogue::DyadFromBelow { drive, bias, feedback, mean, diff, nudge, damping, activation }
            }
            (Kind::Derivative, [drive, diff]) => Epilogue::Derivative { drive: drive.input(), diff: diff.output(), activation },
            (_, [weights, moments @ ..]) => {
                let update = Update { optimizer, decay: Decay::None, learning_rate: 0.25, step: 2, scale: 2.0 };
                let moments = moments.iter_mut().map(Operand::view_mut);
                Epilogue::Update(Descent::new(weights.view_mut(), moments, update))
            }
            (_, []) => unreachable!("every epilogue has operands"),
        }
    }

    /// The operands afterwards, given the sum and what they were before; `None` for a number that is rounded on the way.
    fn wanted(self, v: f64, old: [f64; 5], activation: Activation) -> [Option<f64>; 5] {
        let [a, b, c, ..] = old;
        let f = |x: f64| match activation {
            Activation::Relu => Some(f64::max(x, 0.0)),
            Activation::Identity => Some(x),
            _ => None,
        };
        let settled = |hi: f64, lo: f64| {
            let pair = f(hi).zip(f(lo));
            [pair.map(|(up, down)| 0.5 * (up + down)), pair.map(|(up, down)| up - down)]
        };
        let first = |wanted: &[Option<f64>]| core::array::from_fn(|k| wanted.get(k).copied().flatten());
        match self {
            Kind::Store => first(&[Some(2.0 * v)]),
            Kind::Accumulate => first(&[Some(a - v)]),
            Kind::Drive => first(&[Some(v + b), Some(b)]),
            Kind::Forward => first(&[Some(v + b), Some(b), f(v + b)]),
            Kind::Dyad => {
                let [mean, diff] = settled(a + 0.5 * v, a - 0.5 * v);
                first(&[Some(a), Some(v), mean, diff])
            }
            Kind::DampedDyad => {
                let [mean, diff] = settled(0.5 * (a + 0.5 * v + b + 0.5 * c), 0.5 * (a - 0.5 * v + b - 0.5 * c));
                first(&[Some(a), mean, diff])
            }
            Kind::DyadFromBelow => {
                let [mean, diff] = settled(v + b + 0.5 * c, v + b - 0.5 * c);
                [Some(v + b), Some(b), Some(c), mean, diff]
            }
            Kind::Derivative => {
                let slope = match activation {
                    Activation::Relu => Some(f64::from(u8::from(a > 0.0))),
                    Activation::Identity => Some(1.0),
                    _ => None,
                };
                first(&[Some(a), slope.map(|slope| slope * v)])
            }
            Kind::Sgd => first(&[Some(a - 0.5 * v)]),
            Kind::Momentum => {
                let m = 0.5 * b + 2.0 * v;
                first(&[Some(a - 0.25 * m), Some(m)])
            }
            Kind::Adam => [None; 5],
        }
    }
}

/// Depth of the blocks (KC).
const DEEP: usize = 24;

/// Element `(i, p)` of a left factor, from −3 to 3.
fn left(i: usize, p: usize) -> f64 {
    ((5 * i + 3 * p) % 7) as f64 - 3.0
}

/// Element `(p, j)` of a right factor, from −2 to 2.
fn right(p: usize, j: usize) -> f64 {
    ((2 * p + 11 * j + p * j) % 5) as f64 - 2.0
}

/// What operand `number` of an epilogue is before: an integer from −4 to 4, and not negative for the last (Adam's second moment).
fn before(number: usize, i: usize, j: usize) -> f64 {
    let x = ((3 * i + 7 * j + 5 * number) % 9) as f64 - 4.0;
    if number == 2 { x.abs() } else { x }
}

/// A product on operands at given places.
#[derive(Clone, Copy, Debug)]
struct Case {
    kind: Kind,
    m: usize,
    n: usize,
    depth: usize,
    activation: Activation,
    packed: [bool; 2],
    piecewise: bool,
    blocking: Blocking,
    /// Of the factors, and of the operands of the epilogue.
    places: [Place; 7],
}

impl Case {
    /// Runs the case; `sum(i, j)` are the sums.
    fn run<T: Scalar>(&self, isa: Isa, slots: &mut [Slot<T>; 7], sum: &impl Fn(usize, usize) -> f64) {
        let Case { kind, m, n, depth, activation, .. } = *self;
        announce(format_args!("{} on {isa}: {self:?}", T::NAME));
        let [row_slot, lane_slot, rest @ ..] = slots;
        let (mut rows, mut lanes) = (row_slot.put(m, depth, self.places[0]), lane_slot.put(depth, n, self.places[1]));
        rows.fill(|i, p| T::from_f64(left(i, p)));
        lanes.fill(|p, j| T::from_f64(right(p, j)));
        let mut operands: Vec<Operand<'_, T>> = Vec::new();
        for (number, ((slot, &reads), &place)) in rest.iter_mut().zip(kind.reads()).zip(&self.places[2..]).enumerate() {
            let mut operand = slot.put(m, n, place);
            if reads {
                operand.fill(|i, j| T::from_f64(before(number, i, j)));
            }
            operands.push(operand);
        }
        let (mut bands, mut panels) = (Bands::new(), Panels::new());
        let from = if self.packed[0] {
            bands.pack(isa, rows.view());
            Rows::Packed(&bands)
        } else {
            Rows::View(rows.view())
        };
        let to = if self.packed[1] {
            panels.pack(isa, Par::Seq, lanes.view());
            Lanes::Packed(&panels)
        } else if self.piecewise {
            Lanes::Piecewise(lanes.view())
        } else {
            Lanes::View(lanes.view())
        };
        product(isa, Par::Seq, from, to, kind.epilogue(&mut operands, activation), self.blocking, &mut Scratch::new());
        rows.check("left factor", |i, p| Some(left(i, p)));
        lanes.check("right factor", |p, j| Some(right(p, j)));
        for (number, operand) in operands.iter().enumerate() {
            let old = |i, j| core::array::from_fn(|number| before(number, i, j));
            operand.check("operand", |i, j| kind.wanted(sum(i, j), old(i, j), activation)[number]);
        }
    }
}

/// The sums of all shapes of one depth.
fn sums(rows: usize, cols: usize, depth: usize) -> Vec<Vec<f64>> {
    let chain = |i, j| (0..depth).map(|p| left(i, p) * right(p, j)).sum::<f64>();
    (0..rows).map(|i| (0..cols).map(|j| chain(i, j)).collect()).collect()
}

/// Runs a shape with every epilogue, flush at both ends; forms, places, activations and blockings vary. Returns the number of cases.
fn every_epilogue<T: Scalar>(
    isa: Isa,
    [m, n, depth]: [usize; 3],
    sums: &[Vec<f64>],
    slots: &mut [Slot<T>; 7],
    random: &mut SplitMix64,
) -> usize {
    for flush in [Flush::Beginning, Flush::End] {
        let form = random.bits();
        for (number, kind) in Kind::ALL.into_iter().enumerate() {
            let mut below = |n: usize| random.below(n as u64) as usize;
            let activation = match below(4) {
                0 => Activation::ALL[below(Activation::ALL.len())],
                _ => Activation::Relu,
            };
            let mc = [1, isa.tile().0 + 1, 128][below(3)];
            let blocking = Blocking { mc, kc: DEEP, nc: [1, 2, 5][below(3)], group: 1 + below(2) };
            let form = form.wrapping_add(number as u64) % 6;
            let (packed, piecewise) = ([form & 1 == 1, form & 2 == 2], form & 4 == 4);
            let places = core::array::from_fn(|_| Place::any(flush, random));
            let case = Case { kind, m, n, depth, activation, packed, piecewise, blocking, places };
            case.run(isa, slots, &|i, j| sums[i][j]);
        }
    }
    2 * Kind::ALL.len()
}

/// Every shape up to two tiles and one more.
fn products<T: Scalar>() {
    let mut slots: [Slot<T>; 7] = core::array::from_fn(|_| Slot::new());
    let mut random = SplitMix64::new(3);
    for isa in Isa::available() {
        let (mut cases, start) = (0, Instant::now());
        let (mr, nv) = isa.tile();
        let (most_rows, most_cols) = (2 * mr + 1, 2 * nv * isa.lanes::<T>() + 1);
        for depth in [0, 1, 2, 3, 7, 8, 17, DEEP - 1, DEEP, DEEP + 1] {
            let sums = sums(most_rows, most_cols, depth);
            for m in 0..=most_rows {
                for n in 0..=most_cols {
                    cases += every_epilogue(isa, [m, n, depth], &sums, &mut slots, &mut random);
                }
            }
        }
        println!("{isa} {}: {cases} products in {:.1} s", T::NAME, start.elapsed().as_secs_f64());
    }
}

/// Several blocks of depth, a block of panels that starts whole and ends with a part of one, and the steps of 64 in which columns are
/// transposed when they are packed.
fn deep_products<T: Scalar>() {
    let mut slots: [Slot<T>; 7] = core::array::from_fn(|_| Slot::new());
    let mut random = SplitMix64::new(4);
    for isa in Isa::available() {
        let (mr, nv) = isa.tile();
        let (lanes, width) = (isa.lanes::<T>(), nv * isa.lanes::<T>());
        for depth in [2 * DEEP - 1, 2 * DEEP, 2 * DEEP + 1, 63, 64, 65, 79, 80, 127, 128, 129, 200] {
            let sums = sums(2 * mr + 1, 4 * width + 1, depth);
            for m in [1, mr - 1, mr, mr + 1, 2 * mr, 2 * mr + 1] {
                let ends =
                    [1, lanes, lanes + 1, width - 1, width, width + 1, 2 * width - 1, 2 * width, 2 * width + 1, 3 * width + 1];
                let abreast = [4 * width, 4 * width + 1];
                for &n in ends.iter().chain(abreast.iter().filter(|_| m == 1 && depth <= 80)) {
                    every_epilogue(isa, [m, n, depth], &sums, &mut slots, &mut random);
                }
            }
        }
    }
}

/// Sweeps over matrices with all tails of lines, groups and tiles, with one vector, four and eight.
fn sweeps<T: Scalar>() {
    let [mut a_slot, mut x_slot, mut y_slot] = core::array::from_fn(|_| Slot::<T>::new());
    let [mut wide_slot, mut abs_slot, mut image_slot, mut both_slot] = core::array::from_fn(|_| Slot::<f64>::new());
    let mut random = SplitMix64::new(6);
    for isa in Isa::available() {
        for m in [0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 17] {
            for n in (0..=2 * 16 + 1).chain([63, 64, 65, 129]) {
                for (number, p) in [1, 4, 8].into_iter().cycle().take(6).enumerate() {
                    let flush = [Flush::Beginning, Flush::End][number / 3];
                    let any = Place::any(flush, &mut random);
                    let place = Place { by_columns: false, cols_reversed: false, ..any };
                    announce(format_args!("{} sweep over {m} x {n} with {p} on {isa}, {place:?}", T::NAME));
                    let (mut a, mut x, mut y) = (a_slot.put(m, n, place), x_slot.put(p, n, place), y_slot.put(p, n, place));
                    a.fill(|i, j| T::from_f64(left(i, j)));
                    x.fill(|i, j| T::from_f64(right(i, j)));
                    let mut squares = [0.0; 8];
                    gram(isa, Par::Seq, a.view(), x.view(), y.view_mut(), &mut squares[..p], &mut Scratch::new());
                    let product = |i: usize, r: usize| (0..n).map(|j| left(r, j) * right(i, j)).sum::<f64>();
                    let products: Vec<Vec<f64>> = (0..p).map(|i| (0..m).map(|r| product(i, r)).collect()).collect();
                    y.check("y", |i, j| Some((0..m).map(|r| left(r, j) * products[i][r]).sum()));
                    assert!((0..p).all(|i| squares[i] == products[i].iter().map(|t| t * t).sum::<f64>()), "{}", case());

                    let sizes: Vec<f64> = (0..n).map(|j| right(0, j).abs()).collect();
                    let wide = wide_slot.put_vector(&sizes, flush, place.gap);
                    let (mut abs, mut image_of) =
                        (abs_slot.put(1, n, Place::plain(flush)), image_slot.put(1, m, Place::plain(flush)));
                    abs_gram(isa, Par::Seq, a.view(), wide.vector(), abs.vector_mut(), &mut Scratch::new());
                    image(isa, Par::Seq, a.view(), wide.vector(), image_of.vector_mut());
                    let mut both = both_slot.put(1, n, Place::plain(flush));
                    wide_gram(isa, Par::Seq, a.view(), wide.vector(), both.vector_mut(), &mut Scratch::new());
                    let row = |r: usize, f: fn(f64) -> f64| (0..n).map(|j| f(left(r, j)) * sizes[j]).sum::<f64>();
                    abs.check("abs", |_, j| Some((0..m).map(|r| left(r, j).abs() * row(r, f64::abs)).sum()));
                    image_of.check("image", |_, r| Some(row(r, |x| x)));
                    both.check("both in f64", |_, j| Some((0..m).map(|r| left(r, j) * row(r, |x| x)).sum()));
                    wide.check("x in f64", |_, j| Some(sizes[j]));
                    x.check("x", |i, j| Some(right(i, j)));
                    a.check("matrix", |i, j| Some(left(i, j)));

                    announce(format_args!("{} scan of {m} x {n} on {isa}, {any:?}", T::NAME));
                    let mut a = a_slot.put(m, n, any);
                    a.fill(|i, j| T::from_f64(left(i, j)));
                    let square = scan(isa, a.view(), &mut Scratch::new()).expect("finite elements").square;
                    assert_eq!(square, (0..m).map(|r| (0..n).map(|j| left(r, j).powi(2)).sum::<f64>()).sum(), "{}", case());
                    a.check("matrix", |i, j| Some(left(i, j)));
                }
            }
        }
    }
}

/// Updates with products, with all tails of lines and groups.
fn online_steps<T: Scalar>() {
    let mut slots: [Slot<T>; 6] = core::array::from_fn(|_| Slot::new());
    let mut random = SplitMix64::new(8);
    for isa in Isa::available() {
        for m in [0, 1, 2, 3, 4, 5, 8, 9] {
            for n in (0..=2 * 16 + 1).chain([63, 64, 65, 129]) {
                for flush in [Flush::Beginning, Flush::End] {
                    let place = Place::any(flush, &mut random);
                    announce(format_args!("{} online step {m} x {n} on {isa}, {place:?}", T::NAME));
                    let [weights, momentum, diff, mean, next, image] = &mut slots;
                    let (mut weights, mut momentum) = (weights.put(m, n, place), momentum.put(m, n, place));
                    weights.fill(|i, j| T::from_f64(left(i, j)));
                    momentum.fill(|i, j| T::from_f64(right(i, j)));
                    let numbers =
                        |len: usize, number: usize| -> Vec<T> { (0..len).map(|k| T::from_f64(right(number, k))).collect() };
                    let diff = diff.put_vector(&numbers(m, 1), flush, place.gap);
                    let mean = mean.put_vector(&numbers(n, 2), flush, place.gap);
                    let next = next.put_vector(&numbers(n, 3), flush, place.gap);
                    let mut image = image.put(1, m, Place::plain(flush));
                    let optimizer = Optimizer::Momentum { mu: 1.0 };
                    let update = Update { optimizer, decay: Decay::None, learning_rate: 1.0, step: 1, scale: -1.0 };
                    let descent = Descent::new(weights.view_mut(), [momentum.view_mut()], update);
                    online(isa, Par::Seq, descent, diff.vector(), mean.vector(), next.vector(), image.vector_mut());
                    let moved = |i: usize, j: usize| right(i, j) - right(1, i) * right(2, j);
                    let weight = |i: usize, j: usize| left(i, j) - moved(i, j);
                    momentum.check("momentum", |i, j| Some(moved(i, j)));
                    weights.check("weights", |i, j| Some(weight(i, j)));
                    image.check("image", |_, i| Some((0..n).map(|j| weight(i, j) * right(3, j)).sum()));
                    diff.check("diff", |_, i| Some(right(1, i)));
                    mean.check("mean", |_, j| Some(right(2, j)));
                    next.check("next", |_, j| Some(right(3, j)));
                }
            }
        }
    }
}

/// Products with some rows of a matrix, for groups, blocks and tails of every size; the lists lie flush, too.
fn selections<T: Scalar>() {
    const ROWS: usize = 40;
    let [mut w_slot, mut z_slot, mut start_slot, mut out_slot, mut first_slot] = core::array::from_fn(|_| Slot::<T>::new());
    let [mut rows_slot, mut wanted_slot] = core::array::from_fn(|_| Slot::<f32>::new());
    let mut products_slot = Slot::<f64>::new();
    let [mut wide_slot, mut crossed_slot] = core::array::from_fn(|_| Slot::<f64>::new());
    let mut random = SplitMix64::new(8);
    for isa in Isa::available() {
        for m in (1..=13).chain([25]) {
            for n in [0, 1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40, 47, 63, 64, 65, 127, 129, 150] {
                for number in 0..4 {
                    let flush = [Flush::Beginning, Flush::End][number % 2];
                    let lower = number / 2 == 1;
                    let any = Place::any(flush, &mut random);
                    let place = Place { by_columns: false, cols_reversed: false, ..any };
                    let mut list = |end: usize| -> Vec<f32> {
                        (0..end as u32).filter(|_| random.below(3) == 0).map(f32::from_bits).collect()
                    };
                    let (rows, wanted) = (list(ROWS), list(n));
                    let k = rows.len();
                    let (at_rows, at_wanted) = (rows_slot.put_vector(&rows, flush, 0), wanted_slot.put_vector(&wanted, flush, 0));
                    let (rows, wanted): (&[u32], &[u32]) =
                        (bytemuck::cast_slice(at_rows.vector()), bytemuck::cast_slice(at_wanted.vector()));
                    announce(format_args!("{} {k} rows times {m} x {n} on {isa}, lower {lower}, {place:?}", T::NAME));
                    let half = n / 2;
                    let (mut w, mut z) = (w_slot.put(ROWS, n, place), z_slot.put(1, k * m, Place::plain(flush)));
                    let (mut start, mut out) = (start_slot.put(m, n, place), out_slot.put(m, n, place));
                    let mut first = first_slot.put(m, half, place);
                    let element = |p: usize, j: usize| if lower && j > p { 0.0 } else { right(p, j) };
                    w.fill(|p, j| T::from_f64(element(p, j)));
                    z.fill(|_, at| T::from_f64(left(at % m, at / m)));
                    start.fill(|i, j| T::from_f64(before(0, i, j)));
                    let sum = |i: usize, j: usize| (0..k).map(|at| left(i, at) * element(rows[at] as usize, j)).sum::<f64>();
                    let wanted_sum = |i: usize, j: usize| Some(before(0, i, j) + sum(i, j));
                    let both = &mut [
                        Selected { rows, factors: z.vector(), start: Some(start.view()), wanted: None, out: out.view_mut() },
                        Selected { rows, factors: z.vector(), start: None, wanted: None, out: first.view_mut() },
                    ];
                    selected(isa, w.view(), lower, both);
                    out.check("sums", wanted_sum);
                    first.check("first sums", |i, j| Some(sum(i, j)));
                    out.fill(|_, _| T::ZERO);
                    let some = Selected {
                        rows,
                        factors: z.vector(),
                        start: Some(start.view()),
                        wanted: Some(wanted),
                        out: out.view_mut(),
                    };
                    selected(isa, w.view(), lower, &mut [some]);
                    out.check("wanted sums", |i, j| wanted_sum(i, j).filter(|_| wanted.contains(&(j as u32))));

                    let mut products = products_slot.put(m, m, Place { by_columns: number == 1, ..Place::plain(flush) });
                    inner(isa, start.view(), products.view_mut());
                    products.check("inner", |i, j| Some((0..n).map(|c| before(0, i, c) * before(0, j, c)).sum()));
                    // In f64 whatever the type.
                    let outputs = OUTPUTS * (1 + number / 2);
                    let mut wide = wide_slot.put(1, k * outputs, Place::plain(flush));
                    let mut crossed = crossed_slot.put(1, wanted.len() * outputs, Place::plain(flush));
                    wide.fill(|_, at| left(at % outputs, at / outputs));
                    crossing(isa, w.view(), rows, wanted, wide.vector(), outputs, crossed.vector_mut());
                    let crossing_sum =
                        |j: u32, o: usize| (0..k).map(|at| left(o, at) * element(rows[at] as usize, j as usize)).sum();
                    crossed.check("crossing", |_, at| Some(crossing_sum(wanted[at / outputs], at % outputs)));
                    wide.check("wide factors", |_, at| Some(left(at % outputs, at / outputs)));
                    w.check("matrix", |p, j| Some(element(p, j)));
                    z.check("factors", |_, at| Some(left(at % m, at / m)));
                    start.check("start", |i, j| Some(before(0, i, j)));
                    at_rows.check_frame();
                    at_wanted.check_frame();
                }
            }
        }
    }
}

/// Products with sparse matrices whose vectors end at protected pages, for blocks of every kind and lines of every tail.
fn sparse_sweeps<T: Scalar>() {
    let [mut x_slot, mut y_slot, mut above_slot] = core::array::from_fn(|_| Slot::<T>::new());
    let [mut wide_slot, mut image_slot, mut size_slot] = core::array::from_fn(|_| Slot::<f64>::new());
    let mut random = SplitMix64::new(7);
    for isa in Isa::available() {
        for (m, n) in [(0, 3), (1, 1), (2, 17), (5, 33), (9, 8), (17, 40), (33, 5)] {
            for every in [1, 2, 3] {
                // Row `i` has a tail of its own.
                let element = |i: usize, j: usize| if (i + j).is_multiple_of(every) { left(i, j) } else { 0.0 };
                let columns = |i: usize| (0..n).filter(move |j| (i + j).is_multiple_of(every));
                let indices: Vec<_> = (0..m).flat_map(columns).collect();
                let starts: Vec<_> = (0..=m).map(|i| (0..i).map(|i| columns(i).count()).sum::<usize>()).collect();
                let values: Vec<_> = (0..m).flat_map(|i| columns(i).map(move |j| T::from_f64(left(i, j)))).collect();
                let make = || Matrix::new(Pattern::new(m, n, &starts, &indices).expect("a sound pattern"), values.to_vec());
                let mut a = fenced(make);
                for (number, p) in [1, 3, 4, 8, 11, 16, 17].into_iter().cycle().take(14).enumerate() {
                    let place = Place::any([Flush::Beginning, Flush::End][number / 7], &mut random);
                    announce(format_args!("{} sparse {m} x {n}, 1 of {every}, with {p} on {isa}, {place:?}", T::NAME));
                    let (mut x, mut y) = (x_slot.put(p, n, place), y_slot.put(p, n, place));
                    x.fill(|i, j| T::from_f64(right(i, j)));
                    let mut squares = [0.0; 17];
                    sparse::gram(isa, Par::Seq, &a, x.view(), y.view_mut(), &mut squares[..p], &mut Scratch::new());
                    let product = |i: usize, r: usize| (0..n).map(|j| element(r, j) * right(i, j)).sum::<f64>();
                    y.check("y", |i, j| Some((0..m).map(|r| element(r, j) * product(i, r)).sum()));
                    x.check("x", |i, j| Some(right(i, j)));

                    let mut image = above_slot.put(p, m, place);
                    sparse::apply(isa, Par::Seq, a.rows(), x.view(), image.view_mut(), &mut Scratch::new());
                    image.check("image", |i, r| Some(product(i, r)));
                    let mut out = above_slot.put(p, m, place);
                    let store = Epilogue::Store { out: Output::new(out.view_mut()), scale: T::ONE };
                    sparse::product(isa, Par::Seq, a.rows(), x.view(), store, &mut Scratch::new());
                    out.check("product", |i, r| Some(product(i, r)));

                    let mut above = above_slot.put(p, m, place);
                    above.fill(|i, r| T::from_f64(left(r, i)));
                    let update =
                        Update { optimizer: Optimizer::Sgd, decay: Decay::None, learning_rate: 1.0, step: 1, scale: -1.0 };
                    sparse::update(isa, Par::Seq, &mut a, &mut [], above.view(), x.view(), update, &mut Scratch::new());
                    let moved = |r: usize, j: usize| left(r, j) + (0..p).map(|b| left(r, b) * right(b, j)).sum::<f64>();
                    let wanted: Vec<_> = (0..m).flat_map(|r| columns(r).map(move |j| T::from_f64(moved(r, j)))).collect();
                    assert!(a.rows().values() == wanted, "{}", case());
                    a.edit(|now| now.copy_from_slice(&values));
                }
                let flush = Flush::End;
                announce(format_args!("{} sums of sparse {m} x {n}, 1 of {every}, on {isa}", T::NAME));
                let numbers: Vec<_> = (0..n).map(|j| right(0, j)).collect();
                let wide = wide_slot.put_vector(&numbers, flush, 0);
                let [mut image, mut sizes] = [&mut image_slot, &mut size_slot].map(|slot| slot.put(1, m, Place::plain(flush)));
                sparse::wide(isa, a.rows(), wide.vector(), image.vector_mut(), sizes.vector_mut());
                image.check("image", |_, r| Some((0..n).map(|j| element(r, j) * numbers[j]).sum()));
                sizes.check("sizes", |_, r| Some((0..n).map(|j| (element(r, j) * numbers[j]).abs()).sum()));
                let square = (0..m).flat_map(|r| (0..n).map(move |j| element(r, j).powi(2))).sum::<f64>();
                assert_eq!(sparse::scan(a.rows(), 1.0).square, square, "{}", case());
            }
        }
    }
}

/// [`softmax_rows`] of rows of 7, and of the last row, which may be shorter, alone.
fn softmax_of_sevens<T: Scalar>(isa: Isa, out: &mut [T], x: &[T]) {
    let rows = x.len() / 7;
    let ((out, last_out), (x, last)) = (out.split_at_mut(7 * rows), x.split_at(7 * rows));
    softmax_rows(isa, MatMut::from_row_major_slice_mut(out, rows, 7), MatRef::from_row_major_slice(x, rows, 7));
    softmax(isa, last_out, last).expect("one length");
}

/// Every kernel on vectors of every length up to three of the reductions' virtual vectors and one more, at every alignment.
fn vector_kernels<T: Scalar>() {
    /// More than any instruction set has: the reductions sum in 32 chains.
    const LANES: usize = 32;
    let [mut x_slot, mut y_slot, mut out_slot] = core::array::from_fn(|_| Slot::<T>::new());
    let number = |i: usize| T::from_f64(((7 * i) % 23) as f64 / 8.0 - 1.25);
    for len in (0..=3 * LANES + 1).chain([127, 128, 129, 257]) {
        let (a, b): (Vec<T>, Vec<T>) = (0..len).map(|i| (number(i), number(i + 5))).unzip();
        let plain = |run: &dyn Fn(&mut [T])| {
            let mut out = vec![poison(); len];
            run(&mut out);
            out
        };
        for isa in Isa::available() {
            let sums = |x: &[T], y: &[T]| {
                let top = arg_max(x).map_or(-1.0, |at| at as f64);
                let pairs = [dot(isa, x, y), square_distance(isa, x, y)];
                [sum(isa, x), pairs[0], pairs[1], max_abs(isa, x), norm(isa, x), log_sum_exp(isa, x), top]
            };
            let maps: Vec<(String, Box<dyn Fn(&mut [T], &[T])>)> = Function::ALL
                .iter()
                .map(|&f| -> (String, Box<dyn Fn(&mut [T], &[T])>) {
                    (format!("{f:?}"), Box::new(move |out, x| map(isa, f, out, x).expect("one length")))
                })
                .chain(Activation::ALL.iter().flat_map(|&f| -> [(String, Box<dyn Fn(&mut [T], &[T])>); 2] {
                    [
                        (format!("values of {f}"), Box::new(move |out, x| f.values(isa, out, x).expect("one length"))),
                        (format!("derivatives of {f}"), Box::new(move |out, x| f.derivatives(isa, out, x).expect("one length"))),
                    ]
                }))
                .chain([
                    (
                        "softmax".to_owned(),
                        Box::new(move |out: &mut [T], x: &[T]| softmax(isa, out, x).expect("one length")) as _,
                    ),
                    ("softmax of rows".to_owned(), Box::new(move |out: &mut [T], x: &[T]| softmax_of_sevens(isa, out, x)) as _),
                ])
                .collect();
            let plain_sums = sums(&a, &b);
            let plain_maps: Vec<Vec<T>> = maps.iter().map(|(_, run)| plain(&|out| run(out, &a))).collect();
            for flush in [Flush::Beginning, Flush::End] {
                for gap in 0..64 / size_of::<T>() {
                    let x = x_slot.put_vector(&a, flush, gap);
                    let y = y_slot.put_vector(&b, flush, (3 * gap) % 8);
                    announce(format_args!("{} reductions of {len} on {isa}, {flush:?}, gap {gap}", T::NAME));
                    for (got, wanted) in sums(x.vector(), y.vector()).into_iter().zip(plain_sums) {
                        assert!(same(got, wanted), "{got:e} instead of {wanted:e}: {}", case());
                    }
                    for ((name, run), wanted) in maps.iter().zip(&plain_maps) {
                        announce(format_args!("{} {name} of {len} on {isa}, {flush:?}, gap {gap}", T::NAME));
                        let mut out = out_slot.put(1, len, Place { gap: (5 * gap) % 8, ..Place::plain(flush) });
                        run(out.vector_mut(), x.vector());
                        out.check_frame();
                        for (i, (&got, &wanted)) in out.vector().iter().zip(wanted).enumerate() {
                            assert!(same(got, wanted), "element {i} is {got:e} instead of {wanted:e}: {}", case());
                        }
                    }
                    for (operand, elements) in [(&x, &a), (&y, &b)] {
                        operand.check_frame();
                        assert_eq!(operand.vector(), elements, "an input was changed: {}", case());
                    }
                }
            }
        }
    }
}

/// Which access outside an operand [`an_access_outside`] makes.
const PROBE: &str = "DUALPROP_GUARD_PROBE";

/// Run by [`the_harness_notices`] in a process of its own, which it must not survive.
#[test]
#[ignore = "dies, as it should"]
fn an_access_outside() {
    let probe = std::env::var(PROBE).expect("the probe is named by the caller");
    announce(format_args!("probe {probe}"));
    let mut slot = Slot::<f32>::new();
    let apart = |flush| Place { apart: true, ..Place::plain(flush) };
    let outside = match probe.as_str() {
        "behind a vector" => slot.put(1, 5, Place::plain(Flush::End)).first.wrapping_add(5),
        "before a vector" => slot.put(1, 5, Place::plain(Flush::Beginning)).first.wrapping_sub(1),
        "behind a line" => slot.put(3, 5, apart(Flush::End)).first.wrapping_add(5),
        "before a line" => {
            let operand = slot.put(3, 5, apart(Flush::Beginning));
            operand.first.wrapping_add(operand.stride).wrapping_sub(1)
        }
        "behind a buffer" => {
            let layout = Layout::from_size_align(5 * LINE, LINE).expect("a layout");
            // SAFETY: the layout is not empty.
            unsafe { std::alloc::alloc(layout) }.wrapping_add(5 * LINE).cast()
        }
        _ => panic!("there is no probe {probe}"),
    };
    // SAFETY: none. This reads a protected page on purpose; if it were not protected, what is there is not used.
    let value = unsafe { outside.read_volatile() };
    println!("survived with {value:e}");
}

#[test]
fn the_harness_notices() {
    for probe in ["behind a vector", "before a vector", "behind a line", "before a line", "behind a buffer"] {
        let this = std::env::current_exe().expect("the path of this test");
        let arguments = ["--ignored", "--exact", "an_access_outside", "--nocapture"];
        let child = Command::new(this).args(arguments).env(PROBE, probe).output().expect("a child process");
        let printed = String::from_utf8_lossy(&child.stderr).into_owned();
        let is_fault = child.status.signal().is_some_and(|signal| FAULTS.contains(&signal));
        assert!(is_fault, "{probe}: {:?}, {printed}", child.status);
        assert!(printed.contains(&format!("access outside the operands: probe {probe}")), "{printed}");
    }

    // The kernels' buffers do come from the allocator above.
    let ones = faer::Mat::<f32>::from_fn(9, 9, |_, _| 1.0);
    let given_out = GUARDED.load(Ordering::Relaxed);
    Bands::new().pack(Isa::best(), ones.as_ref());
    assert!(GUARDED.load(Ordering::Relaxed) > given_out, "packed operands are no longer aligned to lines: adapt `Guarding`");

    // Poison overwritten: before, between and behind lines.
    let mut slot = Slot::<f64>::new();
    announce(format_args!("poison overwritten on purpose"));
    for flush in [Flush::Beginning, Flush::End] {
        for apart in [false, true] {
            let place = Place { padding: 2, gap: 1, apart, ..Place::plain(flush) };
            let mut operand = slot.put(3, 4, place);
            operand.check_frame();
            for line in 0..3 {
                let (before, behind) = operand.margins(line);
                for at in (0..before).chain(before + 4..before + 4 + behind) {
                    operand.framed_mut(line)[at] = 0.0;
                    assert_panics("poison overwritten", || operand.check_frame());
                    operand.framed_mut(line)[at] = poison();
                }
            }
            operand.check_frame();
        }
    }
}
