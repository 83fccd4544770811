//! `/metrics` as far as it is shown: sums over series, and quantiles of histograms.

use std::collections::BTreeMap;

/// The prefix of every name.
const PREFIX: &str = "flotilla_";

#[derive(Default)]
pub struct Metrics {
    /// By name without prefix: the labels as they stand there, and the value.
    series: BTreeMap<String, Vec<(String, f64)>>,
}

impl Metrics {
    pub fn read(text: &str) -> Metrics {
        let mut metrics = Metrics::default();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        for line in lines {
            let Some((name, labels, value)) = parts(line) else { continue };
            let series = metrics.series.entry(name.to_owned()).or_default();
            series.push((labels.to_owned(), value));
        }
        metrics
    }

    /// Of all series of this name that have the labels; none, if there is no such series.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let found = self.series.get(name)?.iter().filter(|(all, _)| {
            labels.iter().all(|(label, value)| all.contains(&format!("{label}=\"{value}\"")))
        });
        let mut found = found.map(|(_, value)| *value).peekable();
        found.peek()?;
        Some(found.sum())
    }

    /// Of a histogram: how many were at most how long, rising.
    fn buckets(&self, histogram: &str) -> Vec<(f64, f64)> {
        let series = self.series.get(&format!("{histogram}_bucket"));
        let bucket = |(labels, count): &(String, f64)| {
            let (_, bound) = labels.split_once("le=\"")?;
            let bound = bound.split('"').next()?;
            Some((if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? }, *count))
        };
        series.into_iter().flatten().filter_map(bucket).collect()
    }

    /// Of what was observed since `before`: within its bucket by proportion, as Prometheus does. None of nothing.
    pub fn quantile(&self, histogram: &str, part: f64, before: Option<&Metrics>) -> Option<f64> {
        let (now, then) = (self.buckets(histogram), before.map(|before| before.buckets(histogram)));
        let earlier = |at: usize| then.as_ref().and_then(|then| then.get(at)).map_or(0.0, |bucket| bucket.1);
        let counts: Vec<(f64, f64)> =
            now.iter().enumerate().map(|(at, (bound, count))| (*bound, count - earlier(at))).collect();
        let wanted = counts.last().filter(|(_, all)| *all > 0.0)?.1 * part;
        let at = counts.iter().position(|(_, count)| *count >= wanted)?;
        let (below, fewer) = if at == 0 { (0.0, 0.0) } else { counts[at - 1] };
        let (bound, count) = counts[at];
        if bound.is_infinite() || count <= fewer {
            return Some(below);
        }
        Some(below + (bound - below) * (wanted - fewer) / (count - fewer))
    }
}

/// `flotilla_NAME{LABELS} VALUE`.
fn parts(line: &str) -> Option<(&str, &str, f64)> {
    let (series, value) = line.strip_prefix(PREFIX)?.rsplit_once(' ')?;
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    Some((name, labels.trim_end_matches('}'), value.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP flotilla_wait x\nflotilla_wait_bucket{le=\"0.1\",m=\"a\"} 2\n\
        flotilla_wait_bucket{le=\"0.2\",m=\"a\"} 4\nflotilla_wait_bucket{le=\"+Inf\",m=\"a\"} 5\n\
        flotilla_steps_total{replica=\"0\",m=\"} odd\"} 3\nflotilla_steps_total{replica=\"1\",m=\"a\"} 4.5\n# EOF\n";

    #[test]
    fn series_are_summed_by_labels() {
        let metrics = Metrics::read(TEXT);
        assert_eq!(metrics.sum("steps_total", &[]), Some(7.5));
        assert_eq!(metrics.sum("steps_total", &[("replica", "1")]), Some(4.5));
        assert_eq!(metrics.sum("steps_total", &[("replica", "2")]), None);
        assert_eq!(metrics.sum("stairs_total", &[]), None);
    }

    #[test]
    fn quantiles_are_of_what_came_since() {
        let metrics = Metrics::read(TEXT);
        assert_eq!(metrics.quantile("wait", 0.4, None), Some(0.1));
        assert!((metrics.quantile("wait", 0.6, None).unwrap() - 0.15).abs() < 1e-9);
        assert_eq!(metrics.quantile("wait", 0.99, None), Some(0.2), "no more is known of it");
        assert_eq!(metrics.quantile("wait", 0.5, Some(&metrics)), None, "nothing came since");
        let before = Metrics::read(&TEXT.replace("} 4\n", "} 2\n").replace("} 5\n", "} 2\n"));
        assert!((metrics.quantile("wait", 0.5, Some(&before)).unwrap() - 0.175).abs() < 1e-9);
    }
}
