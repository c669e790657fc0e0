//! MPI's functions, opened at run time: one program for Open MPI, for MPICH and its kin, and for the standard binary interface of MPI 5.
//!
//! The three differ in what a handle is (an address, an `int`, a number as long as an address) and in a few constants. A table of
//! functions generic over the handle covers them.

use crate::dist::launch::Launcher;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::ffi::{CStr, c_char, c_int, c_void};

/// What an MPI call returns where it did not succeed.
#[derive(Clone, Copy, Debug)]
pub struct Code(pub c_int);

fn check(code: c_int) -> Result<(), Code> {
    if code == 0 { Ok(()) } else { Err(Code(code)) }
}

/// A message under way.
#[derive(Clone, Copy, Debug)]
pub struct Request(usize);

/// The calls that this program makes, whatever the library's handles are. Ranks are those of all processes that were launched.
pub trait Calls: Send {
    /// Starts the library, for calls from any thread, one at a time.
    fn start(&self) -> Result<(), String>;
    /// This process's number, and how many there are.
    fn place(&self) -> (usize, usize);
    /// Name and version of the library.
    fn version(&self) -> String;
    /// Begins to send `len` bytes (at most an `int`'s).
    ///
    /// # Safety
    /// The bytes stay where they are, unchanged, until the request is done.
    unsafe fn send(&self, bytes: *const u8, len: usize, to: usize) -> Result<Request, Code>;
    /// Begins to receive as many.
    ///
    /// # Safety
    /// The memory is there, and nobody else's, until the request is done.
    unsafe fn receive(&self, bytes: *mut u8, len: usize, from: usize) -> Result<Request, Code>;
    /// Gets on with all messages, and whether this one is done; then its request means nothing any more.
    fn is_done(&self, request: &mut Request) -> Result<bool, Code>;
    /// Ends every process of the launch.
    fn abort(&self, code: u8);
    /// Leaves, when all others do.
    fn finish(&self);
}

/// A handle of MPI as it goes by value.
trait Handle: Copy + Send {
    fn of(number: usize) -> Self;
    fn number(self) -> usize;
}

impl Handle for usize {
    fn of(number: usize) -> usize {
        number
    }
    fn number(self) -> usize {
        self
    }
}

impl Handle for c_int {
    fn of(number: usize) -> c_int {
        number as c_int
    }
    fn number(self) -> usize {
        self as usize
    }
}

macro_rules! table {
    ($($field:ident = $name:literal ($($t:ty),*);)*) => {
        /// The functions, of a library whose handles are `H`s.
        struct Table<H> { $($field: unsafe extern "C" fn($($t),*) -> c_int,)* }

        impl<H> Table<H> {
            fn of(library: &Library) -> Result<Self, String> {
                Ok(Table { $(
                    // SAFETY: the signatures are those of the MPI standard, with H for every handle that goes by value.
                    $field: *unsafe { library.get(concat!($name, "\0").as_bytes()) }.map_err(|e| e.to_string())?,
                )* })
            }
        }
    };
}

table! {
    init = "MPI_Init_thread" (*mut c_int, *mut *mut *mut c_char, c_int, *mut c_int);
    finalize = "MPI_Finalize" ();
    abort = "MPI_Abort" (H, c_int);
    rank = "MPI_Comm_rank" (H, *mut c_int);
    size = "MPI_Comm_size" (H, *mut c_int);
    set_errors = "MPI_Comm_set_errhandler" (H, H);
    send = "MPI_Isend" (*const c_void, c_int, H, c_int, c_int, H, *mut H);
    receive = "MPI_Irecv" (*mut c_void, c_int, H, c_int, c_int, H, *mut H);
    test = "MPI_Test" (*mut H, *mut c_int, *mut c_void);
    version = "MPI_Get_library_version" (*mut c_char, *mut c_int);
}

/// What the header files of the library define.
struct Constants<H> {
    world: H,
    byte: H,
    errors_return: H,
    status_ignore: usize,
    thread_serialized: c_int,
}

struct Engine<H> {
    table: Table<H>,
    is: Constants<H>,
    /// It stays open as long as its functions are called.
    _library: Library,
}

/// Messages arrive in the order in which they were sent. MPI takes one that is shorter than what is waited for silently; by its length
/// as its tag it is not taken at all, so that the rank that sent it is missed, and named. (Every library has tags up to 32767.)
fn tag(len: usize) -> c_int {
    (len % 32_749) as c_int
}

impl<H: Handle> Calls for Engine<H> {
    fn start(&self) -> Result<(), String> {
        let (wanted, mut provided) = (self.is.thread_serialized, 0);
        // SAFETY: MPI allows null for the program's arguments; the level is written to a local.
        let code = unsafe { (self.table.init)(std::ptr::null_mut(), std::ptr::null_mut(), wanted, &mut provided) };
        if code != 0 {
            return Err(format!("MPI_Init_thread gave {code}"));
        }
        if provided < wanted {
            return Err(format!("it allows calls from one thread only (level {provided}, {wanted} is needed)"));
        }
        // SAFETY: the library was started, and both handles are its own. Without this it ends the process at the first error.
        match unsafe { (self.table.set_errors)(self.is.world, self.is.errors_return) } {
            0 => Ok(()),
            code => Err(format!("MPI_Comm_set_errhandler gave {code}")),
        }
    }

