//! Responses that were sent, and what the client said to them (R9, R42, R47).

use std::sync::Arc;
use std::time::Duration;

use super::compose::Content;
use super::{Held, TypeState};
use crate::limits;
use crate::resource::{Name, Resource, Version};
use crate::stream::Variant;
use crate::view::TypeSet;

/// The client's last word on a type, if it was a refusal.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// Generation of the content that was refused.
    pub generation: u64,
    /// The client's own words, cut at [`limits::ERROR_TEXT_BYTES`].
    pub message: String,
}

/// A response that is not answered.
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is one thing that the answer to it depends on"
)]
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) nonce: u64,
    pub(super) generation: u64,
    pub(super) version: Version,
    pub(super) sent_at: Duration,
    // Nothing was left to be sent after it.
    pub(super) is_whole: bool,
    pub(super) sent: Sent,
    // What it removed by name.
    pub(super) removed: Box<[Name]>,
    // It lacked what the client held, which removes it.
    pub(super) is_smaller: bool,
    // It had, too, what was sent earlier and not answered then.
    pub(super) is_mixed: bool,
    // It had something that was refused before, since it is not known what else to send.
    pub(super) has_refused: bool,
}

/// What of a response was new to the client, and can be to blame if it is refused.
#[derive(Debug)]
pub(crate) enum Sent {
    /// These.
    Items(Box<[Item]>),
    /// Everything in the set: a pointer instead of a list for each of a thousand new streams. Of a
    /// client that returns, it is not known what it holds; any other holds nothing.
    All {
        set: Arc<TypeSet>,
        is_returning: bool,
    },
}

impl Default for Sent {
    fn default() -> Self {
        Self::Items(Box::default())
    }
}

/// A resource that was sent, and what the client held of it until then.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(super) resource: Arc<Resource>,
    pub(super) held: Held,
}

impl Sent {
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::Items(items) => items.iter().any(|item| **item.resource.name() == *name),
            Self::All { set, .. } => set.resource(name).is_some(),
        }
    }

    /// Notes that something was refused that the client was thought to hold.
    pub(super) fn unhold(&mut self, refused: &Resource, before: &Held) {
        let is_same = |item: &&mut Item| item.resource.name() == refused.name();
        for item in self.items_mut().iter_mut().filter(is_same) {
            if item.held.is(refused.version()) {
                item.held = before.clone().doubted();
            }
        }
    }

    /// What the client was thought to hold of each; a whole set is not listed.
    pub(super) fn items_mut(&mut self) -> &mut [Item] {
        match self {
            Self::Items(items) => items,
            Self::All { .. } => &mut [],
        }
    }

    pub(super) fn into_items(self) -> Vec<Item> {
        match self {
            Self::Items(items) => items.into_vec(),
            Self::All { set, is_returning } => {
                let item = |resource: &Arc<Resource>| Item {
                    resource: Arc::clone(resource),
                    held: if is_returning {
                        Held::Unknown
                    } else {
                        Held::Nothing
                    },
                };
                set.resources().map(item).collect()
            }
        }
    }
}

/// What a request meant as an answer to an earlier response.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Answer {
    /// The newest or an earlier unanswered response was accepted.
    Ack { generation: u64, sent_at: Duration },
    /// It was refused, and these are to blame.
    Nack {
        refusal: Refusal,
        culprits: Vec<Culprit>,
    },
    /// It names no unanswered response of this stream.
    Stale,
}

/// A resource that is known to have been refused.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Culprit {
    pub(crate) name: Name,
    pub(crate) version: Version,
}

impl TypeState {
    /// Settles the response that `nonce` names and all before it (R47).
    pub(crate) fn handle_answer(
        &mut self,
        nonce: Option<u64>,
        error: Option<&str>,
        now: Duration,
    ) -> Answer {
        let mut sent = self.in_flight.iter();
        let Some(at) = sent.position(|sent| Some(sent.nonce) == nonce) else {
            return Answer::Stale;
        };
        let rest = self.in_flight.split_off(at + 1);
        let settled = std::mem::replace(&mut self.in_flight, rest);
        let Some(newest) = settled.last() else {
            return Answer::Stale;
        };
        let generation = newest.generation;
        let Some(error) = error else {
            self.acked_generation = Some(generation);
            self.acked_version = Some(newest.version);
            if newest.is_whole {
                self.whole_generation = generation;
            }
            self.refusal = None;
            self.isolation_accepted();
            self.keeps_old &= self.is_doubt_left();
            return Answer::Ack {
                generation,
                sent_at: newest.sent_at,
            };
        };
        let refusal = Refusal {
            generation,
            message: cut(error).to_owned(),
        };
        self.refusal = Some(Box::new(refusal.clone()));
        let culprits = self.refuse(settled, &refusal, now);
        Answer::Nack { refusal, culprits }
    }

