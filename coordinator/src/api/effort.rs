//! How much the model is to think, by all words that clients have for it. gpt-oss knows three levels, and thinks a
//! little at the lowest: it cannot be told not to.

use super::fields::{Node, Result};
use crate::harmony::Effort;

pub fn effort(node: Node) -> Result<Effort> {
    let words = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];
    Ok(match node.word(&words)? {
        "none" | "minimal" | "low" => Effort::Low,
        "medium" => Effort::Medium,
        _ => Effort::High,
    })
}
