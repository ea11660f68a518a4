//! Networks from files of weights alone: the tensors say what the layers are.

use std::fs;
use std::path::Path;

use dualprop::network::Network;
use dualprop::{Activation, Real};
use safetensors::tensor::{Dtype, SafeTensors};

use crate::checkpoint;
use crate::data::Result;

/// The element type of `w0`.
pub(crate) fn precision(path: &Path) -> Result<&'static str> {
    with_file(path, |file| {
        let first = file.tensor("w0").map_err(|_| format!("{} has no tensor w0", path.display()))?;
        Ok(if first.dtype() == Dtype::F32 { "f32" } else { "f64" })
    })
}

/// The network whose layers are `w0`, `w1`, … (and `b0`, `b1`, … if there are any).
pub(crate) fn load<T: Real>(path: &Path, activation: Activation) -> Result<Network<T>> {
    let source = path.display();
    let (widths, bias) = with_file(path, |file| {
        let mut widths = Vec::new();
        while let Ok(tensor) = file.tensor(&format!("w{}", widths.len().saturating_sub(1))) {
            let [n_out, n_in] = tensor.shape()[..] else {
                let shape = tensor.shape();
                return Err(format!("a tensor of {source} has the shape {shape:?}; weights have two dimensions").into());
            };
            if widths.is_empty() {
                widths.push(n_in);
            }
            widths.push(n_out);
        }
        Ok((widths, file.tensor("b0").is_ok()))
    })?;
    let network = Network::new(&widths, activation, bias).map_err(|error| format!("{source}: {error}"))?;
    checkpoint::load(network, path)
}

fn with_file<R>(path: &Path, read: impl FnOnce(&SafeTensors) -> Result<R>) -> Result<R> {
    let source = path.display();
    let bytes = fs::read(path).map_err(|error| format!("cannot read {source}: {error}"))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| format!("{source} is not a safetensors file: {error}"))?;
    read(&file)
}
