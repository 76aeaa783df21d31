//! What goes back and the socket did not take yet: reply bytes in order, and where each reply ends. No I/O.

use std::collections::VecDeque;

/// A buffer of replies of this capacity is taken over as it is, in bytes: from here on the allocator gives each a mapping of its
/// own, which can be cut to length. A smaller one lies in the heap of the worker that grew it; cut there, it would leave a hole
/// too small for the next, and nothing of that heap is ever there for others: peers that read nothing made the process grow to
/// twice what they held.
const MIN_TAKEN_OVER_BYTES: usize = 128 << 10;

/// Reply bytes that wait for the socket.
#[derive(Debug, Default)]
pub(crate) struct Outbound {
    bytes: Vec<u8>,
    /// Bytes at the front that the socket took.
    sent: usize,
    /// Where in `bytes` each unsent reply ends, the first unsent one first.
    ends: VecDeque<usize>,
}

impl Outbound {
    pub(crate) fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// The bytes that wait.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Replies that are not sent to their end.
    pub(crate) fn replies(&self) -> usize {
        self.ends.len()
    }

    /// Bytes held by capacity, where each reply ends included.
    pub(crate) fn held_bytes(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<usize>()
    }

    /// What the watermarks are compared with: bytes that wait and what it costs to know where their replies end, since
    /// replies may be as short as a byte.
    pub(crate) fn weight(&self) -> usize {
        self.bytes.len() - self.sent + self.ends.len() * size_of::<usize>()
    }

    /// Takes over `replies`, whose ends are `ends` and of which the first `sent` bytes are sent, behind what waits already.
    /// Of much, nothing is copied where nothing waits; `replies` is left empty.
    pub(crate) fn push(&mut self, replies: &mut Vec<u8>, ends: &[usize], sent: usize) {
        let unsent = &ends[ends.partition_point(|end| *end <= sent)..];
        if self.is_empty() {
            self.ends.clear();
            if replies.capacity() < MIN_TAKEN_OVER_BYTES {
                self.bytes = replies[sent..].to_vec();
                self.sent = 0;
                self.ends.extend(unsent.iter().map(|end| end - sent));
                replies.clear();
            } else {
                self.bytes = std::mem::take(replies);
                self.sent = sent;
                self.ends.extend(unsent);
                self.bytes.shrink_to(self.bytes.len());
            }
        } else {
            // Of a reply that went ahead and waits here only the end may come.
            let unsent = if sent == 0 { ends } else { unsent };
            self.compact();
            let base = self.bytes.len();
            self.bytes.reserve_exact(replies.len() - sent);
            self.bytes.extend_from_slice(&replies[sent..]);
            self.ends.extend(unsent.iter().map(|end| base + end - sent));
            replies.clear();
        }
    }

    /// Adds bytes that are no reply.
    pub(crate) fn push_word(&mut self, bytes: &[u8]) {
        self.compact();
        self.bytes.reserve_exact(bytes.len());
        self.bytes.extend_from_slice(bytes);
    }

    /// The socket took `count` bytes. Returns how many replies that completed, and what is free now.
    pub(crate) fn advance(&mut self, count: usize) -> (usize, Option<Vec<u8>>) {
        self.sent += count;
        let completed = self.ends.partition_point(|end| *end <= self.sent);
        self.ends.drain(..completed);
        let free = self.is_empty().then(|| std::mem::take(self).bytes);
        (completed, free)
    }

    /// What it held.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Moves what is unsent to the front.
    fn compact(&mut self) {
        if self.sent > 0 {
            self.bytes.drain(..self.sent);
            for end in &mut self.ends {
                *end -= self.sent;
            }
            self.sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_complete_when_their_last_byte_is_sent() {
        let mut outbound = Outbound::default();
        outbound.push(&mut b"onetwothree".to_vec(), &[3, 6, 11], 4);
        assert_eq!((outbound.bytes(), outbound.replies()), (&b"wothree"[..], 2));
        assert_eq!(outbound.advance(1).0, 0);
        outbound.push(&mut b"four".to_vec(), &[4], 0);
        assert_eq!((outbound.bytes(), outbound.replies()), (&b"othreefour"[..], 3));
        assert_eq!(outbound.advance(1).0, 1);
        assert_eq!(outbound.advance(8).0, 1);
        let (completed, free) = outbound.advance(1);
        assert_eq!((completed, free.map(|bytes| bytes.len())), (1, Some(10)));
        assert!(outbound.is_empty());
        assert_eq!(outbound.held_bytes(), 0);
    }

    #[test]
    fn a_long_reply_is_taken_over_and_not_copied() {
        let mut long = vec![b'x'; 1 << 20];
        let before = long.as_ptr();
        let mut outbound = Outbound::default();
        outbound.push(&mut long, &[1 << 20], 1000);
        assert_eq!(outbound.bytes().as_ptr(), before.wrapping_add(1000));
        assert!(long.is_empty());
    }

    #[test]
    fn short_replies_weigh_what_it_costs_to_know_their_ends() {
        let mut outbound = Outbound::default();
        outbound.push(&mut b"abcd".to_vec(), &[1, 2, 3, 4], 0);
        assert_eq!(outbound.weight(), 4 + 4 * size_of::<usize>());
        outbound.advance(2);
        assert_eq!(outbound.weight(), 2 + 2 * size_of::<usize>());
    }
}
