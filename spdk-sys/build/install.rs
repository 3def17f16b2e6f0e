//! Where SPDK is, by pkg-config, and how it is linked.
//!
//! SPDK registers its transports, its sockets and its environment in constructors: functions that nothing
//! calls by name. A linker leaves such objects out of a static library unless it is told to take all of them,
//! so SPDK and DPDK are linked whole. What they need of the system is linked as usual.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The packages of SPDK and DPDK that are linked whole.
const PACKAGES: [&str; 4] = ["spdk_nvme", "spdk_env_dpdk", "libdpdk", "spdk_sock_posix"];

/// What they need of the system.
const SYSTEM_PACKAGE: &str = "spdk_syslibs";

/// The oldest SPDK that has all that is used: year and month.
const OLDEST: (u32, u32) = (24, 9);

/// An installed SPDK.
#[derive(Debug)]
pub struct Install {
    /// Where its headers are.
    pub include_directories: Vec<PathBuf>,
    library_directories: Vec<PathBuf>,
    /// Names of libraries that are linked whole.
    whole: Vec<String>,
    /// Names of libraries of the system.
    system: Vec<String>,
    /// Static libraries that are given by their paths.
    files: Vec<PathBuf>,
}

/// Asks pkg-config, and looks at what it found.
pub fn find() -> Result<Install, String> {
    for variable in [
        "PKG_CONFIG",
        "PKG_CONFIG_PATH",
        "PKG_CONFIG_LIBDIR",
        "LIBCLANG_PATH",
    ] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let flags = Flags::read(&ask(&["--cflags"], &PACKAGES)?);
    let libraries = Flags::read(&ask(&["--libs"], &PACKAGES)?);
    let system = Flags::read(&ask(&["--libs", "--static"], &[SYSTEM_PACKAGE])?);
    let install = Install {
        include_directories: flags.include_directories,
        library_directories: [libraries.library_directories, system.library_directories].concat(),
        whole: libraries.libraries,
        system: system.libraries,
        files: system.files,
    };
    install.check_version()?;
    install.check_files()?;
    Ok(install)
}

impl Install {
    /// Tells Cargo what to link.
    pub fn link(&self) {
        for directory in &self.library_directories {
            println!("cargo::rustc-link-search=native={}", directory.display());
        }
        for name in &self.whole {
            println!("cargo::rustc-link-lib=static:+whole-archive,-bundle={name}");
        }
        for file in &self.files {
            let (Some(directory), Some(name)) = (file.parent(), library_of(file)) else {
                continue;
            };
            println!("cargo::rustc-link-search=native={}", directory.display());
            println!("cargo::rustc-link-lib=static:-bundle={name}");
        }
        for name in &self.system {
            println!("cargo::rustc-link-lib=dylib={name}");
        }
    }

    fn check_version(&self) -> Result<(), String> {
        let header = self
            .include_directories
            .iter()
            .map(|directory| directory.join("spdk/version.h"))
            .find(|path| path.exists())
            .ok_or_else(|| {
                explain(&format!(
                    "the headers are missing: no spdk/version.h in {:?}",
                    self.include_directories
                ))
            })?;
        println!("cargo::rerun-if-changed={}", header.display());
        let text = std::fs::read_to_string(&header)
            .map_err(|error| explain(&format!("{} cannot be read: {error}", header.display())))?;
        let number = |name: &str| {
            text.lines()
                .filter_map(|line| line.strip_prefix("#define ")?.trim().strip_prefix(name))
                .find_map(|rest| rest.trim().trim_start_matches('0').parse::<u32>().ok())
        };
        let version = number("SPDK_VERSION_MAJOR").zip(number("SPDK_VERSION_MINOR"));
        match version {
            Some(version) if version >= OLDEST => Ok(()),
            Some((year, month)) => Err(explain(&format!(
                "v{year}.{month:02} is installed, which is too old"
            ))),
            None => Err(explain(&format!("{} tells no version", header.display()))),
        }
    }

    /// A static library for each name: shared ones would lose their constructors unnoticed.
    fn check_files(&self) -> Result<(), String> {
        for name in &self.whole {
            let file = format!("lib{name}.a");
            if !self
                .library_directories
                .iter()
                .any(|directory| directory.join(&file).exists())
            {
                return Err(explain(&format!(
                    "{file} is not in {:?}: SPDK is linked statically",
                    self.library_directories
                )));
            }
        }
        Ok(())
    }
}

/// `libisal.a` is `isal`.
fn library_of(file: &Path) -> Option<&str> {
    file.file_name()?
        .to_str()?
        .strip_prefix("lib")?
        .strip_suffix(".a")
}

fn ask(options: &[&str], packages: &[&str]) -> Result<String, String> {
    let program = std::env::var_os("PKG_CONFIG").unwrap_or_else(|| "pkg-config".into());
    let output = Command::new(&program)
        .args(options)
        .args(packages)
        .output()
        .map_err(|error| explain(&format!("{} cannot be run: {error}", program.display())))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(explain(String::from_utf8_lossy(&output.stderr).trim()))
}

fn explain(what: &str) -> String {
    let path = std::env::var("PKG_CONFIG_PATH").unwrap_or_default();
    format!(
        "the feature `spdk` needs an installed SPDK, v{}.{:02} or later, built with static libraries\n\
         looked for by pkg-config: {} and {SYSTEM_PACKAGE} (PKG_CONFIG_PATH={path:?})\n\
         found: {what}\n\
         to get it: git clone --recursive https://github.com/spdk/spdk, then in it\n\
         scripts/pkgdep.sh; ./configure --prefix=PREFIX --with-rdma; make; make install\n\
         and export PKG_CONFIG_PATH=PREFIX/lib/pkgconfig; or build without the feature `spdk`",
        OLDEST.0,
        OLDEST.1,
        PACKAGES.join(", "),
    )
}

/// What pkg-config printed, taken apart; each thing once, in its order.
#[derive(Debug, Default)]
struct Flags {
    include_directories: Vec<PathBuf>,
    library_directories: Vec<PathBuf>,
    libraries: Vec<String>,
    files: Vec<PathBuf>,
}

impl Flags {
    fn read(text: &str) -> Self {
        let mut flags = Self::default();
        let mut seen = BTreeSet::new();
        for word in text
            .split_whitespace()
            .filter(|word| seen.insert(word.to_owned()))
        {
            if let Some(directory) = word.strip_prefix("-I") {
                flags.include_directories.push(directory.into());
            } else if let Some(directory) = word.strip_prefix("-L") {
                flags.library_directories.push(directory.into());
            } else if let Some(name) = word.strip_prefix("-l") {
                flags.libraries.push(name.to_owned());
            } else if word.ends_with(".a") && library_of(Path::new(word)).is_some() {
                flags.files.push(word.into());
            }
        }
        flags
    }
}
