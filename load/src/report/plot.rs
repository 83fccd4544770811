//! Plots as SVG that stands in a page: axes, and bars, lines, points and bands over them. Colours are the page's classes.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 40.0;

#[derive(Clone, Copy, Debug)]
pub struct Axis {
    pub name: &'static str,
    pub low: f64,
    pub high: f64,
    pub log: bool,
}

pub struct Plot {
    x: Axis,
    y: Axis,
    title: String,
    marks: String,
}

impl Axis {
    /// From nothing to a little above the greatest.
    pub fn linear(name: &'static str, values: impl Iterator<Item = f64>) -> Axis {
        let high = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
        Axis { name, low: 0.0, high: if high > 0.0 { high * 1.05 } else { 1.0 }, log: false }
    }

    pub fn log(name: &'static str, values: impl Iterator<Item = f64> + Clone) -> Axis {
        let positive = values.filter(|value| value.is_finite() && *value > 0.0);
        let low = positive.clone().fold(f64::INFINITY, f64::min);
        let high = positive.fold(0.0, f64::max);
        match low <= high {
            true => Axis { name, low: low / 1.1, high: high * 1.1, log: true },
            false => Axis { name, low: 1.0, high: 10.0, log: true },
        }
    }

    /// Where a value lies, 0 to 1.
    fn share(&self, value: f64) -> f64 {
        let share = match self.log {
            true => (value.max(self.low) / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        };
        share.clamp(0.0, 1.0)
    }

    /// Round numbers.
    fn ticks(&self) -> Vec<f64> {
        if self.log && self.high / self.low >= 8.0 {
            let steps = if self.high / self.low > 1e4 { &[1.0][..] } else { &[1.0, 2.0, 5.0][..] };
            let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
            let ticks = decades.flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)));
            return ticks.filter(|tick| (self.low..=self.high).contains(tick)).collect();
        }
        let rough = (self.high - self.low) / 5.0;
        let decade = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|step| step * decade).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        let first = (self.low / step).ceil() as i64;
        (first..first + 12).map(|n| n as f64 * step).filter(|tick| *tick <= self.high).collect()
    }
}

impl Plot {
    pub fn new(title: impl Into<String>, x: Axis, y: Axis) -> Plot {
        Plot { x, y, title: title.into(), marks: String::new() }
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + self.x.share(value) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - self.y.share(value) * (HEIGHT - TOP - BOTTOM)
    }

    fn mark(&mut self, text: std::fmt::Arguments) {
        self.marks.write_fmt(text).expect("a string can be written to");
    }

    pub fn bar(&mut self, from: f64, to: f64, height: f64, class: &str) {
        let (x, y) = (self.x(from), self.y(height));
        let (width, height) = ((self.x(to) - x - 0.6).max(0.6), HEIGHT - BOTTOM - y);
        self.mark(format_args!(
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
        ));
    }

    pub fn point(&mut self, x: f64, y: f64, class: &str) {
        let (x, y) = (self.x(x), self.y(y));
        self.mark(format_args!("<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.2\"/>"));
    }

    pub fn line(&mut self, points: &[(f64, f64)], class: &str) {
        let points: Vec<String> =
            points.iter().map(|(x, y)| format!("{:.1},{:.1}", self.x(*x), self.y(*y))).collect();
        self.mark(format_args!("<polyline class=\"{class}\" points=\"{}\"/>", points.join(" ")));
    }

    /// A time that is told of, over the whole height.
    pub fn band(&mut self, from: f64, to: f64, words: &str) {
        let (x, width) = (self.x(from), (self.x(to) - self.x(from)).max(1.5));
        let height = HEIGHT - TOP - BOTTOM;
        let words = escape(words);
        self.mark(format_args!(
            "<rect class=\"band\" x=\"{x:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{height}\"><title>{words}</title></rect>\
             <text class=\"fault\" x=\"{:.1}\" y=\"{:.1}\">{words}</text>",
            x + 3.0,
            TOP + 11.0
        ));
    }

    pub fn svg(self) -> String {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let mut grid = String::new();
        for tick in self.x.ticks() {
            let x = self.x(tick);
            let _ = write!(
                grid,
                "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\"/><text text-anchor=\"middle\" x=\"{x:.1}\" y=\"{}\">{}</text>",
                bottom + 14.0,
                short(tick)
            );
        }
        for tick in self.y.ticks() {
            let y = self.y(tick);
            let _ = write!(
                grid,
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/><text text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{}</text>",
                LEFT - 5.0,
                y + 3.5,
                short(tick)
            );
        }
        let title = escape(&self.title);
        format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">{grid}{}\
             <text class=\"title\" x=\"{LEFT}\" y=\"16\">{title}</text>\
             <text text-anchor=\"middle\" x=\"{}\" y=\"{}\">{}</text>\
             <text text-anchor=\"middle\" transform=\"rotate(-90)\" x=\"{}\" y=\"13\">{}</text></svg>\n",
            self.marks,
            (LEFT + right) / 2.0,
            HEIGHT - 8.0,
            self.x.name,
            -(TOP + bottom) / 2.0,
            self.y.name
        )
    }
}

fn short(value: f64) -> String {
    if value >= 1e6 {
        format!("{:.0}M", value / 1e6)
    } else if value >= 10_000.0 {
        format!("{:.0}k", value / 1e3)
    } else {
        // 0.1 + 0.2 is not to be seen.
        format!("{}", (value * 1e6).round() / 1e6)
    }
}

/// Text that cannot become markup.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        let axis = Axis { name: "", low: 0.0, high: 83.0, log: false };
        assert_eq!(axis.ticks(), [0.0, 20.0, 40.0, 60.0, 80.0]);
        let axis = Axis { name: "", low: 3.0, high: 600.0, log: true };
        assert_eq!(axis.ticks(), [5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0]);
        for (low, high) in [(99.0, 101.0), (1.0, 1.0001), (1e-9, 1e9)] {
            let axis = Axis { name: "", low, high, log: true };
            assert!(axis.ticks().len() <= 20, "{axis:?}");
        }
    }

    #[test]
    fn nothing_is_plotted_beyond_the_axes() {
        let axis = Axis::log("", [1.0, 10.0].into_iter());
        assert_eq!((axis.share(0.0), axis.share(1e9)), (0.0, 1.0));
        assert!(Axis::linear("", [f64::NAN].into_iter()).high == 1.0);
    }
}
