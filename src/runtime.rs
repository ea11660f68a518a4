//! Where kernels run: the instruction set, chosen once, and the threads.

use core::num::NonZero;
use dualprop_kernels::isa::{Isa, IsaError};
use faer::Par;

use crate::error::Error;

/// The instruction set and the number of threads that plans are made for.
///
/// Neither changes a bit of any result. The calling thread works itself; its helpers are threads of the rayon pool that it belongs to, of the
/// global one outside of any. A helper looks for more work for 50 µs before it sleeps. Small work stays on the calling thread, unless a helper is
/// awake on a core that is near, or more of it follows at once.
#[derive(Clone, Copy, Debug)]
pub struct Runtime {
    isa: Isa,
    par: Par,
}

impl Runtime {
    /// Exactly this instruction set and parallelism.
    pub fn new(isa: Isa, par: Par) -> Self {
        Self { isa, par }
    }

    /// The best instruction set of this machine on one thread, unless the environment says otherwise.
    ///
    /// `DUALPROP_ISA` forces an instruction set, `DUALPROP_NUM_THREADS` the number of threads (0: one for each core), and
    /// `DUALPROP_VERBOSE=1` prints one line to standard error: version, instruction set, threads. Nothing else reads the environment.
    ///
    /// # Errors
    /// [`Error::Environment`] for a name that is unknown or not supported here, and for a count that is not a number.
    pub fn from_env() -> Result<Self, Error> {
        let isa = match read("DUALPROP_ISA")? {
            Some(name) => Isa::by_name(&name).map_err(|e| Error::Environment {
                variable: "DUALPROP_ISA",
                value: name,
                allowed: match e {
                    IsaError::Unknown => format!("one of {}", Isa::NAMES.join(", ")),
                    _ => format!(
                        "an instruction set that this machine supports: {}",
                        Isa::available().map(Isa::name).collect::<Vec<_>>().join(", ")
                    ),
                },
            })?,
            None => Isa::best(),
        };
        let runtime = Self { isa, par: Par::Seq };
        let runtime = match read("DUALPROP_NUM_THREADS")? {
            Some(count) => match count.trim().parse() {
                Ok(threads) => runtime.with_threads(threads),
                Err(_) => {
                    let allowed = "a number of threads, 0 for one on each core".to_owned();
                    return Err(Error::Environment { variable: "DUALPROP_NUM_THREADS", value: count, allowed });
                }
            },
            None => runtime,
        };
        if read("DUALPROP_VERBOSE")?.is_some_and(|v| v == "1") {
            eprintln!("dualprop {}: {} on {} thread(s)", env!("CARGO_PKG_VERSION"), isa, runtime.threads());
        }
        Ok(runtime)
    }

    /// The same on `threads` threads; 0 for one on each core.
    pub fn with_threads(self, threads: usize) -> Self {
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, NonZero::get),
            n => n,
        };
        let par = NonZero::new(threads).filter(|n| n.get() > 1).map_or(Par::Seq, Par::Rayon);
        Self { par, ..self }
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The parallelism.
    pub fn par(&self) -> Par {
        self.par
    }

    /// The number of threads that large work is cut for.
    pub fn threads(&self) -> usize {
        match self.par {
            Par::Seq => 1,
            Par::Rayon(n) => n.get(),
        }
    }
}

fn read(variable: &'static str) -> Result<Option<String>, Error> {
    match std::env::var(variable) {
        Ok(value) => Ok(Some(value)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(value)) => {
            let value = value.to_string_lossy().into_owned();
            Err(Error::Environment { variable, value, allowed: "plain text".to_owned() })
        }
    }
}
