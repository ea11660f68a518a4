//! Matrices from files: Matrix Market, NPY, and the sparse NPZ of SciPy.
//!
//! Whatever is wrong with a file is an error that names it, the value found and what is allowed; sizes in headers are never
//! trusted.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use crate::data::Result;
use crate::data::npz::{Archive, Array, Kind};

/// A matrix as it came from a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) elements: Elements,
    /// Whether the file holds numbers of f32 (or fewer bits).
    pub(crate) single: bool,
}

/// The elements of a [`Matrix`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Elements {
    /// All of them, row by row.
    Dense(Vec<f64>),
    /// Those of each row (CSR): row `i` has elements `starts[i]..starts[i + 1]`.
    Rows(Compressed),
    /// Those of each column (CSC).
    Columns(Compressed),
    /// Row-major blocks of `height × width` in rows of blocks (BSR).
    Blocks { height: usize, width: usize, blocks: Compressed },
}

/// Rows or columns one behind the other. Nothing is checked yet but the number of indices.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Compressed {
    pub(crate) starts: Vec<usize>,
    pub(crate) indices: Vec<usize>,
    pub(crate) values: Vec<f64>,
}

impl Matrix {
    /// Reads a file by its extension.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let source = path.display();
        let open = || File::open(path).map_err(|error| format!("cannot open {source}: {error}"));
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("mtx") => market(BufReader::new(open()?), &source.to_string()),
            Some("npy") => dense(&Array::parse(BufReader::new(open()?), source.to_string())?),
            Some("npz") => sparse(&mut Archive::open(path)?),
            _ => Err(format!("{source} has an extension that says nothing; allowed are .mtx, .npy and .npz").into()),
        }
    }
}

/// An array of two dimensions.
fn dense(array: &Array) -> Result<Matrix> {
    let [rows, cols] = array.shape[..] else { return Err(array.wrong_shape("(rows, columns)")) };
    Ok(Matrix { rows, cols, elements: Elements::Dense(numbers(array)?), single: single(array) })
}

/// Whether every number of this type is one of f32.
fn single(array: &Array) -> bool {
    match array.dtype.kind {
        Kind::Float => array.dtype.size == 4,
        _ => array.dtype.size <= 2,
    }
}

fn numbers(array: &Array) -> Result<Vec<f64>> {
    array.places().map(|place| array.number(place)).collect()
}

fn sizes(array: &Array) -> Result<Vec<usize>> {
    let size = |place| {
        let number = array.integer(place)?;
        usize::try_from(number).map_err(|_| format!("{} has {number}; allowed are sizes and indices", array.source).into())
    };
    array.places().map(size).collect()
}

/// What `scipy.sparse.save_npz` writes.
fn sparse(archive: &mut Archive) -> Result<Matrix> {
    let format = archive.array("format")?;
    let text = format.bits(0).to_le_bytes();
    let shape = archive.array("shape")?;
    let [rows, cols] = sizes(&shape)?[..] else { return Err(shape.wrong_shape("(2)")) };
    let data = archive.array("data")?;
    let single = single(&data);
    let name = text.split(|&byte| byte == 0).next().unwrap_or_default();
    let elements = match name {
        b"csr" => Elements::Rows(compressed(archive, numbers(&data)?)?),
        b"csc" => Elements::Columns(compressed(archive, numbers(&data)?)?),
        b"bsr" => {
            let [_, height, width] = data.shape[..] else { return Err(data.wrong_shape("(blocks, height, width)")) };
            Elements::Blocks { height, width, blocks: compressed(archive, numbers(&data)?)? }
        }
        b"coo" => {
            let (row, col) = (archive.array("row")?, archive.array("col")?);
            if [row.len(), col.len()] != [data.len(); 2] {
                return Err(format!("{} has {} elements, {} has {}", data.source, data.len(), row.source, row.len()).into());
            }
            let places = sizes(&row)?.into_iter().zip(sizes(&col)?);
            Elements::Rows(by_rows(rows, cols, places.zip(numbers(&data)?).collect(), &data.source)?)
        }
        _ => {
            let name = name.escape_ascii();
            return Err(format!("{} is {name}; allowed are csr, csc, bsr and coo", format.source).into());
        }
    };
    Ok(Matrix { rows, cols, elements, single })
}

fn compressed(archive: &mut Archive, values: Vec<f64>) -> Result<Compressed> {
    let (indptr, indices) = (archive.array("indptr")?, archive.array("indices")?);
    Ok(Compressed { starts: sizes(&indptr)?, indices: sizes(&indices)?, values })
}

/// Elements at (row, column) in any order.
fn by_rows(rows: usize, cols: usize, mut elements: Vec<((usize, usize), f64)>, source: &str) -> Result<Compressed> {
    if let Some(((row, col), _)) = elements.iter().find(|((row, col), _)| *row >= rows || *col >= cols) {
        return Err(format!("{source} has an element at row {row}, column {col}, outside of {rows} × {cols}").into());
    }
    elements.sort_by_key(|&(place, _)| place);
    if let Some(pair) = elements.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        let (row, col) = pair[0].0;
        return Err(format!("{source} has two elements at row {row}, column {col}").into());
    }
    if rows > elements.len().saturating_add(MAX_EMPTY) {
        return Err(format!("{source} claims {rows} rows for {} elements", elements.len()).into());
    }
    let mut starts = vec![0; rows + 1];
    for ((row, _), _) in &elements {
        starts[row + 1] += 1;
    }
    for row in 0..rows {
        starts[row + 1] += starts[row];
    }
    let (indices, values) = elements.into_iter().map(|((_, col), value)| (col, value)).unzip();
    Ok(Compressed { starts, indices, values })
}

