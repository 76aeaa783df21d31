//! Programs in the languages that people have, and protocols that others have made.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use super::{file, is_installed, serve_exec};
use crate::support::{DEADLINE, eventually, in_parallel, scratch, skipped};

/// Eight clients get what they asked for.
#[track_caller]
fn serves(command: &str, options: &str, request: &str, reply: &str) {
    let server = serve_exec(command, &format!("--min-threads 2 --max-threads 4 {options}"));
    in_parallel(8, |_| {
        let replies = server.connect().exchange(request.repeat(20).as_bytes());
        assert_eq!(String::from_utf8(replies).unwrap(), reply.repeat(20), "{command}");
    });
    server.stop().assert_clean();
}

#[test]
fn the_program_of_the_readme() {
    if !is_installed("python3") {
        return;
    }
    let readme = include_str!("../../../README.md");
    let begin = readme.find("import sys").expect("the README shows a program in Python");
    let program = &readme[begin..begin + readme[begin..].find("```").unwrap()];
    let path = file("upper.py", program);
    serves(&format!("python3 {}", path.display()), "", "hello\n", "HELLO\n");
}

#[test]
fn awk() {
    if is_installed("awk") {
        let version = Command::new("awk").args(["-W", "version"]).output().unwrap();
        // It holds back its input, too.
        let eager = if version.stdout.starts_with(b"mawk") { "-W interactive" } else { "" };
        serves(&format!("awk {eager} '{{ print $2, $1; fflush() }}'"), "", "one two\n", "two one\n");
    }
}

#[test]
fn bc() {
    if is_installed("bc") {
        serves("bc", "", "6*7\n2^64\n", "42\n18446744073709551616\n");
    }
}

#[test]
fn perl() {
    if is_installed("perl") {
        serves("perl -pe 'BEGIN { $| = 1 } $_ = reverse(chomp ? $_ : $_) . \"\\n\"'", "", "abc\n", "cba\n");
    }
}

#[test]
fn sh() {
    serves("sh -c 'while read -r a b; do echo $((a + b)); done'", "", "2 3\n", "5\n");
}

#[test]
fn cat_and_sed() {
    serves("cat", "", "any line\n", "any line\n");
    if is_installed("sed") {
        serves("sed -u s/a/b/", "", "banana\n", "bbnana\n");
    }
}

/// Squid's helper protocol with concurrency: the channel's number goes before the request and comes back before the reply.
#[test]
fn a_url_rewriter_of_squid() {
    let rewriter = r#"
$| = 1;
while (<STDIN>) {
    my ($channel, $url) = split;
    if ($url =~ m{^http://old\.example/(.*)}) { print "$channel OK rewrite-url=\"http://new.example/$1\"\n" }
    else { print "$channel ERR\n" }
}
"#;
    if is_installed("perl") {
        let path = file("rewriter.pl", rewriter);
        let request =
            "0 http://old.example/a 127.0.0.1/- - GET myip=- myport=3128\n1 http://b/ 127.0.0.1/- - GET\n";
        let reply = "0 OK rewrite-url=\"http://new.example/a\"\n1 ERR\n";
        serves(&format!("perl {}", path.display()), "", request, reply);
    }
}

/// Squid that asks the rewriter about each request, by a command that it starts. Stopped when it is dropped.
struct Squid {
    child: Child,
    address: SocketAddr,
}

impl Squid {
    fn start(rewriter: SocketAddr) -> Squid {
        let directory = scratch("squid");
        // It goes on as a user of its own, whom the directory has to take.
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
        // Another process may take the port meanwhile: then Squid ends, and another port is tried.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let settings = format!(
                "http_port 127.0.0.1:{port}\nhttp_access allow all\ncache deny all\nshutdown_lifetime 0 seconds\n\
                 visible_hostname here\nurl_rewrite_program {program} client --pipe {rewriter}\n\
                 url_rewrite_children 2 startup=1 concurrency=0\npid_filename {directory}/pid\naccess_log none\n\
                 cache_log {directory}/log\ncoredump_dir {directory}\npinger_enable off\n",
                program = env!("CARGO_BIN_EXE_tidemill"),
                directory = directory.display(),
            );
            let file = directory.join("squid.conf");
            fs::write(&file, settings).unwrap();
            let mut command = Command::new("squid");
            command.env("PATH", search_path()).arg("-N").arg("-f").arg(file);
            let child =
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let mut squid = Squid { child, address: ([127, 0, 0, 1], port).into() };
            let mut has_ended = false;
            eventually("Squid listens", || {
                has_ended = squid.child.try_wait().unwrap().is_some();
                has_ended || TcpStream::connect(squid.address).is_ok()
            });
            if !has_ended {
                return squid;
            }
        }
        panic!("Squid ends: {}", fs::read_to_string(directory.join("log")).unwrap_or_default());
    }

    /// What it has for this address.
    fn get(&self, url: &str) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(format!("GET {url} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        page
    }
}

impl Drop for Squid {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
            self.child.wait().unwrap();
        }
    }
}

