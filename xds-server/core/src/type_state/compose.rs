//! What goes into the next response.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::answers::{Item, Sent};
use super::{Held, TypeState};
use crate::limits;
use crate::resource::{Name, Resource, Version};
use crate::stream::Variant;
use crate::type_rules;

/// The content of one response, before it is put into bytes.
#[derive(Debug, Default)]
pub(crate) struct Content {
    pub(crate) upserts: Vec<Arc<Resource>>,
    pub(crate) removed: Vec<Name>,
    // Asked for, and absent in the way of R57.
    pub(crate) absent: Vec<Name>,
    // Asked for, and told as an error that it does not exist (R56).
    pub(crate) missing: Vec<Name>,
    // Unchanged, and alive (R54).
    pub(crate) alive: Vec<Arc<Resource>>,
    // `None` for that of the set.
    pub(crate) version: Option<Version>,
    // Clusters of this response that the client does not hold yet in this very version.
    pub(crate) changed_endpoints: Vec<Name>,
    // What is new in it.
    pub(super) sent: Sent,
    // It lacks what the client holds.
    pub(super) is_smaller: bool,
    // It has what was refused, since nothing else is known to be held.
    pub(super) has_refused: bool,
    items: Vec<Item>,
    size_bytes: usize,
}

impl Content {
    pub(super) fn is_empty(&self) -> bool {
        self.upserts.is_empty()
            && self.removed.is_empty()
            && self.absent.is_empty()
            && self.missing.is_empty()
            && self.alive.is_empty()
    }

    fn note_item(&mut self, resource: &Arc<Resource>, held: Held) {
        self.changed_endpoints.extend(resource.endpoints().cloned());
        self.items.push(Item {
            resource: Arc::clone(resource),
            held,
        });
    }
}

// Below this a list is as small as a pointer to a set, and does not keep the set.
const FEW_ITEMS: usize = 8;

impl TypeState {
    /// Takes the content of the next response, or `None` if there is nothing to say after all.
    pub(crate) fn take_content(&mut self, now: Duration) -> Option<Content> {
        let group = self.take_turn();
        let is_due = group.is_none() && std::mem::take(&mut self.owes_answer);
        let mut content = match (self.is_restated(), group) {
            (true, None) if !is_due && self.todo.is_empty() && !self.is_beat_due(now) => {
                Content::default()
            }
            (true, group) => self.whole_set(group),
            (false, Some(group)) => self.take_group(group),
            (false, None) => self.take_changes(),
        };
        if self.todo.is_empty() {
            self.todo = BTreeMap::new();
        }
        self.has_asked = false;
        if !self.has_makes() {
            self.pending_since = None;
        }
        self.beat(&mut content, now);
        let is_all = self.subscription.is_wildcard()
            && content.items.len() > FEW_ITEMS
            && content.items.len() == self.base.len()
            && content
                .items
                .iter()
                .all(|it| matches!(it.held, Held::Nothing));
        if is_all {
            content.items = Vec::new();
            content.sent = Sent::All {
                set: Arc::clone(&self.base),
                is_returning: false,
            };
        } else if !content.items.is_empty() {
            content.sent = Sent::Items(std::mem::take(&mut content.items).into());
        }
        let restates = content.version.is_some();
        (is_due || restates || !content.is_empty()).then_some(content)
    }

    /// Whether each response has the whole set.
    pub(super) fn is_restated(&self) -> bool {
        self.variant == Variant::Sotw && self.rules.is_full_state
    }

    /// Whether absence of this name is told as an error: not of what the wildcard brought.
    pub(super) fn is_error_told(&self, name: &str) -> bool {
        self.features.reads_errors
            && !self.subscription.is_wildcard()
            && self.subscription.has_named(name)
    }

    fn take_changes(&mut self) -> Content {
        let mut content = Content::default();
        while let Some((name, held)) = self.todo.pop_first() {
            let Some(resource) = self.base.resource(&name) else {
                if !matches!(held, Held::Nothing) {
                    self.tell_absence(&mut content, name, &held);
                }
                continue;
            };
            if held.is(resource.version()) {
                continue;
            }
            if !self.has_room(&content, resource) {
                self.todo.insert(name, held);
                break;
            }
            let resource = Arc::clone(resource);
            self.push(&mut content, resource, held);
        }
        content
    }