/// Rows without elements that a file may claim.
const MAX_EMPTY: usize = 1 << 28;

/// Bytes of a line of text that somebody may have meant.
const MAX_LINE: u64 = 1 << 16;

/// How elements of the other half follow.
#[derive(Clone, Copy, PartialEq)]
enum Symmetry {
    General,
    Symmetric,
    Skew,
}

/// Matrix Market's exchange format: coordinate or array; real, integer or pattern; general, symmetric or skew-symmetric.
fn market(mut reader: impl BufRead, source: &str) -> Result<Matrix> {
    let mut line = String::new();
    let mut number = 0;
    // The next line that says something; false at the end.
    let mut next = |line: &mut String| -> Result<(bool, usize)> {
        loop {
            line.clear();
            number += 1;
            let read = reader.by_ref().take(MAX_LINE).read_line(line);
            if read.map_err(|error| format!("cannot read line {number} of {source}: {error}"))? == 0 {
                return Ok((false, number));
            }
            let empty = line.trim().is_empty();
            if number == 1 || !(empty || line.starts_with('%')) {
                return Ok((true, number));
            }
        }
    };
    next(&mut line)?;
    let header = line.trim().to_lowercase();
    let words: Vec<_> = header.split_whitespace().collect();
    let ["%%matrixmarket", "matrix", format, field, symmetry] = words[..] else {
        return Err(format!("{source} begins with {header:?}; a Matrix Market file begins with \"%%MatrixMarket matrix\"").into());
    };
    let refuse =
        |what: &str, found: &str, allowed: &str| Err(format!("{source} has the {what} {found}; allowed are {allowed}").into());
    let symmetry = match symmetry {
        "general" => Symmetry::General,
        "symmetric" => Symmetry::Symmetric,
        "skew-symmetric" => Symmetry::Skew,
        other => return refuse("symmetry", other, "general, symmetric and skew-symmetric"),
    };
    if !["real", "integer", "pattern"].contains(&field) {
        return refuse("field", field, "real, integer and pattern");
    }
    let sparse = match format {
        "coordinate" => true,
        "array" if field != "pattern" => false,
        other => return refuse("format", other, "coordinate and array (of numbers)"),
    };
    let malformed = |number: usize, line: &str, wanted: &str| -> Box<dyn std::error::Error> {
        format!("line {number} of {source} is {:?}; it must be {wanted}", line.trim_end()).into()
    };

    let (_, at) = next(&mut line)?;
    let wanted = if sparse { "rows, columns and elements" } else { "rows and columns" };
    let size: Option<Vec<usize>> = line.split_whitespace().map(|word| word.parse().ok()).collect();
    let size = size.filter(|size| size.len() == if sparse { 3 } else { 2 }).ok_or_else(|| malformed(at, &line, wanted))?;
    let (rows, cols) = (size[0], size[1]);
    if symmetry != Symmetry::General && rows != cols {
        return refuse("shape", &format!("{rows} × {cols}"), "square ones for a symmetry");
    }
    let mut elements = Vec::new();
    if sparse {
        for _ in 0..size[2] {
            let (more, at) = next(&mut line)?;
            if !more {
                return Err(format!("{source} claims {} elements, but ends after {}", size[2], elements.len()).into());
            }
            let mut words = line.split_whitespace();
            let mut index = || words.next()?.parse::<usize>().ok()?.checked_sub(1);
            let place = index().zip(index());
            let value = if field == "pattern" { Some(1.0) } else { words.next().and_then(|word| word.parse().ok()) };
            let element = place.zip(value).filter(|_| words.next().is_none());
            elements.push(element.ok_or_else(|| malformed(at, &line, "row and column (from 1) and a number"))?);
        }
    } else {
        // Column by column; of symmetric ones the lower triangle.
        let first = |col: usize| match symmetry {
            Symmetry::General => 0,
            Symmetry::Symmetric => col,
            Symmetry::Skew => col + 1,
        };
        for col in 0..if rows == 0 { 0 } else { cols } {
            for row in first(col)..rows {
                let (more, at) = next(&mut line)?;
                if !more {
                    return Err(format!("{source} claims {rows} × {cols} elements, but ends after {}", elements.len()).into());
                }
                let value = line.trim().parse().map_err(|_| malformed(at, &line, "a number"))?;
                elements.push(((row, col), value));
            }
        }
    }
    if let (true, at) = next(&mut line)? {
        return Err(malformed(at, &line, "the end of the file"));
    }
    if symmetry != Symmetry::General {
        let sign = if symmetry == Symmetry::Skew { -1.0 } else { 1.0 };
        let mirrored: Vec<_> =
            elements.iter().filter(|((row, col), _)| row != col).map(|&((row, col), value)| ((col, row), sign * value)).collect();
        elements.extend(mirrored);
    }
    let elements = if sparse {
        Elements::Rows(by_rows(rows, cols, elements, source)?)
    } else {
        let mut values = vec![0.0; elements.len().max(rows * cols)];
        for ((row, col), value) in elements {
            values[row * cols + col] = value;
        }
        Elements::Dense(values)
    };
    Ok(Matrix { rows, cols, elements, single: false })
}
