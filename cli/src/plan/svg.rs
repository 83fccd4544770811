//! The plan as a picture: a row of boxes for each stage, a box for each rank with its memory as a bar. Colours follow the
//! reader's light or dark.

use super::chosen::Chosen;
use super::table::{placement, range};
use flotilla_shared::plan::Placement;
use flotilla_shared::units::Bytes;
use flotilla_shared::{RankShare, Stage};
use std::fmt::Write;

const WIDTH: usize = 1000;
const MARGIN: usize = 24;
const GAP: usize = 12;
const BOXES_A_ROW: usize = 4;
const BOX_WIDTH: usize = (WIDTH - 2 * MARGIN - (BOXES_A_ROW - 1) * GAP) / BOXES_A_ROW;
const BOX_HEIGHT: usize = 140;
const LINE: usize = 18;

/// Parts of a rank's memory, in the order of the bar; each has a class of colour.
const PARTS: [&str; 6] = ["attention", "experts", "embeddings", "replicated", "KV cache", "activations"];

const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#1c2430}.title{font-size:17px;font-weight:600}.stage{font-weight:600}\
.dim{fill:#5b6675;font-size:12px}.page{fill:#fff}.box{fill:#f4f6f9;stroke:#c9d1dc}.free{fill:#dfe4ec}\
.p0{fill:#3f6fd8}.p1{fill:#d9772b}.p2{fill:#2f9e78}.p3{fill:#8a5bc7}.p4{fill:#c74a78}.p5{fill:#8a8f2a}\
@media(prefers-color-scheme:dark){text{fill:#e6eaf0}.dim{fill:#9aa6b6}.page{fill:#12161c}\
.box{fill:#1b212a;stroke:#3a4553}.free{fill:#2b3440}.p0{fill:#6b95ee}.p1{fill:#ee9a56}.p2{fill:#4fc29a}\
.p3{fill:#ab82e0}.p4{fill:#e5749c}.p5{fill:#b5ba4e}}";

/// An SVG document.
pub fn picture(chosen: &Chosen) -> String {
    let mut page = Page { body: String::new(), y: MARGIN };
    page.head(chosen);
    let mut at = 0;
    for (number, stage) in chosen.choice.plan.stages.iter().enumerate() {
        page.stage(chosen, number, stage, &chosen.choice.devices[at..at + stage.ranks.len()]);
        at += stage.ranks.len();
    }
    page.foot(chosen);
    let height = page.y + MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\">\n<title>{}</title>\n<style>{STYLE}</style>\n<rect class=\"page\" width=\"{WIDTH}\" \
         height=\"{height}\"/>\n{}</svg>\n",
        escape(&chosen.head()),
        page.body
    )
}

/// What is drawn so far, and how far down.
struct Page {
    body: String,
    y: usize,
}

impl Page {
    fn text(&mut self, x: usize, y: usize, class: &str, text: &str) {
        let _ = writeln!(self.body, "<text x=\"{x}\" y=\"{y}\" class=\"{class}\">{}</text>", escape(text));
    }

    fn rect(&mut self, x: f64, y: usize, width: f64, height: usize, class: &str, title: &str) {
        let _ = writeln!(
            self.body,
            "<rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{height}\" class=\"{class}\"><title>{}</title></rect>",
            escape(title)
        );
    }

    /// A line of its own; long ones are broken between words.
    fn line(&mut self, class: &str, text: &str) {
        const LETTERS: usize = 135;
        let mut line = String::new();
        for word in text.split(' ') {
            if line.len() + word.len() > LETTERS {
                self.y += LINE;
                self.text(MARGIN, self.y, class, &line);
                line.clear();
            }
            line += if line.is_empty() { "" } else { " " };
            line += word;
        }
        self.y += LINE;
        self.text(MARGIN, self.y, class, &line);
    }

    fn head(&mut self, chosen: &Chosen) {
        let (model, fit) = chosen.head().split_once(": ").map_or_else(
            || (chosen.model.to_owned(), String::new()),
            |(model, fit)| (model.to_owned(), fit.to_owned()),
        );
        self.line("title", &model);
        self.line("", &fit);
        self.y += 2 * LINE;
        for (number, part) in PARTS.into_iter().chain(["free"]).enumerate() {
            let x = MARGIN + number * 130;
            let class = if number < PARTS.len() { format!("p{number}") } else { "free".into() };
            self.rect(x as f64, self.y - 11, 12.0, 12, &class, part);
            self.text(x + 18, self.y, "dim", part);
        }
        self.y += GAP;
    }

    fn stage(&mut self, chosen: &Chosen, number: usize, stage: &Stage, devices: &[usize]) {
        self.y += GAP;
        self.line("stage", &format!("Stage {number}: {}", chosen.stage(stage)));
        self.y += GAP;
        for (at, (share, &device)) in stage.ranks.iter().zip(devices).enumerate() {
            let x = MARGIN + at % BOXES_A_ROW * (BOX_WIDTH + GAP);
            let y = self.y + at / BOXES_A_ROW * (BOX_HEIGHT + GAP);
            self.rank(chosen, share, device, x, y);
        }
        self.y += stage.ranks.len().div_ceil(BOXES_A_ROW) * (BOX_HEIGHT + GAP);
    }

    fn rank(&mut self, chosen: &Chosen, share: &RankShare, device: usize, x: usize, y: usize) {
        self.rect(x as f64, y, BOX_WIDTH as f64, BOX_HEIGHT, "box", &chosen.device(device));
        let inside = x + 10;
        self.text(
            inside,
            y + 20,
            "stage",
            &format!("Rank {}, host {}", share.rank, chosen.fleet.hosts[device]),
        );
        self.text(inside, y + 38, "dim", &short(&chosen.fleet.devices[device].device));
        let (what, experts) = match placement(chosen.spec, share) {
            Placement::Slices => ("blocks", &share.experts.blocks),
            Placement::Whole => ("experts", &share.experts.experts),
        };
        let bytes = chosen.choice.plan.bytes(chosen.spec, share.rank);
        let has_vocabulary = bytes.embedding + bytes.unembedding > 0;
        let vocabulary = if has_vocabulary { range(&share.vocab) } else { "none".into() };
        self.text(
            inside,
            y + 90,
            "",
            &format!("kv heads {}, {what} {}", range(&share.kv_heads), range(experts)),
        );
        self.text(inside, y + 108, "", &format!("vocabulary {vocabulary}"));
        self.bar(chosen, share, device, inside, y + 48);
        let used = chosen.choice.plan.total_bytes(chosen.spec, share.rank, chosen.demand);
        let memory = chosen.fleet.devices[device].memory_bytes;
        self.text(inside, y + 127, "dim", &format!("{} of {}", Bytes(used), Bytes(memory)));
    }

    fn bar(&mut self, chosen: &Chosen, share: &RankShare, device: usize, x: usize, y: usize) {
        let (plan, spec) = (&chosen.choice.plan, chosen.spec);
        let bytes = plan.bytes(spec, share.rank);
        let parts = [
            bytes.attention,
            bytes.experts,
            bytes.embedding + bytes.unembedding,
            bytes.replicated,
            bytes.kv(chosen.demand.kv_blocks),
            plan.activation_bytes(spec, share.rank, chosen.demand),
        ];
        let width = (BOX_WIDTH - 20) as f64;
        let memory = chosen.fleet.devices[device].memory_bytes as f64;
        self.rect(x as f64, y, width, 22, "free", "free");
        let mut from = x as f64;
        for (number, part) in parts.into_iter().enumerate() {
            let wide = width * part as f64 / memory;
            self.rect(
                from,
                y,
                wide,
                22,
                &format!("p{number}"),
                &format!("{} {}", PARTS[number], Bytes(part)),
            );
            from += wide;
        }
    }

    fn foot(&mut self, chosen: &Chosen) {
        self.y += GAP;
        self.line("", &format!("KV cache: {}", chosen.cache()));
        self.line("stage", "Predicted, not measured");
        for line in chosen.speeds() {
            self.line("", &line);
        }
        self.line("dim", &chosen.runner_up());
        for left_out in &chosen.choice.left_out {
            self.line("dim", &format!("left out: {}: {}", chosen.device(left_out.device), left_out.reason));
        }
    }
}

/// What a box has room for.
fn short(text: &str) -> String {
    const LETTERS: usize = 30;
    match text.char_indices().nth(LETTERS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
