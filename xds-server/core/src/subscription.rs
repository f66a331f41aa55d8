//! What one client wants of one type: the wildcard rules (R16 to R20) and the names.

use std::collections::BTreeSet;

use crate::resource::{Name, Resource};
use crate::view::TypeSet;
use crate::xdstp;

/// The wildcard name.
pub const WILDCARD: &str = "*";

/// Whether a client that never named anything means everything (R16), or nothing (R20).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LegacyWildcard {
    /// As Envoy means it.
    Means,
    /// As gRPC clients mean it, and as types are meant that are always asked for by name.
    MeansNot,
}

/// What a request changed in a subscription.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct SubscriptionChange {
    /// Names asked for by this request; in incremental requests also those already held, which
    /// must be sent again (R21).
    pub added: Vec<Name>,
    /// Names that are not asked for by name any more.
    pub dropped: Vec<Name>,
    /// The wildcard was asked for, and was not in force before or is asked for again.
    pub is_wildcard_added: bool,
    /// The wildcard is not in force any more.
    pub is_wildcard_dropped: bool,
}

impl SubscriptionChange {
    /// Whether nothing was asked for and nothing given up.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// The subscription of one stream to one type.
#[derive(Clone, Debug)]
pub struct Subscription {
    // In order. Texts are those of the view's own names where it has them: a stream does not
    // hold what all streams hold.
    names: Vec<Name>,
    wildcard: Wildcard,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Wildcard {
    // No request has come yet.
    Unasked(LegacyWildcard),
    // The first request named nothing, nor did any since, and this means everything.
    Legacy,
    Explicit,
    No,
}

impl Subscription {
    /// A subscription on a stream that has not asked for anything yet.
    pub fn new(legacy: LegacyWildcard) -> Self {
        Self {
            names: Vec::new(),
            wildcard: Wildcard::Unasked(legacy),
        }
    }

    /// Whether all resources of the type are wanted.
    pub fn is_wildcard(&self) -> bool {
        matches!(self.wildcard, Wildcard::Legacy | Wildcard::Explicit)
    }

    /// Whether there is anything in it: a name, or the wildcard.
    pub fn wants_anything(&self) -> bool {
        self.is_wildcard() || !self.names.is_empty()
    }

    /// Whether a resource of this name is wanted: by name, by glob (R55) or by wildcard.
    pub fn wants(&self, name: &str) -> bool {
        self.is_wildcard()
            || self.has_named(name)
            || xdstp::glob_of(name).is_some_and(|glob| self.has_named(&glob))
    }

    /// Whether a resource is wanted, by any of its names.
    pub fn wants_resource(&self, resource: &Resource) -> bool {
        let aliases = resource.aliases().iter();
        self.wants(resource.name()) || aliases.into_iter().any(|alias| self.has_named(alias))
    }

    /// Whether a resource of this name was asked for by name.
    pub fn has_named(&self, name: &str) -> bool {
        self.place_of(name).is_ok()
    }

    /// Names asked for, without the wildcard, in order.
    pub fn names(&self) -> &[Name] {
        &self.names
    }

    /// Uses this very text for the name, if it was asked for.
    pub fn share(&mut self, name: &Name) {
        if let Ok(place) = self.place_of(name) {
            self.names[place] = Name::clone(name);
        }
    }

    fn place_of(&self, name: &str) -> Result<usize, usize> {
        self.names.binary_search_by(|other| (**other).cmp(name))
    }

    /// Applies the names of a state-of-the-world request, which replace what was asked before.
    /// `set` is the one that its texts are shared with.
    pub fn replace(&mut self, names: &[Name], set: &TypeSet) -> SubscriptionChange {
        if names.is_empty()
            && let Some(change) = self.stay_legacy()
        {
            return change;
        }
        let was_wildcard = self.is_wildcard();
        let has_wildcard = names.iter().any(|name| &**name == WILDCARD);
        self.wildcard = if has_wildcard {
            Wildcard::Explicit
        } else {
            Wildcard::No
        };

        let mut wanted: Vec<&Name> = names.iter().filter(|name| ***name != *WILDCARD).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let (mut added, mut dropped) = (Vec::new(), Vec::new());
        // Most requests only answer, and repeat the names that they had.
        if !wanted.iter().copied().eq(&self.names) {
            let is_dropped = |name: &&Name| wanted.binary_search(name).is_err();
            dropped.extend(self.names.iter().filter(is_dropped).cloned());
            let new = wanted.iter().filter(|name| !self.has_named(name));
            added.extend(new.map(|name| shared(name, set)));
            let kept = wanted.iter().map(|name| match self.place_of(name) {
                Ok(place) => Name::clone(&self.names[place]),
                Err(_) => shared(name, set),
            });
            self.names = kept.collect();
        }
        SubscriptionChange {
            added,
            dropped,
            is_wildcard_added: has_wildcard && !was_wildcard,
            is_wildcard_dropped: was_wildcard && !has_wildcard,
        }
    }

