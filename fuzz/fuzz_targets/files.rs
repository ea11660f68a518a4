//! The readers of the examples at hostile files: a value or an error, never a panic, and no allocation far beyond the file.
#![no_main]

#[path = "../../examples/train/checkpoint.rs"]
#[allow(dead_code, unreachable_pub, reason = "only the loader is of interest")]
mod checkpoint;
#[path = "../../examples/common/data.rs"]
#[allow(dead_code, unreachable_pub, reason = "only the readers are of interest")]
mod data;

use arbitrary::{Arbitrary, Result, Unstructured};
use data::Dataset;
use dualprop::network::Network;
use dualprop::{Activation, Real};
use libfuzzer_sys::fuzz_target;
use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::io::{Cursor, Write};
use std::path::PathBuf;
use std::sync::LazyLock;
use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

/// Refuses, and thereby aborts on, any single allocation that an input of 4 KiB (4 MiB unpacked) cannot justify.
struct Bounded;

/// DEFLATE unpacks to at most 1032 times the size; elements of a byte become numbers of 8 bytes, and vectors double when they grow.
const LARGEST: usize = 1 << 27;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

// SAFETY: everything that is not refused with a null pointer is the system's.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > LARGEST {
            return core::ptr::null_mut();
        }
        // SAFETY: contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: contract of `dealloc`; the block came from the system.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// A directory of this process for the files; `TMPDIR=/dev/shm` has it in memory.
static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let directory = std::env::temp_dir().join(format!("dualprop-fuzz-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory for files");
    directory
});

#[derive(Arbitrary, Debug)]
enum Kind {
    Idx,
    Npz,
    /// Arrays of any bytes in a well-formed archive, so that the check sums do not end it all.
    NpzOfArrays,
    Safetensors,
    /// Any header behind the right length.
    SafetensorsHeader,
}

/// What must hold of data that a reader accepts.
fn check<T: Real>(data: std::result::Result<Dataset<T>, Box<dyn std::error::Error>>) {
    let Ok(data) = data else { return };
    for (x, y) in [(&data.x_train, &data.y_train), (&data.x_test, &data.y_test)] {
        assert_eq!(x.len(), y.len() * data.features);
        assert!(x.iter().all(|x| x.is_finite()) && y.iter().all(|&y| (y as usize) < data.classes));
    }
    assert!(data.image.is_none_or(|(height, width)| height * width == data.features));
}

fn write(name: &str, bytes: &[u8]) -> PathBuf {
    let path = DIRECTORY.join(name);
    fs::write(&path, bytes).expect("files in memory can be written");
    path
}

/// A part of what is left, and for the last file all of it.
fn part<'a>(u: &mut Unstructured<'a>, is_last: bool) -> Result<&'a [u8]> {
    let len = if is_last { u.len() } else { usize::from(u.arbitrary::<u8>()?).min(u.len()) };
    u.bytes(len)
}

fn idx<T: Real>(u: &mut Unstructured<'_>) -> Result<()> {
    let names = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"];
    for (number, name) in names.into_iter().enumerate() {
        let bytes = part(u, number == 3)?;
        // Half of the headers are right where most mutations would be wrong.
        match bytes.split_first() {
            Some((0..=127, rest)) => {
                let dimensions = if number % 2 == 0 { 3 } else { 1 };
                let mut file = vec![0, 0, 8, dimensions];
                let sizes = rest.iter().take(dimensions.into()).flat_map(|&size| u32::from(size).to_be_bytes());
                file.extend(sizes);
                file.extend(rest.iter().skip(dimensions.into()));
                write(name, &file)
            }
            _ => write(name, bytes),
        };
    }
    check(Dataset::<T>::idx_dir(&DIRECTORY));
    Ok(())
}

fn npz<T: Real>(bytes: &[u8]) {
    check(Dataset::<T>::npz(&write("data.npz", bytes)));
}

fn npz_of_arrays<T: Real>(u: &mut Unstructured<'_>) -> Result<()> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (number, key) in ["x_train", "y_train", "x_test", "y_test"].into_iter().enumerate() {
        let method = if u.arbitrary()? { CompressionMethod::Stored } else { CompressionMethod::Deflated };
        let options = SimpleFileOptions::default().compression_method(method);
        let bytes = part(u, number == 3)?;
        // Half of the headers have the right frame: type, order and shape from bytes, then the elements.
        let file = match bytes {
            [kind @ 0..=127, order, rows, cols, rest @ ..] => {
                let dtypes = ["<f4", ">f8", "|u1", "<i4", "|b1", ">u2", "<i8", "|i1"];
                let dtype = dtypes[usize::from(*kind) % dtypes.len()];
                let fortran = if order % 2 == 0 { "False" } else { "True" };
                let shape = if number % 2 == 0 { format!("({rows}, {cols})") } else { format!("({rows},)") };
                let header = format!("{{'descr': '{dtype}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
                let mut file = b"\x93NUMPY\x01\x00".to_vec();
                file.extend((header.len() as u16).to_le_bytes());
                file.extend(header.as_bytes());
                file.extend(rest);
                file
            }
            _ => bytes.to_vec(),
        };
        zip.start_file(format!("{key}.npy"), options).expect("an archive in memory");
        zip.write_all(&file).expect("an archive in memory");
    }
    npz::<T>(zip.finish().expect("an archive in memory").get_ref());
    Ok(())
}

fn safetensors<T: Real>(bytes: &[u8], bias: bool) {
    let network = Network::<T>::new(&[2, 3, 1], Activation::Relu, bias).expect("good widths");
    let Ok(network) = checkpoint::load(network, &write("weights.safetensors", bytes)) else { return };
    for k in 0..network.layers() {
        let weights = network.weights(k);
        assert!((0..weights.nrows()).all(|i| weights.row(i).iter().all(|w| w.is_finite())));
        assert!(network.bias(k).into_iter().flatten().all(|b| b.is_finite()));
    }
}

fn run<T: Real>(u: &mut Unstructured<'_>) -> Result<()> {
    match u.arbitrary()? {
        Kind::Idx => idx::<T>(u)?,
        Kind::Npz => npz::<T>(u.bytes(u.len())?),
        Kind::NpzOfArrays => npz_of_arrays::<T>(u)?,
        Kind::Safetensors => {
            let bias = u.arbitrary()?;
            safetensors::<T>(u.bytes(u.len())?, bias);
        }
        Kind::SafetensorsHeader => {
            let bias = u.arbitrary()?;
            let header = part(u, false)?;
            let mut file = (header.len() as u64).to_le_bytes().to_vec();
            file.extend(header);
            file.extend(u.bytes(u.len())?);
            safetensors::<T>(&file, bias);
        }
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let mut u = Unstructured::new(data);
    // Too few bytes are no case.
    let _ = if u.arbitrary().unwrap_or(false) { run::<f32>(&mut u) } else { run::<f64>(&mut u) };
});
