//! What the scripts of this folder time: our kernels, C functions of other libraries, and the limits of the machine, each as a task.
//!
//! All matrices are row-major without gaps. What makes the unsafe code here sound is the duty of the scripts: pointers are those of arrays of the
//! shapes given that outlive the task, functions are those that their names say, and one task runs at a time.

use core::ffi::{c_char, c_void};
use core::hint::{black_box, spin_loop};
use core::slice;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::OnceLock;
use std::time::Instant;

use dualprop::hebbian::{self, Decay, Optimizer, Update};
use dualprop::network::{Init, Method, Network, Schedule, Settings, Targets, Trainer};
use dualprop::relax::{self, Variant};
use dualprop::{Activation, Isa, MatMut, MatRef, Real, Runtime, Workspace};
use dualprop_kernels::elementary::{self, Function};
use dualprop_kernels::epilogue::{Epilogue, Nudge};
use dualprop_kernels::isa::Kernel;
use dualprop_kernels::pack::Panels;
use dualprop_kernels::product::{Blocking, Lanes, Rows, Scratch, product};
use dualprop_kernels::strided::{Input, Output};
use dualprop_kernels::vector::Vector;

static RUNTIME: OnceLock<Runtime> = OnceLock::new();

fn runtime() -> &'static Runtime {
    RUNTIME.get().expect("`start` comes first")
}

/// The best instruction set on so many threads, of which the calling one is the first.
#[unsafe(no_mangle)]
pub extern "C" fn start(threads: usize) {
    rayon::ThreadPoolBuilder::new().num_threads((threads - 1).max(1)).build_global().expect("one start");
    RUNTIME.set(Runtime::new(Isa::best(), dualprop::Par::Seq).with_threads(threads)).expect("one start");
}

type Task = Box<dyn FnMut()>;

fn task(run: impl FnMut() + 'static) -> *mut Task {
    Box::into_raw(Box::new(Box::new(run)))
}

/// Seconds that one call of a task takes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn time(task: *mut Task) -> f64 {
    let task = unsafe { &mut *task };
    let start = Instant::now();
    task();
    start.elapsed().as_secs_f64()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn drop_task(task: *mut Task) {
    drop(unsafe { Box::from_raw(task) });
}

unsafe fn matrix<'a, T>(at: *const T, rows: usize, cols: usize) -> MatRef<'a, T> {
    unsafe { MatRef::from_raw_parts(at, rows, cols, cols as isize, 1) }
}

unsafe fn matrix_mut<'a, T>(at: *mut T, rows: usize, cols: usize) -> MatMut<'a, T> {
    unsafe { MatMut::from_raw_parts_mut(at, rows, cols, cols as isize, 1) }
}

// Ours.

