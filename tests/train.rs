//! The readers and writers of the examples: data sets and weights. Good files come back as they were, bad ones are errors
//! that say what is wrong, and no bytes whatsoever cause a panic.

#[path = "../examples/train/checkpoint.rs"]
mod checkpoint;
#[path = "../examples/common/data.rs"]
mod data;

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use dualprop::network::{Init, Network};
use dualprop::{Activation, Real};
use flate2::write::GzEncoder;
use flate2::{Compression, Crc};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use data::Dataset;

/// An empty directory for one test.
fn directory(test: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).expect("the target directory is writable");
    path
}

/// The message of an error, which must contain all `parts`.
#[track_caller]
fn assert_error<V>(result: data::Result<V>, parts: &[&str]) {
    let message = result.err().expect("an error").to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("writing to memory");
    encoder.finish().expect("writing to memory")
}

mod digits {
    use super::*;

    /// Makes `examples/data/digits.gz` from the files of UCI optdigits:
    /// `OPTDIGITS=DIR cargo test --test train embed_digits -- --ignored`, DIR with `optdigits.tra` and `optdigits.tes`.
    #[test]
    #[ignore = "needs the original files; run once"]
    fn embed_digits() {
        let directory = PathBuf::from(std::env::var_os("OPTDIGITS").expect("OPTDIGITS names the directory"));
        let text = ["optdigits.tra", "optdigits.tes"].map(|name| fs::read_to_string(directory.join(name)).expect("a text file"));
        let numbers = text.iter().flat_map(|text| text.split([',', '\n'])).map(str::trim).filter(|number| !number.is_empty());
        let bytes: Vec<u8> = numbers.map(|number| number.parse().expect("a number")).collect();
        assert_eq!(bytes.len(), (3_823 + 1_797) * 65);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/digits.gz");
        fs::write(path, gzip(&bytes)).expect("the repository is writable");
    }

    #[test]
    fn are_the_published_ones() {
        let digits = Dataset::<f32>::digits();
        assert_eq!((digits.classes, digits.features, digits.image), (10, 64, Some((8, 8))));
        assert_eq!((digits.y_train.len(), digits.y_test.len()), (3_823, 1_797));
        assert_eq!((digits.x_train.len(), digits.x_test.len()), (3_823 * 64, 1_797 * 64));

        let first: [u8; 16] = [0, 1, 6, 15, 12, 1, 0, 0, 0, 7, 16, 6, 6, 10, 0, 0];
        assert_eq!(digits.x_train[..16], first.map(|count| f32::from(count) / 16.0));
        assert_eq!((digits.y_train[0], digits.y_train[3_822], digits.y_test[0], digits.y_test[1_796]), (0, 7, 0, 8));

        // CRC-32 of all numbers of the two original files, one byte each, as Python's zlib.crc32 has it.
        let mut crc = Crc::new();
        for (x, y) in [(&digits.x_train, &digits.y_train), (&digits.x_test, &digits.y_test)] {
            for (row, &label) in x.chunks_exact(64).zip(y) {
                crc.update(&row.iter().map(|value| (value * 16.0) as u8).collect::<Vec<_>>());
                crc.update(&[label as u8]);
            }
        }
        assert_eq!(crc.sum(), 0xcde7_4824);
    }

    #[test]
    fn are_the_same_in_both_precisions() {
        let (single, double) = (Dataset::<f32>::digits(), Dataset::<f64>::load("digits").expect("embedded"));
        assert!(single.x_train.iter().zip(&double.x_train).all(|(&a, &b)| f64::from(a) == b));
        assert_eq!((single.name, single.y_test), (double.name, double.y_test));
    }
}