    fn place(&self) -> (usize, usize) {
        let (mut rank, mut size) = (0, 0);
        // SAFETY: the library was started; both numbers are written to locals.
        unsafe {
            (self.table.rank)(self.is.world, &mut rank);
            (self.table.size)(self.is.world, &mut size);
        }
        (rank as usize, size as usize)
    }

    fn version(&self) -> String {
        // MPI_MAX_LIBRARY_VERSION_STRING is 256 in Open MPI and 8192 in the others.
        let (mut text, mut len) = ([0 as c_char; 8192], 0);
        // SAFETY: the buffer is as long as any library's text, and zeros follow what is written.
        let text = unsafe {
            (self.table.version)(text.as_mut_ptr(), &mut len);
            CStr::from_ptr(text.as_ptr())
        };
        // "Open MPI v4.1.4, package: ..." and "MPICH Version:      4.0.2".
        let line = text.to_string_lossy().lines().next().unwrap_or_default().replace(" Version:", "");
        line.split(',').next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    unsafe fn send(&self, bytes: *const u8, len: usize, to: usize) -> Result<Request, Code> {
        let mut request = H::of(0);
        // SAFETY: the caller keeps the bytes; the handle is written to a local of the library's own handle type.
        check(unsafe {
            let is = &self.is;
            (self.table.send)(bytes.cast(), len as c_int, is.byte, to as c_int, tag(len), is.world, &mut request)
        })?;
        Ok(Request(request.number()))
    }

    unsafe fn receive(&self, bytes: *mut u8, len: usize, from: usize) -> Result<Request, Code> {
        let mut request = H::of(0);
        // SAFETY: as in `send`.
        check(unsafe {
            let is = &self.is;
            (self.table.receive)(bytes.cast(), len as c_int, is.byte, from as c_int, tag(len), is.world, &mut request)
        })?;
        Ok(Request(request.number()))
    }

    fn is_done(&self, request: &mut Request) -> Result<bool, Code> {
        let (mut handle, mut done) = (H::of(request.0), 0);
        // SAFETY: the handle is one that the library gave; the status is the library's constant for none.
        check(unsafe { (self.table.test)(&mut handle, &mut done, self.is.status_ignore as *mut c_void) })?;
        request.0 = handle.number();
        Ok(done != 0)
    }

    fn abort(&self, code: u8) {
        // SAFETY: the library was started.
        unsafe { (self.table.abort)(self.is.world, code.into()) };
    }

    fn finish(&self) {
        // SAFETY: the library was started, and no message is under way.
        unsafe { (self.table.finalize)() };
    }
}

/// The libraries of a launcher, in the order in which they are tried. What was started once cannot be started again as another, so the
/// launcher decides. (The standard interface does not say whose library it is: MPICH's so far.)
pub fn names(of: Launcher) -> &'static [&'static str] {
    match of {
        Launcher::Pmi => &["libmpi_abi.so.1", "libmpi_abi.so.0", "libmpich.so.12", "libmpi.so.12"],
        Launcher::OpenMpi | Launcher::Pmix => &["libmpi.so.40", "libmpi_abi.so.1", "libmpi_abi.so.0"],
        Launcher::Torchrun | Launcher::Own => &[],
    }
}

/// Opens a library, and starts nothing.
///
/// # Errors
/// It is not there, or is no MPI.
pub fn open(name: &str) -> Result<Box<dyn Calls>, String> {
    // SAFETY: to load a library is to run its initializers; MPI's do nothing before MPI_Init. Open MPI's plug-ins look for its symbols:
    // global.
    let library = unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) }
        .map_err(|e| std::error::Error::source(&e).unwrap_or(&e).to_string())?;
    let address = |name: &str| {
        // SAFETY: only the symbol's address is taken.
        let symbol = unsafe { library.get::<*mut c_void>(format!("{name}\0").as_bytes()) };
        symbol.map(|symbol| symbol.into_raw() as usize).map_err(|e| e.to_string())
    };
    if let Ok(world) = address("ompi_mpi_comm_world") {
        let is = Constants {
            world,
            byte: address("ompi_mpi_byte")?,
            errors_return: address("ompi_mpi_errors_return")?,
            status_ignore: 0,
            thread_serialized: 2,
        };
        return Ok(Box::new(Engine { table: Table::<usize>::of(&library)?, is, _library: library }));
    }
    // MPICH 5 has functions of the standard interface in its own library too: the file's name tells which of the two it is.
    if name.rsplit('/').next().is_some_and(|file| file.starts_with("libmpi_abi.")) {
        let is =
            Constants { world: 0x101, byte: 0x247, errors_return: 0x143, status_ignore: 0, thread_serialized: 2048 };
        return Ok(Box::new(Engine { table: Table::<usize>::of(&library)?, is, _library: library }));
    }
    let is = Constants {
        world: 0x4400_0000,
        byte: 0x4c00_010d,
        errors_return: 0x5400_0001,
        status_ignore: 1,
        thread_serialized: 2,
    };
    Ok(Box::new(Engine { table: Table::<c_int>::of(&library)?, is, _library: library }))
}
