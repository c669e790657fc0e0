//! The sum over processes beside MPI's own: `cargo bench -p dino-host --bench group`.
//!
//! The program starts itself under every launcher that it finds. Each rank sums as a step of training does, by halves in the order of
//! the ranks, and, by turns, with `MPI_Allreduce` in place, whose order is the library's own.

use dino_host::dist::Group;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::ffi::{c_int, c_void};
use std::process::Command;
use std::time::Instant;

/// How often each is timed.
const ROUNDS: usize = 7;

/// How many numbers are summed: the parameters of a ViT-S.
const NUMBERS: usize = 22_000_000;

fn main() {
    let group =
        Group::join(|launch| panic!("{} brings no MPI", launch.by.name())).expect("a launcher's library, or none");
    if group.size() > 1 {
        measure(&group, NUMBERS);
        return group.finish(0);
    }
    if std::env::args().skip(1).any(|flag| flag != "--bench") {
        return println!("SKIPPED: the benchmark of sums over processes, for the flags name work of the others");
    }
    let program = std::env::current_exe().expect("this program");
    for (launcher, flags) in [("mpirun.openmpi", &["--bind-to", "none"][..]), ("mpirun.mpich", &[])] {
        let mut command = Command::new(launcher);
        command.args(flags).args(["-n", "2"]).arg(&program);
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        if command.status().is_err() {
            println!("SKIPPED: there is no {launcher}");
        }
    }
}

/// Prints the fastest and the median time of each.
fn measure(group: &Group, numbers: usize) {
    let mut x = vec![0.0f32; numbers];
    let mut times = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        for (way, times) in times.iter_mut().enumerate() {
            x.iter_mut().enumerate().for_each(|(i, x)| *x = (i % 1000) as f32 + group.rank() as f32);
            group.gather_parts(&mut vec![0; group.size()]).expect("all ranks live"); // all begin together
            let started = Instant::now();
            match way {
                0 => group.sum(&mut x).expect("all ranks live"),
                _ => all_reduce(&mut x),
            }
            times.push(1e3 * started.elapsed().as_secs_f64());
            let (ranks, at) = (group.size(), numbers - 1);
            let sum = (ranks * (at % 1000) + ranks * (ranks - 1) / 2) as f32;
            assert_eq!(x[at], sum, "a sum over {ranks} ranks");
        }
    }
    if group.is_first() {
        let [ordered, library] = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            [times[0], times[ROUNDS / 2]]
        });
        println!(
            "{}: {numbers} numbers: in order {:.1} ms (median {:.1}), MPI_Allreduce {:.1} ms (median {:.1}): {:.2} of it (medians {:.2})",
            group.description().unwrap_or_default(),
            ordered[0],
            ordered[1],
            library[0],
            library[1],
            ordered[0] / library[0],
            ordered[1] / library[1]
        );
    }
}

/// The library's own sum, in place.
fn all_reduce(x: &mut [f32]) {
    let len = c_int::try_from(x.len()).expect("a count is an int");
    let named = std::env::var("OMPI_COMM_WORLD_SIZE").map_or("libmpich.so.12", |_| "libmpi.so.40");
    // SAFETY: the library is open, for this process is a rank; the functions' signatures and the constants are those of its header file.
    let code = unsafe {
        let library = Library::open(Some(named), RTLD_NOW | RTLD_GLOBAL).expect("the launcher's library");
        if named == "libmpi.so.40" {
            let at = |name: &str| library.get::<*mut c_void>(name.as_bytes()).expect("a symbol of Open MPI").into_raw();
            type Sum = unsafe extern "C" fn(*const c_void, *mut c_void, c_int, usize, usize, usize) -> c_int;
            let sum = library.get::<Sum>(b"MPI_Allreduce").expect("a function of MPI");
            let [float, add, world] =
                ["ompi_mpi_float", "ompi_mpi_op_sum", "ompi_mpi_comm_world"].map(|name| at(name) as usize);
            // MPI_IN_PLACE is 1.
            sum(std::ptr::without_provenance(1), x.as_mut_ptr().cast(), len, float, add, world)
        } else {
            type Sum = unsafe extern "C" fn(*const c_void, *mut c_void, c_int, c_int, c_int, c_int) -> c_int;
            let sum = library.get::<Sum>(b"MPI_Allreduce").expect("a function of MPI");
            // And -1.
            sum(
                std::ptr::without_provenance(usize::MAX),
                x.as_mut_ptr().cast(),
                len,
                0x4c00_040a,
                0x5800_0003,
                0x4400_0000,
            )
        }
    };
    assert_eq!(code, 0, "MPI_Allreduce");
}
