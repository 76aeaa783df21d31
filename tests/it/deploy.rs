//! What operators start from (`scripts/deploy`): that the tools it is for take it, and that its numbers fit together.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::examples::{client, missing};
use crate::support::{Ended, Peer, program, scratch, serve};

/// A file of `scripts/deploy`.
pub(crate) fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/deploy").join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(file(name)).unwrap()
}

/// The documents of a YAML file.
fn documents(name: &str) -> Vec<Value> {
    let text = text(name);
    let documents = serde_yaml_ng::Deserializer::from_str(&text);
    documents
        .map(|document| Value::deserialize(document).unwrap_or_else(|error| panic!("{name}: {error}")))
        .collect()
}

/// The document of a kind.
#[track_caller]
fn of_kind(kind: &str, documents: &[Value]) -> Value {
    documents.iter().find(|document| document["kind"] == kind).unwrap_or_else(|| panic!("no {kind}")).clone()
}

#[track_caller]
fn assert_taken(command: &mut Command) {
    if let Some(ended) = client(command) {
        assert!(ended.status.success(), "{command:?}: {ended:?}");
    }
}

/// A certificate for `localhost` and its key, in one PEM file. `None` where it cannot be made.
pub(crate) fn certificate(directory: &Path) -> Option<PathBuf> {
    let (certificate, key) = (directory.join("certificate.pem"), directory.join("key.pem"));
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]);
    openssl.args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]);
    openssl.arg("-out").arg(&certificate).arg("-keyout").arg(&key);
    let ended = client(&mut openssl)?;
    assert!(ended.status.success(), "{ended:?}");
    let both = directory.join("both.pem");
    fs::write(&both, [fs::read(&certificate).unwrap(), fs::read(&key).unwrap()].concat()).unwrap();
    Some(both)
}

#[test]
fn haproxy_takes_its_configurations() {
    let Some(certificate) = certificate(&scratch("deploy")) else { return };
    let mut haproxy = Command::new("haproxy");
    haproxy.arg("-c").arg("-f").arg(file("haproxy.cfg")).arg("-f").arg(file("haproxy-tls.cfg"));
    for (name, value) in [
        ("FRONT", "127.0.0.1:8000"),
        ("SERVER_A", "127.0.0.1:8001"),
        ("AGENT_A", "127.0.0.1"),
        ("AGENT_A_PORT", "8002"),
        ("SERVER_B", "127.0.0.1:8003"),
        ("AGENT_B", "127.0.0.1"),
        ("AGENT_B_PORT", "8004"),
        ("TLS_FRONT", "127.0.0.1:8443"),
    ] {
        haproxy.env(name, value);
    }
    haproxy.env("CERTIFICATE", certificate);
    assert_taken(&mut haproxy);
}

#[test]
fn prometheus_takes_its_rules() {
    assert_taken(Command::new("promtool").args(["check", "rules"]).arg(file("prometheus-rules.yaml")));
    // Without it they are YAML at least.
    let groups = &documents("prometheus-rules.yaml")[0]["groups"];
    let rules = groups[0]["rules"].as_array().unwrap();
    assert!(rules.len() > 3, "{groups}");
    assert!(rules.iter().all(|rule| rule["alert"].is_string() && rule["expr"].is_string()), "{groups}");
}

#[test]
fn what_the_rules_and_the_scalers_ask_for_is_there() {
    let serving = serve("--admin 0");
    serving.expect_log("admin address");
    let log = serving.log();
    let address = log.lines().find_map(|line| line.split_once("admin address address=")).unwrap().1;
    let mut peer = Peer::connect(address.trim());
    peer.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let metrics = String::from_utf8(peer.rest()).unwrap();
    let asked = [text("prometheus-rules.yaml"), text("kubernetes/hpa.yaml")].concat();
    let is_name = |char: char| char.is_ascii_lowercase() || char == '_';
    let mut count = 0;
    for (at, _) in asked.match_indices("tidemill_") {
        let name: String = asked[at..].chars().take_while(|char| is_name(*char)).collect();
        assert!(metrics.contains(&format!("\n{name}")), "{name} is not in {metrics}");
        count += 1;
    }
    assert!(count > 8, "{count}");
}

