//! Where NVIDIA's libraries are: each is opened at run time, and nothing links against one.

use super::driver;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A library, and where it may be.
pub struct Wanted<'a> {
    /// The variable that names its file.
    pub variable: &'a str,
    /// The file that a caller has named.
    pub named: Option<PathBuf>,
    /// Its file's names, in the order in which they are tried.
    pub files: &'a [&'a str],
    /// Its folders in a Python environment, below `nvidia`: wheels of CUDA 13 and of CUDA 12 have different ones.
    pub wheels: &'a [&'a str],
}

/// The value of a variable of the environment.
type Environment<'a> = dyn Fn(&str) -> Option<OsString> + 'a;

/// Below the folder of a toolkit or of an environment of conda.
const OF_A_TOOLKIT: [&str; 3] = ["lib64", "lib", "targets/x86_64-linux/lib"];
/// Toolkits where no variable names one, and Pythons whose packages belong to the machine or to its user.
const TOOLKITS: [&str; 2] = ["/usr/local/cuda", "/opt/cuda"];
const PYTHONS: [&str; 2] = ["/usr/local", "/opt/conda"];

impl Wanted<'_> {
    /// The folders to look in, in order: what the environment names first. An empty one leaves it to the system's loader.
    fn folders(&self, environment: &Environment<'_>) -> Vec<PathBuf> {
        let path = environment("LD_LIBRARY_PATH").unwrap_or_default();
        let mut folders: Vec<PathBuf> = std::env::split_paths(&path).filter(|f| !f.as_os_str().is_empty()).collect();
        let named = |variables: &[&str]| variables.iter().filter_map(|v| environment(v)).map(PathBuf::from).collect();
        let toolkits: Vec<PathBuf> = named(&["CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX"]);
        folders.extend(toolkits.iter().flat_map(|toolkit| OF_A_TOOLKIT.map(|below| toolkit.join(below))));
        let pythons: Vec<PathBuf> = named(&["VIRTUAL_ENV", "CONDA_PREFIX"]);
        pythons.iter().for_each(|python| self.wheels_in(python, &mut folders));
        folders.push(PathBuf::new());
        folders.extend(TOOLKITS.iter().flat_map(|toolkit| OF_A_TOOLKIT.map(|below| Path::new(toolkit).join(below))));
        if let Some(home) = environment("HOME") {
            self.wheels_in(&Path::new(&home).join(".local"), &mut folders);
        }
        PYTHONS.iter().for_each(|python| self.wheels_in(Path::new(python), &mut folders));
        folders
    }

    /// The wheels' folders of a Python's packages (Debian calls them `dist-packages`).
    fn wheels_in(&self, python: &Path, folders: &mut Vec<PathBuf>) {
        let mut versions: Vec<PathBuf> =
            std::fs::read_dir(python.join("lib")).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        versions.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python")));
        versions.sort(); // the order of a folder's entries is the file system's
        for version in versions {
            for packages in ["site-packages", "dist-packages"] {
                folders.extend(self.wheels.iter().map(|wheel| version.join(packages).join("nvidia").join(wheel)));
            }
        }
    }

    /// The files to try, in order: those that are there, and the names that the system's loader looks up by itself. One that is named is
    /// the only one; so is none where the driver is a named one, perhaps an emulation, with which the real library must not be mixed.
    fn candidates(&self, environment: &Environment<'_>, driver_is_named: bool) -> Vec<PathBuf> {
        let named = self.named.clone().or_else(|| environment(self.variable).map(PathBuf::from));
        if named.is_some() || driver_is_named {
            return named.into_iter().collect();
        }
        let files = self.folders(environment).into_iter().flat_map(|f| self.files.iter().map(move |name| f.join(name)));
        files.filter(|file| file.components().count() == 1 || file.exists()).collect()
    }

    /// The first candidate that loads, and where it is.
    ///
    /// # Errors
    /// What the loader reported of the first of them, if none does.
    pub fn open(&self) -> Result<(Library, PathBuf), String> {
        first(self.candidates(&|name| std::env::var_os(name), driver::named())).map_err(|why| {
            why.unwrap_or_else(|| {
                format!("the driver is a named one, and {} names no library to go with it", self.variable)
            })
        })
    }
}

/// The first file that loads; why the first did not, if none does and there is one.
fn first(candidates: Vec<PathBuf>) -> Result<(Library, PathBuf), Option<String>> {
    let mut why = None;
    for path in candidates {
        // SAFETY: running the library's initializers is what loading it means.
        match unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) } {
            Ok(library) => return Ok((library, path)),
            Err(e) => _ = why.get_or_insert_with(|| std::error::Error::source(&e).unwrap_or(&e).to_string()),
        }
    }
    Err(why)
}

