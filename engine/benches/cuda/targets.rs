//! The figures that were set as targets, beside what they are: the short table that comes last.

use crate::report::{Report, Row};

/// What must be at least, or at most, so much.
enum Limit {
    AtLeast(f64),
    AtMost(f64),
}

use Limit::{AtLeast, AtMost};

pub fn print(report: &Report) {
    let targets = targets(report);
    if targets.is_empty() {
        return;
    }
    println!("\n{:<52} {:>9} {:>9}", "target", "wanted", "found");
    for (what, found, limit) in targets {
        let (wanted, met) = match limit {
            AtLeast(wanted) => (format!("≥ {wanted:.2}"), found >= wanted),
            AtMost(wanted) => (format!("≤ {wanted:.2}"), found <= wanted),
        };
        let verdict = match (report.quick, met) {
            (true, _) => "says nothing",
            (false, true) => "met",
            (false, false) => "MISSED",
        };
        println!("{what:<52} {wanted:>9} {found:>9.3}  {verdict}");
    }
}

fn targets(report: &Report) -> Vec<(String, f64, Limit)> {
    report.rows.iter().flat_map(|row| of_row(row, report)).collect()
}

fn of_row(row: &Row, report: &Report) -> Vec<(String, f64, Limit)> {
    let Row { family, what, model, ranks, rows, .. } = row;
    let share = row.share.unwrap_or(0.0);
    match (*family, what.as_str()) {
        ("experts", "both and combine") if *ranks == 1 && *rows <= 32 && *rows != 16 => {
            let wanted = if *rows <= 8 { 0.80 } else { 0.70 };
            vec![(format!("experts {model}, {rows} rows: of the read rate"), share, AtLeast(wanted))]
        }
        ("step", "decode") if *rows == 1 => {
            let outside = row.outside_ms.unwrap_or(f64::NAN);
            vec![
                (format!("decode {model}, engine alone: of the byte bound"), share, AtLeast(0.65)),
                (format!("decode {model}: ms outside the byte bound"), outside, AtMost(0.6)),
            ]
        }
        ("step", "prompt") if *rows >= 2048 => {
            let rate = report.ceilings.matrix_flops_per_second;
            let flops = row.work.map_or(0.0, |work| work.flops);
            let found = rate.map(|rate| flops / (row.microseconds / 1e6) / rate);
            let what = format!("prompt of {rows}, {model}: of cuBLASLt's bf16 rate");
            found.map(|found| (what, found, AtLeast(0.45))).into_iter().collect()
        }
        ("sum", "host 5.76 kB") if *ranks == 4 => {
            vec![("4 ranks, 5.76 kB, pinned host memory, graph: µs".into(), row.microseconds, AtMost(10.0))]
        }
        ("sum", "shared 5.76 kB") if *ranks == 4 => {
            vec![("4 ranks, 5.76 kB, the card's memory, graph: µs".into(), row.microseconds, AtMost(4.0))]
        }
        ("memory", _) => vec![
            (
                format!("weights {model}: of the checkpoint's"),
                row.weights_ratio.unwrap_or(f64::NAN),
                AtMost(1.01),
            ),
            (format!("memory {model}: of the plan"), row.memory_ratio.unwrap_or(f64::NAN), AtMost(1.03)),
        ],
        _ => Vec::new(),
    }
}
