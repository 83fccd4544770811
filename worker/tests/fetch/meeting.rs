//! Between its weights and its group: a worker meets nobody before all have theirs.

use crate::coordinator::Coordinator;
use flotilla_proto::released_from;
use flotilla_proto::wire::{self, from_worker, to_worker};
use flotilla_shared::{Assignment, Epoch, Held, Place};
use flotilla_worker::Settings;
use std::time::Duration;

/// One whose meetings are over when they begin.
async fn impatient() -> Coordinator {
    let impatient = |settings: &mut Settings| settings.collective_timeout = Duration::from_millis(1);
    Coordinator::start_rank((1, 2), Vec::new(), impatient, |_| Vec::new()).await
}

#[tokio::test]
async fn who_is_let_go_before_it_is_told_to_meet_keeps_what_it_loaded() {
    let mut coordinator = impatient().await;
    coordinator.expect_loaded().await;
    coordinator.order(to_worker::Message::Dissolve(wire::Dissolve { epoch: 1 }));
    let said = coordinator.hear().await;
    let Some(from_worker::Message::Released(released)) = said else { panic!("it met somebody: {said:?}") };
    let Assignment { weights_id, plan, rank, .. } = coordinator.assignment();
    let held = Held::of(*weights_id, plan, *rank);
    assert_eq!(released_from(released, Epoch(1)).unwrap(), Some(Some(held)));
    // It is of use as it lies.
    let again = Assignment { epoch: Epoch(2), ..coordinator.assignment().clone() };
    coordinator.order(to_worker::Message::Assignment((&again).into()));
    let bytes = coordinator.loading.bytes_total;
    coordinator.expect_loaded().await;
    assert_eq!(coordinator.loading.by_place.of(Place::Kept), bytes);
}

#[tokio::test]
async fn who_is_told_to_meet_does_so_in_its_time() {
    let mut coordinator = impatient().await;
    coordinator.expect_loaded().await;
    coordinator.order(to_worker::Message::Meet(wire::Meet { epoch: 1 }));
    let failed = coordinator.expect_failure().await;
    assert!(failed.blames_another && failed.reason.contains("did not form"), "{failed:?}");
}

#[tokio::test]
async fn an_order_that_is_none_for_who_waits_is_not_obeyed() {
    for order in [
        to_worker::Message::Meet(wire::Meet { epoch: 2 }),
        to_worker::Message::Step(wire::StepPlan { epoch: 1, step: 1, ..Default::default() }),
    ] {
        let mut coordinator = impatient().await;
        coordinator.expect_loaded().await;
        coordinator.order(order);
        coordinator.expect_gone().await;
    }
}
