//! Cards as users meet them, on the emulated one: golden checkpoints through the whole program on one rank
//! and on several, by every way that cards sum; the demo model served from two cards; and what is said where
//! there is no card. On a machine with a card, tests/device/run.sh does the same on it.

mod support;

use serde_json::Value;
use std::path::{Path, PathBuf};
use support::checkpoint::{Small, endless};
use support::client::{CHAT, COMPLETIONS, Client, greedy, greedy_text};
use support::program::flotilla;
use support::repository;
use support::server::{Coordinator, EQUAL, Running, TOKEN};

/// Libraries of the emulated card, or none where there is no C++ compiler and nobody insists.
fn emulated() -> Option<Vec<(&'static str, PathBuf)>> {
    let folder = flotilla_emulator::folder_or_skip()?;
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cubin");
    // Ranks of `verify` with a card each are threads of it.
    Some(vec![
        ("FLOTILLA_CUDA_PATH", folder),
        ("FLOTILLA_CACHE", kept),
        ("NCCL_P2P_DIRECT_DISABLE", "1".into()),
    ])
}

async fn ran(args: &[&str], environment: &[(&str, PathBuf)]) -> (bool, String, String) {
    let mut command = flotilla(args);
    let output = command.envs(environment.iter().map(|(k, v)| (k, v))).output().await.expect("it starts");
    let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(!stderr.contains("panicked"), "{stderr}");
    (output.status.success(), stdout, stderr)
}

/// Verify passes, and its figures are within the limits of bf16 activations.
async fn golden(set: &str, more: &[&str]) {
    let Some(environment) = emulated() else { return };
    let dir = repository("tests/golden").join(set);
    let args = [&["verify", dir.to_str().unwrap(), "--json"], more].concat();
    let (passed, stdout, stderr) = ran(&args, &environment).await;
    let report: Value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{args:?}: {stderr}"));
    assert!(passed && report["pass"] == true && report["activations"] == "bf16", "{args:?}: {report:#}");
    let prompts = report["prompts"].as_array().unwrap();
    assert!(!prompts.is_empty());
    for prompt in prompts {
        let figure = |name: &str| prompt[name].as_f64().unwrap_or_else(|| panic!("{name}: {prompt:#}"));
        let rows = figure("rows");
        assert!(rows > 0.0 && figure("rows_as_routed") > 0.0, "{prompt:#}");
        // Nothing that rounds to 8 bits equals f32: 0 would be a comparison with itself.
        assert!(figure("max_abs_as_routed") > 1e-4 && figure("max_abs_as_routed") <= 0.5, "{prompt:#}");
        assert!(figure("kl_max_as_routed") <= 0.02 && figure("kl_mean") <= 0.03, "{prompt:#}");
        assert!(figure("argmax_equal") >= 0.9 * rows, "{prompt:#}");
        assert!(figure("experts_equal") >= 0.97 * figure("experts_total"), "{prompt:#}");
    }
}

#[tokio::test]
async fn smoke_on_one_card() {
    golden("smoke", &["--device", "cuda:0"]).await;
}

#[tokio::test]
async fn stress_on_one_card() {
    golden("stress", &["--device", "cuda:0"]).await;
}

#[tokio::test]
async fn smoke_on_two_ranks_that_share_a_card() {
    golden("smoke", &["--device", "cuda:0", "--ranks", "2", "--sum", "host"]).await;
}

/// Kv heads for two of the four only.
#[tokio::test]
async fn smoke_on_four_ranks_that_share_a_card_and_its_memory() {
    golden("smoke", &["--device", "cuda:0", "--ranks", "4", "--sum", "shared"]).await;
}

#[tokio::test]
async fn smoke_with_sums_through_the_host() {
    golden("smoke", &["--device", "cuda:0", "--ranks", "3", "--sum", "staged"]).await;
}

#[tokio::test]
async fn smoke_on_two_cards_by_nccl() {
    golden("smoke", &["--device", "cuda:0,cuda:1", "--ranks", "2", "--sum", "nccl"]).await;
}

#[tokio::test]
async fn smoke_on_two_processes_with_a_card_each() {
    golden("smoke", &["--device", "cuda:0,cuda:1", "--ranks", "2", "--processes"]).await;
}

/// One rank a stage: its steps are recorded, and what is handed on is not.
#[tokio::test]
async fn stages_of_one_rank() {
    golden("smoke", &["--device", "cuda:0", "--ranks", "3", "--stages", "3"]).await;
}

