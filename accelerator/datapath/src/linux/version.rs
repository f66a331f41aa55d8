//! The programs and maps that make up one version.

use std::borrow::Cow;

use isthmus_accel_abi::{ABI_VERSION, map, program};

/// The programs, as `cargo xtask ebpf` built them.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/isthmus.bpf.o");

/// An object and what is in it. The built-in one, unless a test plays an agent of another version.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Version {
    /// Version of its layouts, see [`ABI_VERSION`].
    pub abi_version: u32,
    /// Its maps, which are pinned by these names.
    pub maps: Vec<&'static str>,
    /// The ELF file.
    pub object: Cow<'static, [u8]>,
    /// Its programs, in the order in which they are attached.
    pub programs: Vec<&'static str>,
}

impl Version {
    /// Returns the one that this agent was built with.
    #[must_use]
    pub fn built_in() -> Self {
        Self {
            abi_version: ABI_VERSION,
            maps: map::ALL.into(),
            object: Cow::Borrowed(OBJECT),
            programs: program::ON_DEMAND.into_iter().chain(program::ALL).collect(),
        }
    }
}
