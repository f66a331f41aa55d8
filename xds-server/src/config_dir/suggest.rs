//! "Did you mean": the closest of the names that would have been right.

use super::error::Suggestion;

/// Names that are few enough to be listed whole.
const MAX_LISTED: usize = 6;

/// A typing mistake: at least this share of the characters is right.
const TYPING_MISTAKE: f64 = 0.7;

/// Another wording of the same: at least this share of the pairs of characters is in both.
const OTHER_WORDING: f64 = 0.5;

/// Picks the closest of `candidates` to `found`, or lists them all if none is close and they are few.
pub(super) fn suggest<'a>(found: &str, candidates: impl Iterator<Item = &'a str>) -> Suggestion {
    let mut names: Vec<&str> = candidates.collect();
    names.sort_unstable();
    let found = normal(found);
    let closest = closest(&names, TYPING_MISTAKE, |name| {
        strsim::normalized_damerau_levenshtein(&found, &normal(name))
    })
    .or_else(|| {
        closest(&names, OTHER_WORDING, |name| {
            strsim::sorensen_dice(&found, &normal(name))
        })
    });
    match closest {
        Some(name) => Suggestion::DidYouMean(name.to_owned()),
        None if !names.is_empty() && names.len() <= MAX_LISTED => {
            Suggestion::OneOf(names.into_iter().map(str::to_owned).collect())
        }
        None => Suggestion::Nothing,
    }
}

/// The first of the names with the highest likeness, if that is at least `least`.
fn closest<'a>(names: &[&'a str], least: f64, likeness: impl Fn(&str) -> f64) -> Option<&'a str> {
    let scored = names.iter().map(|name| (likeness(name), *name));
    let best = scored.reduce(|best, next| if next.0 > best.0 { next } else { best })?;
    (best.0 >= least).then_some(best.1)
}

/// `lb_policy`, `lbPolicy` and `LB-Policy` are one name to a person.
fn normal(name: &str) -> String {
    name.chars()
        .filter(|char| !matches!(char, '_' | '-'))
        .flat_map(char::to_lowercase)
        .collect()
}