#[test]
fn fashion_mnist_loads_or_says_what_to_install() {
    match Dataset::<f32>::load("fashion-mnist") {
        Ok(fashion) => {
            assert_eq!(
                (fashion.y_train.len(), fashion.y_test.len(), fashion.features, fashion.classes),
                (60_000, 10_000, 784, 10)
            );
            assert_eq!((fashion.name.as_str(), fashion.image), ("fashion-mnist", Some((28, 28))));
            assert_eq!(fashion.y_train[..5], [9, 0, 0, 3, 0]);
            assert!(fashion.x_train.iter().all(|pixel| (0.0..=1.0).contains(pixel)));
        }
        error => assert_error(error, &["dataset-fashion-mnist"]),
    }
}

#[test]
fn unknown_data_are_an_error() {
    assert_error(Dataset::<f32>::load("no-such-file.npz"), &["no-such-file.npz", "digits, fashion-mnist, a directory"]);
}

mod idx {
    use super::*;

    const NAMES: [&str; 4] =
        ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"];

    fn encode(shape: &[u32], bytes: &[u8]) -> Vec<u8> {
        let mut file = vec![0, 0, 8, shape.len() as u8];
        file.extend(shape.iter().flat_map(|size| size.to_be_bytes()));
        file.extend(bytes);
        file
    }

    /// Two training pictures and one test picture of 2×3 pixels.
    fn files() -> [Vec<u8>; 4] {
        [
            encode(&[2, 2, 3], &[0, 51, 102, 153, 204, 255, 1, 2, 3, 4, 5, 6]),
            encode(&[2], &[1, 0]),
            encode(&[1, 2, 3], &[255; 6]),
            encode(&[1], &[3]),
        ]
    }

    fn load(test: &str, files: &[Vec<u8>; 4]) -> data::Result<Dataset<f64>> {
        let directory = directory(test);
        for (name, bytes) in NAMES.iter().zip(files) {
            fs::write(directory.join(name), bytes)?;
        }
        Dataset::idx_dir(&directory)
    }

    /// The result when one of the files is replaced.
    fn with(test: &str, index: usize, bytes: Vec<u8>) -> data::Result<Dataset<f64>> {
        let mut files = files();
        files[index] = bytes;
        load(test, &files)
    }

