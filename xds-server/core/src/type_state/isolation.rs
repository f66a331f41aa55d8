//! A refusal concerns one response, and a response may have many resources: this finds out which
//! of them the client refuses, sets those aside, and has the others sent.
//!
//! What a response brought is *suspect* when it is refused. If the client says which of it is to
//! blame, in the words of Envoy's cluster and listener managers, that is taken for true; if it
//! only mentions some, those are tried last and apart; else the suspects are tried in halves. A
//! resource that is refused when it comes alone is to blame. It is *parked*: this version is not
//! sent again (R10), and a set that is restated has it as it was accepted last.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::accused::{self, Accused};
use super::answers::{Culprit, InFlight, Item, Refusal};
use super::{Held, TypeState};
use crate::limits;
use crate::resource::{Name, Version};

/// What was refused on one stream of one type.
#[derive(Debug, Default)]
pub(super) struct Isolation {
    // Suspects, and what the client holds of them. Each group is tried in a response of its own.
    groups: VecDeque<BTreeMap<Name, Held>>,
    // Refused in the version that the set has; what changes is not parked any more.
    parked: BTreeMap<Name, Parked>,
    // Refusals since all was well; bounds what a client that refuses everything may cost.
    refusals: u32,
    // Whether the next response is to try a group though there is other content.
    is_turn: bool,
}

/// A refusal to look into.
struct Case {
    // All that the response brought, whatever became of it since.
    brought: BTreeSet<Name>,
    suspects: BTreeMap<Name, Held>,
    is_alone: bool,
    // A set that is restated cannot leave out what the client may hold of an earlier stream, so
    // that nothing comes alone: without a word from the client, nobody can be found to blame. What
    // was not to blame is in force all the same with Envoy's and gRPC's clients (R64).
    can_be_tried: bool,
}

#[derive(Debug)]
struct Parked {
    held: Held,
    generation: u64,
    // What the client said, if it is known to be about this.
    verdict: Option<Arc<str>>,
}

impl Isolation {
    pub(super) fn has(&self, name: &str) -> bool {
        self.held(name).is_some()
    }

    pub(super) fn is_suspect(&self, name: &str) -> bool {
        self.groups.iter().any(|group| group.contains_key(name))
    }

    /// Why a resource is set aside.
    pub(super) fn verdict(&self, name: &str) -> Option<&Arc<str>> {
        self.parked.get(name)?.verdict.as_ref()
    }

    /// What the client holds of something that was refused.
    pub(super) fn held(&self, name: &str) -> Option<&Held> {
        let mut groups = self.groups.iter();
        let suspect = groups.find_map(|group| group.get(name));
        suspect.or_else(|| self.parked.get(name).map(|parked| &parked.held))
    }

    pub(super) fn retain(&mut self, is_wanted: impl Fn(&Name) -> bool) {
        for group in &mut self.groups {
            group.retain(|name, _| is_wanted(name));
        }
        self.groups.retain(|group| !group.is_empty());
        self.parked.retain(|name, _| is_wanted(name));
    }

    fn forget(&mut self, name: &str) -> Option<Held> {
        if let Some(parked) = self.parked.remove(name) {
            return Some(parked.held.doubted());
        }
        let mut groups = self.groups.iter_mut();
        let held = groups.find_map(|group| group.remove(name));
        self.groups.retain(|group| !group.is_empty());
        // It may have been taken from the response that was refused (R64).
        held.map(Held::doubted)
    }

    /// Whether nothing is suspect and nothing is set aside.
    pub(super) fn is_over(&self) -> bool {
        self.groups.is_empty() && self.parked.is_empty()
    }

    pub(super) fn may_keep_old(&self) -> bool {
        let mut parked = self.parked.values();
        // What was refused before the client had any of it refers to nothing.
        !self.groups.is_empty() || parked.any(|it| !matches!(it.held, Held::Nothing))
    }

    pub(super) fn refusal(&self) -> Option<Refusal> {
        let certain = self.parked.values().filter(|it| it.verdict.is_some());
        let last = certain.max_by_key(|it| it.generation)?;
        Some(Refusal {
            generation: last.generation,
            message: last.verdict.as_ref()?.to_string(),
        })
    }
}

impl TypeState {
    /// Whether a resource was refused in the version that the client should have.
    pub(super) fn is_isolated(&self, name: &str) -> bool {
        self.isolation.as_ref().is_some_and(|it| it.has(name))
    }

