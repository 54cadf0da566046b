//! Disk layers are read again when the link that leads to them is replaced, which is how values change in one step.

use super::Runtime;
use std::path::Path;
use std::sync::Arc;
use xds_client::Directory;

/// Follows the links of all disk layers for as long as the process runs.
pub async fn follow_disk(runtime: Arc<Runtime>) {
    for root in runtime.disk_roots() {
        let runtime = runtime.clone();
        tokio::task::spawn_local(async move {
            if let Err(error) = follow(&root, &runtime).await {
                tracing::warn!("runtime: {} is not watched, its values stay as they are: {error}", root.display());
            }
        });
    }
}

async fn follow(root: &Path, runtime: &Runtime) -> std::io::Result<()> {
    let folder = root.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = Directory::watch(folder)?;
    loop {
        let moves = directory.moves().await?;
        if moves.gone {
            return Err(std::io::Error::other(format!("{} is gone", folder.display())));
        }
        if moves.overflow || moves.names.iter().any(|name| root.file_name() == Some(name)) {
            runtime.reload_disk();
        }
    }
}
