//! Programs in the languages that people have, and protocols that others have made.

use std::process::Command;

use super::{file, serve_exec};
use crate::support::{in_parallel, skipped};

/// Whether it is installed.
fn is_there(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
    if !found.status.success() {
        skipped(&format!("{program} is not installed"));
    }
    found.status.success()
}

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
    if !is_there("python3") {
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
    if is_there("awk") {
        let version = Command::new("awk").args(["-W", "version"]).output().unwrap();
        // It holds back its input, too.
        let eager = if version.stdout.starts_with(b"mawk") { "-W interactive" } else { "" };
        serves(&format!("awk {eager} '{{ print $2, $1; fflush() }}'"), "", "one two\n", "two one\n");
    }
}

#[test]
fn bc() {
    if is_there("bc") {
        serves("bc", "", "6*7\n2^64\n", "42\n18446744073709551616\n");
    }
}

#[test]
fn perl() {
    if is_there("perl") {
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
    if is_there("sed") {
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
    if is_there("perl") {
        let path = file("rewriter.pl", rewriter);
        let request =
            "0 http://old.example/a 127.0.0.1/- - GET myip=- myport=3128\n1 http://b/ 127.0.0.1/- - GET\n";
        let reply = "0 OK rewrite-url=\"http://new.example/a\"\n1 ERR\n";
        serves(&format!("perl {}", path.display()), "", request, reply);
    }
}

/// Postfix's policy protocol: attributes up to an empty line, and the same for the reply.
#[test]
fn a_policy_server_of_postfix() {
    let policy = r#"
$| = 1;
my %a;
while (<STDIN>) {
    chomp;
    if (/^([^=]+)=(.*)$/) { $a{$1} = $2; next }
    print $a{sender} =~ /\@spam\./ ? "action=REJECT not here\n\n" : "action=DUNNO\n\n";
    %a = ();
}
"#;
    if is_there("perl") {
        let path = file("policy.pl", policy);
        let request = "request=smtpd_access_policy\nsender=a@spam.example\n\nrequest=smtpd_access_policy\nsender=b@good.example\n\n";
        let reply = "action=REJECT not here\n\naction=DUNNO\n\n";
        serves(
            &format!("perl {}", path.display()),
            "--exec-request until: --exec-reply until:",
            request,
            reply,
        );
    }
}