    /// Applies the names of an incremental request. Unsubscribing what was not subscribed is
    /// ignored (R22); of a name in both lists the subscription wins, as it asks for an answer.
    /// `set` is the one that its texts are shared with.
    pub fn amend(
        &mut self,
        subscribe: &[Name],
        unsubscribe: &[Name],
        set: &TypeSet,
    ) -> SubscriptionChange {
        let names_nothing =
            subscribe.is_empty() && unsubscribe.iter().all(|name| !self.has_named(name));
        if names_nothing && let Some(change) = self.stay_legacy() {
            return change;
        }
        let mut change = SubscriptionChange::default();
        if unsubscribe.iter().any(|name| **name == *WILDCARD) {
            self.drop_wildcard(&mut change);
        }
        // All at once, either way: one by one would cost the square of a long list.
        let unwanted: BTreeSet<&Name> = unsubscribe.iter().collect();
        if !unwanted.is_empty() {
            let is_dropped = |name: &mut Name| unwanted.contains(name);
            change.dropped = self.names.extract_if(.., is_dropped).collect();
        }
        for name in subscribe {
            if &**name == WILDCARD {
                change.is_wildcard_added = true;
                change.is_wildcard_dropped = false;
                self.wildcard = Wildcard::Explicit;
                continue;
            }
            // R18: a name leaves legacy mode but keeps the wildcard that it meant.
            match self.wildcard {
                Wildcard::Legacy => self.wildcard = Wildcard::Explicit,
                Wildcard::Unasked(_) => self.wildcard = Wildcard::No,
                Wildcard::Explicit | Wildcard::No => {}
            }
            change.added.push(shared(name, set));
        }
        let new: BTreeSet<&Name> = change.added.iter().collect();
        let known = self.names.len();
        let new = new.into_iter().filter(|name| !self.has_named(name));
        let new: Vec<Name> = new.cloned().collect();
        self.names.reserve_exact(new.len());
        self.names.extend(new);
        if self.names.len() > known {
            self.names.sort();
        }
        change
    }

    // R16, R17: while nothing was ever named, a request without names means what the first did.
    // Unsubscribing does not leave this mode (R18).
    fn stay_legacy(&mut self) -> Option<SubscriptionChange> {
        match self.wildcard {
            Wildcard::Unasked(LegacyWildcard::Means) => {
                self.wildcard = Wildcard::Legacy;
                Some(SubscriptionChange {
                    is_wildcard_added: true,
                    ..SubscriptionChange::default()
                })
            }
            Wildcard::Unasked(LegacyWildcard::MeansNot) => {
                self.wildcard = Wildcard::No;
                Some(SubscriptionChange::default())
            }
            Wildcard::Legacy => Some(SubscriptionChange::default()),
            Wildcard::Explicit | Wildcard::No => None,
        }
    }

