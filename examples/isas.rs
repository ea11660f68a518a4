//! Prints the instruction sets that this machine runs, best first: the names that `DUALPROP_ISA` takes.
#![forbid(unsafe_code)]

fn main() {
    for isa in dualprop::Isa::available() {
        println!("{isa}");
    }
}
