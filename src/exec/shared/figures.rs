//! What anyone may know of the programs: how many there are and were, what they occupy, and which.

use std::sync::atomic::Ordering::Relaxed;

use super::Shared;
use crate::exec::program::Card;
use crate::exec::stats::{ProgramStats, ProgramsStats, resident_bytes};

/// Processes that are looked at for what all of them occupy, the oldest: each takes some 10 µs.
const MAX_LOOKS: usize = 64;

impl Shared {
    pub(in crate::exec) fn stats(&self) -> ProgramsStats {
        let state = self.state();
        let ids: Vec<u32> = state.listed.values().map(|card| card.id).take(MAX_LOOKS).collect();
        let mut stats = ProgramsStats {
            available: !state.in_trouble,
            ready: state.idle.len() as u64,
            running: state.listed.len() as u64,
            resident_bytes: 0,
            started_total: state.started,
            ended_total: state.ends,
        };
        // Nobody waits while it is looked at what they occupy.
        drop(state);
        let looked_at = ids.len().max(1) as u64;
        let sum: u64 = ids.into_iter().map(resident_bytes).sum();
        // Those that were looked at stand for all.
        stats.resident_bytes = sum / looked_at * stats.running.max(looked_at);
        stats
    }

    /// Those that run, the oldest first, `most` at the most.
    pub(in crate::exec) fn programs(&self, most: usize) -> Vec<ProgramStats> {
        let state = self.state();
        let is_ready = |card: &Card| state.idle.iter().any(|idle| idle.card.number == card.number);
        let mut programs: Vec<ProgramStats> = state
            .listed
            .values()
            .take(most)
            .map(|card| ProgramStats {
                number: card.number,
                pid: card.id,
                age_seconds: card.started.elapsed().as_secs_f64(),
                requests: card.served.load(Relaxed),
                resident_bytes: 0,
                ready: is_ready(card),
            })
            .collect();
        drop(state);
        for program in &mut programs {
            program.resident_bytes = resident_bytes(program.pid);
        }
        programs
    }
}
