//! What is tried less often where it has been in vain.

/// After so many times in a row, and after more, it is tried one time in 2 to the power of this.
const MAX_VAIN: u32 = 6;

/// How often something has been in vain of late.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    /// Times in a row, and how many times it is not tried.
    vain: u32,
    again_after: u32,
}

impl Backoff {
    /// Whether it is to be tried this time.
    pub(super) fn is_due(&mut self) -> bool {
        let is_due = self.again_after == 0;
        self.again_after = self.again_after.saturating_sub(1);
        is_due
    }

    /// It was tried, and has `paid` or not.
    pub(super) fn tried(&mut self, paid: bool) {
        self.vain = if paid { 0 } else { (self.vain + 1).min(MAX_VAIN) };
        self.again_after = (1 << self.vain) - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_vain_is_tried_less_often_until_it_pays() {
        let mut backoff = Backoff::default();
        let mut tries = |times: usize, paid: bool| {
            let due = (0..times).filter(|_| backoff.is_due().then(|| backoff.tried(paid)).is_some());
            due.count()
        };
        assert_eq!(tries(100, true), 100);
        assert_eq!(tries(1 + 2 + 4 + 8 + 16 + 32, false), 6);
        assert_eq!(tries(64 * 10, false), 10);
        assert_eq!(tries(64 + 100, true), 101);
    }
}
