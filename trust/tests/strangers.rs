//! What the audit log tells of strangers who come again and again.

use std::fmt::{Debug, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flotilla_trust::audit::{self, Act};
use flotilla_trust::door::{Manners, incoming, no_look};
use tokio::net::TcpListener;
use tracing::field::Field;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Lines of a log.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Subscriber for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = String::new();
        event.record(&mut |field: &Field, value: &dyn Debug| write!(line, "{field}={value:?} ").unwrap());
        self.0.lock().unwrap().push(line);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// One looks for it when the attack is over, and then nobody comes who could make it told.
#[tokio::test(start_paused = true)]
async fn how_many_more_there_were_is_told_though_nobody_comes_any_more() {
    let lines = Lines::default();
    let _guard = tracing::subscriber::set_default(lines.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let manners = Manners { purpose: "a test", proof_wait: Duration::MAX, look: no_look, refused: |_, _| {} };
    let _door = incoming(listener, None, manners);
    for port in 1..=1000 {
        audit::refused_at_the_door(Act::AdmitWorker, ([10, 0, 0, 1], port).into(), "wrong token");
    }
    assert_eq!(lines.0.lock().unwrap().len(), 10);
    tokio::time::sleep(Duration::from_secs(300)).await;
    let told = lines.0.lock().unwrap().split_off(10);
    let [more] = &told[..] else { panic!("once, and not {told:?}") };
    assert!(more.contains("10.0.0.1") && more.contains("990 times more"), "{more}");
}
