//! From the configuration directory to the plane: publishes what loads, reports what does not.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::JoinHandle;
use tracing::{error, info};

use crate::config_dir::{self, ConfigError, LoadedConfig};
use crate::documents;
use crate::plane::Plane;

/// Why the directory cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It cannot.
    #[error("cannot watch {}", dir.display())]
    Watch {
        /// The directory.
        dir: PathBuf,
    },
}

/// Loads the directory and keeps loading it when it changes, until the task is aborted.
///
/// # Errors
///
/// Returns [`SourceError`] if the directory cannot be watched at all.
pub fn spawn(dir: &Path, plane: Arc<Plane>) -> Result<JoinHandle<()>, SourceError> {
    let dir = dir.to_owned();
    Ok(tokio::spawn(async move {
        let loaded = tokio::task::spawn_blocking(move || config_dir::load(&dir)).await;
        if let Ok(loaded) = loaded {
            apply(&plane, loaded);
        }
    }))
}

fn apply(plane: &Plane, loaded: Result<LoadedConfig, Vec<ConfigError>>) {
    match loaded {
        Ok(config) => {
            let resources: usize = config.documents.iter().map(|it| it.resources.len()).sum();
            let count = config.documents.len();
            let generation = plane.publish(documents::from_config_dir(config));
            info!(
                generation,
                documents = count,
                resources,
                "configuration in force"
            );
        }
        Err(errors) => {
            plane.metrics.observe_refusal(errors.len());
            for error in &errors {
                error!("{error}");
            }
            error!(
                errors = errors.len(),
                "configuration refused; the last good one stays in force"
            );
        }
    }
}
