//! Items as the messages of a chat. Reasoning, preamble and calls that stand together are one message of the
//! assistant, as the model wrote them in one turn; which reasoning the model is shown again is harmony's to
//! decide (that of turns with an answer is not).

use super::item::{Item, Kind, Phase};
use super::tools::full_name;
use crate::api::fields::{FieldError, Problem};
use crate::harmony::Role;
use crate::harmony::chat::{ChatCall, ChatError, ChatMessage};

pub fn messages(instructions: Option<&str>, items: &[&Item]) -> Vec<ChatMessage> {
    let mut writer = Writer::default();
    if let Some(content) = instructions {
        writer.messages.push(ChatMessage::Developer { content: content.to_owned() });
    }
    for (item, call_follows) in items.iter().zip(calls_follow(items)) {
        writer.write(item, call_follows);
    }
    writer.close();
    writer.messages
}

/// For each item whether the assistant calls a function behind it in the same turn.
fn calls_follow(items: &[&Item]) -> Vec<bool> {
    let mut follows = false;
    let mut marks: Vec<bool> = Vec::with_capacity(items.len());
    for item in items.iter().rev() {
        marks.push(follows);
        follows = item.is_reply() && (follows || matches!(item.kind, Kind::Call { .. }));
    }
    marks.reverse();
    marks
}

/// What is said on commentary belongs to calls: a chat has no other place for it. The item that breaks this.
pub fn stray_commentary(items: &[Item]) -> Option<usize> {
    let items: Vec<&Item> = items.iter().collect();
    let strays = |(item, call_follows): (&&Item, bool)| {
        matches!(item.kind, Kind::Message { phase: Some(Phase::Commentary), .. }) && !call_follows
    };
    items.iter().zip(calls_follow(&items)).position(strays)
}

/// The messages so far, and what the assistant says in the message that is being written.
#[derive(Default)]
struct Writer {
    messages: Vec<ChatMessage>,
    reasoning: Vec<String>,
    content: Vec<String>,
    calls: Vec<ChatCall>,
}

impl Writer {
    fn write(&mut self, item: &Item, call_follows: bool) {
        match &item.kind {
            Kind::Message { role: Role::Assistant, text, phase, .. } => {
                self.behind_calls();
                self.content.push(text.clone());
                // An answer ends the turn; a preamble goes with the calls behind it.
                if !call_follows || *phase == Some(Phase::FinalAnswer) {
                    self.close();
                }
            }
            Kind::Reasoning { text, .. } => {
                self.behind_calls();
                self.reasoning.push(text.clone());
            }
            Kind::Call { call_id, namespace, name, arguments } => self.calls.push(ChatCall {
                id: call_id.clone(),
                function: full_name(namespace.as_deref(), name),
                arguments: arguments.clone(),
            }),
            Kind::Message { role, text, .. } => self.say(spoken(*role, text.clone())),
            Kind::CallOutput { call_id, output } => {
                self.say(ChatMessage::Tool { call_id: call_id.clone(), content: output.clone() });
            }
        }
    }

    fn behind_calls(&mut self) {
        if !self.calls.is_empty() {
            self.close();
        }
    }

    fn say(&mut self, message: ChatMessage) {
        self.close();
        self.messages.push(message);
    }

    fn close(&mut self) {
        let reasoning = joined(&mut self.reasoning);
        let content = joined(&mut self.content);
        let calls = std::mem::take(&mut self.calls);
        if reasoning.is_some() || content.is_some() || !calls.is_empty() {
            self.messages.push(ChatMessage::Assistant { content, reasoning, calls });
        }
    }
}

fn spoken(role: Role, content: String) -> ChatMessage {
    match role {
        Role::System => ChatMessage::System { content },
        Role::Developer => ChatMessage::Developer { content },
        Role::User | Role::Assistant | Role::Tool => ChatMessage::User { content, name: None },
    }
}

/// Clients that leave contents out send empty ones, between which there is no line's end.
fn joined(texts: &mut Vec<String>) -> Option<String> {
    let mut texts = std::mem::take(texts);
    if texts.is_empty() {
        return None;
    }
    texts.retain(|text| !text.is_empty());
    Some(texts.join("\n"))
}

