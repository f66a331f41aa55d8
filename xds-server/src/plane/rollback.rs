//! An earlier generation in force again, as a generation of its own, and the way back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use isthmus_xds_core::Name;
use isthmus_xds_core::catalog::{CommitError, Published, Source, StoredDocument};

use super::{Plane, State};
use crate::history::{Cause, GENERATIONS, Generation};
use crate::provenance::{Origins, Provenance};

/// A rollback that is in force. It ends when the configuration directory says something else than
/// it said when the rollback came, or when it is released.
#[derive(Clone, Debug)]
pub struct Pin {
    /// The generation that was put in force again.
    pub to: u64,
    /// The generation that the rollback made.
    pub generation: u64,
    // What was in force before the first of the rollbacks that are in force.
    displaced: Arc<Generation>,
    // Sources that changed their documents since.
    spoken: BTreeSet<Source>,
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
    // A source changed its documents: the directory's are what a rollback is from.
    pub(super) fn follow(&mut self, source: Source) {
        if source == Source::CONFIG_DIR {
            self.pin = None;
        } else if let Some(pin) = &mut self.pin {
            pin.spoken.insert(source);
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
            displaced,
            spoken: BTreeSet::new(),
        });
        self.metrics.count_rollback();
        self.announce(state, &published, at);
        Ok(generation)
    }

    /// Ends a rollback: puts in force again what it displaced, as a generation of its own. What a
    /// source changed since stays.
    ///
    /// # Errors
    ///
    /// Returns [`RollbackError::NotPinned`] if none is in force.
    pub fn release(&self) -> Result<u64, RollbackError> {
        let at = Instant::now();
        let mut state = self.lock();
        let pin = state.pin.clone().ok_or(RollbackError::NotPinned)?;
        let has_spoken = |it: &StoredDocument| pin.spoken.contains(&it.source());
        let current = Arc::clone(state.history.newest().ok_or(RollbackError::NotPinned)?);
        let kept = current.documents().filter(|(_, it)| has_spoken(it));
        let back = pin.displaced.documents().filter(|(_, it)| !has_spoken(it));
        let provenance = pin.displaced.provenance();
        let published = state.restore(kept.chain(back), Cause::Release, &provenance)?;
        state.pin = None;
        self.announce(state, &published, at);
        Ok(published.generation)
    }

    /// The rollback that is in force, if one is.
    pub fn pin(&self) -> Option<Pin> {
        self.lock().pin.clone()
    }
}