#[test]
fn a_pod_has_the_time_that_its_end_takes_and_is_asked_where_it_answers() {
    let server = documents("kubernetes/server.yaml");
    let deployment = of_kind("Deployment", &server);
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let arguments: Vec<&str> =
        container["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap()).collect();
    let option = |name: &str| {
        let value = arguments.iter().find_map(|argument| argument.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("{name} in {arguments:?}"))
    };
    let duration = |name| humantime::parse_duration(option(name)).unwrap();
    let needed = duration("--drain-delay") + duration("--drain-timeout") + Duration::from_secs(1);
    let granted = Duration::from_secs(pod["terminationGracePeriodSeconds"].as_u64().unwrap());
    assert!(granted >= needed, "{granted:?} for {needed:?}");
    // Every node has to have heard that it is not ready before its door shuts.
    let readiness = &container["readinessProbe"];
    let heard =
        readiness["periodSeconds"].as_u64().unwrap() * readiness["failureThreshold"].as_u64().unwrap();
    assert!(duration("--drain-delay") > Duration::from_secs(heard));

    let port = |name: &str| {
        let ports = container["ports"].as_array().unwrap();
        ports.iter().find(|port| port["name"] == name).unwrap()["containerPort"].as_u64().unwrap()
    };
    assert_eq!(arguments[..2], ["serve", &port("clients").to_string()]);
    assert_eq!(option("--admin").rsplit_once(':').unwrap().1, port("admin").to_string());
    for (probe, path) in
        [("readinessProbe", "/readyz"), ("livenessProbe", "/healthz"), ("startupProbe", "/healthz")]
    {
        let get = &container[probe]["httpGet"];
        assert_eq!((&get["path"], &get["port"]), (&path.into(), &"admin".into()), "{probe}");
    }
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);

    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    assert_eq!(&deployment["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(&of_kind("PodDisruptionBudget", &server)["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(&of_kind("Service", &server)["spec"]["selector"], labels);
    let name = &deployment["metadata"]["name"];
    let scaled = of_kind("HorizontalPodAutoscaler", &documents("kubernetes/hpa.yaml"));
    assert_eq!(&scaled["spec"]["scaleTargetRef"]["name"], name);
    let scaled = of_kind("ScaledObject", &documents("kubernetes/keda.yaml"));
    assert_eq!(&scaled["spec"]["scaleTargetRef"]["name"], name);
    let metadata = &scaled["spec"]["triggers"][0]["metadata"];
    let asked = format!(":{}/stats.json", port("admin"));
    assert!(metadata["url"].as_str().unwrap().ends_with(&asked), "{metadata}");
    assert_eq!(metadata["valueLocation"], "pool_saturation");
}

#[test]
fn the_program_takes_the_options_that_they_give_it() {
    let deployment = of_kind("Deployment", &documents("kubernetes/server.yaml"));
    let of_pod = &deployment["spec"]["template"]["spec"]["containers"][0]["args"];
    let containerfile = text("Containerfile");
    let of_image = containerfile.lines().find_map(|line| line.strip_prefix("CMD ")).unwrap();
    let of_image: Value = serde_json::from_str(of_image).unwrap();
    let listed = [of_pod, &of_image].map(|list| {
        list.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    });
    let of_unit = text("tidemill@.service");
    let of_unit =
        of_unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/tidemill ")).unwrap();
    let of_unit = of_unit.replace("%i", "1").split(' ').map(str::to_owned).collect();
    // What the head of haproxy.cfg says.
    let of_haproxy = text("haproxy.cfg");
    let of_haproxy = of_haproxy.lines().find_map(|line| line.strip_prefix("#   tidemill ")).unwrap();
    let of_haproxy = of_haproxy.split(' ').map(str::to_owned).collect();
    for arguments in listed.into_iter().chain([of_unit, of_haproxy]) {
        let ended = Ended::of(program().args(&arguments).arg("--check"));
        assert!(ended.status.success(), "{arguments:?}: {ended:?}");
    }
    let drain_timeout =
        of_image.as_array().unwrap().iter().skip_while(|word| **word != "--drain-timeout").nth(1);
    let drain_timeout = humantime::parse_duration(drain_timeout.unwrap().as_str().unwrap()).unwrap();
    assert!(drain_timeout < Duration::from_secs(10), "engines kill after that");
}

#[test]
fn kubernetes_schemas_take_its_manifests() {
    let Some(python) = std::env::var_os("CLIENTS_PYTHON") else {
        return missing("CLIENTS_PYTHON is not set");
    };
    let validate = Path::new(&python).with_file_name("kubernetes-validate");
    for name in ["kubernetes/server.yaml", "kubernetes/hpa.yaml"] {
        assert_taken(Command::new(&validate).arg("--strict").arg(file(name)));
    }
}

#[test]
fn systemd_takes_the_template_and_it_stops_in_time() {
    let unit = text("tidemill@.service");
    let directory = scratch("units");
    // It looks whether the program is there.
    let installed = unit.replace("/usr/local/bin/tidemill", env!("CARGO_BIN_EXE_tidemill"));
    assert_ne!(installed, unit);
    fs::write(directory.join("tidemill@.service"), installed).unwrap();
    assert_taken(
        Command::new("systemd-analyze")
            .args(["verify", "--man=no", "tidemill@1.service"])
            .current_dir(&directory),
    );
    let hardening = |unit: &str| unit.split_once("# What follows").unwrap().1.to_owned();
    assert_eq!(hardening(&unit), hardening(&text("tidemill.service")));
    let value = |name: &str| unit.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
    let words = value("ExecStart=");
    let mut words = words.split(' ').skip_while(|word| *word != "--drain-timeout");
    let needed = humantime::parse_duration(words.nth(1).unwrap()).unwrap() + Duration::from_secs(1);
    assert!(humantime::parse_duration(&value("TimeoutStopSec=")).unwrap() >= needed);
}