    // In legacy mode only beside a name that is asked for: alone it does not leave that mode.
    fn drop_wildcard(&mut self, change: &mut SubscriptionChange) {
        if self.is_wildcard() {
            self.wildcard = Wildcard::No;
            change.is_wildcard_dropped = true;
        }
    }
}

fn shared(name: &Name, set: &TypeSet) -> Name {
    let resource = set.resource(name);
    Name::clone(resource.map_or(name, |resource| resource.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    // What is wanted after each request: `*` and names, in order.
    fn wanted(subscription: &Subscription) -> Vec<String> {
        let wildcard = subscription.is_wildcard().then(|| WILDCARD.to_owned());
        let names = subscription.names().iter().map(ToString::to_string);
        wildcard.into_iter().chain(names).collect()
    }

    fn names(names: &[&str]) -> Vec<Name> {
        names.iter().map(|name| Name::from(*name)).collect()
    }

    #[test]
    fn state_of_the_world_sequences() {
        struct Case {
            name: &'static str,
            legacy: LegacyWildcard,
            steps: &'static [(&'static [&'static str], &'static [&'static str])],
        }
        use LegacyWildcard::{Means, MeansNot};
        let cases = [
            Case {
                name: "r17: nothing, then a name, then nothing: the last means nothing",
                legacy: Means,
                steps: &[(&[], &["*"]), (&["A"], &["A"]), (&[], &[])],
            },
            Case {
                name: "r17: the wildcard beside a name, then the name alone",
                legacy: Means,
                steps: &[(&["*", "A"], &["*", "A"]), (&["A"], &["A"]), (&[], &[])],
            },
            Case {
                name: "r16: legacy mode lasts while nothing is named",
                legacy: Means,
                steps: &[(&[], &["*"]), (&[], &["*"])],
            },
            Case {
                name: "r16: after the explicit wildcard, nothing means nothing",
                legacy: Means,
                steps: &[(&["*"], &["*"]), (&[], &[])],
            },
            Case {
                name: "r20: a client without the legacy wildcard means nothing by nothing",
                legacy: MeansNot,
                steps: &[(&[], &[]), (&["*"], &["*"]), (&[], &[])],
            },
        ];
        for Case {
            name,
            legacy,
            steps,
        } in cases
        {
            let mut subscription = Subscription::new(legacy);
            for (request, expected) in steps {
                subscription.replace(&names(request), &TypeSet::empty());
                assert_eq!(wanted(&subscription), *expected, "{name}");
            }
        }
    }

    #[test]
    fn incremental_sequences() {
        type Step = (
            &'static [&'static str],
            &'static [&'static str],
            &'static [&'static str],
        );
        struct Case {
            name: &'static str,
            steps: &'static [Step],
        }
        let cases = [
            Case {
                name: "r18: a name keeps the legacy wildcard until it is dropped, and for good",
                steps: &[
                    (&[], &[], &["*"]),
                    (&["A"], &[], &["*", "A"]),
                    (&[], &["*"], &["A"]),
                    (&[], &["A"], &[]),
                    (&[], &[], &[]),
                ],
            },
            Case {
                name: "r16: a first request with a name has no wildcard",
                steps: &[(&["A"], &[], &["A"]), (&[], &["A"], &[])],
            },
            Case {
                name: "r18: unsubscribing does not leave legacy mode",
                steps: &[
                    (&[], &[], &["*"]),
                    (&[], &["*"], &["*"]),
                    (&[], &["B"], &["*"]),
                ],
            },
            Case {
                name: "r18: a name instead of the legacy wildcard, in one request",
                steps: &[(&[], &[], &["*"]), (&["A"], &["*"], &["A"])],
            },
            Case {
                name: "r19: the wildcard and names in one request",
                steps: &[(&["*", "A"], &[], &["*", "A"]), (&[], &["A"], &["*"])],
            },
        ];
        for Case { name, steps } in cases {
            let mut subscription = Subscription::new(LegacyWildcard::Means);
            for (subscribe, unsubscribe, expected) in steps {
                subscription.amend(&names(subscribe), &names(unsubscribe), &TypeSet::empty());
                assert_eq!(wanted(&subscription), *expected, "{name}");
            }
        }
    }

    #[test]
    fn r21_asking_again_is_asking() {
        let mut subscription = Subscription::new(LegacyWildcard::Means);
        let set = TypeSet::empty();
        subscription.amend(&names(&["A"]), &[], &set);
        let change = subscription.amend(&names(&["A"]), &[], &set);
        assert_eq!(change.added, names(&["A"]));
    }

    #[test]
    fn r22_superfluous_unsubscribe_is_no_change() {
        let mut subscription = Subscription::new(LegacyWildcard::Means);
        let set = TypeSet::empty();
        subscription.amend(&names(&["A"]), &[], &set);
        assert_eq!(
            subscription.amend(&[], &names(&["B"]), &set),
            SubscriptionChange::default()
        );
    }
}
