//! "Did you mean": the closest of the names that would have been right.

use super::error::Suggestion;

/// Names that are few enough to be listed whole.
const MAX_LISTED: usize = 6;

/// Picks the closest of `candidates` to `found`, or lists them all if none is close and they are few.
pub(super) fn suggest<'a>(found: &str, candidates: impl Iterator<Item = &'a str>) -> Suggestion {
    let mut names: Vec<&str> = candidates.collect();
    names.sort_unstable();
    let closest = names
        .iter()
        .map(|name| (strsim::jaro_winkler(&normal(found), &normal(name)), *name))
        .max_by(|left, right| left.0.total_cmp(&right.0).then_with(|| right.1.cmp(left.1)));
    match closest {
        Some((likeness, name)) if likeness > 0.8 => Suggestion::DidYouMean(name.to_owned()),
        Some(_) if names.len() <= MAX_LISTED => {
            Suggestion::OneOf(names.into_iter().map(str::to_owned).collect())
        }
        Some(_) | None => Suggestion::Nothing,
    }
}

/// `lb_policy`, `lbPolicy` and `LB-Policy` are one name to a person.
fn normal(name: &str) -> String {
    name.chars()
        .filter(|char| !matches!(char, '_' | '-'))
        .flat_map(char::to_lowercase)
        .collect()
}
