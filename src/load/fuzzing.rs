//! What the fuzz target of the ledger calls, and the test that runs its corpus. Not in any other build.

use super::ledger::{Asked, End, Ledger, Read};
use super::protocol::{Protocol, Tail};
use super::tally::Tally;

/// Most requests that are outstanding.
const REQUESTS: u64 = 6;

/// The books balance whatever the peer sends, and however it is cut.
pub(crate) fn ledger(data: &[u8]) {
    let [which, step, ends, bytes @ ..] = data else { return };
    let custom = |request, expect| Protocol::custom(request, expect, None, None).ok();
    let protocol = match which % 4 {
        0 => {
            let tail = Tail { advertise: Default::default(), student_id: "16336617".to_owned() };
            Some(Protocol::helo(*b"abcd", tail, ([127, 0, 0, 1], 8000).into()))
        }
        1 => custom("x{n}", "y{n}"),
        2 => custom("x{n}", r"$*\n{n}\nend"),
        _ => custom("x", "250 *"),
    };
    let Some(mut protocol) = protocol else { return };
    let (mut ledger, mut tally) = (Ledger::new(7, 3), Tally::new(0));
    for number in 0..REQUESTS {
        let asked = Asked { due: 0, sent: number };
        ledger.ask(asked, number * 3, 1, &mut protocol, &mut tally);
    }
    // A byte from 128 on stands for a right reply, so that the fuzzer need not find out how one is written.
    let mut stream = Vec::new();
    for byte in bytes {
        match byte {
            128.. => stream.extend_from_slice(protocol.reply(u64::from(byte % 8) * 3)),
            _ => stream.push(*byte),
        }
    }
    let mut held = Vec::new();
    for chunk in stream.chunks(usize::from(*step).max(1)) {
        held.extend_from_slice(chunk);
        match ledger.read(&held, &mut protocol, 1, &mut tally) {
            Read::Consumed(count) => drop(held.drain(..count)),
            Read::Rubbish => {
                held.clear();
                break;
            }
        }
    }
    let end = if ends & 1 == 1 { End::Broken } else { End::Stopped };
    ledger.close(end, &held, &mut protocol, 1, &mut tally);
    let counted = tally.total();
    let settled = counted.right + counted.wrong + counted.reordered + counted.lost + counted.unread;
    assert_eq!((settled, ledger.outstanding()), (counted.sent, 0), "{counted:?}");
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_ledger_holds_for_the_corpus() {
        crate::cli::fuzzing::run_corpus("ledger", super::ledger);
    }
}
