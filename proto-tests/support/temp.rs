//! Temporary folders. They stand under `/tmp` whatever `TMPDIR` says: a path of a Unix socket holds 107 bytes.
//! `WALRECV_TEST_FOLDER` names another place (short, and passable for `postgres`).

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::user::give_to_postgres;

/// The variable that names where all of them stand.
pub const FOLDER: &str = "WALRECV_TEST_FOLDER";

/// Where all of them stand.
pub fn base() -> PathBuf {
    std::env::var_os(FOLDER).map_or_else(|| PathBuf::from("/tmp"), PathBuf::from)
}

/// A folder that goes with this value; kept, and named, when `WALRECV_KEEP` is set.
pub struct TempDir {
    dir: Option<tempfile::TempDir>,
    path: PathBuf,
}

impl TempDir {
    /// Owned by whoever runs the tests; others can pass through it and read.
    pub fn new(tag: &str) -> TempDir {
        let dir = tempfile::Builder::new()
            .prefix(&format!("walrecv-{tag}-"))
            .tempdir_in(base())
            .expect("make a temporary folder");
        let path = dir.path().to_path_buf();
        set_mode(&path, 0o755);
        TempDir { dir: Some(dir), path }
    }

    /// Owned by `postgres`, mode 0700.
    pub fn for_postgres(tag: &str) -> TempDir {
        let made = TempDir::new(tag);
        set_mode(&made.path, 0o700);
        give_to_postgres(&made.path);
        made
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Makes a folder in it that `postgres` owns, mode 0700.
    pub fn postgres_dir(&self, name: &str) -> PathBuf {
        let path = self.join(name);
        std::fs::create_dir_all(&path).expect("make a folder");
        set_mode(&path, 0o700);
        give_to_postgres(&path);
        path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if std::env::var_os("WALRECV_KEEP").is_some()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("kept {}", dir.keep().display());
        }
    }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("set the mode of a folder");
}
