//! NumPy's NPY arrays, and NPZ: a ZIP archive of them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use dualprop::Real;
use zip::ZipArchive;

use super::{Labels, Result, Samples};

/// The header of an array may not be longer; NumPy itself stays below 10,000.
const MAX_HEADER: usize = 1 << 16;

/// An open NPZ file.
pub(crate) struct Archive {
    path: String,
    zip: ZipArchive<File>,
}

impl Archive {
    /// Reads the directory of the archive.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = super::open(path)?;
        let path = path.display().to_string();
        let zip = ZipArchive::new(file).map_err(|error| format!("{path} is not an NPZ file: {error}"))?;
        Ok(Self { path, zip })
    }

    /// An array of shape (N, …) as rows.
    pub(super) fn samples<T: Real>(&mut self, key: &str) -> Result<Samples<T>> {
        let array = self.array(key)?;
        let [rows, ref row @ ..] = array.shape[..] else { return Err(array.wrong_shape("(N, …)")) };
        if row.is_empty() || array.shape.contains(&0) {
            return Err(array.wrong_shape("(N, …), each at least one"));
        }
        let width: usize = row.iter().product();
        let unit = if array.is_bytes() { 255.0 } else { 1.0 };
        let mut values = Vec::with_capacity(array.len());
        for (position, place) in array.places().enumerate() {
            let number = array.number(place)? / unit;
            let value = T::from_f64(number);
            if !value.is_finite() {
                let (i, j) = (position / width, position % width);
                return Err(format!(
                    "{} has {number:e} in row {i}, column {j}; allowed are finite numbers of {}",
                    array.source,
                    T::NAME
                )
                .into());
            }
            values.push(value);
        }
        Ok(Samples { rows, shape: row.to_vec(), values, source: array.source })
    }

    /// An integer array of shape (N).
    pub(super) fn labels(&mut self, key: &str) -> Result<Labels> {
        let array = self.array(key)?;
        let &[rows @ 1..=usize::MAX] = &array.shape[..] else { return Err(array.wrong_shape("(N), at least one")) };
        let labels = (0..rows).map(|i| array.integer(i)).collect::<Result<Vec<_>>>()?;
        super::labels(array.source.clone(), labels.into_iter())
    }

    /// The array `key`, whatever its shape.
    pub(crate) fn array(&mut self, key: &str) -> Result<Array> {
        let source = format!("array {key} of {}", self.path);
        let member = format!("{key}.npy");
        if self.zip.index_for_name(&member).is_none() {
            let names = self.zip.file_names().flatten();
            let mut present: Vec<_> = names.map(|name| name.trim_end_matches(".npy").to_owned()).collect();
            present.sort_unstable();
            return Err(format!("{} has no array {key}; it has [{}]", self.path, present.join(", ")).into());
        }
        let reader = self.zip.by_name(&member).map_err(|error| format!("cannot read {source}: {error}"))?;
        Array::parse(reader, source)
    }
}

