//! Prompts from a file: JSON lines of `{"messages": […]}`, `{"prompt": "…"}` or bare strings, each perhaps with
//! `max_tokens`; or ShareGPT's array of `{"conversations": [{"from": "human", "value": "…"}, …]}`.

use super::{Script, Turn, user};
use serde_json::Value;

#[derive(Debug, thiserror::Error)]
#[error(
    "entry {entry} of the prompts: {reason}\nhint: JSON lines, each with \"messages\", \"prompt\" or \"conversations\", or a bare string"
)]
pub struct FileError {
    entry: usize,
    reason: String,
}

/// At least one. `turns`: of a ShareGPT conversation, so many of what the human said are asked, one after the other.
pub fn read_prompts(text: &str, turns: usize) -> Result<Vec<Script>, FileError> {
    let fail = |entry: usize, reason: &str| FileError { entry, reason: reason.into() };
    let entries: Vec<Value> = if text.trim_start().starts_with('[') {
        serde_json::from_str(text).map_err(|error| fail(1, &error.to_string()))?
    } else {
        let lines = text.lines().filter(|line| !line.trim().is_empty()).enumerate();
        let parse = |(index, line)| {
            serde_json::from_str(line).map_err(|error: serde_json::Error| fail(index + 1, &error.to_string()))
        };
        lines.map(parse).collect::<Result<_, _>>()?
    };
    let scripts = entries.iter().enumerate().map(|(index, entry)| {
        script(entry, turns).ok_or_else(|| fail(index + 1, "it says nothing that could be asked"))
    });
    let scripts: Vec<Script> = scripts.collect::<Result<_, _>>()?;
    if scripts.is_empty() { Err(fail(1, "there is none")) } else { Ok(scripts) }
}

fn script(entry: &Value, turns: usize) -> Option<Script> {
    let max_tokens = entry["max_tokens"].as_u64().map(|tokens| tokens as usize);
    let turn = |messages| Turn { messages, max_tokens, prompt_tokens: None };
    let asked = if let Some(text) = entry.as_str().or(entry["prompt"].as_str()) {
        vec![turn(vec![user(text)])]
    } else if let Some(messages) = entry["messages"].as_array() {
        vec![turn(messages.clone())]
    } else {
        let human = |part: &&Value| matches!(part["from"].as_str(), Some("human" | "user"));
        let parts = entry["conversations"].as_array()?.iter().filter(human).take(turns);
        parts.filter_map(|part| Some(turn(vec![user(part["value"].as_str()?)]))).collect()
    };
    let says = !asked.is_empty() && asked.iter().all(|turn: &Turn| !turn.messages.is_empty());
    says.then_some(Script { turns: asked, tools: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let lines = "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"max_tokens\": 3}\n\n{\"prompt\": \"b\"}\n\"c\"\n";
        let scripts = read_prompts(lines, 1).unwrap();
        let asked: Vec<_> =
            scripts.iter().filter_map(|script| script.turns[0].messages[0]["content"].as_str()).collect();
        assert_eq!((asked, scripts[0].turns[0].max_tokens), (vec!["a", "b", "c"], Some(3)));
        let sharegpt = r#"[{"id": "1", "conversations": [
            {"from": "human", "value": "q1"}, {"from": "gpt", "value": "a1"}, {"from": "human", "value": "q2"}]}]"#;
        assert_eq!(read_prompts(sharegpt, 1).unwrap()[0].turns.len(), 1);
        assert_eq!(read_prompts(sharegpt, 9).unwrap()[0].turns[1].messages, [user("q2")]);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let says = |text: &str| read_prompts(text, 1).unwrap_err().to_string();
        assert!(says("\"a\"\n{\"x\": 1}").starts_with("entry 2 of the prompts"));
        assert!(says("\"a\"\n{").starts_with("entry 2"));
        assert!(says("").contains("there is none"));
        assert!(says("{\"messages\": []}").contains("nothing"));
    }
}
