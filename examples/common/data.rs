//! Data sets of the examples: the embedded digits, Fashion-MNIST, directories of IDX files and NPZ files.
//!
//! Whatever is wrong with a file is an error that names the file or array, the value found and what is allowed; sizes in
//! headers are never trusted.

mod idx;
pub(crate) mod npz;

use std::error::Error;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use dualprop::Real;
use flate2::read::GzDecoder;

/// A value, or a sentence that says what is wrong.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// UCI optdigits as gzipped bytes: 5,620 rows of 64 features 0..=16 and a label, the 3,823 training rows first. The test
/// `embed_digits` in `tests/train.rs` writes it from the original files.
const DIGITS: &[u8] = include_bytes!("../data/digits.gz");
const DIGITS_TRAIN: usize = 3_823;
const DIGITS_FEATURES: usize = 64;

/// Where Debian's package `dataset-fashion-mnist` puts its files.
const FASHION_MNIST: &str = "/usr/share/datasets/fashion-mnist";

/// Labels must be below this number.
const MAX_CLASSES: i128 = 65_536;

/// No array of a file may have more bytes than this.
const MAX_BYTES: usize = 1 << 32;

/// Training and test rows with their class numbers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dataset<T> {
    /// Where it comes from: `digits`, `fashion-mnist` or a path.
    pub(crate) name: String,
    /// One more than the largest label.
    pub(crate) classes: usize,
    /// Numbers in a row.
    pub(crate) features: usize,
    /// Height and width, if a row is a picture.
    pub(crate) image: Option<(usize, usize)>,
    /// Training rows, one after the other.
    pub(crate) x_train: Vec<T>,
    /// One class number a training row.
    pub(crate) y_train: Vec<u32>,
    /// Test rows, one after the other.
    pub(crate) x_test: Vec<T>,
    /// One class number a test row.
    pub(crate) y_test: Vec<u32>,
}

/// Rows of one array of a file.
#[derive(Debug)]
struct Samples<T> {
    /// File or array, for messages.
    source: String,
    rows: usize,
    /// Shape of one row before it was flattened.
    shape: Vec<usize>,
    values: Vec<T>,
}

/// Class numbers of one array of a file.
#[derive(Debug)]
struct Labels {
    /// File or array, for messages.
    source: String,
    values: Vec<u32>,
}

impl<T: Real> Dataset<T> {
    /// What `--data` names: `digits`, `fashion-mnist`, a directory with IDX files, or an NPZ file.
    pub(crate) fn load(spec: &str) -> Result<Self> {
        let path = Path::new(spec);
        match spec {
            "digits" => Ok(Self::digits()),
            "fashion-mnist" => Self::fashion_mnist(),
            _ if path.is_dir() => Self::idx_dir(path),
            _ if path.is_file() => Self::npz(path),
            _ => Err(format!(
                "the data {spec:?} do not exist; allowed are digits, fashion-mnist, a directory with IDX files, or an NPZ file"
            )
            .into()),
        }
    }

    /// The embedded digits: 8×8 counts divided by 16, 3,823 rows by 30 writers and 1,797 test rows by 13 other writers.
    pub(crate) fn digits() -> Self {
        let mut bytes = Vec::new();
        GzDecoder::new(DIGITS).read_to_end(&mut bytes).expect("the embedded digits are a complete gzip stream");
        let rows = bytes.chunks_exact(DIGITS_FEATURES + 1);
        let part = |rows: &mut dyn Iterator<Item = &[u8]>| {
            let (mut x, mut y) = (Vec::new(), Vec::new());
            for row in rows {
                x.extend(row[..DIGITS_FEATURES].iter().map(|&count| T::from_f64(f64::from(count) / 16.0)));
                y.push(u32::from(row[DIGITS_FEATURES]));
            }
            (x, y)
        };
        let (x_train, y_train) = part(&mut rows.clone().take(DIGITS_TRAIN));
        let (x_test, y_test) = part(&mut rows.skip(DIGITS_TRAIN));
        Self {
            name: "digits".into(),
            classes: 10,
            features: DIGITS_FEATURES,
            image: Some((8, 8)),
            x_train,
            y_train,
            x_test,
            y_test,
        }
    }

    /// Fashion-MNIST from Debian's package: 60,000 and 10,000 pictures of 28×28 pixels, divided by 255.
    pub(crate) fn fashion_mnist() -> Result<Self> {
        let path = Path::new(FASHION_MNIST);
        if !path.is_dir() {
            return Err(format!(
                "Fashion-MNIST is not in {FASHION_MNIST}; install the Debian package dataset-fashion-mnist, or give the directory \
                 that has its IDX files"
            )
            .into());
        }
        Ok(Self { name: "fashion-mnist".into(), ..Self::idx_dir(path)? })
    }

