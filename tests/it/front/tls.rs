//! TLS in front, by HAProxy and by stunnel with what `scripts/deploy` has for them, and OpenSSL as the client.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;

use super::haproxy::{HaProxy, PORT, own_ip, server};
use crate::deploy::{certificate, file};
use crate::examples::missing;
use crate::support::{DEADLINE, Killed, eventually, helo_reply, scratch};

const TLS_PORT: u16 = 8443;

/// Asks at `front` as a client that trusts `certificate` alone, and gets the reply of a server that was reached at `reached`.
#[track_caller]
fn ask(front: SocketAddr, certificate: &Path, reached: SocketAddr) {
    let mut openssl = Command::new("openssl");
    openssl.args(["s_client", "-quiet", "-verify_return_error", "-verify_hostname", "localhost"]);
    openssl.arg("-CAfile").arg(certificate).args(["-connect", &front.to_string()]);
    openssl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut openssl = Killed(openssl.spawn().unwrap());
    openssl.0.stdin.as_mut().unwrap().write_all(b"HELO over TLS\n").unwrap();
    let expected = helo_reply(b"over TLS", reached);
    let (mut output, mut reply) = (openssl.0.stdout.take().unwrap(), vec![0; expected.len()]);
    let (sender, read) = channel();
    thread::spawn(move || drop(sender.send(output.read_exact(&mut reply).map(|()| reply))));
    let reply = read.recv_timeout(DEADLINE).expect("a reply in time").unwrap();
    assert_eq!(reply.escape_ascii().to_string(), expected.escape_ascii().to_string());
}

#[test]
fn haproxy_speaks_tls_with_clients_and_tells_their_addresses() {
    let (front, a, b) = (own_ip(6), own_ip(7), own_ip(8));
    let directory = scratch("tls");
    let Some(certificate) = certificate(&directory) else { return };
    let _servers = [a, b].map(|ip| server(ip, ""));
    let tls_front = SocketAddr::from((front, TLS_PORT));
    let haproxy = HaProxy::start_with(front, a, b, |command| {
        command.arg("-f").arg(file("haproxy-tls.cfg"));
        command.env("TLS_FRONT", tls_front.to_string()).env("CERTIFICATE", &certificate);
    });
    let Some(_haproxy) = haproxy else { return };
    for _ in 0..4 {
        ask(tls_front, &certificate, tls_front);
    }
}

#[test]
fn stunnel_speaks_tls_with_clients_and_tells_their_addresses() {
    let (front, ip): (_, Ipv4Addr) = (SocketAddr::from((own_ip(9), TLS_PORT)), own_ip(10));
    let directory = scratch("tls");
    let Some(certificate) = certificate(&directory) else { return };
    let _server = server(ip, "");
    let mut settings = fs::read_to_string(file("stunnel.conf")).unwrap();
    let reached = SocketAddr::from((ip, PORT)).to_string();
    for (line, value) in [
        ("accept = 8443", front.to_string()),
        ("connect = 127.0.0.1:8000", reached),
        ("cert = /etc/stunnel/tidemill.pem", certificate.display().to_string()),
    ] {
        let name = line.split(' ').next().unwrap();
        assert!(settings.contains(line), "{line}");
        settings = settings.replace(line, &format!("{name} = {value}"));
    }
    let configuration = directory.join("stunnel.conf");
    fs::write(&configuration, settings).unwrap();
    let stunnel =
        Command::new("stunnel").arg(&configuration).stdin(Stdio::null()).stderr(Stdio::null()).spawn();
    let Ok(stunnel) = stunnel else { return missing("stunnel is not installed") };
    let _stunnel = Killed(stunnel);
    eventually("stunnel listens", || TcpStream::connect(front).is_ok());
    ask(front, &certificate, front);
}