/// `W ← optimizer(keep·W, scale·diffᵀ·mean)` for `W` of m × n; 0 plain, 1 momentum, 2 Adam; steps are counted from `step`.
unsafe fn update<T: Real>(
    [m, n, batch, optimizer]: [usize; 4],
    [w, first, second]: [*mut T; 3],
    [diff, mean]: [*const T; 2],
    [decay, rate, scale, step]: [f64; 4],
) -> *mut Task {
    let mut work = Workspace::new(runtime());
    let optimizer = [Optimizer::Sgd, Optimizer::MOMENTUM, Optimizer::ADAM][optimizer];
    let decay = if decay == 0.0 { Decay::None } else { Decay::Decoupled(decay) };
    let mut update = Update { optimizer, decay, learning_rate: rate, step: step as u64, scale };
    task(move || unsafe {
        let moments = &mut [matrix_mut(first, m, n), matrix_mut(second, m, n)][..optimizer.moments()];
        let (diff, mean) = (matrix(diff, batch, m), matrix(mean, batch, n));
        hebbian::update(matrix_mut(w, m, n), moments, diff, mean, &update, &mut work).expect("shapes that fit");
        update.step += 1;
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn update_f32(
    shape: &[usize; 4],
    weights: &[*mut f32; 3],
    factors: &[*const f32; 2],
    parameters: &[f64; 4],
) -> *mut Task {
    unsafe { update(*shape, *weights, *factors, *parameters) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn update_f64(
    shape: &[usize; 4],
    weights: &[*mut f64; 3],
    factors: &[*const f64; 2],
    parameters: &[f64; 4],
) -> *mut Task {
    unsafe { update(*shape, *weights, *factors, *parameters) }
}

/// `out ← below·Wᵀ + bias` for `W` of m × n.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn drive(
    [m, n, batch]: &[usize; 3],
    w: *const f32,
    bias: *const f32,
    below: *const f32,
    out: *mut f32,
) -> *mut Task {
    let (m, n, batch, mut work) = (*m, *n, *batch, Workspace::new(runtime()));
    task(move || unsafe {
        let (w, below, bias) = (matrix(w, m, n), matrix(below, batch, n), slice::from_raw_parts(bias, m));
        relax::drive(matrix_mut(out, batch, m), below, w, bias, &mut work).expect("shapes that fit");
    })
}

/// Relaxation by DP⊤, α = ½, of n linear units below `W` of m × n: one product `above·W`, mean and diff.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn feed_back(
    [m, n, batch]: &[usize; 3],
    w: *const f32,
    above: *const f32,
    drive: *const f32,
    mean: *mut f32,
    diff: *mut f32,
) -> *mut Task {
    let (m, n, batch, mut work) = (*m, *n, *batch, Workspace::new(runtime()));
    task(move || unsafe {
        let (w, above, drive) = (matrix(w, m, n), matrix(above, batch, m), matrix(drive, batch, n));
        let (mean, diff) = (matrix_mut(mean, batch, n), matrix_mut(diff, batch, n));
        let variant = Variant::DpTranspose { alpha: 0.5 };
        relax::relax(mean, diff, drive, above, w, variant, Activation::Identity, &mut work).expect("shapes that fit");
    })
}

/// `out ← below·Wᵀ` (`up`) or `out ← above·W` for `W` of m × n that is packed beforehand.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn packed([m, n, batch, up]: &[usize; 4], w: *const f32, from: *const f32, out: *mut f32) -> *mut Task {
    let (isa, par, batch) = (runtime().isa(), runtime().par(), *batch);
    let w = unsafe { matrix(w, *m, *n) };
    let w = if *up == 1 { w.transpose() } else { w };
    let (depth, width) = w.shape();
    let (mut panels, mut scratch) = (Panels::new(), Scratch::new());
    panels.pack(isa, par, w);
    task(move || unsafe {
        let (rows, lanes) = (Rows::View(matrix(from, batch, depth)), Lanes::Packed(&panels));
        let store = Epilogue::Store { out: Output::new(matrix_mut(out, batch, width)), scale: 1.0 };
        product(isa, par, rows, lanes, store, Blocking::streaming_panels::<f32>(isa, batch), &mut scratch);
    })
}

/// The online step of a layer m × n: `W ← keep·W − rate·scale·diffᵀ·mean`, then `out ← W·next`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn online(
    [m, n]: &[usize; 2],
    w: *mut f32,
    [diff, mean]: &[*const f32; 2],
    [decay, rate, scale, step]: &[f64; 4],
    next: *const f32,
    out: *mut f32,
) -> *mut Task {
    let (m, n) = (*m, *n);
    let (decay, step) = (Decay::Decoupled(*decay), *step as u64);
    let update = Update { optimizer: Optimizer::Sgd, decay, learning_rate: *rate, step, scale: *scale };
    let [diff, mean, next] = unsafe { [(*diff, m), (*mean, n), (next, n)].map(|(at, len)| slice::from_raw_parts(at, len)) };
    task(move || unsafe {
        let out = slice::from_raw_parts_mut(out, m);
        hebbian::online(matrix_mut(w, m, n), &mut [], diff, mean, &update, next, out, runtime()).expect("shapes that fit");
    })
}

/// Relaxation of n ReLU units by DP⊤, α = ½, from `below` (batch × k) and `above` (batch × q), with weights n × k and q × n that are
/// packed beforehand, as a trainer does between two updates, or read where they are.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn relax_layer(
    [k, n, q, batch, packed]: &[usize; 5],
    [incoming, outgoing, bias, below, above]: &[*const f32; 5],
    [drive, mean, diff]: &[*mut f32; 3],
) -> *mut Task {
    let (k, n, q, batch) = (*k, *n, *q, *batch);
    let ([drive, mean, diff], below, above) = ([*drive, *mean, *diff], *below, *above);
    let (incoming, outgoing, bias) =
        unsafe { (matrix(*incoming, n, k), matrix(*outgoing, q, n), slice::from_raw_parts(*bias, n)) };
    if *packed == 0 {
        let mut work = Workspace::new(runtime());
        return task(move || unsafe {
            relax::drive(matrix_mut(drive, batch, n), matrix(below, batch, k), incoming, bias, &mut work).expect("shapes that fit");
            let (variant, relu) = (Variant::DpTranspose { alpha: 0.5 }, Activation::Relu);
            let (mean, diff) = (matrix_mut(mean, batch, n), matrix_mut(diff, batch, n));
            relax::relax(mean, diff, matrix(drive, batch, n), matrix(above, batch, q), outgoing, variant, relu, &mut work)
                .expect("shapes that fit");
        });
    }
    let (isa, par) = (runtime().isa(), runtime().par());
    let (mut up, mut down, mut scratch) = (Panels::new(), Panels::new(), Scratch::new());
    up.pack(isa, par, incoming.transpose());
    down.pack(isa, par, outgoing);
    task(move || unsafe {
        let blocking = Blocking::streaming_panels::<f32>(isa, batch);
        let to_drive = Epilogue::Drive { drive: Output::new(matrix_mut(drive, batch, n)), bias: Input::repeated(bias, batch) };
        product(isa, par, Rows::View(matrix(below, batch, k)), Lanes::Packed(&up), to_drive, blocking, &mut scratch);
        let dyad = Epilogue::Dyad {
            drive: Input::new(matrix(drive, batch, n)),
            feedback: None,
            mean: Output::new(matrix_mut(mean, batch, n)),
            diff: Output::new(matrix_mut(diff, batch, n)),
            nudge: Nudge { up: 0.5, down: -0.5, gain: 1.0, alpha: 0.5 },
            damping: None,
            activation: Activation::Relu,
        };
        product(isa, par, Rows::View(matrix(above, batch, q)), Lanes::Packed(&down), dyad, blocking, &mut scratch);
    })
}