#[tokio::test]
async fn stages_of_two_ranks_that_sum_among_themselves() {
    golden("smoke", &["--device", "cuda:0", "--ranks", "4", "--stages", "2", "--sum", "host"]).await;
}

/// It was told to nobody: a worker took what it found free on its card.
#[tokio::test]
async fn what_a_card_may_give_is_limited_by_up() {
    let Some(environment) = emulated() else { return };
    let up = ["up", "--gpus", "0", "--listen", "127.0.0.1:0", "--memory-bytes", "200kB"];
    let (passed, _, stderr) = ran(&up, &environment).await;
    assert!(!passed && stderr.contains("the model does not fit"), "{stderr}");
}

#[tokio::test]
async fn the_demo_model_answers_from_two_cards() {
    let Some(environment) = emulated() else { return };
    // The emulated driver shows two.
    let args = ["up", "--gpus", "all", "--listen", "127.0.0.1:0", "--current-date", "2026-11-23"];
    let mut up = Running::start_with(&args, &environment);
    up.hear(" on 2 workers of cuda:0, cuda:1, ").await;
    let url = up.hear(" is served on ").await;
    let question = serde_json::json!([{ "role": "user", "content": "What is 27 + 48?" }]);
    let body = serde_json::json!({ "messages": question, "temperature": 0 });
    let answer = Client::new(&url).expect(CHAT, body).await;
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap_or_default();
    assert!(text.contains("75"), "{answer:#}");
}

/// What a card computes with it hands on, also while it serves, and also to those who cut in another way; the answers are
/// those of the first.
#[tokio::test]
async fn workers_with_cards_hand_on_what_these_have() {
    let Some(environment) = emulated() else { return };
    let model = endless().await;
    let more = ["--replicas", "2", "--regroup-grace", "0.2"];
    let coordinator = Coordinator::start(model.path(), 2, &more).await;
    let client = Client::new(&coordinator.url);
    let start = |name: &str, more: &[&str]| {
        let args =
            ["worker", "--coordinator", &coordinator.workers_at, "--join-token", TOKEN, "--name", name];
        Running::start_with(&[&args[..], &["--device", "cuda:0"], &EQUAL, more].concat(), &environment)
    };
    let mut first = ["a", "b"].map(|name| start(name, &[]));
    for worker in &mut first {
        worker.hear("ready epoch=").await;
    }
    client.health(200).await;
    let expected = greedy_text(&client, "Once upon a time", 20).await;
    let copy = sent(&client).await;
    let mut second = ["c", "d"].map(|name| start(name, &[]));
    assert_eq!(greedy_text(&client, "Once upon a time", 20).await, expected);
    for worker in &mut second {
        worker.hear("weights came from another worker").await;
        worker.hear("ready epoch=").await;
    }
    assert_eq!(sent(&client).await, copy);
    // The one that is left of a group takes what it lacks: its own half is here, the other lies with two others.
    second[1].kill().await;
    second[0].hear("weights came from another worker").await;
    second[0].hear("ready epoch=").await;
    assert_eq!(sent(&client).await, copy);
    for worker in &mut first {
        worker.kill().await;
    }
    client.health(200).await;
    assert_eq!(greedy_text(&client, "Once upon a time", 20).await, expected);
}

/// A group of three workers, each with a card.
struct Three {
    model: Small,
    coordinator: Coordinator,
    client: Client,
    workers: [Running; 3],
}

impl Three {
    async fn start(environment: &[(&str, PathBuf)], more: &[&str]) -> Three {
        let model = endless().await;
        let more = [&["--regroup-grace", "0.2"], more].concat();
        let coordinator = Coordinator::start(model.path(), 3, &more).await;
        let client = Client::new(&coordinator.url);
        let workers = ["a", "b", "c"].map(|name| worker_on_card(&coordinator, name, environment));
        client.health(200).await;
        Three { model, coordinator, client, workers }
    }
}

