//! Weights of a network as a safetensors file: `w0`, `b0`, `w1`, …; weights row-major `n_out × n_in`, F32 or F64.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use dualprop::Real;
use dualprop::network::Network;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::data::Result;

/// Writes the weights in the precision of the network; the file appears whole or not at all ([`write()`]).
pub(crate) fn save<T: Real>(network: &Network<T>, path: &Path) -> Result<()> {
    let (dtype, bytes): (_, fn(T) -> Vec<u8>) = match T::NAME {
        "f32" => (Dtype::F32, |value| (value.to_f64() as f32).to_le_bytes().to_vec()),
        _ => (Dtype::F64, |value| value.to_f64().to_le_bytes().to_vec()),
    };
    let mut tensors = Vec::new();
    for k in 0..network.layers() {
        let w = network.weights(k);
        let row_major = (0..w.nrows()).flat_map(|i| (0..w.ncols()).map(move |j| w[(i, j)]));
        tensors.push((format!("w{k}"), vec![w.nrows(), w.ncols()], row_major.flat_map(bytes).collect::<Vec<_>>()));
        if let Some(b) = network.bias(k) {
            tensors.push((format!("b{k}"), vec![b.len()], b.iter().copied().flat_map(bytes).collect()));
        }
    }
    let views = tensors.iter().map(|(name, shape, bytes)| Ok((name, TensorView::new(dtype, shape.clone(), bytes)?)));
    write(path, &safetensors::serialize(views.collect::<Result<Vec<_>>>()?, None)?)
}

/// The network with the weights of the file, which must be exactly those that the network has; F32 and F64 are converted.
pub(crate) fn load<T: Real>(mut network: Network<T>, path: &Path) -> Result<Network<T>> {
    let source = path.display();
    let bytes = fs::read(path).map_err(|error| format!("cannot read {source}: {error}"))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| format!("{source} is not a safetensors file: {error}"))?;
    let mut expected = Vec::new();
    for k in 0..network.layers() {
        let mut w = network.weights_mut(k);
        let columns = w.ncols();
        let name = format!("w{k}");
        for (index, value) in tensor(&file, path, &name, &[w.nrows(), columns])?.into_iter().enumerate() {
            w[(index / columns, index % columns)] = value;
        }
        expected.push(name);
        if let Some(b) = network.bias_mut(k) {
            let name = format!("b{k}");
            b.copy_from_slice(&tensor(&file, path, &name, &[b.len()])?);
            expected.push(name);
        }
    }
    match file.names().into_iter().filter(|name| !expected.iter().any(|known| known == name)).min() {
        Some(name) => {
            Err(format!("{source} has the tensor {name}, which the network has not; allowed are {}", expected.join(", ")).into())
        }
        None => Ok(network),
    }
}

/// The values of a tensor that must have this shape.
fn tensor<T: Real>(file: &SafeTensors, path: &Path, name: &str, shape: &[usize]) -> Result<Vec<T>> {
    let source = path.display();
    let tensor = file.tensor(name).map_err(|_| format!("{source} has no tensor {name}, which must have the shape {shape:?}"))?;
    if tensor.shape() != shape {
        return Err(format!("the tensor {name} of {source} has the shape {:?}; it must be {shape:?}", tensor.shape()).into());
    }
    let values: Vec<f64> = match tensor.dtype() {
        Dtype::F32 => tensor.data().as_chunks().0.iter().map(|&bytes| f64::from(f32::from_le_bytes(bytes))).collect(),
        Dtype::F64 => tensor.data().as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect(),
        other => return Err(format!("the tensor {name} of {source} has the dtype {other}; allowed are F32 and F64").into()),
    };
    let finite = |(index, &value): (usize, &f64)| {
        let converted = T::from_f64(value);
        match converted.is_finite() {
            true => Ok(converted),
            false => Err(format!(
                "the tensor {name} of {source} has {value:e} at position {index}; allowed are finite numbers of {}",
                T::NAME
            )
            .into()),
        }
    };
    values.iter().enumerate().map(finite).collect()
}

/// Replaces a file by way of a temporary one beside it: whatever happens, also to the power, the file is the old or the new one.
///
/// The bytes are on the disk before the name changes, and on Unix the name is before this returns. A process that is killed leaves at most
/// one temporary file, `NAME.PID.tmp`, that no reader takes for a checkpoint and no writer minds.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().ok_or_else(|| format!("{} is not the name of a file", path.display()))?.to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let done = File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| sync_directory(path));
    done.map_err(|error| {
        // What is left of the temporary file is of no use; that it may not exist is no news.
        let _ = fs::remove_file(&temporary);
        format!("cannot write {}: {error}", path.display()).into()
    })
}

/// Brings the names in the directory of a file to the disk. Elsewhere than on Unix a directory cannot be opened.
fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if cfg!(unix) { File::open(directory)?.sync_all() } else { Ok(()) }
}