/// An NPY array: its header, and its elements as they are in the file.
pub(crate) struct Array {
    /// For messages.
    pub(crate) source: String,
    pub(crate) dtype: Dtype,
    fortran: bool,
    pub(crate) shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Array {
    /// Reads an NPY file.
    pub(crate) fn parse(mut reader: impl Read, source: String) -> Result<Self> {
        let [magic @ .., major, _minor]: [u8; 8] = super::exactly(&mut reader, &source, "the magic string")?;
        if &magic != b"\x93NUMPY" {
            return Err(format!(
                "{source} begins with {:?}; an NPY array begins with \"\\x93NUMPY\"",
                magic.escape_ascii().to_string()
            )
            .into());
        }
        let length = match major {
            1 => usize::from(u16::from_le_bytes(super::exactly(&mut reader, &source, "the length of its header")?)),
            2 | 3 => u32::from_le_bytes(super::exactly(&mut reader, &source, "the length of its header")?) as usize,
            _ => return Err(format!("{source} has the NPY version {major}; allowed are 1, 2 and 3").into()),
        };
        if length > MAX_HEADER {
            return Err(format!("{source} claims a header of {length} bytes; at most {MAX_HEADER} are allowed").into());
        }
        let header = super::up_to(&mut reader, length).map_err(|error| format!("cannot read {source}: {error}"))?;
        let header = String::from_utf8_lossy(&header).into_owned();
        let malformed =
            |key| format!("{source} has the header {:?}, in which '{key}' is missing or malformed", header.trim_end());

        let descr = quoted(field(&header, "descr").unwrap_or_default()).ok_or_else(|| malformed("descr"))?;
        let dtype = Dtype::parse(descr).ok_or_else(|| {
            format!(
                "{source} has the dtype {descr:?}; allowed are bytes, bool, int8 to int64, uint8 to uint64, float32 and float64"
            )
        })?;
        let fortran = field(&header, "fortran_order").and_then(boolean).ok_or_else(|| malformed("fortran_order"))?;
        let shape = field(&header, "shape").and_then(tuple).ok_or_else(|| malformed("shape"))?;
        let bytes = super::payload(reader, &source, &shape, dtype.size)?;
        Ok(Self { source, dtype, fortran, shape, bytes })
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the elements are unsigned bytes, as those of pictures are.
    pub(crate) fn is_bytes(&self) -> bool {
        (self.dtype.kind, self.dtype.size) == (Kind::Uint, 1)
    }

    pub(crate) fn wrong_shape(&self, allowed: &str) -> Box<dyn std::error::Error> {
        format!("{} has the shape {:?}; it must be {allowed}", self.source, self.shape).into()
    }

    /// Where in memory the elements are, in row-major order.
    pub(crate) fn places(&self) -> impl Iterator<Item = usize> + '_ {
        let mut strides = vec![1; self.shape.len()];
        for k in 1..self.shape.len() {
            if self.fortran {
                strides[k] = strides[k - 1] * self.shape[k - 1];
            } else {
                let l = self.shape.len() - k;
                strides[l - 1] = strides[l] * self.shape[l];
            }
        }
        (0..self.len()).map(move |mut position| {
            self.shape.iter().zip(&strides).rev().fold(0, |place, (n, stride)| {
                let index = position % n;
                position /= n;
                place + index * stride
            })
        })
    }

    /// The bits of the element at a place in memory, zero-extended.
    pub(crate) fn bits(&self, index: usize) -> u64 {
        let size = self.dtype.size;
        let byte = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        let element = &self.bytes[index * size..][..size];
        if self.dtype.big_endian { element.iter().fold(0, byte) } else { element.iter().rev().fold(0, byte) }
    }

    /// The element at a place in memory, of an array of integers.
    pub(crate) fn integer(&self, index: usize) -> Result<i128> {
        let bits = self.bits(index);
        match self.dtype.kind {
            Kind::Int => {
                let unused = u64::BITS - 8 * self.dtype.size as u32;
                Ok(i128::from((bits << unused) as i64 >> unused))
            }
            Kind::Uint | Kind::Bool => Ok(i128::from(bits)),
            Kind::Float | Kind::Text => {
                Err(format!("{} has the dtype {:?}; it must be one of integers", self.source, self.dtype.name).into())
            }
        }
    }

    /// The element at a place in memory, of an array of numbers.
    pub(crate) fn number(&self, index: usize) -> Result<f64> {
        match (self.dtype.kind, self.dtype.size) {
            (Kind::Float, 4) => Ok(f64::from(f32::from_bits(self.bits(index) as u32))),
            (Kind::Float, _) => Ok(f64::from_bits(self.bits(index))),
            (Kind::Text, _) => {
                Err(format!("{} has the dtype {:?}; it must be one of numbers", self.source, self.dtype.name).into())
            }
            _ => Ok(self.integer(index)? as f64),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Bool,
    Int,
    Uint,
    Float,
    /// Byte strings.
    Text,
}

/// Element type.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dtype {
    name: String,
    pub(crate) kind: Kind,
    /// Bytes of an element: 1, 2, 4 or 8, and up to 8 for text.
    pub(crate) size: usize,
    big_endian: bool,
}

impl Dtype {
    /// `<f4`, `|u1`, `>i8`, …
    fn parse(name: &str) -> Option<Self> {
        let order = name.chars().next().filter(|order| "<>|=".contains(*order))?;
        let (kind, size) = match &name[1..] {
            "b1" => (Kind::Bool, 1),
            "i1" => (Kind::Int, 1),
            "i2" => (Kind::Int, 2),
            "i4" => (Kind::Int, 4),
            "i8" => (Kind::Int, 8),
            "u1" => (Kind::Uint, 1),
            "u2" => (Kind::Uint, 2),
            "u4" => (Kind::Uint, 4),
            "u8" => (Kind::Uint, 8),
            "f4" => (Kind::Float, 4),
            "f8" => (Kind::Float, 8),
            text => match text.strip_prefix('S').and_then(|size| size.parse().ok()) {
                Some(size @ 1..=8) => (Kind::Text, size),
                _ => return None,
            },
        };
        Some(Self { name: name.into(), kind, size, big_endian: order == '>' })
    }
}

/// What follows `'key':` in the header, a Python dictionary.
fn field<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = header.split_once(&format!("'{key}'"))?;
    Some(rest.trim_start().strip_prefix(':')?.trim_start())
}

/// The string literal at the start.
fn quoted(text: &str) -> Option<&str> {
    text.strip_prefix('\'')?.split_once('\'').map(|(string, _)| string)
}

/// `True` or `False` at the start.
fn boolean(text: &str) -> Option<bool> {
    [("True", true), ("False", false)].iter().find(|(word, _)| text.starts_with(word)).map(|&(_, value)| value)
}

/// The tuple of sizes at the start.
fn tuple(text: &str) -> Option<Vec<usize>> {
    let (inside, _) = text.strip_prefix('(')?.split_once(')')?;
    inside.split(',').map(str::trim).filter(|size| !size.is_empty()).map(|size| size.parse().ok()).collect()
}