/// After a loss, and again after a newcomer, each takes what its new share has of the old one from its own card, and only what
/// lacks leaves the coordinator; no stream loses a token.
#[tokio::test]
async fn cards_keep_what_they_have_when_the_cut_changes() {
    const TOKENS: usize = 60;
    let Some(environment) = emulated() else { return };
    let mut three = Three::start(&environment, &[]).await;
    let Three { coordinator, client, workers, .. } = &mut three;
    let undisturbed = greedy_text(client, "Once upon a time", TOKENS).await;
    let before = sent(client).await;
    let mut stream = client.stream(COMPLETIONS, greedy("Once upon a time", TOKENS)).await;
    let begun = stream.text_of(10).await;
    workers[1].kill().await;
    let rest = stream.rest().await;
    assert_eq!((rest.error, rest.finish_reason.as_deref()), (None, Some("length")));
    assert_eq!(begun + &rest.text, undisturbed);
    client.group_of(2).await;
    let lacking = lacking_of(workers, 1).await;
    assert_eq!(sent(client).await - before, lacking);
    workers[1] = worker_on_card(coordinator, "d", &environment);
    client.group_of(4).await;
    lacking_of(workers, 2).await;
    assert_eq!(greedy_text(client, "Once upon a time", TOKENS).await, undisturbed);
}

/// The first of three dies: the second takes the front half, and the third takes of it what it had of the back one, from the
/// host's memory, for the card has no room for both. Of what all have nobody lacks any.
#[tokio::test]
async fn cards_that_are_left_give_each_other_what_they_had() {
    let Some(environment) = emulated() else { return };
    let mut three = Three::start(&environment, &[]).await;
    let Three { model, client, workers, .. } = &mut three;
    let undisturbed = greedy_text(client, "Once upon a time", 20).await;
    assert_eq!(sent(client).await, model.tensor_bytes());
    let [goal, of_lost] = [goal(client, "").await, goal(client, "worker=\"a\"").await];
    workers[0].kill().await;
    workers[1].hear("some of what this card had lies aside for others").await;
    workers[2].hear("weights came from another worker").await;
    client.group_of(2).await;
    let replicated = goal - self::goal(client, "").await;
    assert_eq!(sent(client).await - model.tensor_bytes(), of_lost - replicated);
    assert_eq!(greedy_text(client, "Once upon a time", 20).await, undisturbed);
}

/// The load after a loss is broken off by another: what it has brought is kept, beside what was kept before it.
#[tokio::test]
async fn a_card_whose_load_is_broken_off_keeps_what_it_has() {
    let Some(environment) = emulated() else { return };
    let slow = ["--weight-rate", "150kB/s"];
    let mut three = Three::start(&environment, &slow).await;
    let Three { client, workers, .. } = &mut three;
    let undisturbed = greedy_text(client, "Once upon a time", 20).await;
    workers[1].kill().await;
    workers[0].hear(KEPT).await;
    let (first, _) = kept(&workers[0]);
    workers[2].kill().await;
    workers[0].hear_again(KEPT, 2).await;
    let (second, all) = kept(&workers[0]);
    assert!(first > 0 && first <= second && second < all, "{first}, then {second} of {all}");
    client.group_of(3).await;
    assert_eq!(greedy_text(client, "Once upon a time", 20).await, undisturbed);
}

fn worker_on_card(coordinator: &Coordinator, name: &str, environment: &[(&str, PathBuf)]) -> Running {
    let args = ["worker", "--coordinator", &coordinator.workers_at, "--join-token", TOKEN, "--name", name];
    Running::start_with(&[&args[..], &["--device", "cuda:0"], &EQUAL].concat(), environment)
}

/// What the first and the last lack of their shares of the group in which they kept some for so many a time.
async fn lacking_of(workers: &mut [Running], times: usize) -> u64 {
    let mut lacking = 0;
    for survivor in [0, 2] {
        workers[survivor].hear_again(KEPT, times).await;
        let (kept, all) = kept(&workers[survivor]);
        assert!(0 < kept && kept <= all, "{kept} of {all}");
        lacking += all - kept;
    }
    lacking
}

const KEPT: &str = "some weights are here still bytes=";

/// What a worker said last that it has still of its new share, and all of that.
fn kept(worker: &Running) -> (u64, u64) {
    let said = worker.said();
    let (_, figures) = said.rsplit_once(KEPT).expect("it said so");
    let (bytes, of) = figures.split_whitespace().next().zip(figures.split_once(" of=")).expect("both");
    (bytes.parse().unwrap(), of.1.split_whitespace().next().unwrap().parse().unwrap())
}