    /// A directory with `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
    /// `t10k-labels-idx1-ubyte`, gzipped (`.gz`) or not; pixels are divided by 255.
    pub(crate) fn idx_dir(path: &Path) -> Result<Self> {
        let train = (idx::samples(path, "train-images-idx3-ubyte")?, idx::labels(path, "train-labels-idx1-ubyte")?);
        let test = (idx::samples(path, "t10k-images-idx3-ubyte")?, idx::labels(path, "t10k-labels-idx1-ubyte")?);
        Self::assemble(path, train, test)
    }

    /// An NPZ file with `x_train` and `x_test` of shape (N, …), integer or floating, and `y_train` and `y_test` of shape (N),
    /// integer. Values are taken as they are, but `uint8` is divided by 255.
    pub(crate) fn npz(path: &Path) -> Result<Self> {
        let mut file = npz::Archive::open(path)?;
        let train = (file.samples("x_train")?, file.labels("y_train")?);
        let test = (file.samples("x_test")?, file.labels("y_test")?);
        Self::assemble(path, train, test)
    }

    /// Checks that the four arrays fit together.
    fn assemble(path: &Path, train: (Samples<T>, Labels), test: (Samples<T>, Labels)) -> Result<Self> {
        for (x, y) in [&train, &test] {
            if x.rows != y.values.len() {
                return Err(format!("{} has {} rows, but {} has {} labels", x.source, x.rows, y.source, y.values.len()).into());
            }
        }
        let (shape, other) = (&train.0.shape, &test.0.shape);
        if shape != other {
            return Err(
                format!("{} has rows of shape {shape:?}, but {} of shape {other:?}", train.0.source, test.0.source).into()
            );
        }
        let labels = train.1.values.iter().chain(&test.1.values);
        Ok(Self {
            name: path.display().to_string(),
            classes: labels.max().map_or(0, |&label| label as usize + 1),
            features: shape.iter().product(),
            image: picture(shape),
            x_train: train.0.values,
            y_train: train.1.values,
            x_test: test.0.values,
            y_test: test.1.values,
        })
    }
}

/// Height and width of rows of this shape; flat rows count as pictures if their length is a square.
fn picture(shape: &[usize]) -> Option<(usize, usize)> {
    match *shape {
        [height, width] => Some((height, width)),
        [features] => (features.isqrt().pow(2) == features).then(|| (features.isqrt(), features.isqrt())),
        _ => None,
    }
}

/// Checks class numbers.
fn labels(source: String, values: impl Iterator<Item = i128>) -> Result<Labels> {
    let values = values.enumerate().map(|(row, label)| match u32::try_from(label) {
        Ok(class) if label < MAX_CLASSES => Ok(class),
        _ => Err(format!("{source} has the label {label} in row {row}; allowed are 0 to {}", MAX_CLASSES - 1).into()),
    });
    let values = values.collect::<Result<_>>()?;
    Ok(Labels { source, values })
}

/// Opens a file with the path in the message.
fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| format!("cannot open {}: {error}", path.display()).into())
}

/// The rest of `reader`, which must be `shape` elements of `size` bytes. Memory grows with what is there, not with the claim.
fn payload(reader: impl Read, source: &str, shape: &[usize], size: usize) -> Result<Vec<u8>> {
    let claim = shape.iter().try_fold(size, |product, &n| product.checked_mul(n)).filter(|&bytes| bytes <= MAX_BYTES);
    let Some(claim) = claim else {
        return Err(format!(
            "{source} claims the shape {shape:?} with {size} bytes an element; at most {MAX_BYTES} bytes are allowed"
        )
        .into());
    };
    let bytes = up_to(reader, claim + 1).map_err(|error| format!("cannot read {source}: {error}"))?;
    if bytes.len() != claim {
        let found = if bytes.len() < claim { format!("only {}", bytes.len()) } else { "more".into() };
        return Err(format!("{source} has the shape {shape:?}, which is {claim} bytes, but holds {found}").into());
    }
    Ok(bytes)
}

/// The next bytes, fewer than `limit` if the reader ends before.
fn up_to(reader: impl Read, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(limit as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The next `N` bytes, which are `what`.
fn exactly<const N: usize>(reader: &mut impl Read, source: &str, what: &str) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => format!("{source} ends within {what}, which has {N} bytes"),
        _ => format!("cannot read {source}: {error}"),
    })?;
    Ok(bytes)
}
