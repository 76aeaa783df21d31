//! The live page, in a real browser where one is installed: it draws, asks for nothing from elsewhere, and survives a restart.

use tidemill::Helo;

use super::{admin_of, admin_of_program, get};
use crate::examples::missing;
use crate::support::browser::Browser;
use crate::support::{Peer, Serving, configure, program, resolved};

/// So many points of the first chart are not of its background, its grid or its words.
const DRAWN: &str = "(() => {
    const canvas = document.querySelector('canvas'), pen = canvas.getContext('2d');
    const blue = getComputedStyle(document.documentElement).getPropertyValue('--blue').trim().match(/\\w\\w/g).map(part => parseInt(part, 16));
    const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
    let points = 0;
    for (let at = 0; at < data.length; at += 4) {
        if (data[at + 3] > 200 && [0, 1, 2].every(part => Math.abs(data[at + part] - blue[part]) < 40)) points++;
    }
    return points;
})()";

#[test]
fn it_is_one_piece_and_asks_for_nothing_from_elsewhere() {
    let server = configure(Helo::new(), |config| config.admin = Some("127.0.0.1:0".parse().unwrap()));
    let page = get(admin_of(&server), "/");
    assert_eq!(page.field("content-type"), Some("text/html; charset=utf-8"));
    let policy = page.field("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none';") && policy.contains("connect-src 'self';"), "{policy}");
    assert!(page.body.starts_with("<!doctype html>") && page.body.ends_with("</html>\n"));
    for word in ["http:", "https:", "src=", "@import", "url(", "XMLHttpRequest", "innerHTML", "eval("] {
        assert!(!page.body.contains(word), "{word}");
    }
    assert_eq!(page.body.matches("href=").count(), 1, "that of the icon, which is none");
    assert_eq!(page.body.matches("fetch(").count(), 1);
}

#[test]
fn it_draws_and_survives_a_restart() {
    let Some(mut browser) = Browser::start() else { return missing("chromium is not installed") };
    let serving = crate::support::serve(
        "--admin 0 --handler-delay 500ms --min-threads 1 --max-threads 7 --tolerance 0",
    );
    let admin = admin_of_program(&serving);
    let mut peers: Vec<Peer> = (0..3).map(|_| serving.connect()).collect();
    peers.iter_mut().for_each(|peer| peer.send(b"HELO x\n"));
    peers.iter_mut().for_each(|peer| peer.expect_reply("x"));
    browser.go(&format!("http://{admin}/"));
    browser.expect("document.body.dataset.looks >= 3");
    let text = browser.value("document.body.innerText");
    let text = text.as_str().unwrap();
    for part in [
        "serving",
        "Last decisions about the pool",
        "grew from 1 to ",
        "127.0.0.1:",
        "idle",
        "1 to 7, ",
        "3 in all",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    browser.expect(&format!("{DRAWN} > 20"));
    assert_eq!(browser.value("document.querySelector('#news').textContent"), "");
    let pid = browser.value("document.body.dataset.pid");
    assert_eq!(pid, serving.pid().as_raw_nonzero().to_string());

    drop(peers);
    serving.stop().assert_clean();
    browser.expect("document.querySelector('#news').textContent.startsWith('No answer for ')");
    assert_eq!(browser.value("document.querySelector('#state').textContent"), "no answer");
    let mut command = program();
    command.args(["serve", "0", "--admin", &admin.to_string()]);
    let again = Serving::start(command);
    browser.expect(&format!("document.body.dataset.pid == '{}'", again.pid().as_raw_nonzero()));
    browser.expect("document.querySelector('#news').textContent == ''");
    assert_eq!(browser.value("document.querySelector('#state').textContent"), "serving");
    Peer::connect(resolved(again.address)).ask("x");
    again.stop().assert_clean();
}
