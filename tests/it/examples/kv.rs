//! `kv`, by plain sockets and by the clients of Redis; its framing by itself.

use std::process::Command;

use tidemill::framing::verify;

use super::{client, example, missing, stop};
use crate::support::Serving;
use resp::{Resp, words};

#[path = "../../examples/kv/resp.rs"]
mod resp;

/// Runs `check` with requests on the event loop, and on workers.
fn in_both_ways(check: impl Fn(&Serving)) {
    for arguments in [&[][..], &["--workers"]] {
        let kv = example("kv", arguments);
        check(&kv);
        stop(kv);
    }
}

/// Sends `bytes`, and expects `expected` and then the end.
#[track_caller]
fn exchange(kv: &Serving, bytes: &[u8], expected: impl AsRef<[u8]>) {
    let reply = kv.connect().exchange(bytes);
    assert_eq!(reply.escape_ascii().to_string(), expected.as_ref().escape_ascii().to_string());
}

#[test]
fn frames_are_requests_however_they_come() {
    let (get, set): (&[u8], &[u8]) =
        (b"*2\r\n$3\r\nGET\r\n$0\r\n\r\n", b"*3\r\n$3\r\nset\r\n$2\r\n\r\n\r\n$1\r\n*\r\n");
    let requests = [b"PING\r\n", get, set, b"\n", b"*0\r\n", b"$1\n", get, b"ECHO a b"].concat();
    let frames: [&[u8]; 7] = [b"PING\r\n", get, set, b"\n", b"*0\r\n", b"$1\n", get];
    assert_eq!(
        verify(&Resp, &requests),
        (frames.map(<[u8]>::to_vec).to_vec(), false),
        "the rest is not complete"
    );
    // The begin of what is no request is a frame, too, as soon as it is known.
    for (bytes, known_at, why) in [
        (&b"*x\r\n"[..], 4, "invalid multibulk length"),
        (b"*-1\r\n", 5, "invalid multibulk length"),
        (b"*\r\n", 3, "invalid multibulk length"),
        (b"*1\n", 3, "invalid multibulk length"),
        (b"*1\rx\n", 5, "invalid multibulk length"),
        (b"*1025\r\n", 7, "invalid multibulk length"),
        (b"*0000000000000000000000001\r\n", 25, "invalid multibulk length"),
        (b"*1\r\n+PING\r\n", 5, "expected '$'"),
        (b"*1\r\n$-1\r\n", 9, "invalid bulk length"),
        (b"*1\r\n$16777217\r\n", 15, "invalid bulk length"),
        (b"*2\r\n$9\r\n123456789\r\n$16777208\r\n", 30, "invalid bulk length"),
        (b"*1\r\n$1\r\nPING\r\n", 11, "expected a line end behind a bulk"),
    ] {
        let (frames, too_long) = verify(&Resp, bytes);
        assert_eq!((frames[0].as_slice(), too_long), (&bytes[..known_at], false), "{}", bytes.escape_ascii());
        let malformed = words(&frames[0], 0, |_| ()).err();
        assert_eq!(malformed.map(|(why, _)| why), Some(why), "{}", bytes.escape_ascii());
    }
}

#[test]
fn commands_are_answered_as_redis_does() {
    in_both_ways(|kv| {
        for (request, reply) in [
            ("PING", "+PONG\r\n"),
            ("ping x", "$1\r\nx\r\n"),
            ("  ECHO\tx ", "$1\r\nx\r\n"),
            ("GET k", "$-1\r\n"),
            ("SET k 41", "+OK\r\n"),
            ("INCR k", ":42\r\n"),
            ("GET k", "$2\r\n42\r\n"),
            ("INCR new", ":1\r\n"),
            ("INCRBY new -3", ":-2\r\n"),
            ("INCRBY new x", "-ERR value is not an integer or out of range\r\n"),
            ("SET k 9223372036854775807", "+OK\r\n"),
            ("INCR k", "-ERR value is not an integer or out of range\r\n"),
            ("EXISTS k no k", ":2\r\n"),
            ("DBSIZE", ":2\r\n"),
            ("DEL k no k", ":1\r\n"),
            ("DBSIZE", ":1\r\n"),
            ("", ""),
            ("SET k", "-ERR unknown command 'SET', or not with these arguments\r\n"),
            ("NONSENSE 1", "-ERR unknown command 'NONSENSE', or not with these arguments\r\n"),
            ("VERYLONGNONSENSE", "-ERR unknown command 'VERYLONGNONSENSE', or not with these arguments\r\n"),
        ] {
            exchange(kv, format!("{request}\r\n").as_bytes(), reply);
        }
        exchange(kv, b"*3\r\n$3\r\nSET\r\n$2\r\n\0\n\r\n$3\r\n\r\n\xff\r\n*2\r\n$3\r\nGET\r\n$2\r\n\0\n\r\nHELLO 3\nGET k\nhello 2\nGET k\n", b"+OK\r\n$3\r\n\r\n\xff\r\n%2\r\n$6\r\nserver\r\n$8\r\ntidemill\r\n$5\r\nproto\r\n:3\r\n_\r\n*4\r\n$6\r\nserver\r\n$8\r\ntidemill\r\n$5\r\nproto\r\n:2\r\n$-1\r\n");
    });
}

