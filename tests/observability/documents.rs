//! Metrics have one list, in docs/operating.md, and alarms and the dashboard name nothing that is not there.

use super::support::client::{CHAT, question};
use super::support::repository;
use super::{http, up};
use reqwest::Certificate;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// By name as it is asked for: kind and labels.
type Told = BTreeMap<String, (String, BTreeSet<String>)>;

/// Labels that are everywhere, or that Prometheus adds.
const COMMON: [&str; 4] = ["model_name", "le", "instance", "job"];

/// What a server with a certificate tells that has answered one request.
async fn scraped() -> String {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let cert = file("cert.pem", made.cert.pem());
    let key = file("key.pem", made.signing_key.serialize_pem());
    let up = up(&["--tls-cert", &cert, "--tls-key", &key]).await;
    let trusted = Certificate::from_pem(made.cert.pem().as_bytes()).unwrap();
    let http = http([trusted]);
    let asked = http.post(format!("{}{CHAT}", up.url)).json(&question("Hello!", 4));
    assert_eq!(asked.send().await.unwrap().status(), 200);
    loop {
        let text = http.get(format!("{}/metrics", up.url)).send().await.unwrap().text().await.unwrap();
        // The request is over a moment after its answer is read.
        let is_over = |line: &str| line.contains("finished_reason=") && line.ends_with(" 1");
        if text.lines().any(is_over) {
            return text;
        }
    }
}

fn read(text: &str) -> Told {
    let mut told = Told::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
            let suffix = if kind == "counter" { "_total" } else { "" };
            told.insert(format!("{name}{suffix}"), (kind.to_owned(), BTreeSet::new()));
        } else if let Some((name, labels)) = line.split_once('{').filter(|_| !line.starts_with('#')) {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
            let name = if told.contains_key(name) { name } else { family.unwrap_or(name) };
            let names = label_names(labels.rsplit_once('}').expect("labels end").0);
            told.get_mut(name).unwrap_or_else(|| panic!("{name} has no TYPE")).1.extend(names);
        }
    }
    told
}

/// `a="x",b="y"`; values of these tests hold no comma.
fn label_names(labels: &str) -> Vec<String> {
    let names = labels.split(',').filter_map(|label| label.split_once('=')).map(|(name, _)| name.trim());
    names.filter(|name| !COMMON.contains(name)).map(str::to_owned).collect()
}

#[tokio::test]
async fn the_list_of_metrics_is_what_a_server_tells() {
    let text = scraped().await;
    let told = read(&text);
    let document = fs::read_to_string(repository("docs/operating.md")).unwrap();
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `flotilla_"));
    let listed: Told = rows
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let labels = cells[2].split(',').map(str::trim).filter(|label| !label.is_empty());
            let name = format!("flotilla_{}", cells[0].trim_end_matches('`'));
            (name, (cells[1].to_owned(), labels.map(str::to_owned).collect()))
        })
        .collect();
    for (name, (kind, labels)) in &told {
        assert_eq!(listed.get(name), Some(&(kind.clone(), labels.clone())), "{name} in docs/operating.md");
    }
    let unknown: Vec<&String> = listed.keys().filter(|name| !told.contains_key(*name)).collect();
    assert!(unknown.is_empty(), "docs/operating.md lists what is not told: {unknown:?}");
    // Weights are in it, and beside the plan there is no more than a small process.
    let used = sum(&text, "flotilla_worker_memory_used_bytes{", "worker=");
    let weights = sum(&text, "flotilla_worker_memory_bytes{", "kind=\"weights\"");
    assert!(used > weights && used < weights + 4e9, "{used} bytes are taken, and {weights} are weights");
}

/// Of all series of a name that have a label.
fn sum(text: &str, name: &str, label: &str) -> f64 {
    let of = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
    of.map(|line| line.rsplit(' ').next().expect("a value").parse::<f64>().expect("a number")).sum()
}

#[tokio::test]
async fn alarms_and_dashboard_name_only_what_is_told() {
    let told = read(&scraped().await);
    let rules = fs::read_to_string(repository("deploy/prometheus/alerts.yaml")).unwrap();
    let lines = rules.lines().map(str::trim);
    let of_rules: Vec<&str> = lines.clone().filter_map(|line| line.strip_prefix("expr: ")).collect();
    let dashboard = fs::read_to_string(repository("deploy/grafana/flotilla.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let of_panels: Vec<&str> = targets.map(|target| target["expr"].as_str().unwrap()).collect();
    assert!(of_rules.len() > 10 && of_panels.len() > 30, "{} and {}", of_rules.len(), of_panels.len());
    for expression in of_rules.iter().chain(&of_panels) {
        check(expression, &told);
    }
    let alarms: BTreeSet<&str> = lines.filter_map(|line| line.strip_prefix("- alert: ")).collect();
    let document = fs::read_to_string(repository("docs/operating.md")).unwrap();
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `Flotilla"));
    let explained: BTreeSet<String> =
        rows.map(|row| format!("Flotilla{}", row.split('`').next().unwrap_or_default())).collect();
    assert_eq!(
        alarms,
        explained.iter().map(String::as_str).collect(),
        "alarms, and those that are explained"
    );
}

/// Names and labels of an expression of PromQL; its grammar is checked in tests/clients, by a parser.
fn check(expression: &str, told: &Told) {
    let names = starts_of(expression).map(|start| {
        let end = expression[start..].find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let end = end.map_or(expression.len(), |end| start + end);
        (&expression[start..end], &expression[end..])
    });
    let mut labels = BTreeSet::new();
    for (name, behind) in names {
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
        let known = told.get(name).or_else(|| told.get(family?).filter(|(kind, _)| kind == "histogram"));
        let (_, known) = known.unwrap_or_else(|| panic!("no server tells {name}: {expression}"));
        let selector = behind.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        for label in selector.into_iter().flat_map(|(selector, _)| label_names(&selector.replace("!=", "=")))
        {
            assert!(known.contains(&label), "{name} has no {label}: {expression}");
        }
        labels.extend(known.iter().cloned());
    }
    for words in ["by (", "without (", "on ("] {
        let lists = expression.split(words).skip(1).filter_map(|rest| rest.split(')').next());
        for label in lists.flat_map(|list| list.split(',')).map(str::trim).filter(|label| !label.is_empty()) {
            let is_known = labels.contains(label) || COMMON.contains(&label);
            assert!(is_known, "nothing of it has {label}: {expression}");
        }
    }
}

fn starts_of(expression: &str) -> impl Iterator<Item = usize> {
    expression.match_indices("flotilla_").map(|(start, _)| start)
}

#[test]
#[should_panic(expected = "no server tells flotilla_stairs_total")]
fn a_metric_that_is_not_there_is_noticed() {
    check("rate(flotilla_stairs_total[5m])", &read("# TYPE flotilla_steps counter\n"));
}

#[test]
#[should_panic(expected = "flotilla_steps_total has no colour")]
fn a_label_that_is_not_there_is_noticed() {
    let told = read("# TYPE flotilla_steps counter\nflotilla_steps_total{model_name=\"x\"} 1\n");
    check("rate(flotilla_steps_total{model_name=\"x\",colour!=\"red\"}[5m])", &told);
}
