//! Blocks of Cholesky's algorithm against `RᵀR = B` and `RᵀX = Y`.

use dualprop_kernels::cholesky::{BLOCK, Block, COLUMNS, factor, solve};
use dualprop_kernels::isa::Isa;
use faer::{Mat, Par};

/// `|RᵀR − B| ≤ γ_{n+1} |R|ᵀ|R|` (Higham 2002, theorem 10.3) and `|RᵀX − Y| ≤ γ_n |R|ᵀ|X|`, and the same bits everywhere. The sums here are
/// off by `γ_n` themselves: `γ_{2n+2}` in all, with what their sizes are off by.
#[test]
fn blocks_are_factored_and_solved_within_their_bounds() {
    let roundings = (2 * BLOCK + 2) as f64 * f64::EPSILON / 2.0;
    let gamma = roundings / (1.0 - roundings);
    let element = |i: usize, j: usize| ((i * 37 + j * 101 + i * j) % 97) as f64 / 97.0 - 0.5;
    let b: Block<f64> = core::array::from_fn(|i| {
        core::array::from_fn(|j| (0..BLOCK).map(|k| element(k, i) * element(k, j)).sum::<f64>() + f64::from(u8::from(i == j)))
    });
    let mut bits = vec![];
    for isa in Isa::available() {
        let mut r = b;
        assert!(factor(isa, &mut r));
        let mut x = Mat::from_fn(2 * COLUMNS, BLOCK, |j, i| element(i, j + 7));
        solve(isa, Par::Seq, &r, x.as_mut().transpose_mut());
        for i in 0..BLOCK {
            for j in i..BLOCK {
                let (sum, size) = (0..=i).map(|k| r[k][i] * r[k][j]).fold((0.0, 0.0), |(s, a), x| (s + x, a + x.abs()));
                assert!((sum - b[i][j]).abs() <= gamma * size, "{isa} {i} {j}");
            }
            for j in 0..2 * COLUMNS {
                let (sum, size) = (0..=i).map(|k| r[k][i] * x[(j, k)]).fold((0.0, 0.0), |(s, a), x| (s + x, a + x.abs()));
                assert!((sum - element(i, j + 7)).abs() <= gamma * size, "{isa} {i} {j}");
            }
        }
        let upper = (0..BLOCK).flat_map(|i| r[i][i..].iter().map(|x| x.to_bits()).collect::<Vec<_>>());
        bits.push((
            upper.collect::<Vec<_>>(),
            x.col_iter().flat_map(|c| c.iter().map(|x| x.to_bits()).collect::<Vec<_>>()).collect::<Vec<_>>(),
        ));
    }
    assert!(bits.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn a_pivot_that_is_not_positive_ends_it() {
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let mut b: Block<f64> = core::array::from_fn(|i| core::array::from_fn(|j| f64::from(u8::from(i == j))));
        b[40][40] = bad;
        assert!(!factor(Isa::best(), &mut b), "{bad}");
    }
}
