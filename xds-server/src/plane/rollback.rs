//! An earlier generation in force again, as a generation of its own, and the way back.

use std::sync::Arc;
use std::time::Instant;

use isthmus_xds_core::catalog::{Catalog, CommitError, Published, Source, Staged, StoredDocument};
use isthmus_xds_core::{Commit, Name};

use super::{Plane, State};
use crate::history::{Cause, GENERATIONS, Generation};
use crate::provenance::{Origins, Provenance};

/// A rollback that is in force. When the configuration directory says something else than it said
/// when the rollback came, the directory is followed again; the rollback ends with that unless it
/// displaced documents of other sources, or when it is released.
#[derive(Clone, Debug)]
pub struct Pin {
    /// The generation that was put in force again.
    pub to: u64,
    /// The generation that the rollback made.
    pub generation: u64,
    /// Whether the configuration directory is not followed.
    pub is_directory_held: bool,
    // What was in force before the first of the rollbacks that are in force, with the documents that
    // were changed since as they are now.
    displaced: Arc<Generation>,
}

/// Why what the configuration directory said all along is not put in force. Nothing changed then.
#[derive(Debug, thiserror::Error)]
pub enum UnfollowedError {
    /// It cannot be.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// A rollback is from just that.
    #[error("the rollback to generation {} holds the configuration directory", .0.to)]
    Held(Pin),
}

/// Why a rollback, or its end, is refused. Nothing changed then.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum RollbackError {
    /// What was displaced does not go with what another source has by now.
    #[error("what the rollback displaced does not go with what was committed since: {0}")]
    Clash(CommitError),
    /// It would change nothing.
    #[error("what generation {0} has is in force already")]
    InForce(u64),
    /// The generation is older than what is kept, or never was.
    #[error("generation {0} is not kept: the last {GENERATIONS} are, see isthmus-xds history")]
    NotKept(u64),
    /// No rollback is in force.
    #[error("no rollback is in force, so there is none to release")]
    NotPinned,
}

impl State {
    // A source changed its documents: what it displaced of them with that is not given back. The
    // directory says all of its documents at once.
    pub(super) fn follow(&mut self, source: Source, published: &Published) {
        let (Some(pin), Some(newest)) = (&mut self.pin, self.history.newest()) else {
            return;
        };
        let directory = (source == Source::CONFIG_DIR).then_some(source);
        let changed = published.documents.iter();
        pin.displaced = Arc::new(pin.displaced.following(newest, directory, changed));
        if directory.is_some() {
            pin.is_directory_held = false;
            if self.catalog.is_whole(pin.displaced.documents()) {
                self.pin = None;
            }
        }
    }

    fn restore<'a>(
        &mut self,
        documents: impl Iterator<Item = (&'a Name, &'a Arc<StoredDocument>)>,
        cause: Cause,
        provenance: &Provenance,
    ) -> Result<Published, RollbackError> {
        let published = self.catalog.restore(documents);
        let published = published.map_err(RollbackError::Clash)?;
        self.record(&published, cause, &Origins::Each(provenance));
        Ok(published)
    }
}

impl Plane {
    /// Puts the documents of an earlier generation in force, those of all sources, and returns the
    /// number of the new generation that they make.
    ///
    /// # Errors
    ///
    /// Returns [`RollbackError`] if that is impossible or pointless.
    pub fn rollback(&self, to: u64) -> Result<u64, RollbackError> {
        let at = Instant::now();
        let mut state = self.lock();
        let wanted = state.history.find(to).ok_or(RollbackError::NotKept(to))?;
        let newest = state.history.newest().ok_or(RollbackError::NotKept(to))?;
        let wanted = Arc::clone(wanted);
        let displaced = state.pin.as_ref().map_or(newest, |pin| &pin.displaced);
        let displaced = Arc::clone(displaced);
        let before = state.catalog.generation();
        let documents = wanted.documents();
        let cause = Cause::Rollback { to };
        let published = state.restore(documents, cause, &wanted.provenance())?;
        let generation = published.generation;
        if generation == before {
            return Err(RollbackError::InForce(to));
        }
        state.pin = Some(Pin {
            to,
            generation,
            is_directory_held: true,
            displaced,
        });
        self.metrics.count_rollback();
        self.announce(state, &published, at);
        Ok(generation)
    }

    /// Ends a rollback: puts in force again what it displaced, as a generation of its own. Documents
    /// that a source changed since stay.
    ///
    /// # Errors
    ///
    /// Returns [`RollbackError::NotPinned`] if none is in force.
    pub fn release(&self) -> Result<u64, RollbackError> {
        let at = Instant::now();
        let mut state = self.lock();
        let pin = state.pin.clone().ok_or(RollbackError::NotPinned)?;
        let provenance = pin.displaced.provenance();
        let back = pin.displaced.documents();
        let published = state.restore(back, Cause::Release, &provenance)?;
        state.pin = None;
        self.announce(state, &published, at);
        Ok(published.generation)
    }

    /// Commits what the configuration directory said before a rollback and says again, unless a
    /// rollback holds the directory at that moment.
    ///
    /// # Errors
    ///
    /// Returns [`UnfollowedError`] if it does, or if the commit cannot be.
    pub fn commit_unless_held(
        &self,
        commit: Commit,
        origins: &Origins<'_>,
    ) -> Result<Published, UnfollowedError> {
        let is_free = |state: &State| match &state.pin {
            Some(pin) if pin.is_directory_held => Err(UnfollowedError::Held(pin.clone())),
            Some(_) | None => Ok(()),
        };
        let unchecked = |_: &Catalog, _: &Staged| Ok(());
        self.commit_if(commit, origins, is_free, unchecked)
            .map(|(published, ())| published)
    }

    /// The rollback that is in force, if one is.
    pub fn pin(&self) -> Option<Pin> {
        self.lock().pin.clone()
    }
}

#[cfg(test)]
mod tests;
