//! What the kernel's verifier has to do for each program, by its own words.
//!
//! It says so only of a load that fails. So each program is loaded on a thread that has no descriptor left: the verifier
//! accepts the program, and handing it over fails.

use std::{fs::File, io, os::fd::OwnedFd, thread};

use aya::{
    Btf, VerifierLogLevel,
    programs::{Program, ProgramError, ProgramFd},
};

use super::{
    btf::KernelOffsets,
    load::{iterated, load_by_type, loader},
    version::Version,
};
use crate::DatapathError;

/// The cost of one program.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ProgramCost {
    /// Its name.
    pub program: &'static str,
    /// Instructions that the verifier walked through; at most a million.
    pub instructions: u32,
    /// Stack of the program and all its functions; along any chain of calls at most 512 bytes.
    pub stack_bytes: u32,
}

/// Measures every program on the running kernel. Attaches and pins nothing. Takes about 0.3 s.
///
/// # Errors
///
/// Returns [`DatapathError::Load`] or [`DatapathError::Object`] if the kernel takes no map, or says of a program
/// something else than what it cost.
pub fn program_costs() -> Result<Vec<ProgramCost>, DatapathError> {
    let offsets = KernelOffsets::of_running_kernel()?;
    // The table of descriptors that is filled up belongs to this thread alone.
    thread::scope(|scope| scope.spawn(|| measure(&offsets)).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn measure(offsets: &KernelOffsets) -> Result<Vec<ProgramCost>, DatapathError> {
    // SAFETY: changes this thread only, which ends with this function.
    if unsafe { libc::unshare(libc::CLONE_FILES) } != 0 {
        return Err(DatapathError::Kernel {
            action: "giving a thread its own descriptors".to_owned(),
            source: io::Error::last_os_error(),
        });
    }
    let version = Version::built_in();
    let mut object = loader(offsets, &version)
        .verifier_log_level(VerifierLogLevel::STATS)
        .load(&version.object)
        .map_err(|source| DatapathError::Load {
            source: Box::new(source),
        })?;
    let types = Btf::from_sys_fs().map_err(|source| DatapathError::Load {
        source: Box::new(source.into()),
    })?;
    let _filled = use_up_descriptors();
    version
        .programs
        .iter()
        .map(|&name| {
            let program = object
                .program_mut(name)
                .ok_or_else(|| DatapathError::Object {
                    detail: format!("it has no program {name}"),
                })?;
            match load(program, name, &types) {
                Err(ProgramError::LoadError {
                    io_error,
                    verifier_log,
                }) if io_error.raw_os_error() == Some(libc::EMFILE) => {
                    cost(name, &verifier_log.to_string())
                }
                Err(source) => Err(DatapathError::Program {
                    program: name,
                    source: Box::new(source),
                }),
                Ok(_) => Err(DatapathError::Object {
                    detail: format!("{name} was loaded without a free descriptor"),
                }),
            }
        })
        .collect()
}

/// As [`load_by_type`], which would need a descriptor to read the kernel's types.
fn load<'a>(
    program: &'a mut Program,
    name: &str,
    types: &Btf,
) -> Result<&'a ProgramFd, ProgramError> {
    if let Program::Iter(program) = program {
        program.load(iterated(name), types)?;
        return program.fd();
    }
    load_by_type(program, name)
}

fn use_up_descriptors() -> Vec<OwnedFd> {
    let Ok(file) = File::open("/dev/null") else {
        return Vec::new();
    };
    let mut used = vec![OwnedFd::from(file)];
    while let Ok(another) = used[0].try_clone() {
        used.push(another);
    }
    used
}

fn cost(program: &'static str, log: &str) -> Result<ProgramCost, DatapathError> {
    parse(log)
        .map(|(instructions, stack_bytes)| ProgramCost {
            program,
            instructions,
            stack_bytes,
        })
        .ok_or_else(|| DatapathError::Object {
            detail: format!("the verifier says of {program}: {log}"),
        })
}

/// Finds instructions and stack in the verifier's statistics.
fn parse(log: &str) -> Option<(u32, u32)> {
    let after = |words: &str| {
        let rest = log.lines().find_map(|line| line.strip_prefix(words))?;
        rest.split_whitespace().next()
    };
    // `processed 1006 insns (limit 1000000) …`
    let instructions = after("processed ")?.parse().ok()?;
    Some((
        instructions,
        by_function(log).or_else(|| after("stack depth ").and_then(in_one_line))?,
    ))
}

/// `96+32+0`: up to Linux 7.2.
fn in_one_line(depths: &str) -> Option<u32> {
    depths
        .split('+')
        .map(|depth| depth.parse::<u32>().ok())
        .sum()
}

/// `subprog 0 (isthmus_parked) main insns_self 92 insns_total 335 stack 56`: from Linux 7.3 on.
fn by_function(log: &str) -> Option<u32> {
    let depths = log
        .lines()
        .filter(|line| line.starts_with("subprog "))
        .map(|line| line.rsplit_once(" stack ")?.1.trim().parse::<u32>().ok());
    let depths = depths.collect::<Option<Vec<u32>>>()?;
    (!depths.is_empty()).then(|| depths.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifiers_statistics_are_found() {
        let log = "verification time 512 usec\nstack depth 96+32+0\nprocessed 1006 insns (limit 1000000) max_states_per_insn 4";
        assert_eq!(parse(log), Some((1006, 128)));
        let log = "stack depth max 64\nsubprog 0 (a) main insns_self 92 insns_total 335 stack 56\nsubprog 1 (b) static insns_self 243 insns_total 243 stack 8\nprocessed 335 insns (limit 1000000)";
        assert_eq!(parse(log), Some((335, 64)));
        assert_eq!(parse("R1 invalid mem access\nprocessed 7 insns"), None);
        assert_eq!(parse(""), None);
    }
}
