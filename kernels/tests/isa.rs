//! Instruction sets by name.

use dualprop_kernels::isa::{Isa, IsaError};

#[test]
fn names_lead_to_their_sets_and_to_no_other() {
    let available: Vec<Isa> = Isa::available().collect();
    assert_eq!(available.last().map(|isa| isa.name()), Some("portable"));
    assert_eq!(Some(&Isa::best()), available.first());
    for (i, isa) in available.iter().enumerate() {
        assert_eq!(Isa::by_name(isa.name()), Ok(*isa));
        assert_eq!(isa.to_string(), isa.name());
        for (j, other) in available.iter().enumerate() {
            assert_eq!((isa == other, isa.name() == other.name()), (i == j, i == j), "{isa} and {other}");
        }
    }
    for name in Isa::NAMES.iter().filter(|name| available.iter().all(|isa| isa.name() != **name)) {
        assert_eq!(Isa::by_name(name), Err(IsaError::Unsupported), "{name}");
    }
    for name in ["", "AVX2", "avx", "avx5122"] {
        assert_eq!(Isa::by_name(name), Err(IsaError::Unknown), "{name}");
    }
}
