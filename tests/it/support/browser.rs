//! A real browser without a window, asked over a pair of pipes (`--remote-debugging-pipe`).

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use serde_json::{Value, json};

use rustix::process::{Pid, Signal, kill_process};

use super::{DEADLINE, eventually, scratch};

/// The browser with one page. It ends with this.
#[derive(Debug)]
pub(crate) struct Browser {
    child: Child,
    /// Dropped once it has ended: it is ended from outside where it says nothing for too long.
    _watch: mpsc::Sender<()>,
    to: File,
    from: File,
    /// What has come and is no whole answer yet.
    rest: Vec<u8>,
    number: u64,
    session: Option<String>,
}

impl Browser {
    /// `None`: it is not installed.
    pub(crate) fn start() -> Option<Browser> {
        let found =
            Command::new("chromium").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        found.ok()?;
        let directory = scratch("browser");
        let [to, from] = ["to", "from"].map(|name| directory.join(name));
        assert!(Command::new("mkfifo").args([&to, &from]).status().unwrap().success());
        let mut command = Command::new("sh");
        // It is told on descriptor 3, and answers on 4.
        let run = "exec chromium --headless --no-sandbox --disable-gpu --remote-debugging-pipe --user-data-dir=\"$3\" 3<\"$1\" 4>\"$2\"";
        command.args(["-c", run, "sh"]).args([&to, &from]).arg(directory.join("profile"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let (watch, ended) = mpsc::channel::<()>();
        let process = Pid::from_child(&child);
        thread::spawn(move || {
            // Longer than a test with it may take.
            if ended.recv_timeout(5 * DEADLINE) == Err(mpsc::RecvTimeoutError::Timeout) {
                let _ = kill_process(process, Signal::KILL);
            }
        });
        // In the order in which the shell opens them: each waits for the other side.
        let to = OpenOptions::new().write(true).open(&to).unwrap();
        let from = File::open(&from).unwrap();
        let mut browser =
            Browser { child, _watch: watch, to, from, rest: Vec::new(), number: 0, session: None };
        let target =
            browser.call("Target.createTarget", &json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", &json!({ "targetId": target, "flatten": true }));
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        Some(browser)
    }

    /// Asks, and waits for the answer.
    fn call(&mut self, method: &str, params: &Value) -> Value {
        self.number += 1;
        let mut call = json!({ "id": self.number, "method": method, "params": params });
        if let Some(session) = &self.session {
            call["sessionId"] = json!(session);
        }
        self.to.write_all(format!("{call}\0").as_bytes()).unwrap();
        loop {
            let answer = self.message();
            if answer["id"] == self.number {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    fn message(&mut self) -> Value {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == 0) {
                let message: Vec<u8> = self.rest.drain(..=end).collect();
                return serde_json::from_slice(&message[..end]).unwrap();
            }
            let mut part = [0; 65536];
            let read = self.from.read(&mut part).unwrap();
            assert!(read > 0, "the browser has ended");
            self.rest.extend_from_slice(&part[..read]);
        }
    }

    pub(crate) fn go(&mut self, url: &str) {
        self.call("Page.navigate", &json!({ "url": url }));
    }

    /// The value of an expression in the page.
    pub(crate) fn value(&mut self, expression: &str) -> Value {
        let result =
            self.call("Runtime.evaluate", &json!({ "expression": expression, "returnByValue": true }));
        result["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    #[track_caller]
    pub(crate) fn expect(&mut self, expression: &str) {
        eventually(expression, || self.value(expression) == true);
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