/// 0 exp, 1 tanh, 2 sigmoid of `rows·cols` numbers, 3 softmax of rows.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elementary(function: usize, rows: usize, cols: usize, x: *const f32, out: *mut f32) -> *mut Task {
    let isa = runtime().isa();
    let (x, out) = unsafe { (slice::from_raw_parts(x, rows * cols), slice::from_raw_parts_mut(out, rows * cols)) };
    let name = [Function::Exp, Function::Tanh, Function::Sigmoid].get(function).copied();
    task(move || match name {
        Some(function) => elementary::map(isa, function, out, x).expect("two arrays of one length"),
        None => {
            let (out, x) = (MatMut::from_row_major_slice_mut(out, rows, cols), MatRef::from_row_major_slice(x, rows, cols));
            elementary::softmax_rows(isa, out, x);
        }
    })
}

/// A network in training, and what it is trained on.
pub struct Training {
    trainer: Trainer<f32>,
    batch: usize,
    x: *const f32,
    labels: Vec<u32>,
    loss: f64,
}

/// ReLU with biases of zero, weights layer after layer (n_out × n_in), Adam; DP⊤ with α = ½ and so many rounds, or back-propagation
/// for `rounds` below 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn training(
    layers: usize,
    widths: *const usize,
    weights: *const *const f32,
    batch: usize,
    rounds: i32,
    beta: f64,
    x: *const f32,
    labels: *const u32,
) -> *mut Training {
    let widths = unsafe { slice::from_raw_parts(widths, layers + 1) };
    let weights = unsafe { slice::from_raw_parts(weights, layers) };
    let mut network = Network::new(widths, Activation::Relu, true).expect("sound widths");
    network.initialize(Init::LecunNormal, 1);
    for (k, &from) in weights.iter().enumerate() {
        let mut to = network.weights_mut(k);
        to.copy_from(unsafe { matrix(from, widths[k + 1], widths[k]) });
    }
    let settings = match usize::try_from(rounds) {
        Ok(rounds) => {
            let schedule = Schedule::Rounds(rounds);
            Settings { schedule, ..Settings::new(Method::DpTranspose { alpha: 0.5, beta }) }
        }
        Err(_) => Settings::new(Method::Backprop),
    };
    let trainer = Trainer::new(network, &settings, batch, runtime()).expect("sound settings");
    let labels = unsafe { slice::from_raw_parts(labels, batch) }.to_vec();
    Box::into_raw(Box::new(Training { trainer, batch, x, labels, loss: 0.0 }))
}

