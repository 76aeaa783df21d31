//! Large buffers on their way back to the system: giving back a quarter of a gigabyte at once takes tens of milliseconds,
//! in which nobody would be served. So it is done in pieces, one a turn.

/// Buffers of this capacity are given back in pieces, in bytes.
const LARGE_BYTES: usize = 4 << 20;
/// Given back in a turn, in bytes: some 300 µs.
const PIECE_BYTES: usize = 4 << 20;

/// What has to be given back.
#[derive(Debug, Default)]
pub(crate) struct Litter {
    large: Vec<Vec<u8>>,
}

impl Litter {
    /// Drops a buffer, at once if it is not large.
    pub(crate) fn drop_later(&mut self, bytes: Option<Vec<u8>>) {
        self.large.extend(bytes.filter(|bytes| bytes.capacity() > LARGE_BYTES));
    }

    /// Whether nothing is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.large.is_empty()
    }

    /// Gives back a piece.
    pub(crate) fn drop_piece(&mut self) {
        let Some(bytes) = self.large.last_mut() else { return };
        let rest = bytes.capacity().saturating_sub(PIECE_BYTES);
        bytes.truncate(rest);
        bytes.shrink_to(rest);
        if rest <= LARGE_BYTES {
            self.large.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_buffer_goes_in_pieces_and_a_small_one_at_once() {
        let mut litter = Litter::default();
        litter.drop_later(Some(vec![0; 1 << 20]));
        assert!(litter.is_empty());
        litter.drop_later(Some(vec![0; 5 * PIECE_BYTES]));
        let mut pieces = 0;
        while !litter.is_empty() {
            let before = litter.large[0].capacity();
            litter.drop_piece();
            assert!(litter.large.first().is_none_or(|rest| rest.capacity() <= before - PIECE_BYTES));
            pieces += 1;
        }
        assert_eq!(pieces, 4);
    }
}
