//! How far a worker is with its weights.

use crate::wire;
use flotilla_shared::group::{ByPlace, Loading, Place};

impl From<Loading> for wire::Loading {
    fn from(loading: Loading) -> Self {
        let from = |place| loading.by_place.of(place);
        wire::Loading {
            bytes_done: loading.bytes_done,
            bytes_total: loading.bytes_total,
            kept_bytes: from(Place::Kept),
            cache_bytes: from(Place::Cache),
            peer_bytes: from(Place::Peer),
            coordinator_bytes: from(Place::Coordinator),
        }
    }
}

impl From<wire::Loading> for Loading {
    fn from(loading: wire::Loading) -> Self {
        let mut by_place = ByPlace::default();
        by_place.add(Place::Kept, loading.kept_bytes);
        by_place.add(Place::Cache, loading.cache_bytes);
        by_place.add(Place::Peer, loading.peer_bytes);
        by_place.add(Place::Coordinator, loading.coordinator_bytes);
        Loading { bytes_done: loading.bytes_done, bytes_total: loading.bytes_total, by_place }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn progress_survives_the_wire(numbers in any::<[u64; 6]>()) {
            let mut loading = Loading { bytes_done: numbers[0], bytes_total: numbers[1], ..Loading::default() };
            Place::ALL.into_iter().zip(&numbers[2..]).for_each(|(place, bytes)| loading.by_place.add(place, *bytes));
            prop_assert_eq!(Loading::from(wire::Loading::from(loading)), loading);
        }
    }
}
