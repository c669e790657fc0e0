//! Who started this process, and as which of how many: what launchers leave in the environment.

use super::start;

/// What the environment states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The launcher, or how it speaks.
    pub by: Launcher,
    /// This process's number and how many there are; none where the launcher leaves that to its library (plain PMIx).
    pub place: Option<(usize, usize)>,
}

/// The families of launchers. Each can only be joined by the library that belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// Open MPI's `mpirun`.
    OpenMpi,
    /// The interface of MPICH's `mpiexec`, of Intel MPI, MVAPICH and `srun --mpi=pmi2`.
    Pmi,
    /// `srun --mpi=pmix` and others that speak PMIx alone.
    Pmix,
    /// PyTorch's, which starts processes and brings no library.
    Torchrun,
    /// This program itself, a process for each GPU ([`super::start`]).
    Own,
}

impl Launcher {
    /// For messages.
    pub fn name(self) -> &'static str {
        match self {
            Launcher::OpenMpi => "Open MPI's mpirun",
            Launcher::Pmi => "an MPICH-like launcher (PMI)",
            Launcher::Pmix => "a PMIx launcher",
            Launcher::Torchrun => "torchrun",
            Launcher::Own => "this program itself",
        }
    }

    /// Whether its processes are joined by MPI.
    pub fn brings_mpi(self) -> bool {
        !matches!(self, Launcher::Torchrun | Launcher::Own)
    }

    /// What to do where its library cannot be joined.
    pub fn hint(self) -> &'static str {
        match self {
            Launcher::OpenMpi => {
                "install Open MPI's library (libopenmpi3 on Debian), or DINO_MPI=/path/libmpi.so.40; without mpirun it runs alone"
            }
            Launcher::Pmi => {
                "install the launcher's library (libmpich12 on Debian), or DINO_MPI=/path/libmpi.so.12; without mpiexec it runs alone"
            }
            Launcher::Pmix => "DINO_MPI=/path/libmpi.so.40 names the library that the launcher belongs to",
            Launcher::Torchrun => "without the variable WORLD_SIZE it runs alone",
            Launcher::Own => "without the variable DINO_RANKS it runs alone",
        }
    }
}

/// How this process was started, as its environment states ([`launched`]).
pub fn from_environment() -> Option<Launch> {
    launched(|name| std::env::var(name).ok())
}

/// How a process with these variables was started; none: by nobody, or as the only process.
///
/// Slurm's own variables are not enough: a batch script has them too, and runs once.
pub fn launched(var: impl Fn(&str) -> Option<String>) -> Option<Launch> {
    let number = |name: &str| var(name)?.parse::<usize>().ok();
    let pair = |rank, size| Some((number(rank)?, number(size)?));
    let found = [
        (Launcher::Own, pair(start::RANK, start::RANKS)),
        (Launcher::OpenMpi, pair("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")),
        (Launcher::Pmi, pair("PMI_RANK", "PMI_SIZE")),
        (Launcher::Torchrun, pair("RANK", "WORLD_SIZE")),
    ];
    for (by, place) in found {
        if let Some((_, size)) = place {
            return (size > 1).then_some(Launch { by, place });
        }
    }
    var("PMIX_RANK").map(|_| Launch { by: Launcher::Pmix, place: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Option<Launch> {
        launched(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string()))
    }

    #[test]
    fn launchers_are_known_by_what_they_leave() {
        assert_eq!(of(&[]), None);
        let open = of(&[("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "4"), ("PMIX_RANK", "1")]);
        assert_eq!(open, Some(Launch { by: Launcher::OpenMpi, place: Some((1, 4)) }));
        assert_eq!(
            of(&[("PMI_RANK", "0"), ("PMI_SIZE", "2")]),
            Some(Launch { by: Launcher::Pmi, place: Some((0, 2)) })
        );
        assert_eq!(of(&[("RANK", "3"), ("WORLD_SIZE", "8")]).map(|l| l.by), Some(Launcher::Torchrun));
        assert_eq!(of(&[("PMIX_RANK", "0")]), Some(Launch { by: Launcher::Pmix, place: None }));
    }

    #[test]
    fn the_processes_that_this_program_starts_are_its_own_wherever_it_runs() {
        let found = of(&[("DINO_RANK", "1"), ("DINO_RANKS", "2"), ("PMI_RANK", "0"), ("PMI_SIZE", "1")]);
        assert_eq!(found, Some(Launch { by: Launcher::Own, place: Some((1, 2)) }));
        assert!(!Launcher::Own.brings_mpi() && !Launcher::Torchrun.brings_mpi() && Launcher::Pmi.brings_mpi());
    }

    #[test]
    fn one_process_and_a_batch_script_are_alone() {
        assert_eq!(of(&[("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "1"), ("PMIX_RANK", "0")]), None);
        assert_eq!(of(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")]), None);
        assert_eq!(of(&[("RANK", "zero"), ("WORLD_SIZE", "8")]), None);
    }
}