#[test]
fn what_is_no_request_is_told_behind_the_replies_and_ends_the_connection() {
    in_both_ways(|kv| {
        for (bytes, why) in [
            (&b"*x\r\nPING\r\n"[..], "invalid multibulk length"),
            (b"*1\r\nPING\r\n", "expected '$'"),
            (b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$x\r\n", "invalid bulk length"),
            (b"*1\r\n$4\r\nPINGPING\r\n", "expected a line end behind a bulk"),
            (&[b'x'; (64 << 10) + 1], "too big inline request"),
        ] {
            let bytes = [b"PING\r\n", bytes].concat();
            exchange(kv, &bytes, format!("+PONG\r\n-ERR Protocol error: {why}\r\n"));
        }
        exchange(kv, b"EXISTS k\n", ":0\r\n");
    });
}

#[test]
fn redis_cli_is_served() {
    in_both_ways(|kv| {
        let port = kv.address.port().to_string();
        for (request, printed) in [
            (&["PING"][..], "PONG\n"),
            (&["SET", "k", "a b"], "OK\n"),
            (&["GET", "k"], "a b\n"),
            (&["INCR", "n"], "1\n"),
            (&["-r", "3", "INCR", "n"], "2\n3\n4\n"),
            (&["DEL", "n"], "1\n"),
            (&["GET", "n"], "\n"),
            (&["NONSENSE"], "ERR unknown command 'NONSENSE', or not with these arguments\n\n"),
        ] {
            let Some(ended) = client(Command::new("redis-cli").args(["-p", &port]).args(request)) else {
                return;
            };
            assert_eq!(
                (ended.stdout.as_str(), ended.status.code()),
                (printed, Some(0)),
                "{request:?}: {ended:?}"
            );
        }
    });
}

#[test]
fn redis_benchmark_is_served() {
    in_both_ways(|kv| {
        let port = kv.address.port().to_string();
        let flood = ["-t", "ping,set,get,incr", "-P", "16", "-c", "50", "-n", "5000", "-r", "1000", "--csv"];
        let Some(ended) = client(Command::new("redis-benchmark").args(["-p", &port]).args(flood)) else {
            return;
        };
        let rows =
            |name: &str| ended.stdout.lines().filter(|line| line.starts_with(&format!("\"{name}"))).count();
        assert_eq!((rows("PING_"), rows("SET"), rows("GET"), rows("INCR")), (2, 1, 1, 1), "{ended:?}");
        // An error among the replies ends it.
        assert_eq!((ended.stderr.as_str(), ended.status.code()), ("", Some(0)), "{ended:?}");
    });
}

/// What is done by Python's client, on the port that is its argument.
const BY_PYTHON: &str = r#"
import sys, redis
for protocol in (2, None):
    r = redis.Redis(port=int(sys.argv[1]), **({"protocol": protocol} if protocol else {}))
    assert r.ping() and r.echo("x") == b"x"
    assert r.delete("k", "n") in (0, 2) and r.get("k") is None
    big = bytes(range(256)) * 40000
    assert r.set("k", big) and r.get("k") == big
    assert r.incr("n") == 1 and r.exists("k", "n", "none") == 2 and r.dbsize() == 2
    pipe = r.pipeline(transaction=False)
    for number in range(1000):
        pipe.incr("n")
    assert pipe.execute() == list(range(2, 1002))
    try:
        r.execute_command("NONSENSE")
    except redis.ResponseError as error:
        assert "unknown command" in str(error)
    else:
        raise AssertionError("NONSENSE was answered")
"#;

#[test]
fn redis_of_python_is_served() {
    let python = std::env::var("CLIENTS_PYTHON").unwrap_or("python3".to_owned());
    let Some(has) = client(Command::new(&python).args(["-c", "import redis"])) else { return };
    if !has.status.success() {
        return missing("redis for Python is not installed");
    }
    in_both_ways(|kv| {
        let port = kv.address.port().to_string();
        let ended = client(Command::new(&python).args(["-c", BY_PYTHON, &port])).unwrap();
        assert!(ended.status.success(), "{ended:?}");
    });
}
