//! A checkpoint on a web server is the checkpoint that it is in a folder, and what a server does wrong is said.

mod server;

use flotilla_coordinator::mirror::Mirror;
use flotilla_engine::weights::{
    Checkpoint, Extent, Files, GenerationConfig, Synthetic, WeightError, WeightSource, read_chunk,
    write_checkpoint,
};
use flotilla_shared::tensor::TensorId;
use flotilla_shared::{ModelSpec, Plan, Rank, TensorSlice};
use serde_json::json;
use server::{Mood, Server};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tempfile::TempDir;

/// 9 MB, two thirds of them the vocabulary's.
fn config() -> String {
    let mut config: serde_json::Value = serde_json::from_str(flotilla_shared::spec::PUBLISHED[1].1).unwrap();
    let sizes = [
        ("hidden_size", 64),
        ("intermediate_size", 160),
        ("num_hidden_layers", 2),
        ("num_attention_heads", 16),
        ("num_key_value_heads", 8),
        ("head_dim", 4),
        ("num_local_experts", 6),
        ("vocab_size", 40_000),
    ];
    for (field, size) in sizes {
        config[field] = json!(size);
    }
    config["layer_types"] = json!(["sliding_attention", "full_attention"]);
    config.to_string()
}

fn write(dir: &Path) {
    let spec = ModelSpec::from_config_json(&config()).unwrap();
    let generation = GenerationConfig::like_published(&spec);
    let source = Synthetic::new(spec, 5);
    write_checkpoint(dir, &source, &config(), &generation, 6_000_000, |_, _| {}).unwrap();
}

/// The folder, and a server of it.
fn served() -> (TempDir, Server) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let server = Server::start(dir.path().to_owned());
    (dir, server)
}

fn mirror(url: &str) -> Mirror {
    Mirror::with_pauses(url, &[Duration::from_millis(10); 3]).unwrap()
}

fn open(server: &Server) -> Result<Checkpoint, WeightError> {
    Checkpoint::open_in(&mirror(&server.url))
}

fn bytes(source: &dyn WeightSource, slice: &TensorSlice) -> Result<Vec<u8>, WeightError> {
    let chunks = Extent::whole(0, slice).chunks();
    let read = chunks.map(|chunk| read_chunk(source, slice, chunk).map(|(bytes, _)| bytes));
    Ok(read.collect::<Result<Vec<_>, _>>()?.concat())
}

#[track_caller]
fn expect_error<T>(result: Result<T, WeightError>, words: &[&str]) {
    let Err(error) = result else { panic!("no error, expected {words:?}") };
    let error = error.to_string();
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
    assert_eq!(error.matches("\nhint: ").count(), 1, "{error}");
}

#[test]
fn a_mirror_has_what_the_folder_has_and_each_byte_is_fetched_once() {
    let (dir, server) = served();
    let (folder, mirror) = (Checkpoint::open(dir.path()).unwrap(), open(&server).unwrap());
    assert_eq!(mirror.spec(), folder.spec());
    assert_eq!(mirror.eos_token_ids(), folder.eos_token_ids());
    let opened = server.seen.bytes.load(Ordering::Relaxed);
    assert_eq!(mirror.identity().unwrap(), folder.identity().unwrap());
    let identity = server.seen.bytes.load(Ordering::Relaxed) - opened;
    let tensors = TensorId::all(folder.spec()).count() as u64;
    assert!(identity <= tensors * 4096, "{identity} bytes, of {tensors} tensors");
    // Three ranks at a time, each on a thread, cut along and across rows.
    let plan = Plan::with_shares(folder.spec(), &[1.0, 1.0, 1.0]);
    let before = server.seen.ranges.lock().unwrap().len();
    std::thread::scope(|scope| {
        for rank in 0..3 {
            let (plan, folder, mirror) = (&plan, &folder, &mirror);
            scope.spawn(move || {
                for slice in plan.slices(folder.spec(), Rank(rank)) {
                    assert_eq!(bytes(mirror, &slice).unwrap(), bytes(folder, &slice).unwrap(), "{slice}");
                }
            });
        }
    });
    let mut ranges = server.seen.ranges.lock().unwrap().split_off(before);
    let count = ranges.len();
    ranges.sort_by_key(|range| range.start);
    ranges.dedup();
    assert!(count <= 2, "the first segments of both files came at opening: {ranges:?}");
}

#[test]
fn a_server_that_recovers_is_waited_for() {
    let (dir, server) = served();
    let folder = Checkpoint::open(dir.path()).unwrap();
    for mood in [Mood::Status(503, 2), Mood::Status(429, 1), Mood::Breaks(2)] {
        server.is(mood);
        let mirror = open(&server).unwrap();
        server.is(mood);
        let slice = TensorSlice::whole(TensorId::Unembed, folder.spec());
        assert_eq!(bytes(&mirror, &slice).unwrap(), bytes(&folder, &slice).unwrap(), "{mood:?}");
    }
}