    #[test]
    fn comes_back_plain_and_gzipped() {
        let plain = load("idx-plain", &files()).expect("good files");
        assert_eq!(plain.x_train[..6], [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        assert_eq!((&plain.y_train[..], &plain.y_test[..]), (&[1, 0][..], &[3][..]));
        assert_eq!((plain.classes, plain.features, plain.image), (4, 6, Some((2, 3))));

        let directory = directory("idx-gzipped");
        for (name, bytes) in NAMES.iter().zip(files()) {
            fs::write(directory.join(format!("{name}.gz")), gzip(&bytes)).expect("writable");
        }
        let gzipped = Dataset::load(directory.to_str().expect("a path in UTF-8")).expect("good files");
        assert_eq!(gzipped, Dataset { name: gzipped.name.clone(), ..plain });
    }

    #[test]
    fn bad_files_are_errors_that_name_the_file() {
        let images = &files()[0];
        let case = |test, index: usize, bytes: Vec<u8>, parts: &[&str]| {
            assert_error(with(test, index, bytes), &[&[NAMES[index]], parts].concat());
        };
        case("idx-empty", 0, vec![], &["magic number", "4 bytes"]);
        case("idx-header", 0, images[..7].to_vec(), &["ends within a size"]);
        case("idx-magic", 0, [&[1], &images[1..]].concat(), &["0x01000803", "allowed is 0x000008DD"]);
        case("idx-float", 0, [&[0, 0, 0x0d], &images[3..]].concat(), &["0x00000d03"]);
        case("idx-dimensionless", 0, vec![0, 0, 8, 0], &["0x00000800"]);
        case("idx-short", 0, images[..images.len() - 1].to_vec(), &["[2, 2, 3]", "12 bytes", "only 11"]);
        case("idx-long", 0, [images, &[0][..]].concat(), &["12 bytes", "more"]);
        case("idx-huge", 0, encode(&[u32::MAX, u32::MAX, u32::MAX], &[]), &["claims", "at most 4294967296"]);
        case("idx-claim", 0, encode(&[4_000_000_000, 1, 1], &[7]), &["4000000000 bytes", "only 1"]);
        case("idx-no-rows", 0, encode(&[0, 2, 3], &[]), &["[0, 2, 3]", "at least one"]);
        case("idx-no-pixels", 0, encode(&[2, 0, 3], &[]), &["[2, 0, 3]", "at least one"]);
        case("idx-flat-images", 0, encode(&[2], &[0, 0]), &["one dimension", "at least two"]);
        case("idx-deep-labels", 1, encode(&[2, 1], &[0, 0]), &["2 dimensions; labels have one"]);
        case("idx-count", 1, encode(&[3], &[0, 1, 2]), &["2 rows", "3 labels"]);
        case("idx-shapes", 2, encode(&[1, 3, 3], &[0; 9]), &["[2, 3]", "[3, 3]"]);
        case(
            "idx-truncated-gz",
            0,
            {
                let gz = gzip(images);
                gz[..gz.len() - 9].to_vec()
            },
            &["cannot read"],
        );
        case("idx-no-gz", 0, vec![0x1f, 0x8b, 8, 0, 1], &["train-images"]);
    }

    #[test]
    fn a_missing_file_is_named() {
        assert_error(Dataset::<f32>::idx_dir(&directory("idx-missing")), &["neither train-images-idx3-ubyte nor"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn arbitrary_bytes_are_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64), index in 0..4usize, zip: bool) {
            let bytes = if zip { gzip(&bytes) } else { bytes };
            prop_assert!(with("idx-arbitrary", index, bytes).is_err());
        }

        #[test]
        fn a_changed_byte_never_panics(index in 0..4usize, place: prop::sample::Index, byte: u8, zip: bool) {
            let mut bytes = files()[index].clone();
            if zip {
                bytes = gzip(&bytes);
            }
            let place = place.index(bytes.len());
            bytes[place] = byte;
            let _ = with("idx-changed", index, bytes);
        }
    }
}

mod npz {
    use super::*;

    const KEYS: [&str; 4] = ["x_train", "y_train", "x_test", "y_test"];

    fn npy(descr: &str, fortran: bool, shape: &str, bytes: &[u8]) -> Vec<u8> {
        let order = if fortran { "True" } else { "False" };
        let header = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n");
        [&b"\x93NUMPY\x01\x00"[..], &(header.len() as u16).to_le_bytes(), header.as_bytes(), bytes].concat()
    }

    fn archive<'a>(members: impl IntoIterator<Item = (&'a str, Vec<u8>)>) -> Vec<u8> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        for (key, bytes) in members {
            zip.start_file(format!("{key}.npy"), SimpleFileOptions::default()).expect("writing to memory");
            zip.write_all(&bytes).expect("writing to memory");
        }
        zip.finish().expect("writing to memory").into_inner()
    }

    /// Two training rows of shape 2×2, one test row.
    fn members() -> [Vec<u8>; 4] {
        let x: Vec<u8> = [0.5f32, -1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        let y: Vec<u8> = [2i64, 0].iter().flat_map(|label| label.to_le_bytes()).collect();
        [
            npy("<f4", false, "(2, 2, 2)", &x),
            npy("<i8", false, "(2,)", &y),
            npy("<f4", false, "(1, 2, 2)", &x[..16]),
            npy("<i8", false, "(1,)", &y[..8]),
        ]
    }

    fn load_bytes<T: Real>(test: &str, bytes: &[u8]) -> data::Result<Dataset<T>> {
        let path = directory(test).join("data.npz");
        fs::write(&path, bytes)?;
        Dataset::load(path.to_str().expect("a path in UTF-8"))
    }

    /// The result when one of the arrays is replaced.
    fn with<T: Real>(test: &str, index: usize, member: Vec<u8>) -> data::Result<Dataset<T>> {
        let mut members = members();
        members[index] = member;
        load_bytes(test, &archive(KEYS.into_iter().zip(members)))
    }

    #[test]
    fn comes_back() {
        let data: Dataset<f32> = load_bytes("npz-good", &archive(KEYS.into_iter().zip(members()))).expect("a good file");
        assert_eq!(data.x_train, [0.5, -1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!((&data.y_train[..], &data.y_test[..], data.classes), (&[2, 0][..], &[2][..], 3));
        assert_eq!((data.features, data.image), (4, Some((2, 2))));
    }

    #[test]
    fn every_dtype_and_both_byte_orders_are_read() {
        macro_rules! case {
            ($type:ty, $descr:literal, $values:expr, $expected:expr) => {
                for (order, bytes) in [("<", $values.map(<$type>::to_le_bytes)), (">", $values.map(<$type>::to_be_bytes))] {
                    let member = npy(&format!("{order}{}", $descr), false, "(2, 2)", &bytes.concat());
                    let mut members = members();
                    members[2] = npy("|b1", false, "(1, 2)", &[1, 0]);
                    members[0] = member;
                    let data: Dataset<f64> =
                        load_bytes(concat!("npz-", $descr), &archive(KEYS.into_iter().zip(members))).expect("a good file");
                    assert_eq!(data.x_train, $expected, "{order}{}", $descr);
                    assert_eq!(data.x_test, [1.0, 0.0]);
                }
            };
        }
        case!(u8, "u1", [0u8, 51, 255, 102], [0.0, 0.2, 1.0, 0.4]);
        case!(i8, "i1", [0i8, -128, 127, -1], [0.0, -128.0, 127.0, -1.0]);
        case!(i16, "i2", [0i16, i16::MIN, 3, -1], [0.0, -32768.0, 3.0, -1.0]);
        case!(i32, "i4", [0i32, i32::MIN, 3, -1], [0.0, -2147483648.0, 3.0, -1.0]);
        case!(i64, "i8", [0i64, i64::MIN, 3, -1], [0.0, -9223372036854775808.0, 3.0, -1.0]);
        case!(u16, "u2", [0u16, u16::MAX, 3, 1], [0.0, 65535.0, 3.0, 1.0]);
        case!(u32, "u4", [0u32, u32::MAX, 3, 1], [0.0, 4294967295.0, 3.0, 1.0]);
        case!(u64, "u8", [0u64, 1 << 63, 3, 1], [0.0, 9223372036854775808.0, 3.0, 1.0]);
        case!(f32, "f4", [0.1f32, -1.5, 3.0, 1e-40], [f64::from(0.1f32), -1.5, 3.0, f64::from(1e-40f32)]);
        case!(f64, "f8", [0.1f64, -1.5, 3.0, 1e300], [0.1, -1.5, 3.0, 1e300]);
    }

    #[test]
    fn fortran_order_is_flattened_as_numpy_does() {
        // Element (i, j, k) of shape 2×3×4 is 100 i + 10 j + k, stored with i running fastest.
        let stored = (0..4).flat_map(|k| (0..3).flat_map(move |j| (0..2).map(move |i| 100 * i + 10 * j + k)));
        let bytes: Vec<u8> = stored.flat_map(|value: i32| value.to_le_bytes()).collect();
        let mut members = members();
        members[0] = npy("<i4", true, "(2, 3, 4)", &bytes);
        members[2] = npy("<i4", false, "(1, 3, 4)", &[0; 48]);
        let data: Dataset<f32> = load_bytes("npz-fortran", &archive(KEYS.into_iter().zip(members))).expect("a good file");
        let expected = (0..2).flat_map(|i| (0..3).flat_map(move |j| (0..4).map(move |k| (100 * i + 10 * j + k) as f32)));
        assert!(data.x_train.iter().copied().eq(expected));
    }

    #[test]
    fn bad_arrays_are_errors_that_name_the_array() {
        let case = |test, index: usize, member: Vec<u8>, parts: &[&str]| {
            assert_error(with::<f32>(test, index, member), &[&[KEYS[index]], parts].concat());
        };
        let floats = |values: &[f64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
        case("npz-empty", 0, vec![], &["ends within the magic string"]);
        case("npz-magic", 0, b"\x93NUMPX\x01\x00\x00\x00".to_vec(), &["x93NUMPX", "begins with"]);
        case("npz-version", 0, b"\x93NUMPY\x09\x00\x00\x00".to_vec(), &["version 9", "1, 2 and 3"]);
        case("npz-header", 0, b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec(), &["4294967295", "at most 65536"]);
        case("npz-no-descr", 0, b"\x93NUMPY\x01\x00\x02\x00{}".to_vec(), &["'descr' is missing"]);
        case("npz-struct", 0, npy("<c16", false, "(2, 2)", &[]), &["\"<c16\"", "float32 and float64"]);
        case("npz-shape", 0, npy("<f4", false, "(2, x)", &[]), &["'shape' is missing or malformed"]);
        case("npz-flat", 0, npy("<f4", false, "(2,)", &[0; 8]), &["[2]", "(N, …)"]);
        case("npz-scalar", 1, npy("<i8", false, "()", &[0; 8]), &["[]", "(N)"]);
        case("npz-one-hot", 1, npy("<i8", false, "(2, 3)", &[0; 48]), &["[2, 3]", "(N)"]);
        case("npz-short", 0, npy("<f4", false, "(2, 2, 2)", &[0; 31]), &["32 bytes", "only 31"]);
        case("npz-long", 0, npy("<f4", false, "(2, 2, 2)", &[0; 33]), &["32 bytes", "more"]);
        case("npz-huge", 0, npy("<f8", false, "(9999999999, 9999999999)", &[]), &["claims", "at most"]);
        case("npz-overflow", 0, npy("<f8", false, "(0, 9999999999, 9999999999)", &[]), &["at least one"]);
        case("npz-float-labels", 1, npy("<f8", false, "(2,)", &[0; 16]), &["\"<f8\"", "integers"]);
        case("npz-negative", 1, npy("|i1", false, "(2,)", &[3, 255]), &["label -1 in row 1", "0 to 65535"]);
        case("npz-large", 1, npy("<u8", false, "(2,)", &[255; 16]), &["18446744073709551615", "row 0", "65535"]);
        case("npz-count", 1, npy("|u1", false, "(3,)", &[0; 3]), &["2 rows", "3 labels"]);
        case("npz-widths", 2, npy("|u1", false, "(1, 3)", &[0; 3]), &["[2, 2]", "[3]"]);
        case("npz-nan", 0, npy("<f8", false, "(2, 2)", &floats(&[0.0, 0.0, f64::NAN, 0.0])), &["NaN in row 1, column 0"]);
        case("npz-inf", 2, npy("<f8", true, "(1, 2)", &floats(&[0.0, f64::INFINITY])), &["inf in row 0, column 1"]);
        case("npz-f32", 0, npy("<f8", false, "(1, 2)", &floats(&[0.0, 1e300])), &["1e300", "finite numbers of f32"]);
    }

    #[test]
    fn a_missing_array_is_named() {
        let members = KEYS.into_iter().zip(members()).filter(|(key, _)| *key != "y_test");
        assert_error(load_bytes::<f32>("npz-missing", &archive(members)), &["no array y_test", "x_test, x_train, y_train"]);
        assert_error(load_bytes::<f32>("npz-no-zip", b"PK"), &["data.npz", "not an NPZ file"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn arbitrary_files_are_an_error(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            prop_assert!(load_bytes::<f32>("npz-arbitrary", &bytes).is_err());
        }

        #[test]
        fn arbitrary_arrays_never_panic(
            index in 0..4usize, header in "[ -~]{0,80}|\\{'descr': '[<>|][fiub][1248]', 'fortran_order': (True|False), \
            'shape': \\((0|1|2|999999999999|, ){0,6}\\), \\}", bytes in prop::collection::vec(any::<u8>(), 0..40)
        ) {
            let length = (header.len() as u16).to_le_bytes();
            let member = [&b"\x93NUMPY\x01\x00"[..], &length, header.as_bytes(), &bytes].concat();
            let _ = with::<f32>("npz-headers", index, member);
        }

        #[test]
        fn a_changed_byte_never_panics(place: prop::sample::Index, byte: u8) {
            let mut bytes = archive(KEYS.into_iter().zip(members()));
            let place = place.index(bytes.len());
            bytes[place] = byte;
            let _ = load_bytes::<f64>("npz-changed", &bytes);
        }
    }
}

mod checkpoints {
    use super::*;

    fn network<T: Real>(bias: bool) -> Network<T> {
        let mut network = Network::new(&[3, 4, 2], Activation::Relu, bias).expect("a good shape");
        network.initialize(Init::LecunNormal, 7);
        if let Some(bias) = network.bias_mut(0) {
            bias[2] = T::from_f64(0.125);
        }
        network
    }

    fn values<T: Real>(network: &Network<T>) -> Vec<f64> {
        let mut values = Vec::new();
        for k in 0..network.layers() {
            let w = network.weights(k);
            values.extend((0..w.nrows()).flat_map(|i| (0..w.ncols()).map(move |j| w[(i, j)].to_f64())));
            values.extend(network.bias(k).into_iter().flatten().map(|bias| bias.to_f64()));
        }
        values
    }

    fn load_bytes<T: Real>(test: &str, bytes: &[u8]) -> data::Result<Network<T>> {
        let path = directory(test).join("weights.safetensors");
        fs::write(&path, bytes)?;
        checkpoint::load(Network::new(&[3, 4, 2], Activation::Relu, true)?, &path)
    }

    /// The four tensors of the network with one of them replaced.
    fn with(test: &str, name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> data::Result<Network<f32>> {
        let zeros = [0; 48];
        let mut tensors = vec![("w0", vec![4, 3]), ("b0", vec![4]), ("w1", vec![2, 4]), ("b1", vec![2])];
        tensors.retain(|(other, _)| *other != name);
        let mut views: Vec<_> = tensors
            .into_iter()
            .map(|(name, shape)| {
                let bytes = &zeros[..4 * shape.iter().product::<usize>()];
                (name, TensorView::new(Dtype::F32, shape, bytes).expect("a good view"))
            })
            .collect();
        views.push((name, TensorView::new(dtype, shape.into(), bytes).expect("a good view")));
        load_bytes(test, &safetensors::serialize(views, None)?)
    }

    #[test]
    fn come_back_in_both_precisions() {
        fn case<T: Real, U: Real>(path: &Path) {
            for bias in [true, false] {
                let network = network::<T>(bias);
                checkpoint::save(&network, path).expect("writable");
                let empty = Network::<U>::new(&[3, 4, 2], Activation::Relu, bias).expect("a good shape");
                let loaded = checkpoint::load(empty, path).expect("a good file");
                let converted: Vec<_> = values(&network).into_iter().map(|value| U::from_f64(value).to_f64()).collect();
                assert_eq!(values(&loaded), converted);
            }
        }
        let path = directory("weights").join("w.safetensors");
        case::<f32, f32>(&path);
        case::<f32, f64>(&path);
        case::<f64, f32>(&path);
        case::<f64, f64>(&path);
        assert_eq!(fs::read_dir(path.parent().expect("a directory")).expect("readable").count(), 1, "no temporary file is left");
    }

    #[test]
    fn are_row_major() {
        let path = directory("weights-layout").join("w.safetensors");
        let network = network::<f32>(true);
        checkpoint::save(&network, &path).expect("writable");
        let bytes = fs::read(&path).expect("readable");
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("a good file");
        let w0 = file.tensor("w0").expect("w0");
        assert_eq!((w0.shape(), w0.dtype()), (&[4, 3][..], Dtype::F32));
        assert_eq!(w0.data()[4 * 5..4 * 6], network.weights(0)[(1, 2)].to_le_bytes());
    }

    #[test]
    fn bad_files_are_errors_that_name_the_tensor() {
        let nan = [[0; 4], f32::NAN.to_le_bytes()].concat();
        assert_error(with("weights-shape", "w0", Dtype::F32, &[3, 4], &[0; 48]), &["w0", "[3, 4]", "[4, 3]"]);
        assert_error(with("weights-dtype", "b1", Dtype::F16, &[2], &[0; 4]), &["b1", "F16", "F32 and F64"]);
        assert_error(with("weights-nan", "b1", Dtype::F32, &[2], &nan), &["b1", "NaN at position 1"]);
        assert_error(with("weights-f32", "b1", Dtype::F64, &[2], &[1e300f64.to_le_bytes(); 2].concat()), &["b1", "1e300"]);
        assert_error(with("weights-extra", "w2", Dtype::F32, &[1], &[0; 4]), &["w2", "w0, b0, w1, b1"]);
        assert_error(load_bytes::<f32>("weights-text", b"not at all"), &["weights.safetensors", "not a safetensors file"]);
        let path = directory("weights-missing").join("w.safetensors");
        checkpoint::save(&network::<f32>(false), &path).expect("writable");
        let with_biases = Network::<f32>::new(&[3, 4, 2], Activation::Relu, true).expect("a good shape");
        assert_error(checkpoint::load(with_biases.clone(), &path), &["no tensor b0", "[4]"]);
        assert_error(checkpoint::load(with_biases, Path::new("nowhere.safetensors")), &["cannot read nowhere.safetensors"]);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_an_error() {
        let nowhere = directory("weights-nowhere").join("missing").join("w.safetensors");
        assert_error(checkpoint::save(&network::<f32>(true), &nowhere), &["cannot write", "missing"]);
        assert_error(checkpoint::write(Path::new(".."), &[]), &[".. is not the name of a file"]);
    }

    /// A file that ends too early, whatever is missing, and one that goes on.
    #[test]
    fn truncated_files_are_errors_that_name_the_file() {
        let path = directory("weights-to-cut").join("w.safetensors");
        checkpoint::save(&network::<f32>(true), &path).expect("writable");
        let bytes = fs::read(&path).expect("readable");
        for length in 0..bytes.len() {
            let parts = ["weights.safetensors", "not a safetensors file"];
            assert_error(load_bytes::<f32>("weights-cut", &bytes[..length]), &parts);
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_error(load_bytes::<f32>("weights-cut", &longer), &["weights.safetensors", "not a safetensors file"]);
        assert!(load_bytes::<f32>("weights-cut", &bytes).is_ok());
    }

    #[test]
    fn foreign_files_are_errors_that_name_the_file() {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        zip.start_file("w0.npy", SimpleFileOptions::default()).expect("writing to memory");
        zip.write_all(b"\x93NUMPY\x01\x00").expect("writing to memory");
        let zip = zip.finish().expect("writing to memory").into_inner();
        for foreign in [&zip[..], &gzip(&zip), b"\x93NUMPY\x01\x00", &[0; 4096], &[255; 4096], b"{\"w0\": [1, 2]}"] {
            let parts = ["weights.safetensors", "not a safetensors file"];
            assert_error(load_bytes::<f32>("weights-foreign", foreign), &parts);
        }
        for widths in [&[3, 4, 3][..], &[3, 5, 2], &[2, 4, 2], &[3, 2], &[3, 4, 2, 2]] {
            let other = Network::<f32>::new(widths, Activation::Relu, true).expect("a good shape");
            let path = directory("weights-of-another").join("other.safetensors");
            checkpoint::save(&other, &path).expect("writable");
            let network = Network::<f32>::new(&[3, 4, 2], Activation::Relu, true).expect("a good shape");
            assert_error(checkpoint::load(network, &path), &["other.safetensors"]);
        }
        assert_error(with("weights-integers", "b1", Dtype::I32, &[2], &[0; 8]), &["weights.safetensors", "b1", "I32"]);
    }

    /// Two networks whose files are large enough to be cut short.
    fn versions() -> [Network<f32>; 2] {
        [1, 2].map(|seed| {
            let mut network = Network::new(&[300, 400, 10], Activation::Relu, true).expect("a good shape");
            network.initialize(Init::LecunNormal, seed);
            network
        })
    }

    /// The victim of [`a_killed_writer_leaves_the_old_file_or_the_new_one`]: writes both versions in turn until it is killed.
    #[test]
    #[ignore = "never ends; started by another test"]
    fn writes_until_killed() {
        let path = PathBuf::from(std::env::var_os("CHECKPOINT").expect("CHECKPOINT names the file"));
        for version in versions().iter().cycle() {
            checkpoint::save(version, &path).expect("writable");
        }
    }

    #[test]
    fn a_killed_writer_leaves_the_old_file_or_the_new_one() {
        let directory = directory("weights-killed");
        let path = directory.join("w.safetensors");
        let versions = versions();
        checkpoint::save(&versions[0], &path).expect("writable");
        let whole = versions.each_ref().map(values);
        let count_files = || fs::read_dir(&directory).expect("readable").count();
        let (mut seen, mut interrupted) = ([0; 2], 0);
        let mut random = 1u64;
        for _ in 0..40 {
            let before = (count_files(), fs::metadata(&path).and_then(|file| file.modified()).expect("a file"));
            let mut writer = Command::new(std::env::current_exe().expect("this test"))
                .args(["--exact", "checkpoints::writes_until_killed", "--ignored"])
                .env("CHECKPOINT", &path)
                .stdout(Stdio::null())
                .spawn()
                .expect("this test again");
            // It has begun when the file is another one; then some time that is never the same.
            while fs::metadata(&path).and_then(|file| file.modified()).expect("a file") == before.1 {
                assert!(writer.try_wait().expect("a child").is_none(), "the writer ended by itself");
                thread::sleep(Duration::from_millis(1));
            }
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            thread::sleep(Duration::from_micros(random >> 50));
            writer.kill().expect("a child");
            writer.wait().expect("a child");

            let empty = Network::new(&[300, 400, 10], Activation::Relu, true).expect("a good shape");
            let found = values(&checkpoint::load::<f32>(empty, &path).expect("a whole file"));
            let version = whole.iter().position(|values| *values == found).expect("one of the two versions");
            seen[version] += 1;
            let left = count_files() - before.0;
            assert!(left <= 1, "{left} temporary files of one writer");
            interrupted += left;
        }
        assert!(interrupted > 0 && seen.iter().all(|&times| times > 0), "vacuous: {interrupted} interrupted, versions {seen:?}");

        // What killed writers left is in nobody's way, not even with the number of this process.
        fs::write(directory.join(format!("w.safetensors.{}.tmp", std::process::id())), b"rubbish").expect("writable");
        let before = count_files();
        checkpoint::save(&versions[1], &path).expect("writable");
        assert_eq!(values(&checkpoint::load(versions[0].clone(), &path).expect("a whole file")), whole[1]);
        assert_eq!(count_files(), before - 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn arbitrary_bytes_are_an_error(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            prop_assert!(load_bytes::<f32>("weights-arbitrary", &bytes).is_err());
        }

        #[test]
        fn a_changed_byte_never_panics(place: prop::sample::Index, byte: u8) {
            let path = directory("weights-to-change").join("w.safetensors");
            checkpoint::save(&network::<f32>(true), &path).expect("writable");
            let mut bytes = fs::read(&path).expect("readable");
            let place = place.index(bytes.len());
            bytes[place] = byte;
            let _ = load_bytes::<f64>("weights-changed", &bytes);
        }
    }
}
