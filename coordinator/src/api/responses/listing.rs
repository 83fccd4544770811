//! `GET /v1/responses/{id}/input_items`: page by page, what the model was told before it answered, with the
//! conversation that the response went on from.

use serde_json::{Value, json};

use super::item::Item;
use super::request::{LOGPROBS, NOT_INCLUDED, THOUGHTS};
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

/// What changes no stored response: it comes as one body, as it was sent.
pub fn neutral_parameters(query: Option<&str>) -> Result<()> {
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

/// What is to be included, as OpenAI's libraries write it, once for each: `include[]`, mostly escaped.
const INCLUDE: [&str; 4] = ["include", "include[]", "include%5B%5D", "include%5b%5d"];

/// Names and values as they stand: of the others, nothing that is known here needs to be escaped. Items show their reasoning
/// whether or not it is to be included, and nothing else can be.
fn parameters(query: Option<&str>) -> Result<Fields> {
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let (included, others): (Vec<_>, Vec<_>) = pairs.partition(|(name, _)| INCLUDE.contains(name));
    for (_, value) in included {
        let node = Node { path: "include".to_owned(), value: json!(value) };
        supported_word(node, &[THOUGHTS], &[NOT_INCLUDED, &[LOGPROBS]].concat())?;
    }
    let field = |(name, value): (&str, &str)| (name.to_owned(), json!(value));
    Node::body(Value::Object(others.into_iter().map(field).collect())).object()
}

fn number(node: Node) -> Result<Node> {
    match node.value.as_str().and_then(|text| text.parse::<u64>().ok()) {
        Some(number) => Ok(Node { value: json!(number), ..node }),
        None => Err(node.unexpected("a whole number")),
    }
}
