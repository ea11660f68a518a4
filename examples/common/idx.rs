//! The IDX format of MNIST: a magic number, big-endian sizes, bytes.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use dualprop::Real;
use flate2::bufread::MultiGzDecoder;

use super::{Labels, Result, Samples};

/// The element type code of unsigned bytes, the only one in use for pictures and labels.
const UNSIGNED_BYTE: u8 = 0x08;

/// Pictures, divided by 255, from the file `name` in `directory`.
pub(super) fn samples<T: Real>(directory: &Path, name: &str) -> Result<Samples<T>> {
    let path = find(directory, name)?;
    let (source, shape, bytes) = read(&path)?;
    let [rows, ref row @ ..] = shape[..] else { unreachable!("a shape has at least one entry") };
    if row.is_empty() {
        return Err(format!("{source} has one dimension; pictures have at least two").into());
    }
    let values = bytes.iter().map(|&pixel| T::from_f64(f64::from(pixel) / 255.0)).collect();
    Ok(Samples { source, rows, shape: row.to_vec(), values })
}

/// Class numbers from the file `name` in `directory`.
pub(super) fn labels(directory: &Path, name: &str) -> Result<Labels> {
    let path = find(directory, name)?;
    let (source, shape, bytes) = read(&path)?;
    if shape.len() != 1 {
        return Err(format!("{source} has {} dimensions; labels have one", shape.len()).into());
    }
    super::labels(source, bytes.iter().map(|&label| i128::from(label)))
}

/// The path of `name` or `name.gz`.
fn find(directory: &Path, name: &str) -> Result<PathBuf> {
    let found = ["", ".gz"].map(|suffix| directory.join(format!("{name}{suffix}"))).into_iter().find(|path| path.is_file());
    found.ok_or_else(|| format!("the directory {} has neither {name} nor {name}.gz", directory.display()).into())
}

/// Name for messages, shape and elements of a file, which may be gzipped.
fn read(path: &Path) -> Result<(String, Vec<usize>, Vec<u8>)> {
    let source = path.display().to_string();
    let mut file = BufReader::new(super::open(path)?);
    let start = file.fill_buf().map_err(|error| format!("cannot read {source}: {error}"))?;
    let (shape, bytes) =
        if start.starts_with(&[0x1f, 0x8b]) { parse(MultiGzDecoder::new(file), &source)? } else { parse(file, &source)? };
    Ok((source, shape, bytes))
}

/// Shape and elements.
fn parse(mut reader: impl Read, source: &str) -> Result<(Vec<usize>, Vec<u8>)> {
    let magic: [u8; 4] = super::exactly(&mut reader, source, "the magic number")?;
    let [0, 0, UNSIGNED_BYTE, dimensions @ 1..=u8::MAX] = magic else {
        let found = u32::from_be_bytes(magic);
        return Err(
            format!("{source} has the magic number {found:#010x}; allowed is 0x000008DD, DD ≥ 1 dimensions of bytes").into()
        );
    };
    let mut shape = Vec::new();
    for _ in 0..dimensions {
        shape.push(u32::from_be_bytes(super::exactly(&mut reader, source, "a size of its header")?) as usize);
    }
    if shape.contains(&0) {
        return Err(format!("{source} has the shape {shape:?}, without elements; at least one is needed").into());
    }
    let bytes = super::payload(reader, source, &shape, 1)?;
    Ok((shape, bytes))
}
