//! What a group of devices takes at least, were everything divided as their rates are: found out in no time, so that what
//! is too slow anyway need not be cut.

use crate::model::{Layers, Spread, StageModel};
use flotilla_shared::LayerKind;

pub(crate) struct Floor {
    full_s: f64,
    window_s: f64,
    vocabulary_s: f64,
    /// All-reduces and fixed costs of a stage without layers, of a layer, of being the first and the last.
    stage_s: f64,
    layer_s: f64,
    first_s: f64,
    last_s: f64,
    /// Layers whose experts fill the memory.
    layers_max: f64,
}

impl Floor {
    pub fn of(model: &StageModel, devices: &[usize], ranks: &Spread) -> Floor {
        let spec = model.spec;
        let together = |unit_s: &dyn Fn(usize) -> f64| -> f64 {
            1.0 / devices.iter().map(|&device| 1.0 / unit_s(device)).sum::<f64>()
        };
        let attention = |kind| spec.kv_heads as f64 * together(&|device| model.attention_s(device, 1, kind));
        // Whole experts cannot take less than slices, unless they are priced so.
        let cheaper = model.fleet.costs.whole_factor.min(1.0);
        let experts = cheaper * spec.intermediate_blocks() as f64 * together(&|device| model.block_s(device));
        let beside = |full, first, last| {
            let layers = Layers { full, window: 0, first, last };
            model.sums_s(ranks, layers) + model.fixed_s(devices, layers)
        };
        let stage_s = beside(0, false, false);
        let layer_bytes = (spec.experts * spec.intermediate_blocks()) as f64 * model.sizes.block_bytes as f64;
        let memory: f64 = devices.iter().map(|&device| model.fleet.devices[device].memory_bytes as f64).sum();
        Floor {
            full_s: attention(LayerKind::Full) + experts,
            window_s: attention(LayerKind::Window) + experts,
            vocabulary_s: spec.vocab as f64 * together(&|device| model.vocabulary_row_s(device)),
            stage_s,
            layer_s: beside(1, false, false) - stage_s,
            first_s: beside(0, true, false) - stage_s,
            last_s: beside(0, false, true) - stage_s,
            layers_max: memory / layer_bytes,
        }
    }

    /// Seconds of a layer, whichever it is.
    pub fn least_layer_s(&self) -> f64 {
        self.full_s.min(self.window_s) + self.layer_s
    }

    /// The same, without sums and fixed costs.
    pub fn bare_layer_s(&self) -> f64 {
        self.full_s.min(self.window_s)
    }

    pub fn vocabulary_s(&self) -> f64 {
        self.vocabulary_s
    }

    pub fn layers_max(&self) -> f64 {
        self.layers_max
    }

    /// Infinite where memory is too small for sure.
    pub fn time_s(&self, layers: Layers) -> f64 {
        if layers.count() as f64 > self.layers_max {
            return f64::INFINITY;
        }
        let ends = if layers.first { self.first_s } else { 0.0 }
            + if layers.last { self.last_s + self.vocabulary_s } else { 0.0 };
        self.stage_s
            + ends
            + layers.full as f64 * (self.full_s + self.layer_s)
            + layers.window as f64 * (self.window_s + self.layer_s)
    }
}
