//! What a peer may make us do for nothing: a bucket of tokens that time and useful work refill.

use std::time::Duration;

use crate::limits;

/// The tokens of one connection.
#[derive(Debug)]
pub(crate) struct Budget {
    tokens: u32,
    refilled_at: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            tokens: limits::BUDGET_TOKENS,
            refilled_at: Duration::ZERO,
        }
    }
}

impl Budget {
    /// Adds what time has brought.
    pub(crate) fn handle_time(&mut self, now: Duration) {
        let per_second = u128::from(limits::BUDGET_TOKENS_PER_SECOND);
        let since = now.saturating_sub(self.refilled_at);
        let brought = since.as_millis() * per_second / 1000;
        if brought > 0 {
            self.refilled_at = now;
            self.earn(u32::try_from(brought).unwrap_or(u32::MAX));
        }
    }

    pub(crate) fn earn(&mut self, tokens: u32) {
        self.tokens = self.tokens.saturating_add(tokens);
        self.tokens = self.tokens.min(limits::BUDGET_TOKENS);
    }

    /// Takes tokens; `None` if there are not as many.
    pub(crate) fn spend(&mut self, tokens: u32) -> Option<()> {
        self.tokens = self.tokens.checked_sub(tokens)?;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_bounded_and_time_brings_more() {
        let mut budget = Budget::default();
        for _ in 0..limits::BUDGET_TOKENS {
            budget.spend(1).unwrap();
        }
        assert_eq!(budget.spend(1), None);
        budget.handle_time(Duration::from_millis(20));
        budget.spend(1).unwrap();
        assert_eq!(budget.spend(1), None);
        budget.handle_time(Duration::from_hours(1));
        budget.spend(limits::BUDGET_TOKENS).unwrap();
        assert_eq!(budget.spend(1), None, "an hour of silence saves no more");
    }
}
