//! Rules of numbers, lengths of time and points in time: all of them are ranges and sets.

use super::requirement::{Bound, Quantity, Requirement};

/// The rules of one field.
#[derive(Clone, Debug, Default)]
pub(super) struct Range {
    pub(super) constant: Option<Quantity>,
    pub(super) less: Option<Quantity>,
    pub(super) at_most: Option<Quantity>,
    pub(super) greater: Option<Quantity>,
    pub(super) at_least: Option<Quantity>,
    pub(super) one_of: Vec<Quantity>,
    pub(super) not_one_of: Vec<Quantity>,
    pub(super) ignores_zero: bool,
}

impl Range {
    /// What `value` does not satisfy. Not a number satisfies every range, as it does in C++.
    pub(super) fn check(&self, value: Quantity) -> Option<Requirement> {
        if self.ignores_zero && is_zero(value) {
            return None;
        }
        if let Some(constant) = self.constant.filter(|constant| *constant != value) {
            return Some(Requirement::Equal(constant.to_string()));
        }
        if let Some(requirement) = self.check_range(value) {
            return Some(requirement);
        }
        if !self.one_of.is_empty() && !self.one_of.contains(&value) {
            return Some(Requirement::OneOf(names(&self.one_of)));
        }
        self.not_one_of
            .contains(&value)
            .then(|| Requirement::NotOneOf(names(&self.not_one_of)))
    }

    fn check_range(&self, value: Quantity) -> Option<Requirement> {
        let (low, high) = (self.low(), self.high());
        let is_low = low.is_some_and(|low| below(value, low));
        let is_high = high.is_some_and(|high| above(value, high));
        match (low, high) {
            // The ends of "less than 1, greater than 5" are those of what is forbidden.
            (Some(low), Some(high)) if high.value <= low.value && !is_point(low, high) => {
                (is_low && is_high).then_some(Requirement::Outside {
                    low: high,
                    high: low,
                })
            }
            _ => (is_low || is_high).then_some(Requirement::Range { low, high }),
        }
    }

    fn low(&self) -> Option<Bound> {
        bound(self.greater, self.at_least)
    }

    fn high(&self) -> Option<Bound> {
        bound(self.less, self.at_most)
    }
}

fn bound(exclusive: Option<Quantity>, inclusive: Option<Quantity>) -> Option<Bound> {
    let of = |is_inclusive| {
        move |value| Bound {
            is_inclusive,
            value,
        }
    };
    exclusive.map(of(false)).or(inclusive.map(of(true)))
}

/// From a value to itself.
fn is_point(low: Bound, high: Bound) -> bool {
    low.value == high.value && low.is_inclusive && high.is_inclusive
}

fn below(value: Quantity, low: Bound) -> bool {
    value < low.value || (!low.is_inclusive && value == low.value)
}

fn above(value: Quantity, high: Bound) -> bool {
    value > high.value || (!high.is_inclusive && value == high.value)
}

fn is_zero(value: Quantity) -> bool {
    match value {
        Quantity::Duration(value) | Quantity::Integer(value) | Quantity::Time(value) => value == 0,
        Quantity::Float(value) => value == 0.0,
    }
}

fn names(values: &[Quantity]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_what_is_between_its_ends_or_around_them() {
        let number = |value| Some(Quantity::Integer(value));
        let inside = Range {
            at_least: number(1),
            less: number(5),
            ..Range::default()
        };
        let around = Range {
            at_least: number(5),
            less: number(1),
            ..Range::default()
        };
        let point = Range {
            at_least: number(5),
            at_most: number(5),
            ..Range::default()
        };
        let not_zero = Range {
            at_least: number(5),
            ignores_zero: true,
            ..Range::default()
        };
        let few = Range {
            one_of: vec![Quantity::Integer(1), Quantity::Integer(2)],
            ..Range::default()
        };
        let inside_text = "must be at least 1 and must be less than 5";
        let around_text = "must be less than 1 or must be at least 5";
        let cases = [
            (&inside, 0, Some(inside_text)),
            (&inside, 1, None),
            (&inside, 4, None),
            (&inside, 5, Some(inside_text)),
            (&around, 0, None),
            (&around, 1, Some(around_text)),
            (&around, 4, Some(around_text)),
            (&around, 5, None),
            (&point, 5, None),
            (&point, 4, Some("must be at least 5 and must be at most 5")),
            (&not_zero, 0, None),
            (&not_zero, 1, Some("must be at least 5")),
            (&few, 2, None),
            (&few, 3, Some("must be 1 or 2")),
        ];
        for (range, value, wanted) in cases {
            let found = range
                .check(Quantity::Integer(value))
                .map(|it| it.to_string());
            assert_eq!(found.as_deref(), wanted, "{value} in {range:?}");
        }
    }

    #[test]
    fn not_a_number_is_in_every_range() {
        let range = Range {
            greater: Some(Quantity::Float(0.0)),
            at_most: Some(Quantity::Float(1.0)),
            ..Range::default()
        };
        assert_eq!(range.check(Quantity::Float(f64::NAN)), None);
        assert!(range.check(Quantity::Float(f64::INFINITY)).is_some());
    }
}
