//! Answers to questions about the connections: who holds most, and whose a name is. In pieces, one a turn, as there may be many
//! connections; so an answer is of no single moment.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Reactor;
use crate::connection::Role;
use crate::mail::{Findings, Holder, Survey};
use crate::slots::ConnId;

/// Slots that are looked at in a turn: some 50 µs.
const SLOTS_PER_TURN: usize = 4096;

/// A question, and how far it is answered.
#[derive(Debug)]
pub(super) struct Search {
    survey: Box<Survey>,
    /// The next slot to be looked at.
    next: usize,
    /// Those that hold most so far, the least of them on top.
    most: BinaryHeap<Reverse<(usize, ConnId)>>,
}

impl Search {
    pub(super) fn new(survey: Box<Survey>) -> Search {
        Search { survey, next: 0, most: BinaryHeap::new() }
    }
}

impl Reactor {
    /// Does a piece of the first question.
    pub(super) fn search_on(&mut self) {
        let Some(search) = self.searches.front_mut() else { return };
        let end = if search.survey.top > 0 { self.table.end() } else { 0 };
        let piece = search.next..end.min(search.next + SLOTS_PER_TURN);
        search.next = piece.end;
        for (id, entry) in self.table.entries(piece) {
            if matches!(entry.connection.role, Role::Requests | Role::Joined | Role::Announced) {
                search.most.push(Reverse((entry.connection.accounted_bytes, id)));
                if search.most.len() > search.survey.top {
                    search.most.pop();
                }
            }
        }
        if search.next >= end
            && let Some(Search { survey, most, .. }) = self.searches.pop_front()
        {
            self.answer_survey(*survey, most);
        }
    }

    fn answer_survey(&mut self, survey: Survey, most: BinaryHeap<Reverse<(usize, ConnId)>>) {
        let now = self.now();
        // The least last; who has gone meanwhile is left out.
        let most = most.into_sorted_vec().into_iter().filter_map(|Reverse((held_bytes, id))| {
            let connection = &self.table.get(id)?.connection;
            Some(Holder {
                service: connection.service(),
                peer: connection.peer(),
                age_nanos: now.saturating_sub(connection.opened_at),
                state: connection.doing(),
                held_bytes,
            })
        });
        let most = most.collect();
        let peer = |id: &ConnId| self.table.get(*id).map(|entry| entry.connection.peer());
        let peers = survey.peers_of.iter().map(peer).collect();
        (survey.answer)(Findings { most, peers });
    }
}
