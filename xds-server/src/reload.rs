//! From the configuration directory to the plane: publishes what loads, reports what does not.

use std::path::Path;
use std::sync::Arc;

use isthmus_xds_core::catalog::{Commit, Source};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::config_dir::watch::{Reading, Timing, WatchError, watch};
use crate::config_dir::{ConfigError, LoadedConfig};
use crate::documents;
use crate::plane::Plane;
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
            match plane.pin().filter(|_| !is_news) {
                Some(pin) => {
                    plane.metrics.observe_unchanged();
                    info!(
                        rollback_to = pin.to,
                        generation = pin.generation,
                        "the directory was written again with the same content: the rollback stays in force"
                    );
                }
                None => publish(&plane, &config).await,
            }
            in_force = Some(config);
        }
    }))
}

// Encoding thousands of resources takes milliseconds: not on a thread that serves streams.
async fn publish(plane: &Arc<Plane>, config: &Arc<LoadedConfig>) {
    for warning in &config.warnings {
        warn!("{warning}");
    }
    let (plane, config) = (Arc::clone(plane), Arc::clone(config));
    let published = tokio::task::spawn_blocking(move || {
        let resources: usize = config.documents.iter().map(|it| it.resources.len()).sum();
        let documents = config.documents.len();
        let origins = documents::origins_of(&config);
        let commit = Commit::new(Source::CONFIG_DIR).replace(documents::from_config_dir(&config));
        if let Some(pin) = plane.pin() {
            let rollback_to = pin.to;
            warn!(
                rollback_to,
                "the directory changed: its content replaces the rollback"
            );
        }
        match plane.commit_from(commit, &Origins::Each(&origins)) {
            Ok(published) => {
                let generation = published.generation;
                info!(generation, documents, resources, "configuration in force");
            }
            Err(clash) => {
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
