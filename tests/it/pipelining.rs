//! Many requests in one write: answered in order, without others waiting behind them.

use tidemill::Helo;

use crate::support::{
    Gate, Peer, assert_same, configure, echo, embed, eventually, helo_reply, in_parallel, serve,
};

fn requests(name: usize, count: usize) -> (Vec<u8>, Vec<String>) {
    let texts: Vec<String> = (0..count).map(|number| format!("{name}/{number}")).collect();
    (texts.iter().flat_map(|text| format!("HELO {text}\n").into_bytes()).collect(), texts)
}

#[test]
fn thousands_of_requests_in_one_write_are_answered_in_order() {
    let serving = serve("");
    let (sent, texts) = requests(0, 20_000);
    let expected: Vec<u8> =
        texts.iter().flat_map(|text| helo_reply(text.as_bytes(), serving.address)).collect();
    let mut peer = serving.connect();
    let came = peer.exchange(&sent);
    assert_same(&came, &expected);
    drop(peer);
    let ended = serving.stop();
    ended.assert_clean();
    assert_eq!(ended.stats()["replies_total"], 20_000);
}

#[test]
fn pipelines_of_many_clients_do_not_mix() {
    let serving = serve("");
    in_parallel(16, |name| {
        let (mut sent, texts) = requests(name, 1500);
        // Lines without a reply and lines of other lengths between them.
        sent.extend(b"nothing\n\nHELO\n");
        sent.extend([b"HELO ", &vec![b'z'; 30_000][..], b"\n"].concat());
        let mut expected: Vec<u8> =
            texts.iter().flat_map(|text| helo_reply(text.as_bytes(), serving.address)).collect();
        expected.extend(helo_reply(&vec![b'z'; 30_000], serving.address));
        let came = serving.connect().exchange(&sent);
        assert_same(&came, &expected);
    });
}

#[test]
fn order_holds_when_requests_take_different_times() {
    let server = embed(|request: &tidemill::Request<'_>, reply: &mut tidemill::Reply<'_>| {
        let number: u64 = std::str::from_utf8(request.line()).unwrap().parse().unwrap();
        std::thread::sleep(std::time::Duration::from_micros(number * 7919 % 1500));
        reply.push(request.line());
        reply.push(b"\n");
    });
    in_parallel(8, |_| {
        let lines: Vec<u8> = (0..100).flat_map(|number| format!("{number}\n").into_bytes()).collect();
        assert_eq!(Peer::connect(server.local_addr()).exchange(&lines), lines);
    });
}

#[test]
fn a_greedy_client_does_not_starve_another() {
    let serving = serve("--max-threads 1 --min-threads 1");
    std::thread::scope(|scope| {
        let mut greedy = serving.connect();
        let flood = scope.spawn(move || greedy.flood(b"HELO greedy\n").len());
        // Each of these has to get through while the flood goes on.
        for number in 0..200 {
            serving.connect().ask(&number.to_string());
        }
        assert!(!flood.is_finished(), "the flood ended before the others had been served");
        let ended = serving.stop();
        ended.assert_clean();
        assert!(flood.join().unwrap() > 0);
    });
}

#[test]
fn a_greedy_client_does_not_starve_another_at_the_limit_of_pending_requests() {
    let server = configure(Helo::new(), |config| config.max_pending = 2);
    std::thread::scope(|scope| {
        let mut greedy = Peer::connect(server.local_addr());
        let flood = scope.spawn(move || greedy.flood(b"HELO greedy\n").len());
        for number in 0..50 {
            Peer::connect(server.local_addr()).ask(&number.to_string());
        }
        assert!(!flood.is_finished());
        server.handle().stop();
        assert!(flood.join().unwrap() > 0);
    });
    assert!(server.wait().unwrap().is_clean());
}

#[test]
fn a_long_burst_does_not_keep_another_client_waiting_for_its_end() {
    let (first, last) = (Gate::closed(), Gate::closed());
    let (begin, end) = (first.entrance(), last.entrance());
    let handler = move |request: &tidemill::Request<'_>, reply: &mut tidemill::Reply<'_>| {
        match request.line() {
            b"first" => begin(),
            b"last" => end(),
            _ => {}
        }
        std::thread::sleep(std::time::Duration::from_micros(20));
        echo(request, reply);
    };
    // One worker: the other client is answered only if the burst's job is put back in between.
    let server = configure(handler, |config| (config.min_threads, config.max_threads) = (1, 1));
    let mut burst = Peer::connect(server.local_addr());
    let lines = [b"first\n", &b"x\n".repeat(250)[..], b"last\n"].concat();
    burst.send(&lines);
    eventually("the burst is being worked on", || server.handle().stats().pool_busy == 1);
    let mut other = Peer::connect(server.local_addr());
    let before = server.handle().stats().read_bytes_total;
    other.send(b"me too\n");
    eventually("the other's is read", || server.handle().stats().read_bytes_total >= before + 7);
    first.open();
    // Nobody lets the last one of the burst go before this has come.
    other.expect(b"me too\n");
    last.open();
    burst.expect(&lines);
}