    /// Remembers that a response was sent.
    pub(crate) fn note_sent(&mut self, nonce: u64, content: &mut Content, now: Duration) {
        let (sent, removed) = (&mut content.sent, &content.removed);
        // One is the rule, and a vector would make room for four.
        self.in_flight.reserve_exact(1);
        self.in_flight.push(InFlight {
            nonce,
            generation: self.base.generation(),
            version: content.version.unwrap_or_else(|| self.base.version()),
            sent_at: now,
            is_whole: !self.has_makes() && !self.has_breaks(),
            sent: std::mem::take(sent),
            removed: removed.as_slice().into(),
            is_smaller: content.is_smaller,
            is_mixed: self.is_restated() && !self.in_flight.is_empty(),
            has_refused: content.has_refused,
        });
    }

    /// Generation up to which the client answered all that it wants, if the view is of `newest`.
    pub(crate) fn answered_through(&self, newest: u64) -> u64 {
        if self.is_answered() && !self.has_breaks() {
            newest
        } else {
            self.whole_generation
        }
    }

    /// The refusal in force, if any: of what was sent last, or of what is set aside.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        let last = self.refusal.as_deref().cloned();
        last.or_else(|| self.isolation.as_ref()?.refusal())
    }

    /// Whether the client refused something and may go on with what it had before.
    pub(crate) fn may_keep_old(&self) -> bool {
        let isolation = self.isolation.as_ref();
        self.subscription.wants_anything()
            && (self.keeps_old || isolation.is_some_and(|it| it.may_keep_old()))
    }

    /// Something was forgotten, and no answer will come that says that the client did so too.
    pub(super) fn doubt_no_more(&mut self) {
        // What is in no list may be a removal that it refused last, if it is told of any.
        let is_removal_told = self.variant == Variant::Delta || self.is_restated();
        if self.keeps_old && (self.refusal.is_none() || !is_removal_told) {
            self.keeps_old = self.is_doubt_left();
        }
    }

    fn is_doubt_left(&self) -> bool {
        let is_doubtful = |held: &Held| matches!(held, Held::Doubtful(_));
        let mut sent = self.in_flight.iter().map(|it| &it.sent);
        self.todo.values().any(is_doubtful)
            || sent.any(|sent| match sent {
                Sent::Items(items) => items.iter().any(|item| is_doubtful(&item.held)),
                Sent::All { .. } => false,
            })
    }

    /// Generation of the last content that the client accepted.
    pub(crate) fn acked_generation(&self) -> Option<u64> {
        self.acked_generation
    }

    /// Generation of the newest content that the client was sent.
    pub(crate) fn sent_generation(&self) -> Option<u64> {
        let unanswered = self.in_flight.last().map(|sent| sent.generation);
        let refused = self.refusal.as_ref().map(|refusal| refusal.generation);
        unanswered.or(refused).max(self.acked_generation)
    }

    /// When the next response may go, as far as this type alone is concerned: one unanswered
    /// response at a time, with an escape (R46a), and no wait for who asked.
    pub(crate) fn may_send_at(&self) -> Duration {
        let Some(newest) = self.in_flight.last() else {
            return Duration::ZERO;
        };
        let is_incremental = self.variant == Variant::Delta;
        let has_room = self.in_flight.len() < limits::IN_FLIGHT;
        if is_incremental && self.has_asked && has_room {
            return Duration::ZERO;
        }
        if has_room {
            newest.sent_at + limits::ANSWER_PATIENCE
        } else {
            Duration::MAX
        }
    }
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(limits::ERROR_TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
