//! How near a backend must come to the f64 values.

use crate::subject::Subject;
use flotilla_shared::KvDtype;

/// The largest difference that is allowed, as a share of the expected values' root mean square: on the CPU (and there
/// with a cache of f16), and on a card.
#[derive(Clone, Copy)]
pub struct Tolerance {
    pub cpu: f64,
    pub f16: f64,
    pub card: f64,
}

impl Tolerance {
    pub fn of(self, subject: &Subject) -> f64 {
        match subject {
            Subject::Card(..) => self.card,
            Subject::Cpu(KvDtype::F32) => self.cpu,
            Subject::Cpu(_) | Subject::CpuInt8 => self.f16,
        }
    }
}

/// Values [rows, width] against those expected.
pub fn close(
    what: &str,
    subject: &Subject,
    tolerance: Tolerance,
    found: &[f32],
    expected: &[f64],
    width: usize,
) -> Result<(), String> {
    assert_eq!(found.len(), expected.len(), "{what}");
    let square: f64 = expected.iter().map(|value| value * value).sum();
    let rms = (square / expected.len() as f64).sqrt();
    let allowed = tolerance.of(subject);
    let mut worst = (0.0, 0);
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        // A NaN is as far away as can be.
        let apart = (f64::from(*found) - expected).abs() / rms;
        let apart = if apart.is_nan() { f64::INFINITY } else { apart };
        if apart > worst.0 {
            worst = (apart, at);
        }
    }
    let (apart, at) = worst;
    if std::env::var_os("FLOTILLA_TEST_SHOW").is_some() {
        println!("{what} on {}: {apart:.1e} of {allowed:.0e}", subject.name());
    }
    if apart <= allowed {
        return Ok(());
    }
    Err(format!(
        "{what} on {}: row {}, column {}: {} instead of {}, {apart:.1e} of the root mean square {rms:.3}, allowed is {allowed:.0e}",
        subject.name(),
        at / width,
        at % width,
        found[at],
        expected[at],
    ))
}