/// The functions of a library that are used, `Functions`, and how they are loaded from a [`Wanted`]. A number that is returned is a
/// status, 0 where all is well. The signatures are those of the library's header.
macro_rules! functions {
    ($(fn $name:ident = $symbol:ident($($t:ty),*) -> $r:ty;)*) => {
        struct Functions {
            $($name: unsafe extern "C" fn($($t),*) -> $r,)*
            /// Keeps them where they are; the file that it is.
            #[allow(dead_code)]
            library: (libloading::os::unix::Library, std::path::PathBuf),
        }

        impl Functions {
            fn load(wanted: $crate::cuda::libraries::Wanted) -> std::result::Result<Functions, String> {
                let library = wanted.open()?;
                Ok(Functions {
                    // SAFETY: the functions of these names have these signatures, and the library stays with them.
                    $($name: *unsafe { library.0.get(concat!(stringify!($symbol), "\0").as_bytes()) }.map_err(|e| e.to_string())?,)*
                    library,
                })
            }
        }
    };
}
pub(crate) use functions;

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const CUBLASLT: Wanted = Wanted {
        variable: "DINO_CUBLASLT",
        named: None,
        files: &["libcublasLt.so.13", "libcublasLt.so.12"],
        wheels: &["cu13/lib", "cublas/lib"],
    };

    fn make(folder: &Path, file: &str) {
        let file = folder.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "not a library").unwrap();
    }

    /// What is found in `root` with these variables, each naming a folder in it.
    fn found(root: &Path, variables: &[(&str, &str)]) -> Vec<String> {
        let environment = |name: &str| {
            let of = variables.iter().find(|(variable, _)| *variable == name)?;
            Some(root.join(of.1).into_os_string())
        };
        let files = CUBLASLT.candidates(&environment, false).into_iter();
        files.filter_map(|file| Some(file.strip_prefix(root).ok()?.display().to_string())).collect()
    }

    #[test]
    fn every_place_is_searched_and_only_that_one() {
        let places = [
            ("LD_LIBRARY_PATH", "", "libcublasLt.so.12"),
            ("CUDA_HOME", "", "lib64/libcublasLt.so.13"),
            ("CUDA_PATH", "", "targets/x86_64-linux/lib/libcublasLt.so.12"),
            ("CONDA_PREFIX", "", "lib/libcublasLt.so.12"),
            ("CONDA_PREFIX", "", "lib/python3.12/site-packages/nvidia/cublas/lib/libcublasLt.so.12"),
            ("VIRTUAL_ENV", "", "lib/python3.11/site-packages/nvidia/cu13/lib/libcublasLt.so.13"),
            ("VIRTUAL_ENV", "", "lib/python3.11/site-packages/nvidia/cublas/lib/libcublasLt.so.12"),
            ("HOME", ".local/", "lib/python3.13/site-packages/nvidia/cublas/lib/libcublasLt.so.12"),
        ];
        for (variable, below, file) in places {
            let root = tempfile::tempdir().unwrap();
            make(root.path(), &format!("place/{below}{file}"));
            make(root.path(), &format!("place/{below}{file}.1")); // of another name
            assert_eq!(found(root.path(), &[(variable, "place")]), [format!("place/{below}{file}")], "{variable}");
            assert!(found(root.path(), &[(variable, "elsewhere")]).is_empty(), "{variable}");
        }
    }

    #[test]
    fn what_the_environment_names_comes_first_and_13_before_12() {
        let root = tempfile::tempdir().unwrap();
        let wheels = "venv/lib/python3.11/site-packages/nvidia";
        for file in ["cu13/lib/libcublasLt.so.13", "cublas/lib/libcublasLt.so.12"] {
            make(root.path(), &format!("{wheels}/{file}"));
        }
        make(root.path(), "toolkit/lib64/libcublasLt.so.12");
        make(root.path(), "toolkit/lib64/libcublasLt.so.13");
        make(root.path(), "path/libcublasLt.so.12");
        let variables = [("VIRTUAL_ENV", "venv"), ("CUDA_HOME", "toolkit"), ("LD_LIBRARY_PATH", "path")];
        let expected = [
            "path/libcublasLt.so.12".into(),
            "toolkit/lib64/libcublasLt.so.13".into(),
            "toolkit/lib64/libcublasLt.so.12".into(),
            format!("{wheels}/cu13/lib/libcublasLt.so.13"),
            format!("{wheels}/cublas/lib/libcublasLt.so.12"),
        ];
        assert_eq!(found(root.path(), &variables), expected);
    }

    #[test]
    fn a_named_file_is_the_only_one() {
        let environment = |name: &str| (name == "DINO_CUBLASLT").then(|| "/there/lt.so".into());
        for driver_is_named in [false, true] {
            assert_eq!(CUBLASLT.candidates(&environment, driver_is_named), [PathBuf::from("/there/lt.so")]);
        }
        assert!(CUBLASLT.candidates(&|_| None, true).is_empty(), "nothing beside an emulated driver");
        let by_loader = CUBLASLT.candidates(&|_| None, false);
        assert!(by_loader.iter().any(|file| file == Path::new("libcublasLt.so.12")), "{by_loader:?}");
    }

    /// A file that is no library is passed over, and what is loaded is named.
    #[test]
    fn the_first_that_loads_is_taken() {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let real =
            maps.lines().find_map(|line| line.split_whitespace().find(|part| part.contains("libgcc_s"))).unwrap();
        let root = tempfile::tempdir().unwrap();
        make(root.path(), "libcublasLt.so.13");
        let [bad, good] = ["libcublasLt.so.13", "libcublasLt.so.12"].map(|name| root.path().join(name));
        fs::copy(real, &good).unwrap();
        assert_eq!(first(vec![bad.clone(), good.clone()]).unwrap().1, good);
        let why = first(vec![bad]).map(|_| ()).unwrap_err().unwrap();
        assert!(why.contains("libcublasLt.so.13"), "{why}");
        assert_eq!(first(Vec::new()).map(|_| ()).unwrap_err(), None);
    }
}
