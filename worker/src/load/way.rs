//! How weights come: whom and what a load may ask, and in which parts it asks.

use crate::cache::{self, WeightCache};
use crate::device::Device;
use crate::handing::{Digests, Handing};
use crate::settings::Settings;
use flotilla_engine::weights::Need;
use flotilla_shared::tensor::TensorId;
use flotilla_shared::{Assignment, TensorSlice, WeightOrigin};
use std::collections::HashMap;
use std::sync::Arc;

pub struct Way<'a> {
    pub settings: &'a Settings,
    pub handing: &'a Handing,
    /// On the disk.
    pub cache: Option<Arc<WeightCache>>,
    /// What it had of these weights when this load began; none is of no use.
    pub on_disk: Option<Arc<cache::Kept>>,
    /// Of what comes.
    pub digests: Arc<Digests>,
}

impl<'a> Way<'a> {
    /// Others hear of this load from here on.
    pub async fn open(settings: &'a Settings, handing: &'a Handing, assignment: &Assignment) -> Way<'a> {
        let cache = settings.weight_cache.as_ref();
        let cache = cache.map(|cache| Arc::new(WeightCache::new(cache, assignment.weights_id)));
        let in_memory = matches!(settings.device, Device::Cpu(_)) || Way::gives(assignment);
        let digests = handing.shelf.begin(assignment, cache.clone(), in_memory);
        let on_disk = match &cache {
            Some(cache) => {
                let (cache, spec) = (cache.clone(), assignment.spec.clone());
                let list = tokio::task::spawn_blocking(move || cache.kept(&spec));
                Some(list.await.expect("listing does not panic"))
            }
            None => None,
        };
        let on_disk = on_disk.filter(|kept| !kept.is_empty()).map(Arc::new);
        Way { settings, handing, cache, on_disk, digests }
    }

    /// Whether others may ask for what it has, while it loads: those of its stage for what all of them have, or any of its
    /// group for what it held.
    pub fn gives(assignment: &Assignment) -> bool {
        let has_mates = assignment.plan.share(assignment.rank).0.ranks.len() > 1;
        assignment.weights == WeightOrigin::Stream && (has_mates || assignment.lends)
    }

    /// Of each slice what of it is kept, and in which parts the rest is asked for: as the disk and the holders have them.
    pub fn needs(&self, assignment: &Assignment, slices: &[TensorSlice], kept: &[TensorSlice]) -> Vec<Need> {
        let mut needs = Need::of(slices, kept);
        if assignment.weights == WeightOrigin::Stream {
            let held = of_holders(assignment);
            for need in &mut needs {
                let tensor = need.slice.tensor;
                let on_disk = self.on_disk.iter().flat_map(|kept| kept.whole(tensor));
                let others = on_disk.chain(held.get(&tensor).into_iter().flatten());
                need.divide(&others.cloned().collect::<Vec<_>>());
            }
        }
        needs
    }
}

/// What those who are named have of each tensor, in their order.
fn of_holders(assignment: &Assignment) -> HashMap<TensorId, Vec<TensorSlice>> {
    let mut held: HashMap<TensorId, Vec<TensorSlice>> = HashMap::new();
    let same = assignment.holders.iter().filter(|holder| holder.held.weights == assignment.weights_id);
    for slice in same.flat_map(|holder| holder.held.slices(&assignment.spec)) {
        held.entry(slice.tensor).or_default().push(slice);
    }
    held
}
