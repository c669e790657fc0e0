//! Where NVIDIA's libraries are: each is opened at run time, and nothing links against one.

use super::driver;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::path::{Path, PathBuf};

/// A library, and where it may be.
pub struct Wanted<'a> {
    /// The variable that names its file.
    pub variable: &'a str,
    /// The file that a caller has named.
    pub named: Option<PathBuf>,
    /// Its file's names, in the order in which they are tried.
    pub files: &'a [&'a str],
    /// Its folder in a Python environment, below `nvidia`.
    pub wheel: &'a str,
}

impl Wanted<'_> {
    /// The files to try, in order. One that is named is the only one; so is none where the driver is a named one, perhaps an emulation,
    /// with which the real library must not be mixed.
    fn candidates(&self) -> Vec<PathBuf> {
        let named = self.named.clone().or_else(|| std::env::var_os(self.variable).map(PathBuf::from));
        if named.is_some() || driver::named() {
            return named.into_iter().collect();
        }
        let mut folders = vec![PathBuf::new(), "/usr/local/cuda/lib64".into()];
        if let Some(venv) = std::env::var_os("VIRTUAL_ENV") {
            for python in std::fs::read_dir(Path::new(&venv).join("lib")).into_iter().flatten().flatten() {
                folders.push(python.path().join("site-packages/nvidia").join(self.wheel));
            }
        }
        folders.iter().flat_map(|f| self.files.iter().map(|name| f.join(name))).collect()
    }

    /// The first candidate that loads.
    ///
    /// # Errors
    /// What the loader reported of the first of them, if none does.
    pub fn open(&self) -> Result<Library, String> {
        let mut why = None;
        for path in self.candidates() {
            // SAFETY: running the library's initializers is what loading it means.
            match unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) } {
                Ok(library) => return Ok(library),
                Err(e) => _ = why.get_or_insert_with(|| std::error::Error::source(&e).unwrap_or(&e).to_string()),
            }
        }
        Err(why.unwrap_or_else(|| {
            format!("the driver is a named one, and {} names no library to go with it", self.variable)
        }))
    }
}

/// The functions of a library that are used, `Functions`, and how they are loaded from a [`Wanted`]. A number that is returned is a
/// status, 0 where all is well. The signatures are those of the library's header.
macro_rules! functions {
    ($(fn $name:ident = $symbol:ident($($t:ty),*) -> $r:ty;)*) => {
        struct Functions {
            $($name: unsafe extern "C" fn($($t),*) -> $r,)*
            /// Keeps them where they are.
            _library: libloading::os::unix::Library,
        }

        impl Functions {
            fn load(wanted: $crate::cuda::libraries::Wanted) -> std::result::Result<Functions, String> {
                let library = wanted.open()?;
                Ok(Functions {
                    // SAFETY: the functions of these names have these signatures, and the library stays with them.
                    $($name: *unsafe { library.get(concat!(stringify!($symbol), "\0").as_bytes()) }.map_err(|e| e.to_string())?,)*
                    _library: library,
                })
            }
        }
    };
}
pub(crate) use functions;
