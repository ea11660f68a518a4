//! What the machine can do: the numbers that all others are divided by.

use core::hint::black_box;

use dualprop::Isa;

use super::passes::{Chains, STEPS, Scale, pass};
use super::{Bench, By, Scalar, Work};

/// Times the yardsticks: multiply-adds in registers, a copy, and passes over matrices in place.
pub fn rows(bench: &mut Bench) {
    peak::<f32>(bench);
    peak::<f64>(bench);

    let words = 1 << 20;
    let mut copy = bench.group("machine/copy 4 MiB", Work { flops: 0, bytes: 8 * words });
    let make = || (vec![0f32; words], vec![1f32; words]);
    let check = |(to, from): &mut (Vec<f32>, Vec<f32>)| assert!(to == from);
    copy.row(By::Machine, "", make, |(to, from)| to.copy_from_slice(black_box(from)), check);
    drop(copy);

    in_place::<1>(bench, words, "4 MiB");
    in_place::<3>(bench, words, "3 x 4 MiB");
}

/// As many chains as the instruction set has registers for.
fn peak<T: Scalar>(bench: &mut Bench) {
    let many = Isa::best().tile() == (8, 3);
    let chains = if many { 24 } else { 12 };
    let flops = 2 * STEPS * chains * Isa::best().lanes::<T>();
    let mut group = bench.group(&format!("machine/multiply-adds {}", T::NAME), Work { flops, bytes: 0 });
    let numbers = || (T::from_f64(0.999), T::ONE);
    let run = |&mut (factor, term): &mut (T, T)| {
        let (factor, term) = black_box((factor, term));
        if many { pass(Chains::<T, 24> { factor, term }) } else { pass(Chains::<T, 12> { factor, term }) }
    };
    group.row(By::Machine, "", numbers, run, |_| {});
}

fn in_place<const N: usize>(bench: &mut Bench, words: usize, size: &str) {
    let mut group = bench.group(&format!("machine/scale in place {size}"), Work { flops: 0, bytes: 8 * N * words });
    let make = || core::array::from_fn(|_| vec![1f32; words]);
    group.row(
        By::Machine,
        "",
        make,
        |streams| pass(Scale::<N> { streams, factor: black_box(-1.0) }),
        |streams| {
            assert!(streams.iter().flatten().all(|&x| x == -1.0));
        },
    );
}