/// What harmony has to say against a conversation, at its place in the body.
pub fn conversation_error(error: ChatError, input: &[Item]) -> FieldError {
    let place =
        |found: &dyn Fn(&Kind) -> bool, field: &str| match input.iter().position(|item| found(&item.kind)) {
            Some(index) => format!("input[{index}].{field}"),
            None => "input".to_owned(),
        };
    let (path, what) = match error {
        ChatError::NoMessages => ("input".to_owned(), "a conversation needs at least one item".to_owned()),
        ChatError::UnknownCall { call_id, .. } => (
            place(&|kind| matches!(kind, Kind::CallOutput { call_id: id, .. } if *id == call_id), "call_id"),
            format!(
                "{call_id:?} names no earlier function_call\n\
                 hint: send the function_call before its output, or the previous_response_id that made it"
            ),
        ),
        ChatError::CalledName { name, .. } => {
            (place(&|kind| is_called(kind, &name), "name"), format!("{name:?} is no function name"))
        }
        ChatError::ToolName { tool, name } => {
            (format!("tools[{tool}].name"), format!("{name:?} is no function name"))
        }
        ChatError::DuplicateTool { tool, name } => {
            (format!("tools[{tool}].name"), format!("{name:?} is given to an earlier tool, too"))
        }
        // Items have no names.
        ChatError::UserName { .. } => ("input".to_owned(), error.to_string()),
    };
    FieldError { path, problem: Problem::Invalid(what) }
}

fn is_called(kind: &Kind, function: &str) -> bool {
    match kind {
        Kind::Call { namespace, name, .. } => full_name(namespace.as_deref(), name) == function,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(kind: Kind) -> Item {
        Item::new(String::new(), kind)
    }

    fn said(text: &str) -> Item {
        item(Kind::Message { role: Role::Assistant, text: text.into(), phase: None, logprobs: Vec::new() })
    }

    fn thought(text: &str) -> Item {
        item(Kind::Reasoning { text: text.into(), carried: false })
    }

    fn call(id: &str) -> Item {
        item(Kind::Call { call_id: id.into(), namespace: None, name: "f".into(), arguments: "{}".into() })
    }

    fn output(id: &str) -> Item {
        item(Kind::CallOutput { call_id: id.into(), output: "7".into() })
    }

    fn told(items: &[Item]) -> Vec<String> {
        let line = |message: ChatMessage| match message {
            ChatMessage::Assistant { content, reasoning, calls } => {
                let calls: Vec<String> = calls.into_iter().map(|call| call.id).collect();
                format!(
                    "assistant [{}] {} -> {}",
                    reasoning.unwrap_or_default(),
                    content.unwrap_or_default(),
                    calls.join(",")
                )
            }
            ChatMessage::User { content, .. } => format!("user {content}"),
            ChatMessage::Developer { content } => format!("developer {content}"),
            ChatMessage::System { content } => format!("system {content}"),
            ChatMessage::Tool { call_id, .. } => format!("tool {call_id}"),
        };
        messages(None, &items.iter().collect::<Vec<_>>()).into_iter().map(line).collect()
    }

    #[test]
    fn what_a_turn_consists_of_is_one_message() {
        let items = [
            Item::user("Hi".into()),
            thought("look"),
            said("Let me look."),
            call("a"),
            output("a"),
            thought("good"),
            said("It is 7."),
            Item::user("Thanks".into()),
        ];
        assert_eq!(
            told(&items),
            [
                "user Hi",
                "assistant [look] Let me look. -> a",
                "tool a",
                "assistant [good] It is 7. -> ",
                "user Thanks"
            ]
        );
    }

    #[test]
    fn empty_texts_are_nothing_to_tell() {
        let items = [
            thought(""),
            said(""),
            thought(""),
            said("Well."),
            call("a"),
            output("a"),
            thought(""),
            said(""),
        ];
        assert_eq!(told(&items), ["assistant [] Well. -> a", "tool a", "assistant []  -> "]);
    }

    #[test]
    fn a_preamble_is_one_whatever_stands_between_it_and_its_calls() {
        let items = [said("One moment."), thought("which?"), call("a"), call("b"), output("a"), output("b")];
        assert_eq!(told(&items), ["assistant [which?] One moment. -> a,b", "tool a", "tool b"]);
        let mut answer = said("Done.");
        if let Kind::Message { phase, .. } = &mut answer.kind {
            *phase = Some(Phase::FinalAnswer);
        }
        assert_eq!(told(&[answer, call("a")]), ["assistant [] Done. -> ", "assistant []  -> a"]);
    }

    #[test]
    fn thoughts_behind_a_call_belong_to_the_next_message() {
        let items = [call("a"), thought("again"), call("b")];
        assert_eq!(told(&items), ["assistant []  -> a", "assistant [again]  -> b"]);
    }
}