/// Mean loss of the last step, before its update.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn training_loss(training: *const Training) -> f64 {
    unsafe { &*training }.loss
}

/// The gradient of layer k for the present weights, by the trainer's method.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn training_gradient(training: *mut Training, k: usize, gradient: *mut f32) {
    let Training { trainer, batch, x, labels, .. } = unsafe { &mut *training };
    let (n_out, n_in) = (trainer.network().widths()[k + 1], trainer.network().widths()[k]);
    let x = unsafe { matrix(*x, *batch, trainer.network().widths()[0]) };
    trainer.infer(x, Targets::Classes(labels)).expect("a sound batch");
    trainer.gradient(k, unsafe { matrix_mut(gradient, n_out, n_in) }, &mut vec![0.0; n_out]).expect("a layer");
}

/// A training step. The training must outlive the task.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn training_step(training: *mut Training, rate: f64) -> *mut Task {
    task(move || {
        let Training { trainer, batch, x, labels, loss } = unsafe { &mut *training };
        let x = unsafe { matrix(*x, *batch, trainer.network().widths()[0]) };
        *loss = trainer.step(x, Targets::Classes(labels), rate).expect("a sound batch").loss;
    })
}

/// Outputs for `rows` samples. The training must outlive the task.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prediction(training: *mut Training, rows: usize, x: *const f32, out: *mut f32) -> *mut Task {
    task(move || {
        let trainer = &mut unsafe { &mut *training }.trainer;
        let widths = trainer.network().widths();
        let (n_in, n_out) = (widths[0], widths[widths.len() - 1]);
        let (x, out) = unsafe { (matrix(x, rows, n_in), matrix_mut(out, rows, n_out)) };
        trainer.predict(x, out).expect("shapes that fit");
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn drop_training(training: *mut Training) {
    drop(unsafe { Box::from_raw(training) });
}

// Functions of other libraries, by their addresses.

const ROW_MAJOR: i32 = 101;

type Gemm<T> = unsafe extern "C" fn(i32, i32, i32, i32, i32, i32, T, *const T, i32, *const T, i32, T, *mut T, i32);

/// `cblas_?gemm`: transpositions as CBLAS counts them (111 no, 112 yes), m, n, k, leading dimensions.
unsafe fn gemm<T: Copy + 'static>(
    gemm: *const c_void,
    [ta, tb, m, n, k, lda, ldb, ldc]: [i32; 8],
    [alpha, beta]: [T; 2],
    a: *const T,
    b: *const T,
    c: *mut T,
) -> *mut Task {
    let gemm = unsafe { core::mem::transmute::<*const c_void, Gemm<T>>(gemm) };
    task(move || unsafe { gemm(ROW_MAJOR, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn gemm_f32(
    function: *const c_void,
    shape: &[i32; 8],
    scales: &[f32; 2],
    a: *const f32,
    b: *const f32,
    c: *mut f32,
) -> *mut Task {
    unsafe { gemm(function, *shape, *scales, a, b, c) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn gemm_f64(
    function: *const c_void,
    shape: &[i32; 8],
    scales: &[f64; 2],
    a: *const f64,
    b: *const f64,
    c: *mut f64,
) -> *mut Task {
    unsafe { gemm(function, *shape, *scales, a, b, c) }
}

/// `dnnl_sgemm`, the arguments as for `gemm_f32`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gemm_onednn(
    function: *const c_void,
    [ta, tb, m, n, k, lda, ldb, ldc]: &[i32; 8],
    [alpha, beta]: &[f32; 2],
    a: *const f32,
    b: *const f32,
    c: *mut f32,
) -> *mut Task {
    type Gemm =
        unsafe extern "C" fn(c_char, c_char, i64, i64, i64, f32, *const f32, i64, *const f32, i64, f32, *mut f32, i64) -> i32;
    let gemm = unsafe { core::mem::transmute::<*const c_void, Gemm>(function) };
    let [ta, tb] = [ta, tb].map(|&side| if side == 111 { b'N' } else { b'T' } as c_char);
    let [m, n, k, lda, ldb, ldc] = [m, n, k, lda, ldb, ldc].map(|&size| i64::from(size));
    let (alpha, beta) = (*alpha, *beta);
    task(move || assert_eq!(unsafe { gemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc) }, 0))
}

/// `cblas_sgemm_compute` with B packed: `C ← op(A)·B`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gemm_packed(
    function: *const c_void,
    [m, n, k]: &[i32; 3],
    a: *const f32,
    b: *const f32,
    c: *mut f32,
) -> *mut Task {
    type Compute = unsafe extern "C" fn(i32, i32, i32, i32, i32, i32, *const f32, i32, *const f32, i32, f32, *mut f32, i32);
    let compute = unsafe { core::mem::transmute::<*const c_void, Compute>(function) };
    let (m, n, k) = (*m, *n, *k);
    const PACKED: i32 = 151;
    task(move || unsafe { compute(ROW_MAJOR, 111, PACKED, m, n, k, a, k, b, n, 0.0, c, n) })
}

/// `cblas_sgemv` without scaling: `y ← op(A)·x`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gemv(
    function: *const c_void,
    [trans, m, n]: &[i32; 3],
    a: *const f32,
    x: *const f32,
    y: *mut f32,
) -> *mut Task {
    type Gemv = unsafe extern "C" fn(i32, i32, i32, i32, f32, *const f32, i32, *const f32, i32, f32, *mut f32, i32);
    let gemv = unsafe { core::mem::transmute::<*const c_void, Gemv>(function) };
    let (trans, m, n) = (*trans, *m, *n);
    task(move || unsafe { gemv(ROW_MAJOR, trans, m, n, 1.0, a, n, x, 1, 0.0, y, 1) })
}

/// `cblas_sger`: `A ← A + alpha·x·yᵀ`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ger(
    function: *const c_void,
    [m, n]: &[i32; 2],
    alpha: f32,
    x: *const f32,
    y: *const f32,
    a: *mut f32,
) -> *mut Task {
    type Ger = unsafe extern "C" fn(i32, i32, i32, f32, *const f32, i32, *const f32, i32, *mut f32, i32);
    let ger = unsafe { core::mem::transmute::<*const c_void, Ger>(function) };
    let (m, n) = (*m, *n);
    task(move || unsafe { ger(ROW_MAJOR, m, n, alpha, x, 1, y, 1, a, n) })
}

/// `vm?(n, x, y, mode)` of MKL's vector mathematics.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vector_function(function: *const c_void, len: usize, mode: i64, x: *const f32, y: *mut f32) -> *mut Task {
    type Map = unsafe extern "C" fn(i32, *const f32, *mut f32, i64);
    let map = unsafe { core::mem::transmute::<*const c_void, Map>(function) };
    task(move || unsafe { map(len as i32, x, y, mode) })
}

/// Tasks one after the other. They stay the caller's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sequence(first: *mut Task, second: *mut Task, third: *mut Task) -> *mut Task {
    task(move || {
        for task in [first, second, third] {
            if let Some(task) = unsafe { task.as_mut() } {
                task();
            }
        }
    })
}