    /// Whether something that was refused is to be tried again.
    pub(super) fn has_suspects(&self) -> bool {
        let isolation = self.isolation.as_ref();
        isolation.is_some_and(|it| !it.groups.is_empty())
    }

    /// Forgets that a resource was refused, since it is another or is asked for. Returns what the
    /// client holds of it.
    pub(super) fn isolation_forget(&mut self, name: &str) -> Option<Held> {
        let keeps_old = self.may_keep_old();
        let held = self.isolation.as_mut()?.forget(name);
        self.isolation.take_if(|isolation| isolation.is_over());
        self.keeps_old |= keeps_old && held.is_some();
        held
    }

    /// A response was accepted.
    pub(super) fn isolation_accepted(&mut self) {
        let is_quiet = self.in_flight.is_empty();
        if let Some(isolation) = &mut self.isolation {
            // Then it was none of those.
            isolation.parked.retain(|_, it| it.verdict.is_some());
            if isolation.groups.is_empty() && is_quiet {
                isolation.refusals = 0;
            }
        }
        self.isolation.take_if(|isolation| isolation.is_over());
    }

    /// The group that the next response is to try, if it is not the turn of other content: they
    /// alternate, so that neither holds up the other for longer than an answer takes.
    pub(super) fn take_turn(&mut self) -> Option<BTreeMap<Name, Held>> {
        let has_other = self.owes_answer || !self.todo.is_empty();
        let isolation = self.isolation.as_mut()?;
        if isolation.groups.is_empty() || (has_other && (self.has_asked || !isolation.is_turn)) {
            isolation.is_turn = true;
            return None;
        }
        isolation.is_turn = false;
        isolation.groups.pop_front()
    }

    pub(super) fn put_back(&mut self, group: BTreeMap<Name, Held>) {
        let isolation = self.isolation.get_or_insert_default();
        isolation.groups.push_front(group);
    }

    /// Looks into a refusal of these. Returns what is surely to blame.
    pub(super) fn refuse(
        &mut self,
        settled: Vec<InFlight>,
        refusal: &Refusal,
        now: Duration,
    ) -> Vec<Culprit> {
        let mut items = Vec::new();
        let mut removed = BTreeSet::new();
        let (mut is_smaller, mut has_refused) = (false, false);
        let is_mixed = settled.first().is_some_and(|it| it.is_mixed);
        for it in settled {
            items.extend(it.sent.into_items());
            removed.extend(it.removed);
            is_smaller |= it.is_smaller;
            has_refused |= it.has_refused;
        }
        self.doubt_removals(&removed, &mut items);
        // Else the removals themselves were refused.
        if !items.is_empty() || is_mixed {
            self.remove_again(removed, is_smaller);
        }
        let brought: BTreeSet<Name> = items
            .iter()
            .map(|item| Name::clone(item.resource.name()))
            .collect();
        let suspects = self.suspects_among(items);
        self.keeps_old |= suspects.is_empty();
        let is_returned = |held: &Held| self.is_restated() && matches!(held, Held::Unknown);
        let case = Case {
            can_be_tried: !has_refused && !suspects.values().any(is_returned),
            is_alone: brought.len() == 1 && !is_mixed,
            brought,
            suspects,
        };
        let culprits = self.judge(case, refusal);
        self.isolation.take_if(|isolation| isolation.is_over());
        self.note_pending(now);
        culprits
    }

    // What came back since was taken for something that the client does not hold.
    fn doubt_removals(&mut self, removed: &BTreeSet<Name>, settled: &mut [Item]) {
        let todo = self.todo.iter_mut();
        let since = self.in_flight.iter_mut();
        let sent = settled
            .iter_mut()
            .chain(since.flat_map(|it| it.sent.items_mut()));
        let sent = sent.map(|item| (item.resource.name(), &mut item.held));
        for (name, held) in todo.chain(sent) {
            if matches!(held, Held::Nothing) && removed.contains(name) {
                *held = Held::Doubtful(None);
            }
        }
    }

    // Somebody is to blame, but the client may have taken nothing of it, removals included.
    fn remove_again(&mut self, removed: BTreeSet<Name>, is_smaller: bool) {
        for name in removed {
            let is_gone = self.base.resource(&name).is_none() && !self.breaks.contains_key(&name);
            if is_gone && self.subscription.wants(&name) {
                self.todo.entry(name).or_insert(Held::Doubtful(None));
            }
        }
        self.owes_answer |= is_smaller;
        self.is_smaller |= is_smaller;
    }

