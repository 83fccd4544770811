//! Metrics that are read off something at each scrape, instead of being counted as they happen.

use std::fmt::Error;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use crate::driver::Durations;

/// Of one series: names and values.
pub type Labels = Vec<(&'static str, String)>;

/// A metric's name, without prefix and unit; its help; its unit.
#[derive(Clone, Copy)]
pub struct Named(pub &'static str, pub &'static str, pub Option<&'static Unit>);

pub const SECONDS: Option<&Unit> = Some(&Unit::Seconds);
pub const BYTES: Option<&Unit> = Some(&Unit::Bytes);

/// A metric's series, as they are written.
pub struct Series<'a>(pub DescriptorEncoder<'a>);

impl Series<'_> {
    pub fn gauge(&mut self, named: Named, all: impl IntoIterator<Item = (Labels, f64)>) -> Result<(), Error> {
        self.write(named, all, ConstGauge::new)
    }

    pub fn counter(
        &mut self,
        named: Named,
        all: impl IntoIterator<Item = (Labels, f64)>,
    ) -> Result<(), Error> {
        self.write(named, all, ConstCounter::new)
    }

    pub fn histogram<'a>(
        &mut self,
        Named(name, help, unit): Named,
        all: impl IntoIterator<Item = (Labels, &'a Durations)>,
    ) -> Result<(), Error> {
        let mut family = self.0.encode_descriptor(name, &format!("{help}."), unit, MetricType::Histogram)?;
        for (labels, durations) in all {
            let buckets: Vec<(f64, u64)> = durations.buckets().collect();
            let (sum, count) = (durations.sum().as_secs_f64(), durations.count());
            family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }

    fn write<M: EncodeMetric>(
        &mut self,
        Named(name, help, unit): Named,
        all: impl IntoIterator<Item = (Labels, f64)>,
        metric: impl Fn(f64) -> M,
    ) -> Result<(), Error> {
        let kind = metric(0.0).metric_type();
        let mut family = self.0.encode_descriptor(name, &format!("{help}."), unit, kind)?;
        for (labels, value) in all {
            metric(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// The one series of a metric without labels.
pub fn only(value: f64) -> [(Labels, f64); 1] {
    [(Labels::new(), value)]
}
