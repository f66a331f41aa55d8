//! Where the client stands with each resource (R58, R64).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::TypeState;
use crate::resource::{Name, Resource, TypeUrl, Version};
use crate::status::{ConfigStatus, ResourceStatus};

impl TypeState {
    /// Where the client stands with each resource that it asked for, or may still hold.
    pub(crate) fn config_status(&self, type_url: &TypeUrl) -> Vec<ResourceStatus> {
        let row = |name: &Name, resource: Option<&Arc<Resource>>, status| ResourceStatus {
            type_url: TypeUrl::clone(type_url),
            name: Name::clone(name),
            version: resource.map(|it| it.version()),
            status,
            error: self.verdict(name).filter(|_| status == ConfigStatus::Error),
        };
        let mut wanted: BTreeMap<&Name, Option<&Arc<Resource>>> = BTreeMap::new();
        if self.subscription.is_wildcard() {
            wanted.extend(self.base.resources().map(|it| (it.name(), Some(it))));
        }
        let names = self.subscription.names().iter();
        let meant: Vec<Name> = names.flat_map(|name| self.meant_by(name)).collect();
        let meant = meant.iter().filter(|name| !self.breaks.contains_key(*name));
        wanted.extend(meant.map(|name| (name, self.base.resource(name))));
        let mut rows: Vec<ResourceStatus> = wanted
            .into_iter()
            .map(|(name, resource)| row(name, resource, self.progress_of(name)))
            .collect();
        let gone = self.breaks.keys();
        rows.extend(gone.map(|name| row(name, None, ConfigStatus::NotSent)));
        rows
    }

    /// Whether the client wants a resource, and was sent this version and accepted it.
    pub(crate) fn has_accepted(&self, name: &Name, version: Version) -> bool {
        let resource = self.base.resource(name);
        resource.is_some_and(|it| {
            it.version() == version
                && self.subscription.wants_resource(it)
                && self.progress_of(name) == ConfigStatus::Synced
        })
    }

    fn progress_of(&self, name: &Name) -> ConfigStatus {
        let is_suspect = self
            .isolation
            .as_ref()
            .is_some_and(|it| it.is_suspect(name));
        let is_missing = self.base.resource(name).is_none();
        // In a set that is restated, what is missing is told by the set.
        let is_set_due = (self.asks_everything && !is_missing) || (self.owes_answer && is_missing);
        if self.verdict(name).is_some() {
            ConfigStatus::Error
        } else if self.todo.contains_key(name) || is_set_due {
            ConfigStatus::NotSent
        } else if is_suspect || self.in_flight.iter().any(|it| it.sent.has(name)) {
            ConfigStatus::Stale
        } else {
            ConfigStatus::Synced
        }
    }

    fn verdict(&self, name: &Name) -> Option<Arc<str>> {
        self.isolation.as_ref()?.verdict(name).cloned()
    }
}
