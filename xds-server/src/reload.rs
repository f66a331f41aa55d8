//! From the configuration directory to the plane: publishes what loads, reports what does not.

use std::path::Path;
use std::sync::Arc;

use isthmus_xds_core::catalog::{Commit, Source};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::config_dir::watch::{Reading, Timing, WatchError, watch};
use crate::config_dir::{ConfigError, LoadedConfig};
use crate::documents;
use crate::plane::{Pin, Plane, UnfollowedError};
use crate::provenance::Origins;

/// Loads the directory and keeps loading it when it changes, until the task is aborted.
///
/// # Errors
///
/// Returns [`WatchError`] if the directory cannot be watched at all.
pub fn spawn(dir: &Path, plane: Arc<Plane>) -> Result<JoinHandle<()>, WatchError> {
    let directory = watch(dir, Timing::default())?;
    Ok(tokio::spawn(async move {
        let mut readings = directory.readings();
        let mut in_force = None;
        while readings.changed().await.is_ok() {
            let reading = readings.borrow_and_update().clone();
            let Reading { config, errors, .. } = reading;
            report(&plane, &errors);
            let Some(config) = config else { continue };
            if in_force
                .as_ref()
                .is_some_and(|old| Arc::ptr_eq(old, &config))
            {
                if errors.is_empty() {
                    plane.metrics.observe_unchanged();
                }
                continue;
            }
            let is_news = in_force
                .as_ref()
                .is_none_or(|old| !documents::is_same_content(old, &config));
            publish(&plane, &config, is_news).await;
            in_force = Some(config);
        }
    }))
}

// Encoding thousands of resources takes milliseconds: not on a thread that serves streams.
async fn publish(plane: &Arc<Plane>, config: &Arc<LoadedConfig>, is_news: bool) {
    for warning in &config.warnings {
        warn!("{warning}");
    }
    let (plane, config) = (Arc::clone(plane), Arc::clone(config));
    let published = tokio::task::spawn_blocking(move || {
        let resources: usize = config.documents.iter().map(|it| it.resources.len()).sum();
        let documents = config.documents.len();
        let origins = documents::origins_of(&config);
        let commit = Commit::new(Source::CONFIG_DIR).replace(documents::from_config_dir(&config));
        let origins = Origins::Each(&origins);
        let held = plane.pin().filter(|pin| pin.is_directory_held);
        // Asked under the plane's lock: a rollback may have come since the directory was read.
        let published = if is_news {
            let published = plane.commit_from(commit, &origins);
            published.map_err(UnfollowedError::Commit)
        } else {
            plane.commit_unless_held(commit, &origins)
        };
        match published {
            Ok(published) => {
                let generation = published.generation;
                info!(generation, documents, resources, "configuration in force");
                if let Some(held) = held {
                    tell_end(&plane, &held);
                }
            }
            Err(UnfollowedError::Held(pin)) => {
                plane.metrics.observe_unchanged();
                info!(
                    rollback_to = pin.to,
                    generation = pin.generation,
                    "the directory was written again with the same content: the rollback stays in force"
                );
            }
            Err(UnfollowedError::Commit(clash)) => {
                plane.metrics.observe_refusal(1);
                error!("{clash}");
                error!("configuration refused; the last good one stays in force");
            }
        }
    });
    if let Err(panic) = published.await {
        error!(%panic, "the configuration could not be published; the last one stays in force");
    }
}

// The directory is followed again.
fn tell_end(plane: &Plane, held: &Pin) {
    let rollback_to = held.to;
    if plane.pin().is_some() {
        warn!(
            rollback_to,
            "the directory changed: its content replaces the rollback; documents of other sources stay rolled back \
             until they are set, or until isthmus-xds rollback --release"
        );
    } else {
        warn!(
            rollback_to,
            "the directory changed: its content replaces the rollback"
        );
    }
}

fn report(plane: &Plane, errors: &[ConfigError]) {
    if errors.is_empty() {
        return;
    }
    plane.metrics.observe_refusal(errors.len());
    for error in errors {
        error!("{error}");
    }
    if plane.is_ready() {
        error!(
            errors = errors.len(),
            "configuration refused; the last good one stays in force"
        );
    } else {
        error!(
            errors = errors.len(),
            "configuration refused; nothing is served until it is right"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config_dir;

    fn clusters(dir: &Path, seconds: u64) -> Arc<LoadedConfig> {
        let text = format!(
            "apiVersion: isthmus.io/v1alpha1\nkind: EnvoyResources\nmetadata: {{name: d}}\nspec:\n  resources:\n    \
             - \"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\n      name: a\n      \
             connectTimeout: {seconds}s\n"
        );
        fs::write(dir.join("a.yaml"), text).unwrap();
        Arc::new(config_dir::load(dir).unwrap())
    }

    // As when the rollback comes between the reading and the commit.
    #[tokio::test]
    async fn what_a_rollback_is_from_does_not_end_it() {
        let dir = tempfile::tempdir().unwrap();
        let plane = Arc::new(Plane::new());
        publish(&plane, &clusters(dir.path(), 1), true).await;
        let bad = clusters(dir.path(), 2);
        publish(&plane, &bad, true).await;
        assert_eq!(plane.rollback(1), Ok(3));
        publish(&plane, &bad, false).await;
        assert_eq!(plane.pin().map(|pin| pin.generation), Some(3));
        assert_eq!(plane.documents().0, 3);

        publish(&plane, &clusters(dir.path(), 3), true).await;
        assert!(plane.pin().is_none());
        assert_eq!(plane.documents().0, 4);
    }
}