#[test]
fn what_a_server_does_wrong_is_said_at_once() {
    let (_dir, server) = served();
    for (mood, words) in [
        (Mood::NoRanges, ["config.json", "the server sends whole files only (status 200 for a range)"]),
        (Mood::Status(403, u64::MAX), ["config.json", "the server answers 403"]),
        (Mood::Status(404, u64::MAX), ["config.json", "is not there"]),
        (Mood::OtherPart, ["config.json", "the server says that it sends bytes 1-"]),
    ] {
        server.is(mood);
        let before = server.seen.requests.load(Ordering::Relaxed);
        expect_error(open(&server), &words);
        assert_eq!(
            server.seen.requests.load(Ordering::Relaxed) - before,
            1,
            "{mood:?} is no passing trouble"
        );
    }
}

/// One file with all tensors, without an index, and nothing about generation: all as it may be.
#[test]
fn what_is_not_there_may_be_told_as_forbidden() {
    let dir = tempfile::tempdir().unwrap();
    let spec = ModelSpec::from_config_json(&config()).unwrap();
    let generation = GenerationConfig::like_published(&spec);
    let source = Synthetic::new(spec, 5);
    write_checkpoint(dir.path(), &source, &config(), &generation, u64::MAX, |_, _| {}).unwrap();
    let file = |name: &str| dir.path().join(name);
    let shards: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path()).collect();
    let mut shards = shards.iter().filter(|path| path.extension().is_some_and(|end| end == "safetensors"));
    std::fs::rename(shards.next().unwrap(), file("model.safetensors")).unwrap();
    assert_eq!(shards.next(), None);
    for optional in ["model.safetensors.index.json", "generation_config.json"] {
        std::fs::remove_file(file(optional)).unwrap();
    }
    let server = Server::start(dir.path().to_owned());
    server.is(Mood::NoList);
    let mirror = open(&server).unwrap();
    assert_eq!(mirror.identity().unwrap(), Checkpoint::open(dir.path()).unwrap().identity().unwrap());
    // Where nothing can be read it is a matter of keys.
    std::fs::remove_file(file("config.json")).unwrap();
    expect_error(open(&server), &["config.json", "the server answers 403"]);
}

#[test]
fn an_empty_file_is_called_so() {
    let (dir, server) = served();
    std::fs::write(dir.path().join("config.json"), "").unwrap();
    expect_error(open(&server), &["config.json is empty"]);
}

#[test]
fn a_file_that_changes_while_it_is_read_is_an_error() {
    let (dir, server) = served();
    let mirror = open(&server).unwrap();
    let slice = TensorSlice::whole(TensorId::Unembed, mirror.spec());
    server.is(Mood::Changes);
    expect_error(bytes(&mirror, &slice), &["changed while it was read: its ETag was \"1\", and is \"2\""]);
    server.is(Mood::Good);
    for file in std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path()) {
        let mut bytes = std::fs::read(&file).unwrap();
        bytes.push(0);
        std::fs::write(&file, bytes).unwrap();
    }
    expect_error(bytes(&mirror, &slice), &["changed while it was read: its length was"]);
}

#[test]
fn headers_are_checked_as_those_of_files_are() {
    let (dir, server) = served();
    let shards = std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path());
    let shard = shards.filter(|path| path.extension().is_some_and(|end| end == "safetensors")).max().unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&shard).unwrap();
    file.set_len(file.metadata().unwrap().len() - 100).unwrap();
    let name = shard.file_name().unwrap().to_str().unwrap();
    expect_error(open(&server), &[&format!("{}/{name}", server.url), "fetch it again"]);
    std::fs::remove_file(&shard).unwrap();
    expect_error(open(&server), &[name, "is not there"]);
    std::fs::remove_file(dir.path().join("model.safetensors.index.json")).unwrap();
    expect_error(open(&server), &["has neither model.safetensors.index.json nor model.safetensors"]);
}

#[test]
fn a_server_that_is_gone_is_given_up_after_some_tries() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/m", listener.local_addr().unwrap());
    drop(listener);
    expect_error(mirror(&url).text("config.json", 1 << 20), &["cannot read", &url, "is the server up"]);
}

/// The last to hold a mirror may be an async task.
#[tokio::test]
async fn a_mirror_may_be_dropped_on_an_async_thread() {
    drop(Mirror::new("http://127.0.0.1:1/m").unwrap());
}