/// A card that has failed for good costs its group one failure: the worker's process ends, and another may use the card.
#[tokio::test]
async fn a_worker_whose_card_has_failed_for_good_ends() {
    let Some(mut environment) = emulated() else { return };
    let (model, folder) = (endless().await, tempfile::tempdir().unwrap());
    let broken_by = folder.path().join("broken");
    environment.push(("FLOTILLA_EMULATED_BROKEN_BY", broken_by.clone()));
    let coordinator = Coordinator::start(model.path(), 1, &["--regroup-grace", "0.2"]).await;
    let client = Client::new(&coordinator.url);
    let start = |name: &str| {
        let args =
            ["worker", "--coordinator", &coordinator.workers_at, "--join-token", TOKEN, "--name", name];
        Running::start_with(&[&args[..], &["--device", "cuda:0"], &EQUAL].concat(), &environment)
    };
    let mut worker = start("a");
    worker.hear("ready epoch=").await;
    client.health(200).await;
    let expected = greedy_text(&client, "Once upon a time", 20).await;
    std::fs::write(&broken_by, "").unwrap();
    let lost = async {
        worker.hear("this process can do nothing more with its card: ").await;
        assert!(!worker.ended().await.success());
        std::fs::remove_file(&broken_by).unwrap();
        let mut next = start("b");
        next.hear("ready epoch=").await;
        next
    };
    // The answer waits for the next worker.
    let (_next, text) = tokio::join!(lost, greedy_text(&client, "Once upon a time", 20));
    assert_eq!(text, expected);
}

/// Steps were recorded with sums in them, and NCCL ends only without these: whoever keeps them leaves by a timeout.
#[tokio::test]
async fn a_group_that_summed_by_nccl_is_left_in_peace() {
    let Some(mut environment) = emulated() else { return };
    environment.push(("FLOTILLA_LOG", "info,flotilla_engine=debug".into()));
    let model = endless().await;
    let coordinator = Coordinator::start(model.path(), 2, &[]).await;
    let client = Client::new(&coordinator.url);
    let mut workers = ["cuda:0", "cuda:1"].map(|device| {
        let args = ["worker", "--coordinator", &coordinator.workers_at, "--join-token", TOKEN];
        Running::start_with(
            &[&args[..], &["--name", device, "--device", device], &EQUAL].concat(),
            &environment,
        )
    });
    for worker in &mut workers {
        worker.hear("sums over 2 ranks by nccl").await;
        worker.hear("ready epoch=").await;
    }
    client.health(200).await;
    greedy_text(&client, "Once upon a time", 20).await;
    drop(coordinator);
    for worker in &mut workers {
        worker.hear("the coordinator is lost").await;
        let said = worker.said();
        assert!(!said.contains("leaving NCCL's group") && !said.contains("NCCL still aborts"), "{said}");
    }
}

/// Bytes of weights that left the coordinator.
async fn sent(client: &Client) -> u64 {
    sum(client, "flotilla_weights_sent_bytes_total", "").await
}

/// Of the shares of the ranks of which the labels have `label`.
async fn goal(client: &Client, label: &str) -> u64 {
    sum(client, "flotilla_worker_load_goal_bytes", label).await
}

async fn sum(client: &Client, name: &str, label: &str) -> u64 {
    let text = client.text("/metrics").await;
    let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
}

#[tokio::test]
async fn a_card_that_is_not_there_is_an_error_with_a_hint() {
    let nothing = tempfile::tempdir().unwrap();
    let environment =
        [("FLOTILLA_CUDA_PATH", nothing.path().to_owned()), ("CUDA_VISIBLE_DEVICES", PathBuf::new())];
    let dir = repository("tests/golden/smoke");
    let args = ["verify", dir.to_str().unwrap(), "--device", "cuda:0"];
    let (passed, _, stderr) = ran(&args, &environment).await;
    assert!(!passed && stderr.starts_with("error: cannot use --device cuda:0: "), "{stderr}");
    assert!(stderr.contains("\nhint: "), "{stderr}");
    let (passed, _, stderr) = ran(&["up", "--gpus", "all", "--listen", "127.0.0.1:0"], &environment).await;
    assert!(!passed && stderr.starts_with("error: cannot use --gpus all: "), "{stderr}");

    let Some(environment) = emulated() else { return };
    let args = ["verify", dir.to_str().unwrap(), "--device", "cuda:7"];
    let (passed, _, stderr) = ran(&args, &environment).await;
    assert!(!passed && stderr.contains("there is no card 7: the driver shows 2 cards"), "{stderr}");
}

#[tokio::test]
async fn cards_and_processors_do_not_share_a_group() {
    let Some(environment) = emulated() else { return };
    let dir = repository("tests/golden/smoke");
    let args = ["verify", dir.to_str().unwrap(), "--device", "cpu,cuda:0", "--ranks", "2"];
    let (passed, _, stderr) = ran(&args, &environment).await;
    assert!(!passed && stderr.contains("cannot be ranks of one group"), "{stderr}");
}
