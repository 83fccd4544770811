//! The page of the cluster: what is known before, while and after a group forms.

use flotilla_coordinator::board::{Board, LeftOut};
use flotilla_shared::plan::Demand;
use flotilla_shared::{
    BackendKind, Epoch, Inventory, KvBlocks, KvDtype, Loading, ModelSpec, Plan, Rank, Reach,
};
use serde_json::{Value, json};

use crate::server::{CONTEXT, MODEL, Server, Setup, until};

pub fn worker(name: &str) -> Inventory {
    Inventory {
        name: name.to_owned(),
        backend: BackendKind::Cpu,
        kv: KvDtype::F16,
        device: "cpu avx2".to_owned(),
        memory_bytes: 32 << 30,
        bandwidth: 0.0,
        compute: 0.0,
        expert_compute: 0.0,
        threads: 2,
    }
}

async fn cluster(server: &Server) -> Value {
    let response = server.get("/v1/cluster").await;
    assert_eq!(response.status(), 200);
    response.json().await.unwrap()
}

#[tokio::test]
async fn what_each_worker_holds_is_told_from_loading_on() {
    let (board, spec) = (Board::default(), ModelSpec::published("gpt-oss-20b").unwrap());
    let shown = board.clone();
    let setup =
        Setup { ready: false, adjust: Box::new(|settings| settings.board = shown), ..Setup::default() };
    let server = Server::start_with(setup).await;
    let before = cluster(&server).await;
    assert_eq!((&before["object"], &before["status"]), (&json!("cluster"), &json!("loading")));
    assert_eq!((&before["workers"], &before["epoch"]), (&json!([]), &Value::Null));
    assert_eq!(before["model"], json!({"id": MODEL, "context_tokens": CONTEXT}));
    assert!(before["uptime_seconds"].as_f64().is_some());

    board.model(&spec);
    let workers = [worker("a"), worker("b")];
    let demand = Demand { kv_blocks: KvBlocks::plain(1024), step_tokens_max: 512, logit_rows_max: 64 };
    let plan = Plan::tensor_parallel(&spec, &workers, demand).unwrap();
    board.planned(Epoch(1), &spec, &plan, &workers, demand);
    board.left_out(vec![LeftOut { name: "c".into(), reason: "it does not reach a".into() }]);
    let half = Loading { bytes_done: 5, bytes_total: 10, ..Loading::default() };
    board.loading(&[half, Loading::default()]);
    server.fleet.loading("weights 5 B of 10 B");
    until(async || cluster(&server).await["reason"] == "the model is loading: weights 5 B of 10 B").await;
    let loading = cluster(&server).await;
    let model = &loading["model"];
    assert_eq!(
        (&model["layers"], &model["window_layers"], &model["experts"]),
        (&json!(24), &json!(12), &json!(32))
    );
    let first = &loading["workers"][0];
    assert_eq!(
        (&first["name"], &first["rank"], &first["state"]),
        (&json!("a"), &json!(0), &json!("loading"))
    );
    let loading_of =
        json!({"bytes_done": 5, "bytes_total": 10, "bytes_per_second": null, "seconds_left": null});
    assert_eq!(first["loading"], loading_of);
    assert_eq!((&first["backend"], &first["memory_bytes"]), (&json!("cpu"), &json!(32u64 << 30)));
    assert_eq!((&first["layers"], &first["kv_heads"]), (&json!([0, 24]), &json!([0, 4])));
    assert_eq!((&first["expert_blocks"], &first["expert_blocks_total"]), (&json!([0, 45]), &json!(90)));
    let sum = |part: &str| -> u64 {
        loading["workers"].as_array().unwrap().iter().map(|worker| worker[part].as_u64().unwrap()).sum()
    };
    // Norms and routers are on both.
    let (held, whole) = (sum("weights_bytes"), model["weights_bytes"].as_u64().unwrap());
    assert!(held >= whole && held - whole < whole / 100, "{held} of {whole}");
    assert!(sum("kv_bytes") > 0 && sum("activation_bytes") > 0);

    let left_out = json!([{"replica": 0, "name": "c", "reason": "it does not reach a"}]);
    assert_eq!((&before["left_out"], &loading["left_out"]), (&json!([]), &left_out));

    assert_eq!(first["links"], Value::Null);
    let not_shared = Some("rank 1: another container".to_owned());
    board.linked(&[
        Reach { by_memory: vec![Rank(1)], not_shared: None },
        Reach { by_memory: vec![], not_shared },
    ]);
    server.form_group(1);
    until(async || cluster(&server).await["status"] == "ready").await;
    let ready = cluster(&server).await;
    assert_eq!((&ready["epoch"], &ready["reason"]), (&json!(1), &Value::Null));
    assert_eq!(ready["workers"][1]["state"], "ready");
    assert_eq!(ready["workers"][0]["links"], json!({"shm": [1], "tcp": [], "not_shared": null}));
    let by_tcp = json!({"shm": [], "tcp": [0], "not_shared": "rank 1: another container"});
    assert_eq!(ready["workers"][1]["links"], by_tcp);
    for (part, names) in [
        ("kv", vec!["block_tokens", "blocks", "blocks_free", "window_blocks", "window_blocks_cached"]),
        ("load", vec!["running", "waiting", "steps_in_flight"]),
        ("totals", vec!["steps", "prompt_tokens", "generated_tokens", "cached_tokens", "accepted_tokens"]),
        ("step", vec!["compute_us"]),
    ] {
        for name in names {
            assert!(ready[part][name].is_u64(), "{part}.{name} in {ready}");
        }
    }
}
