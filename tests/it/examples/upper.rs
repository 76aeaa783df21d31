//! `upper`, by a plain socket.

use super::{example, stop};

#[test]
fn each_line_comes_back_in_upper_case() {
    let upper = example("upper", &[]);
    let mut peer = upper.connect();
    peer.send(b"hello\nHow do you do?\r\n\nlast, no \xe4 and no line feed");
    peer.finish();
    peer.expect_rest(b"HELLO\nHOW DO YOU DO?\n\nLAST, NO \xe4 AND NO LINE FEED\n");
    let mut stays = upper.connect();
    stays.send(b"x\n");
    stays.expect(b"X\n");
    stop(upper);
    stays.expect_end();
}