/// What one writes around two products to relax ReLU units by DP⊤, α = ½; on one thread, autovectorised.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dyads(
    [batch, n]: &[usize; 2],
    [drive, feedback, bias]: &[*const f32; 3],
    mean: *mut f32,
    diff: *mut f32,
) -> *mut Task {
    struct Dyads<'a>(&'a [f32], &'a [f32], &'a [f32], &'a mut [f32], &'a mut [f32]);
    impl Kernel<f32> for Dyads<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Vector<f32>>(self, _: S) {
            let n = self.2.len();
            let rows = self.0.chunks_exact(n).zip(self.1.chunks_exact(n));
            for ((drive, feedback), (mean, diff)) in rows.zip(self.3.chunks_exact_mut(n).zip(self.4.chunks_exact_mut(n))) {
                for j in 0..n {
                    let drive = drive[j] + self.2[j];
                    let (up, down) = ((drive + 0.5 * feedback[j]).max(0.0), (drive - 0.5 * feedback[j]).max(0.0));
                    (mean[j], diff[j]) = (0.5 * (up + down), up - down);
                }
            }
        }
    }
    let (len, n, [drive, feedback, bias]) = (batch * n, *n, [*drive, *feedback, *bias]);
    task(move || unsafe {
        let [drive, feedback] = [drive, feedback].map(|at| slice::from_raw_parts(at, len));
        let [mean, diff] = [mean, diff].map(|at| slice::from_raw_parts_mut(at, len));
        Isa::best().run::<f32, _>(Dyads(drive, feedback, slice::from_raw_parts(bias, n), mean, diff));
    })
}

