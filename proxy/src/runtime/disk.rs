//! Disk layers: a tree of small files behind a symbolic link; the path below it is the key, the content the value.

use super::{Values, scalar};
use std::io;
use std::path::{Path, PathBuf};

/// Bounds of what is read: deeper trees and larger files are no runtime values.
const MAX_DEPTH: usize = 32;
const MAX_FILE: u64 = 64 * 1024;

/// `envoy.config.bootstrap.v3.RuntimeLayer.DiskLayer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskLayer {
    /// The link that is flipped to change all values at once.
    pub symlink_root: PathBuf,
    /// Folder below the link, with the service cluster's name behind it where that is asked for.
    pub subdirectory: PathBuf,
}

impl DiskLayer {
    /// Reads the tree; `None` when it is not there, which is no error.
    ///
    /// # Errors
    /// A file or folder that cannot be read, is too large or lies too deep.
    pub fn read(&self) -> io::Result<Option<Values>> {
        let root = self.symlink_root.join(&self.subdirectory);
        if !root.is_dir() {
            return Ok(None);
        }
        let mut values = Values::new();
        folder(&root, "", 0, &mut values)?;
        Ok(Some(values))
    }
}

fn folder(path: &Path, prefix: &str, depth: usize, values: &mut Values) -> io::Result<()> {
    let named = |e: io::Error, path: &Path| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    if depth > MAX_DEPTH {
        return Err(io::Error::other(format!("{}: folders are nested more than 32 deep", path.display())));
    }
    for entry in std::fs::read_dir(path).map_err(|e| named(e, path))? {
        let path = entry.map_err(|e| named(e, path))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let key = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
        let about = std::fs::metadata(&path).map_err(|e| named(e, &path))?;
        if about.is_dir() {
            folder(&path, &key, depth + 1, values)?;
        } else if about.len() > MAX_FILE {
            return Err(io::Error::other(format!("{}: more than 64 KiB", path.display())));
        } else {
            let text = std::fs::read_to_string(&path).map_err(|e| named(e, &path))?;
            // Lines that start with # are comments; the rest, without the space around it, is the value.
            let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
            values.insert(key, scalar(lines.join("\n").trim()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn files_become_keys_and_a_missing_tree_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        let layer = DiskLayer { symlink_root: folder.path().join("current"), subdirectory: "envoy".into() };
        assert_eq!(layer.read().unwrap(), None);
        std::fs::create_dir_all(folder.path().join("v1/envoy/x")).unwrap();
        std::fs::write(folder.path().join("v1/envoy/x/y"), "44\n").unwrap();
        std::fs::write(folder.path().join("v1/envoy/a.b"), "# why\n some text \n").unwrap();
        std::os::unix::fs::symlink("v1", folder.path().join("current")).unwrap();
        let values = layer.read().unwrap().unwrap();
        assert_eq!(
            values.into_iter().collect::<Vec<_>>(),
            [("a.b".into(), json!("some text")), ("x.y".into(), json!(44))]
        );
        std::fs::write(folder.path().join("v1/envoy/big"), vec![b'x'; 70_000]).unwrap();
        assert!(layer.read().unwrap_err().to_string().ends_with("envoy/big: more than 64 KiB"));
    }
}
