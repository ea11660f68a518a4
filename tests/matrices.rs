//! The matrix readers of the example `lipschitz`: good files come back as they were, bad ones are errors that say what is wrong.

#[allow(dead_code, reason = "shared with the examples, which use the rest")]
#[path = "../examples/common/data.rs"]
mod data;
#[path = "../examples/lipschitz/matrix.rs"]
mod matrix;

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use matrix::{Compressed, Elements, Matrix};

fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("matrices");
    fs::create_dir_all(&directory).expect("the target directory is writable");
    let path = directory.join(name);
    fs::write(&path, bytes).expect("the target directory is writable");
    path
}

/// Reads a file of that name and content.
fn read(name: &str, bytes: impl AsRef<[u8]>) -> data::Result<Matrix> {
    Matrix::read(&file(name, bytes.as_ref()))
}

#[track_caller]
fn refuse(name: &str, bytes: impl AsRef<[u8]>, parts: &[&str]) {
    let message = read(name, bytes).expect_err("an error").to_string();
    for part in parts.iter().chain(&[name]) {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

/// Rows of elements, as a dense matrix.
fn dense(rows: &[&[f64]]) -> Vec<f64> {
    rows.concat()
}

/// The elements of any format, row by row.
fn expand(matrix: &Matrix) -> Vec<f64> {
    let mut values = vec![0.0; matrix.rows * matrix.cols];
    let mut put = |row: usize, col: usize, value: f64| values[row * matrix.cols + col] = value;
    let lines = |lines: &Compressed, put: &mut dyn FnMut(usize, usize, usize)| {
        for line in 0..lines.starts.len() - 1 {
            for k in lines.starts[line]..lines.starts[line + 1] {
                put(line, lines.indices[k], k);
            }
        }
    };
    match &matrix.elements {
        Elements::Dense(values) => return values.clone(),
        Elements::Rows(rows) => lines(rows, &mut |row, col, k| put(row, col, rows.values[k])),
        Elements::Columns(columns) => lines(columns, &mut |col, row, k| put(row, col, columns.values[k])),
        Elements::Blocks { height, width, blocks } => lines(blocks, &mut |i, j, k| {
            for (at, &value) in blocks.values[k * height * width..][..height * width].iter().enumerate() {
                put(i * height + at / width, j * width + at % width, value);
            }
        }),
    }
    values
}

const GENERAL: &str = "%%MatrixMarket matrix coordinate real general\n% a comment\n\n2 3 3\n2 1 -4.5\n1 3 1e-3\n 1 1 2\n";

#[test]
fn matrix_market() {
    let matrix = read("general.mtx", GENERAL).unwrap();
    assert_eq!((matrix.rows, matrix.cols, matrix.single), (2, 3, false));
    assert_eq!(expand(&matrix), dense(&[&[2.0, 0.0, 1e-3], &[-4.5, 0.0, 0.0]]));
    let pattern = "%%MatrixMarket matrix coordinate pattern symmetric\n2 2 2\n1 1\n2 1\n";
    assert_eq!(expand(&read("pattern.mtx", pattern).unwrap()), dense(&[&[1.0, 1.0], &[1.0, 0.0]]));
    let array = "%%MatrixMarket Matrix array integer general\n2 2\n1\n2\n3\n4\n";
    assert_eq!(expand(&read("array.mtx", array).unwrap()), dense(&[&[1.0, 3.0], &[2.0, 4.0]]));
    let skew = "%%MatrixMarket matrix array real skew-symmetric\n3 3\n1\n2\n3\n";
    assert_eq!(expand(&read("skew.mtx", skew).unwrap()), dense(&[&[0.0, -1.0, -2.0], &[1.0, 0.0, -3.0], &[2.0, 3.0, 0.0]]));
    let empty = "%%MatrixMarket matrix coordinate real general\n0 5 0\n";
    assert_eq!(expand(&read("empty.mtx", empty).unwrap()), []);
}

#[test]
fn bad_matrix_market_is_refused() {
    let general = |from: &str, to: &str| GENERAL.replace(from, to);
    refuse("banner.mtx", "1 2 3\n", &["begins with \"1 2 3\"", "%%MatrixMarket"]);
    refuse("complex.mtx", general("real", "complex"), &["field complex"]);
    refuse("hermitian.mtx", general("general", "hermitian"), &["symmetry hermitian"]);
    refuse("rectangle.mtx", general("general", "symmetric"), &["2 × 3"]);
    refuse("sizes.mtx", general("2 3 3", "2 3"), &["line 4", "2 3", "rows, columns and elements"]);
    refuse("short.mtx", general("2 3 3", "2 3 9"), &["claims 9 elements", "ends after 3"]);
    refuse("long.mtx", general("2 3 3", "2 3 2"), &["line 7", "the end"]);
    refuse("zero.mtx", general("2 1 -4.5", "0 1 -4.5"), &["line 5", "0 1 -4.5"]);
    refuse("outside.mtx", general("2 1 -4.5", "3 1 -4.5"), &["row 2, column 0", "2 × 3"]);
    refuse("twice.mtx", general("2 1 -4.5", "1 1 -4.5"), &["two elements at row 0, column 0"]);
    refuse("word.mtx", general("1e-3", "one"), &["line 6", "one"]);
    refuse("huge.mtx", general("2 3 3", "999999999999 3 3"), &["claims 999999999999 rows"]);
    refuse("name.dat", GENERAL, &[".mtx, .npy and .npz"]);
}

/// An NPY file of version 1.0.
fn npy(descr: &str, fortran: bool, shape: &str, bytes: &[u8]) -> Vec<u8> {
    let order = if fortran { "True" } else { "False" };
    let header = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n");
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), bytes].concat()
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn i32s(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn npy_of_two_dimensions() {
    let values = [1.0, -2.5, 3.0, 4.0, 0.0, 6.0];
    let matrix = read("rows.npy", npy("<f4", false, "(2, 3)", &f32s(&values))).unwrap();
    assert_eq!((matrix.rows, matrix.cols, matrix.single), (2, 3, true));
    assert_eq!(expand(&matrix), values.map(f64::from));
    let columns = read("columns.npy", npy("<f4", true, "(2, 3)", &f32s(&values))).unwrap();
    assert_eq!(expand(&columns), [1.0, 3.0, 0.0, -2.5, 4.0, 6.0]);
    let bytes = read("bytes.npy", npy("|u1", false, "(1, 2)", &[255, 3])).unwrap();
    assert_eq!(expand(&bytes), [255.0, 3.0], "matrices are not pictures");
    assert_eq!(expand(&read("none.npy", npy("<f8", false, "(0, 3)", &[])).unwrap()), []);
    refuse("vector.npy", npy("<f4", false, "(6,)", &f32s(&values)), &["[6]", "(rows, columns)"]);
    refuse("text.npy", npy("|S4", false, "(1, 1)", b"text"), &["S4", "numbers"]);
    refuse("cut.npy", npy("<f4", false, "(2, 3)", &f32s(&values[..5])), &["24 bytes", "only 20"]);
}

/// What `scipy.sparse.save_npz` writes, of members given as (name, dtype, shape, bytes).
fn npz(format: &[u8], members: &[(&str, &str, &str, Vec<u8>)]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let text = ("format", "|S3", "()", format.to_vec());
    for (name, descr, shape, bytes) in [text].iter().chain(members) {
        zip.start_file(format!("{name}.npy"), SimpleFileOptions::default()).expect("writing to memory");
        zip.write_all(&npy(descr, false, shape, bytes)).expect("writing to memory");
    }
    zip.finish().expect("writing to memory").into_inner()
}

#[test]
fn sparse_npz() {
    let wanted = dense(&[&[0.0, 1.0, 0.0, 2.0], &[3.0, 0.0, 0.0, 0.0]]);
    let shape = || ("shape", "<i4", "(2,)", i32s(&[2, 4]));
    let of = |name: &str, format: &[u8], values: &str, data: &[f32], starts: &[i32], indices: &[i32]| {
        let count = |numbers: &[i32]| format!("({},)", numbers.len());
        let (pointers, places) = (count(starts), count(indices));
        let members = [
            shape(),
            ("data", "<f4", values, f32s(data)),
            ("indptr", "<i4", &pointers, i32s(starts)),
            ("indices", "<i4", &places, i32s(indices)),
        ];
        let matrix = read(name, npz(format, &members)).unwrap();
        assert_eq!((matrix.rows, matrix.cols, matrix.single), (2, 4, true), "{name}");
        assert_eq!(expand(&matrix), wanted, "{name}");
    };
    of("csr.npz", b"csr", "(3,)", &[1.0, 2.0, 3.0], &[0, 2, 3], &[1, 3, 0]);
    of("csc.npz", b"csc", "(3,)", &[3.0, 1.0, 2.0], &[0, 1, 2, 2, 3], &[1, 0, 0]);
    of("bsr.npz", b"bsr", "(2, 2, 2)", &[0.0, 1.0, 3.0, 0.0, 0.0, 2.0, 0.0, 0.0], &[0, 2], &[0, 1]);
    let coo = [
        shape(),
        ("data", "<f4", "(3,)", f32s(&[3.0, 2.0, 1.0])),
        ("row", "<i4", "(3,)", i32s(&[1, 0, 0])),
        ("col", "<i4", "(3,)", i32s(&[0, 3, 1])),
    ];
    assert_eq!(expand(&read("coo.npz", npz(b"coo", &coo)).unwrap()), wanted);
    let mut negative = coo.clone();
    negative[2].3 = i32s(&[1, -1, 0]);
    refuse("negative.npz", npz(b"coo", &negative), &["array row", "-1"]);
    refuse("dia.npz", npz(b"dia", &coo), &["dia", "csr, csc, bsr and coo"]);
    refuse("bare.npz", npz(b"csr", &coo), &["indptr"]);
    refuse("no.npz", b"no archive", &["not an NPZ file"]);
}

proptest! {
    /// No bytes whatsoever cause a panic.
    #[test]
    fn any_bytes(tail in proptest::collection::vec(any::<u8>(), 0..200), cut in 0..GENERAL.len()) {
        let _ = read("any.npy", &tail);
        let _ = read("any.npz", &tail);
        let _ = read("any.mtx", &tail);
        let _ = read("any.mtx", [GENERAL.as_bytes()[..cut].to_vec(), tail].concat());
    }
}