// The machine.

/// Seconds for `repeats` of `work(thread)` on all threads at once, divided by `repeats`.
fn together(repeats: usize, work: impl Fn(usize) + Sync) -> f64 {
    let threads = runtime().threads();
    let (waiting, work) = (AtomicUsize::new(threads), &work);
    let go = |thread: usize| {
        work(thread);
        waiting.fetch_sub(1, Ordering::AcqRel);
        while waiting.load(Ordering::Acquire) > 0 {
            spin_loop();
        }
        let start = Instant::now();
        (0..repeats).for_each(|_| work(thread));
        (start, Instant::now())
    };
    let mut times = vec![None; threads];
    let (first, others) = times.split_first_mut().expect("a thread");
    rayon::in_place_scope(|scope| {
        for (thread, time) in (1..).zip(others) {
            scope.spawn(move |_| *time = Some(go(thread)));
        }
        *first = Some(go(0));
    });
    let start = times.iter().flatten().map(|time| time.0).min().expect("a thread");
    let end = times.iter().flatten().map(|time| time.1).max().expect("a thread");
    (end - start).as_secs_f64() / repeats as f64
}

/// Seconds in which a cache line goes to the core of another thread and comes back.
#[unsafe(no_mangle)]
pub extern "C" fn round_trip() -> f64 {
    const TIMES: usize = 2000;
    let ball = AtomicUsize::new(0);
    let mut seconds = 0.0;
    rayon::in_place_scope(|scope| {
        scope.spawn(|_| {
            for turn in (1..2 * TIMES).step_by(2) {
                while ball.load(Ordering::Acquire) != turn {
                    spin_loop();
                }
                ball.store(turn + 1, Ordering::Release);
            }
        });
        // The first one waits until the other thread is awake.
        let mut start = None;
        for turn in (0..2 * TIMES).step_by(2) {
            while ball.load(Ordering::Acquire) != turn {
                spin_loop();
            }
            start = start.or_else(|| (turn > 0).then(Instant::now));
            ball.store(turn + 1, Ordering::Release);
        }
        seconds = start.expect("some turns").elapsed().as_secs_f64();
    });
    seconds / (TIMES - 2) as f64
}

const CHAINS: usize = 24;
const STEPS: usize = 2000;

struct Chains<T>(T, T);

impl<T: Real> Kernel<T> for Chains<T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Vector<T>>(self, simd: S) {
        let (factor, term) = (simd.splat(self.0), simd.splat(self.1));
        let mut chains: [S::V; CHAINS] = core::array::from_fn(|i| simd.splat(T::from_f64(i as f64)));
        for _ in 0..STEPS {
            for chain in &mut chains {
                *chain = simd.mul_add(*chain, factor, term);
            }
        }
        black_box(chains);
    }
}

fn chains<T: Real>() -> f64 {
    let flops = 2 * STEPS * CHAINS * Isa::best().lanes::<T>() * runtime().threads();
    let seconds = together(20, |_| Isa::best().run::<T, _>(Chains(black_box(T::from_f64(0.999)), black_box(T::ONE))));
    seconds / flops as f64
}

/// Seconds for a flop: independent chains of multiply-adds in registers, on all threads.
#[unsafe(no_mangle)]
pub extern "C" fn flop_f32() -> f64 {
    chains::<f32>()
}

/// As `flop_f32`.
#[unsafe(no_mangle)]
pub extern "C" fn flop_f64() -> f64 {
    chains::<f64>()
}

