//! `GET /v1/responses/{id}/input_items`: page by page, what the model was told before it answered, with the
//! conversation that the response went on from.

use serde_json::{Value, json};

use super::item::Item;
use super::store::Stored;
use crate::api::fields::{Fields, Node, Result};
use crate::api::neutral::supported_word;

const PAGE_DEFAULT: usize = 20;
const PAGE_MAX: u64 = 100;

pub fn list(stored: &Stored, query: Option<&str>) -> Result<Value> {
    let mut fields = parameters(query)?;
    let limit = fields.take("limit").map_or(Ok(PAGE_DEFAULT), |node| number(node)?.count(1..=PAGE_MAX))?;
    let order = fields.take("order").map_or(Ok("desc"), |node| node.word(&["asc", "desc"]))?;
    let after = fields.take("after");
    fields
        .take("include")
        .map(|node| supported_word(node, &["reasoning.encrypted_content"], &[]))
        .transpose()?;
    fields.finish()?;
    let mut items = inputs(stored);
    if order == "desc" {
        items.reverse();
    }
    let begin = after.map_or(Ok(0), |after| position_behind(after, &items))?;
    let page = &items[begin..items.len().min(begin + limit)];
    Ok(json!({
        "object": "list",
        "data": page.iter().map(|item| item.to_json()).collect::<Vec<_>>(),
        "first_id": page.first().map(|item| &item.id),
        "last_id": page.last().map(|item| &item.id),
        "has_more": begin + page.len() < items.len(),
    }))
}

/// For what takes no parameters: a stored response comes as one body.
pub fn no_parameters(query: Option<&str>) -> Result<()> {
    let mut fields = parameters(query)?;
    if let Some(node) = fields.take("stream").filter(|node| node.value != "false") {
        return Err(node.not_supported("false"));
    }
    fields.finish()
}

fn inputs(stored: &Stored) -> Vec<&Item> {
    match stored.turns.split_last() {
        Some((last, before)) => before.iter().flat_map(|turn| turn.items()).chain(&last.input).collect(),
        None => Vec::new(),
    }
}

fn position_behind(after: Node, items: &[&Item]) -> Result<usize> {
    let position = items.iter().position(|item| after.value == item.id.as_str());
    position.map(|position| position + 1).ok_or_else(|| after.unexpected("the id of an input item"))
}

/// Names and values as they stand: nothing that is known here needs to be escaped.
fn parameters(query: Option<&str>) -> Result<Fields> {
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name.to_owned(), json!(value))
    };
    Node::body(Value::Object(pairs.map(pair).collect())).object()
}

fn number(node: Node) -> Result<Node> {
    match node.value.as_str().and_then(|text| text.parse::<u64>().ok()) {
        Some(number) => Ok(Node { value: json!(number), ..node }),
        None => Err(node.unexpected("a whole number")),
    }
}