    fn judge(&mut self, case: Case, refusal: &Refusal) -> Vec<Culprit> {
        let Case {
            brought,
            mut suspects,
            is_alone,
            can_be_tried,
        } = case;
        let isolation = self.isolation.get_or_insert_default();
        isolation.refusals += 1;
        let (generation, message) = (refusal.generation, Arc::from(&*refusal.message));
        if isolation.refusals > limits::ISOLATION_REFUSALS {
            // Enough: all that is suspect is set aside, whether it is to blame or not.
            isolation.refusals = 0;
            suspects.extend(std::mem::take(&mut isolation.groups).into_iter().flatten());
            for (name, held) in suspects {
                self.park(name, held.doubted(), generation, Some(&message));
            }
            return Vec::new();
        }
        if is_alone && can_be_tried {
            return self.park_all(suspects, generation, &message);
        }
        match accused::find(&refusal.message, |name| brought.contains(name)) {
            Accused::Named(names) => {
                let others = split_off(&mut suspects, |name| !names.contains(&**name));
                if can_be_tried {
                    self.try_groups([others]);
                }
                self.park_all(suspects, generation, &message)
            }
            _ if !can_be_tried => {
                // Whatever comes next has them, and its refusal says as little.
                for name in suspects.into_keys() {
                    self.park(name, Held::Unknown, generation, None);
                }
                Vec::new()
            }
            Accused::Mentioned(names) if suspects.keys().any(|it| !names.contains(&**it)) => {
                let others = split_off(&mut suspects, |name| !names.contains(&**name));
                self.try_groups([others, suspects]);
                Vec::new()
            }
            Accused::Mentioned(_) | Accused::Nobody => {
                let half = suspects.len().div_ceil(2);
                let mut place = 0;
                let second = split_off(&mut suspects, |_| {
                    place += 1;
                    place > half
                });
                self.try_groups([suspects, second]);
                Vec::new()
            }
        }
    }

    // Of what was sent and refused: what is still wanted, and would be sent no other way.
    fn suspects_among(&mut self, items: Vec<Item>) -> BTreeMap<Name, Held> {
        let mut suspects: BTreeMap<Name, Held> = BTreeMap::new();
        for Item { resource, held } in items {
            let name = resource.name();
            // What was sent since was sent to a client that was thought to hold this.
            let since = self.in_flight.iter_mut();
            since.for_each(|it| it.sent.unhold(&resource, &held));
            if let Some(next) = self.todo.get_mut(name) {
                if next.is(resource.version()) {
                    *next = held.doubted();
                    self.keeps_old = true;
                }
            } else if let Some(kept) = self.breaks.get_mut(name) {
                if kept.held.is(resource.version()) {
                    kept.held = held.doubted();
                }
            } else if self
                .base
                .resource(name)
                .is_some_and(|it| it.version() == resource.version())
                && self.subscription.wants_resource(&resource)
                && !self.is_isolated(name)
            {
                // Sent twice without an answer: what it held before the first counts.
                suspects.entry(Name::clone(name)).or_insert(held);
            }
        }
        suspects
    }

    fn park_all(
        &mut self,
        suspects: BTreeMap<Name, Held>,
        generation: u64,
        message: &Arc<str>,
    ) -> Vec<Culprit> {
        let parked = suspects.into_iter().filter_map(|(name, held)| {
            let version = self.park(Name::clone(&name), held, generation, Some(message))?;
            Some(Culprit { name, version })
        });
        parked.collect()
    }

    fn park(
        &mut self,
        name: Name,
        held: Held,
        generation: u64,
        verdict: Option<&Arc<str>>,
    ) -> Option<Version> {
        let version = self.base.resource(&name)?.version();
        let parked = Parked {
            held,
            generation,
            verdict: verdict.cloned(),
        };
        let isolation = self.isolation.get_or_insert_default();
        isolation.parked.insert(name, parked);
        Some(version)
    }

    fn try_groups<const N: usize>(&mut self, groups: [BTreeMap<Name, Held>; N]) {
        let isolation = self.isolation.get_or_insert_default();
        for group in groups.into_iter().rev().filter(|group| !group.is_empty()) {
            isolation.groups.push_front(group);
        }
    }
}

fn split_off(
    suspects: &mut BTreeMap<Name, Held>,
    mut is_other: impl FnMut(&Name) -> bool,
) -> BTreeMap<Name, Held> {
    suspects.extract_if(.., |name, _| is_other(name)).collect()
}