#[test]
fn squid_asks_a_url_rewriter_by_a_command() {
    if !is_installed("perl") || !is_installed("squid") {
        return;
    }
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let new = origin.local_addr().unwrap();
    thread::spawn(move || {
        for stream in origin.incoming().map_while(Result::ok) {
            let mut request = String::new();
            BufReader::new(&stream).read_line(&mut request).unwrap();
            let path = request.split(' ').nth(1).unwrap();
            (&stream).write_all(format!("HTTP/1.0 200 OK\r\n\r\nthe new {path}").as_bytes()).unwrap();
        }
    });
    let rewriter = r#"
$| = 1;
my $new = shift;
while (<STDIN>) {
    my ($url) = split;
    print $url =~ m{^http://old\.example/(.*)} ? "OK rewrite-url=\"http://$new/$1\"\n" : "ERR\n";
}
"#;
    let path = file("rewriter.pl", rewriter);
    let server = serve_exec(&format!("perl {} {new}", path.display()), "");
    let squid = Squid::start(server.address);
    for page in 0..5 {
        let got = squid.get(&format!("http://old.example/{page}"));
        assert!(got.ends_with(&format!("the new /{page}")), "{got}");
    }
    drop(squid);
    assert_eq!(server.stats()["requests_total"]["exec"]["request"], 5);
    server.stop().assert_clean();
}

/// Where system programs lie, too.
fn search_path() -> String {
    format!("{}:/usr/sbin", std::env::var("PATH").unwrap())
}

/// Postfix's policy protocol: attributes up to an empty line, and the same for the reply.
const POLICY: &str = r#"
$| = 1;
my %a;
while (<STDIN>) {
    chomp;
    if (/^([^=]+)=(.*)$/) { $a{$1} = $2; next }
    print $a{sender} =~ /\@spam\./ ? "action=REJECT not here\n\n" : "action=DUNNO\n\n";
    %a = ();
}
"#;
const POLICY_OPTIONS: &str = "--exec-request until: --exec-reply until:";

#[test]
fn a_policy_server_of_postfix() {
    if is_installed("perl") {
        let path = file("policy.pl", POLICY);
        let request = "request=smtpd_access_policy\nsender=a@spam.example\n\nrequest=smtpd_access_policy\nsender=b@good.example\n\n";
        let reply = "action=REJECT not here\n\naction=DUNNO\n\n";
        serves(&format!("perl {}", path.display()), POLICY_OPTIONS, request, reply);
    }
}

/// A mail server that asks the policy server for each recipient. Stopped when it is dropped.
struct Postfix {
    settings: PathBuf,
    /// Where it takes mail.
    socket: PathBuf,
}

impl Postfix {
    /// Its files are its own user's, which takes root to arrange.
    fn start(policy: SocketAddr) -> Postfix {
        let directory = scratch("postfix");
        let [settings, queue, data] = ["etc", "queue", "data"].map(|name| directory.join(name));
        for part in [&settings, &queue, &data] {
            fs::create_dir_all(part).unwrap();
        }
        assert!(Command::new("chown").arg("postfix").arg(&data).status().unwrap().success());
        let main = format!(
            "compatibility_level = 3.6\nqueue_directory = {queue}\ndata_directory = {data}\nmynetworks = 127.0.0.0/8\n\
             mydestination = localhost\nalias_maps =\nlocal_recipient_maps =\nsmtputf8_enable = no\n\
             maillog_file = {directory}/log\nmaillog_file_prefixes = {directory}\n\
             smtpd_recipient_restrictions = check_policy_service inet:{policy}, permit_mynetworks, reject\n",
            queue = queue.display(),
            data = data.display(),
            directory = directory.display(),
        );
        fs::write(settings.join("main.cf"), main).unwrap();
        let services = "mail unix n - n - - smtpd\npostlog unix-dgram n - n - 1 postlogd\nanvil unix - - n - 1 anvil\n\
             rewrite unix - - n - - trivial-rewrite\nproxymap unix - - n - - proxymap\ncleanup unix n - n - 0 cleanup\n\
             qmgr unix n - n 300 1 qmgr\n";
        fs::write(settings.join("master.cf"), services).unwrap();
        let postfix = Postfix { settings, socket: queue.join("public/mail") };
        postfix.command("start");
        eventually("it takes mail", || postfix.socket.exists());
        postfix
    }

    fn command(&self, what: &str) {
        let mut command = Command::new("postfix");
        command.env("PATH", search_path()).arg("-c").arg(&self.settings).arg(what);
        let ended = command.output().unwrap();
        assert!(ended.status.success(), "{what}: {ended:?}");
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        self.command("stop");
    }
}

#[test]
fn postfix_asks_a_policy_server() {
    if !is_installed("perl") || !is_installed("postfix") {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return skipped("it takes root to start Postfix");
    }
    let path = file("policy.pl", POLICY);
    let server = serve_exec(&format!("perl {}", path.display()), POLICY_OPTIONS);
    let postfix = Postfix::start(server.address);
    let stream = UnixStream::connect(&postfix.socket).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let mut say = |line: &str| {
        if !line.is_empty() {
            (&stream).write_all(format!("{line}\r\n").as_bytes()).unwrap();
        }
        // The last line of an answer has no hyphen.
        lines.by_ref().map(Result::unwrap).find(|line| line.as_bytes().get(3) != Some(&b'-')).unwrap()
    };
    assert!(say("").starts_with("220"));
    say("EHLO x");
    for _ in 0..3 {
        say("MAIL FROM:<a@spam.example>");
        let refused = say("RCPT TO:<b@localhost>");
        assert!(refused.starts_with("554") && refused.ends_with("not here"), "{refused}");
        say("RSET");
        say("MAIL FROM:<a@good.example>");
        assert!(say("RCPT TO:<b@localhost>").starts_with("250"));
        say("RSET");
    }
    drop(postfix);
    assert_eq!(server.stats()["requests_total"]["exec"]["request"], 6);
    server.stop().assert_clean();
}