/// Seconds for a flop in the loop of a tile: 24 chains, 3 loads and 8 broadcasts a step, all from the first cache.
#[unsafe(no_mangle)]
pub extern "C" fn flop_tile() -> f64 {
    const DEPTH: usize = 128;
    struct Tile<'a>(&'a [f32], &'a [f32], &'a mut [f32]);
    impl Kernel<f32> for Tile<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Vector<f32>>(self, simd: S) {
            let (rows, lanes) = (self.0.as_chunks::<8>().0, S::as_vectors(self.1).0.as_chunks::<3>().0);
            let mut sums = [[simd.splat(0.0); 3]; 8];
            for (row, lane) in rows[..DEPTH].iter().zip(&lanes[..DEPTH]) {
                for r in 0..8 {
                    let a = simd.splat(row[r]);
                    for v in 0..3 {
                        sums[r][v] = simd.mul_add(a, lane[v], sums[r][v]);
                    }
                }
            }
            S::as_vectors_mut(self.2).0[..24].copy_from_slice(sums.as_flattened());
        }
    }
    let lanes = Isa::best().lanes::<f32>();
    let flops = 2 * DEPTH * 24 * lanes * runtime().threads();
    let (a, b) = (vec![1f32; DEPTH * 8], vec![1f32; DEPTH * 3 * lanes]);
    let seconds = together(100, |_| {
        let mut out = [0f32; 24 * 16];
        Isa::best().run::<f32, _>(Tile(black_box(&a), &b, &mut out));
        black_box(out);
    });
    seconds / flops as f64
}

/// A pass over parts of arrays side by side, `ahead` numbers of each fetched before their turn: `x ← −x`, or reading alone.
struct Sweep<'a> {
    parts: &'a mut [&'a mut [f32]],
    ahead: usize,
    write: bool,
}

impl Kernel<f32> for Sweep<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Vector<f32>>(self, simd: S) {
        const PIECE: usize = 512;
        let len = self.parts[0].len();
        let (sign, mut sums) = (simd.splat(-1.0), [simd.splat(0.0); 8]);
        for start in (0..len).step_by(PIECE) {
            for part in self.parts.iter_mut() {
                let end = len.min(start + PIECE);
                #[cfg(target_arch = "x86_64")]
                if self.ahead > 0 {
                    for line in (start..end).step_by(16) {
                        // Fetching what is not there does nothing.
                        let at = part.as_ptr().wrapping_add(line + self.ahead).cast();
                        unsafe { core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(at) };
                    }
                }
                let (eights, rest) = S::as_vectors_mut(&mut part[start..end]).0.as_chunks_mut::<8>();
                if self.write {
                    for eight in eights {
                        for k in 0..8 {
                            eight[k] = simd.mul(eight[k], sign);
                        }
                    }
                    for x in rest {
                        *x = simd.mul(*x, sign);
                    }
                } else {
                    for eight in eights {
                        for k in 0..8 {
                            sums[k] = simd.add(sums[k], eight[k]);
                        }
                    }
                    for x in rest {
                        sums[0] = simd.add(sums[0], *x);
                    }
                }
            }
        }
        black_box(sums);
    }
}

/// Seconds for a pass over `count` arrays of `len` numbers on all threads: in place (`x ← −x`) or reading alone; each thread's part of an
/// array cut into `cuts` that advance side by side, `ahead` numbers fetched beforehand.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pass(count: usize, arrays: &[*mut f32; 3], len: usize, write: bool, cuts: usize, ahead: usize) -> f64 {
    let addresses = arrays.map(|at| at as usize);
    let each = len / runtime().threads() / cuts;
    // Enough to be measured well.
    let repeats = (60_000_000 / (4 * len * count)).clamp(1, 100);
    together(repeats, |thread| {
        let mut parts: Vec<&mut [f32]> = Vec::with_capacity(12);
        for &array in &addresses[..count] {
            for cut in 0..cuts {
                parts.push(unsafe { slice::from_raw_parts_mut((array as *mut f32).add((thread * cuts + cut) * each), each) });
            }
        }
        Isa::best().run::<f32, _>(Sweep { parts: &mut parts, ahead, write });
    })
}

/// Seconds for copying `len` numbers, on one thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn copy(from: *const f32, to: *mut f32, len: usize) -> *mut Task {
    let (from, to) = unsafe { (slice::from_raw_parts(from, len), slice::from_raw_parts_mut(to, len)) };
    task(move || black_box(&mut *to).copy_from_slice(black_box(from)))
}
