//! Makes the descriptor table that `src/table.rs` reads.
//!
//! The envoy-types package carries, beside its Rust code, the `FileDescriptorSet` that protoc wrote for it: exact, with every
//! option. Reading that takes a tenth of a second and no dependency, where compiling its 507 .proto files again would
//! take a protobuf compiler in every cold build. The few messages it lacks are .proto files of ours under `proto/`, in
//! the small part of the language that `build/proto.rs` reads.

#[path = "build/descriptor.rs"]
mod descriptor;
#[path = "src/layout.rs"]
#[allow(dead_code, reason = "shared with the library, which uses the other half")]
mod layout;
#[path = "build/proto.rs"]
mod proto;
#[path = "build/table.rs"]
mod table;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The dependency whose package folder holds the descriptors.
const SOURCE_PACKAGE: &str = "envoy-types";
/// Where in that folder they are.
const DESCRIPTOR_SET: &str = "src/generated/types.bin";

fn main() {
    let manifest_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));

    let set_path = find_package(&manifest_dir).join(DESCRIPTOR_SET);
    let set = fs::read(&set_path).unwrap_or_else(|e| panic!("cannot read {}: {e}", set_path.display()));
    let mut schema =
        descriptor::read_set(&set).unwrap_or_else(|| panic!("{} is not a FileDescriptorSet", set_path.display()));

    let own = manifest_dir.join("proto");
    for path in proto_files(&own) {
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
        proto::read_file(&text, &mut schema).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }

    fs::write(out_dir.join("descriptors.bin"), table::write(schema)).expect("OUT_DIR is writable");

    for path in ["build.rs", "build", "proto", "src/layout.rs"] {
        println!("cargo::rerun-if-changed={path}");
    }
    println!("cargo::rerun-if-changed={}", set_path.display());
    // Another version of the package lies elsewhere.
    if let Some(lock) = lock_file(&manifest_dir) {
        println!("cargo::rerun-if-changed={}", lock.display());
    }
}

/// Every .proto file below `dir`, in a stable order.
fn proto_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("cannot list {}: {e}", dir.display()));
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            files.extend(proto_files(&path));
        } else if path.extension().is_some_and(|e| e == "proto") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The folder of the envoy-types package that this build links.
///
/// `cargo metadata` knows it whatever the source (registry, vendored, patched). Offline it can fail although the build
/// itself has all it needs: it wants the manifests of every workspace member's dependencies, and a fresh clone that
/// builds one package has not fetched those. Then the version in Cargo.lock names the folder in the registry cache.
fn find_package(manifest_dir: &Path) -> PathBuf {
    match package_from_metadata(manifest_dir) {
        Ok(dir) => dir,
        Err(reason) => package_from_registry(manifest_dir).unwrap_or_else(|| {
            panic!(
                "cannot find the source folder of {SOURCE_PACKAGE}: cargo metadata said: {reason}; \
                 and no folder of the version in Cargo.lock is in cargo's registry cache. \
                 `cargo fetch` in the workspace helps."
            )
        }),
    }
}

fn package_from_metadata(manifest_dir: &Path) -> Result<PathBuf, String> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(manifest_dir).args(["metadata", "--offline", "--locked", "--format-version", "1"]);
    for triple in ["TARGET", "HOST"].iter().filter_map(env::var_os) {
        command.arg("--filter-platform").arg(triple);
    }
    let output = command.output().map_err(|e| e.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())?;
    let packages = metadata["packages"].as_array().ok_or("no packages in its answer")?;
    packages
        .iter()
        .filter(|package| package["name"] == SOURCE_PACKAGE)
        .filter_map(|package| Some(Path::new(package["manifest_path"].as_str()?).parent()?.to_owned()))
        .find(|dir| dir.join(DESCRIPTOR_SET).is_file())
        .ok_or_else(|| format!("no {SOURCE_PACKAGE} with {DESCRIPTOR_SET} in its answer"))
}

fn lock_file(manifest_dir: &Path) -> Option<PathBuf> {
    manifest_dir.ancestors().map(|dir| dir.join("Cargo.lock")).find(|path| path.is_file())
}

fn package_from_registry(manifest_dir: &Path) -> Option<PathBuf> {
    let lock = fs::read_to_string(lock_file(manifest_dir)?).ok()?;
    let mut lines = lock.lines().skip_while(|line| *line != format!("name = \"{SOURCE_PACKAGE}\""));
    let version = lines.nth(1)?.strip_prefix("version = \"")?.strip_suffix('"')?;
    let home = match env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(env::var_os("HOME")?).join(".cargo"),
    };
    fs::read_dir(home.join("registry/src"))
        .ok()?
        .flatten()
        .map(|registry| registry.path().join(format!("{SOURCE_PACKAGE}-{version}")))
        .find(|dir| dir.join(DESCRIPTOR_SET).is_file())
}