    fn take_group(&mut self, mut group: BTreeMap<Name, Held>) -> Content {
        let mut content = Content::default();
        while let Some((name, held)) = group.pop_first() {
            let Some(resource) = self.base.resource(&name) else {
                continue;
            };
            if !self.has_room(&content, resource) {
                group.insert(name, held);
                self.put_back(group);
                break;
            }
            let resource = Arc::clone(resource);
            self.push(&mut content, resource, held);
        }
        content
    }

    // A single resource over the limit goes alone: splitting cannot help it.
    fn has_room(&self, content: &Content, resource: &Resource) -> bool {
        let entry_bytes = resource.entry(self.variant, self.features).len();
        content.size_bytes == 0 || content.size_bytes + entry_bytes <= limits::RESPONSE_BYTES
    }

    fn push(&self, content: &mut Content, resource: Arc<Resource>, held: Held) {
        content.size_bytes += resource.entry(self.variant, self.features).len();
        content.note_item(&resource, held);
        content.upserts.push(resource);
    }

    fn tell_absence(&self, content: &mut Content, name: Name, held: &Held) {
        let is_error_told = self.is_error_told(&name);
        content.size_bytes += name.len();
        if self.variant == Variant::Sotw {
            if is_error_told {
                content.missing.push(name);
            }
        } else if self.rules.id == type_rules::VHDS && matches!(held, Held::Unknown) {
            content.absent.push(name);
        } else {
            if is_error_told {
                content.missing.push(Name::clone(&name));
            }
            content.removed.push(name);
        }
    }

    // What is new is in it at its newest; what was refused, or is not looked into yet, as it was
    // accepted last; and what is gone while it may be referred to as it was.
    fn whole_set(&mut self, group: Option<BTreeMap<Name, Held>>) -> Content {
        let mut content = Content {
            is_smaller: std::mem::take(&mut self.is_smaller),
            ..Content::default()
        };
        let is_everything = group.is_none() && std::mem::take(&mut self.asks_everything);
        let changed = group.unwrap_or_else(|| std::mem::take(&mut self.todo));
        let is_plain = self.isolation.is_none() && self.todo.is_empty();
        let mut add = |resource: &Arc<Resource>| {
            let name = resource.name();
            let withheld = self.isolation.as_ref().and_then(|it| it.held(name));
            match withheld
                .or_else(|| self.todo.get(name))
                .filter(|_| !is_plain)
            {
                None => content.upserts.push(Arc::clone(resource)),
                // Without it, the client would lose what it held on an earlier stream.
                Some(Held::Unknown) => {
                    content.has_refused = true;
                    content.upserts.push(Arc::clone(resource));
                }
                Some(held) => content.upserts.extend(held.accepted().cloned()),
            }
        };
        if self.subscription.is_wildcard() {
            self.base.resources().for_each(&mut add);
        } else {
            let names = self.subscription.names().iter();
            let wanted = names.filter_map(|name| self.base.resource(name));
            wanted.for_each(&mut add);
        }
        let kept = self.breaks.values().filter_map(|kept| kept.held.accepted());
        content.upserts.extend(kept.cloned());
        content.version = Some(if self.breaks.is_empty() && is_plain {
            self.base.version()
        } else {
            Version::of_set(content.upserts.iter())
        });
        for (name, held) in changed {
            match self.base.resource(&name) {
                Some(resource) => content.note_item(resource, held),
                None if self.is_error_told(&name) => content.missing.push(name),
                None => {}
            }
        }
        if is_everything {
            content.items.clear();
            content.changed_endpoints.clear();
            let clusters = content.upserts.iter();
            let endpoints = clusters.filter_map(|it| it.endpoints().cloned());
            content.changed_endpoints = endpoints.collect();
            content.sent = Sent::All {
                set: Arc::clone(&self.base),
                is_returning: self.is_returning,
            };
        }
        content
    }
}
