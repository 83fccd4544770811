//! What a chat API says, as a conversation. Pure: the date is an argument, and the HTTP side fills these
//! structs from whatever its JSON looks like.
//!
//! - system and developer messages at the beginning become the instructions of the developer message that has the
//!   tools as well; each later one is a developer message where it stands, so that what came before stays the
//!   beginning of the prompt;
//! - an assistant's reasoning goes to analysis, its content to final, or to commentary if it calls tools
//!   as well (a preamble), its calls to commentary;
//! - a tool's answer carries the name of its function, found by the id of the call.

use super::render::PastAnalysis;
use super::{
    Channel, Content, Conversation, DeveloperContent, Effort, FunctionTool, Harmony, Message, ResponseFormat,
    Role, SystemContent,
};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chat {
    pub messages: Vec<ChatMessage>,
    pub tools: Vec<FunctionTool>,
    /// What they are together.
    pub tools_description: Option<String>,
    pub effort: Effort,
    pub response_format: Option<ResponseFormat>,
    /// `2025-06-28`.
    pub current_date: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ChatMessage {
    System { content: String },
    Developer { content: String },
    User { content: String, name: Option<String> },
    Assistant { content: Option<String>, reasoning: Option<String>, calls: Vec<ChatCall> },
    Tool { call_id: String, content: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatCall {
    pub id: String,
    /// Without namespace, as the client gave it.
    pub function: String,
    /// JSON text.
    pub arguments: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChatError {
    #[error("messages is empty\nhint: a conversation needs at least one message")]
    NoMessages,
    #[error(
        "messages[{message}].tool_call_id {call_id:?} names no earlier tool call\n\
         hint: send the assistant message with its tool_calls before the tool's answer"
    )]
    UnknownCall { message: usize, call_id: String },
    #[error(
        "messages[{message}].tool_calls[{call}].function.name {name:?} is no function name\n\
         hint: letters, digits, '_', '-' and '.', 1 to {FUNCTION_NAME_MAX} of them"
    )]
    CalledName { message: usize, call: usize, name: String },
    #[error(
        "tools[{tool}].function.name {name:?} is no function name\n\
         hint: letters, digits, '_', '-' and '.', 1 to {FUNCTION_NAME_MAX} of them"
    )]
    ToolName { tool: usize, name: String },
    #[error("tools[{tool}].function.name {name:?} is given to an earlier tool, too")]
    DuplicateTool { tool: usize, name: String },
    #[error(
        "messages[{message}].name {name:?} is no user's name\n\
         hint: 1 to {USER_NAME_MAX} characters without white space, and none of < | \\ / >"
    )]
    UserName { message: usize, name: String },
}

/// OpenAI allows 64; clients that put a server's name before the tool's send longer ones.
pub(super) const FUNCTION_NAME_MAX: usize = 128;

/// Characters.
const USER_NAME_MAX: usize = 128;

/// Tokens of the shortest prompt that a chat can become: one user who says nothing.
pub fn shortest_prompt(harmony: &Harmony) -> usize {
    let silence = ChatMessage::User { content: String::new(), name: None };
    let current_date = Some("2025-06-28".to_owned());
    let chat = Chat { messages: vec![silence], current_date, ..Chat::default() };
    let conversation = conversation(&chat).expect("a chat with one message, and nothing to be wrong");
    harmony.render_for_completion(&conversation, PastAnalysis::default()).len()
}

pub fn conversation(chat: &Chat) -> Result<Conversation, ChatError> {
    if chat.messages.is_empty() {
        return Err(ChatError::NoMessages);
    }
    check_tools(&chat.tools)?;
    let mut messages = vec![system_message(chat)];
    messages.extend(developer_message(chat));
    for (index, message) in chat.messages.iter().enumerate().skip(leading(chat)) {
        match message {
            ChatMessage::System { content } | ChatMessage::Developer { content } => {
                messages.extend(non_empty(content).map(later_instructions));
            }
            ChatMessage::User { content, name } => messages.push(user_message(index, content, name)?),
            ChatMessage::Assistant { content, reasoning, calls } => {
                check_calls(index, calls)?;
                push_assistant(&mut messages, content.as_deref(), reasoning.as_deref(), calls);
            }
            ChatMessage::Tool { call_id, content } => {
                let function = called_function(&chat.messages[..index], call_id)
                    .ok_or_else(|| ChatError::UnknownCall { message: index, call_id: call_id.clone() })?;
                messages.push(Message::tool_result(function, content));
            }
        }
    }
    Ok(Conversation { messages })
}

fn system_message(chat: &Chat) -> Message {
    let current_date = chat.current_date.clone();
    let system = SystemContent { effort: chat.effort, current_date, ..SystemContent::default() };
    Message::new(Role::System, Content::System(system))
}

/// None where there is nothing to say.
fn developer_message(chat: &Chat) -> Option<Message> {
    let leading = &chat.messages[..leading(chat)];
    let instructions: Vec<&str> = leading.iter().filter_map(instruction).collect();
    let instructions = (!instructions.is_empty()).then(|| instructions.join("\n\n"));
    let developer = DeveloperContent {
        instructions,
        tools: chat.tools.clone(),
        tools_description: chat.tools_description.clone().filter(|_| !chat.tools.is_empty()),
        response_format: chat.response_format.clone(),
    };
    if developer == DeveloperContent::default() {
        return None;
    }
    Some(Message::new(Role::Developer, Content::Developer(developer)))
}

/// How many messages come before anybody speaks.
fn leading(chat: &Chat) -> usize {
    let speaks = |message: &ChatMessage| {
        !matches!(message, ChatMessage::System { .. } | ChatMessage::Developer { .. })
    };
    chat.messages.iter().position(speaks).unwrap_or(chat.messages.len())
}

fn later_instructions(content: &str) -> Message {
    let developer =
        DeveloperContent { instructions: Some(content.to_owned()), ..DeveloperContent::default() };
    Message::new(Role::Developer, Content::Developer(developer))
}

fn instruction(message: &ChatMessage) -> Option<&str> {
    match message {
        ChatMessage::System { content } | ChatMessage::Developer { content } => non_empty(content),
        ChatMessage::User { .. } | ChatMessage::Assistant { .. } | ChatMessage::Tool { .. } => None,
    }
}

fn user_message(index: usize, content: &str, name: &Option<String>) -> Result<Message, ChatError> {
    if let Some(name) = name.as_ref().filter(|name| !is_user_name(name)) {
        return Err(ChatError::UserName { message: index, name: name.clone() });
    }
    Ok(Message { name: name.clone(), ..Message::text(Role::User, content) })
}

fn push_assistant(
    messages: &mut Vec<Message>,
    content: Option<&str>,
    reasoning: Option<&str>,
    calls: &[ChatCall],
) {
    let analysis = reasoning.and_then(non_empty);
    messages.extend(analysis.map(|text| Message::assistant(Channel::Analysis, text)));
    let channel = if calls.is_empty() { Channel::Final } else { Channel::Commentary };
    messages.extend(content.and_then(non_empty).map(|text| Message::assistant(channel, text)));
    messages.extend(calls.iter().map(|call| Message::call(&call.function, &call.arguments)));
}

/// The nearest earlier call of that id: some clients count their ids from one again in every turn.
fn called_function<'a>(earlier: &'a [ChatMessage], call_id: &str) -> Option<&'a str> {
    earlier
        .iter()
        .rev()
        .find_map(|message| match message {
            ChatMessage::Assistant { calls, .. } => calls.iter().find(|call| call.id == call_id),
            _ => None,
        })
        .map(|call| call.function.as_str())
}

fn check_tools(tools: &[FunctionTool]) -> Result<(), ChatError> {
    for (index, tool) in tools.iter().enumerate() {
        let name = || tool.name.clone();
        if !is_name(&tool.name) {
            return Err(ChatError::ToolName { tool: index, name: name() });
        }
        if tools[..index].iter().any(|earlier| earlier.name == tool.name) {
            return Err(ChatError::DuplicateTool { tool: index, name: name() });
        }
    }
    Ok(())
}

fn check_calls(message: usize, calls: &[ChatCall]) -> Result<(), ChatError> {
    match calls.iter().enumerate().find(|(_, call)| !is_name(&call.function)) {
        Some((call, wrong)) => Err(ChatError::CalledName { message, call, name: wrong.function.clone() }),
        None => Ok(()),
    }
}

/// Names stand in headers, where a blank would begin another word.
pub fn is_name(name: &str) -> bool {
    (1..=FUNCTION_NAME_MAX).contains(&name.len()) && name.chars().all(is_name_char)
}

pub(super) fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_-.".contains(c)
}

/// OpenAI's pattern, which lets people be called by their names.
fn is_user_name(name: &str) -> bool {
    let forbidden = |c: char| c.is_whitespace() || c.is_control() || "<|\\/>".contains(c);
    (1..=USER_NAME_MAX).contains(&name.chars().count()) && !name.contains(forbidden)
}

fn non_empty(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(content: &str) -> ChatMessage {
        ChatMessage::User { content: content.into(), name: None }
    }

    fn call(id: &str, function: &str) -> ChatCall {
        ChatCall { id: id.into(), function: function.into(), arguments: "{}".into() }
    }

    fn assistant(content: Option<&str>, reasoning: Option<&str>, calls: &[ChatCall]) -> ChatMessage {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        ChatMessage::Assistant { content: owned(content), reasoning: owned(reasoning), calls: calls.to_vec() }
    }

    fn tool(call_id: &str, content: &str) -> ChatMessage {
        ChatMessage::Tool { call_id: call_id.into(), content: content.into() }
    }

    fn function(name: &str) -> FunctionTool {
        FunctionTool { name: name.into(), description: String::new(), parameters: None }
    }

    fn of(messages: Vec<ChatMessage>) -> Result<Conversation, ChatError> {
        conversation(&Chat { messages, ..Chat::default() })
    }

    #[test]
    fn a_whole_turn() {
        let messages = of(vec![
            user("?"),
            assistant(Some("Let me see."), Some("hm"), &[call("1", "f"), call("2", "g")]),
            tool("2", "two"),
            tool("1", "one"),
            assistant(Some("!"), Some("ah"), &[]),
        ]);
        let expected = vec![
            Message::text(Role::User, "?"),
            Message::assistant(Channel::Analysis, "hm"),
            Message::assistant(Channel::Commentary, "Let me see."),
            Message::call("f", "{}"),
            Message::call("g", "{}"),
            Message::tool_result("g", "two"),
            Message::tool_result("f", "one"),
            Message::assistant(Channel::Analysis, "ah"),
            Message::assistant(Channel::Final, "!"),
        ];
        assert_eq!(messages.expect("a valid chat").messages[1..], expected);
    }

    #[test]
    fn system_prompt_and_tools_become_the_developer_message() {
        let chat = Chat {
            messages: vec![
                ChatMessage::System { content: "Be brief.".into() },
                ChatMessage::Developer { content: "Be kind.".into() },
                user("?"),
                ChatMessage::Developer { content: "Be quick.".into() },
                ChatMessage::System { content: String::new() },
            ],
            tools: vec![function("f")],
            effort: Effort::High,
            current_date: Some("2025-06-28".into()),
            ..Chat::default()
        };
        let messages = conversation(&chat).expect("a valid chat").messages;
        let current_date = chat.current_date.clone();
        let system = SystemContent { effort: Effort::High, current_date, ..SystemContent::default() };
        let instructions = Some("Be brief.\n\nBe kind.".into());
        let developer = DeveloperContent { instructions, tools: vec![function("f")], ..Default::default() };
        let expected = [
            Message::new(Role::System, Content::System(system)),
            Message::new(Role::Developer, Content::Developer(developer)),
            Message::text(Role::User, "?"),
            later_instructions("Be quick."),
        ];
        assert_eq!(messages, expected);
    }

    #[test]
    fn what_is_empty_is_left_out() {
        let empty = ChatMessage::System { content: String::new() };
        let messages =
            of(vec![empty, user(""), assistant(Some(""), Some(""), &[]), assistant(None, None, &[])]);
        let messages = messages.expect("a valid chat").messages;
        assert_eq!(messages[0].author, Role::System);
        assert_eq!(messages[1..], [Message::text(Role::User, "")]);
    }

    /// The nearest call counts, as some clients begin again with `call_1` in every turn.
    #[test]
    fn reused_call_ids() {
        let messages = of(vec![
            assistant(None, None, &[call("1", "f")]),
            tool("1", "a"),
            assistant(None, None, &[call("1", "g")]),
            tool("1", "b"),
        ]);
        let messages = messages.expect("a valid chat").messages;
        assert_eq!(messages[2], Message::tool_result("f", "a"));
        assert_eq!(messages[4], Message::tool_result("g", "b"));
    }

    #[test]
    fn faults_say_where() {
        assert_eq!(of(vec![]), Err(ChatError::NoMessages));
        let late = vec![user("?"), tool("1", "x"), assistant(None, None, &[call("1", "f")])];
        let fault = of(late).expect_err("the call comes after its answer");
        assert_eq!(fault, ChatError::UnknownCall { message: 1, call_id: "1".into() });
        assert!(
            fault
                .to_string()
                .starts_with("messages[1].tool_call_id \"1\" names no earlier tool call\nhint: ")
        );
        let name = "f<|channel|>final".to_owned();
        assert_eq!(
            of(vec![user("?"), assistant(None, None, &[call("1", "f"), call("2", &name)])]),
            Err(ChatError::CalledName { message: 1, call: 1, name })
        );
        let spoken = ChatMessage::User { content: String::new(), name: Some("a b".into()) };
        assert_eq!(of(vec![spoken]), Err(ChatError::UserName { message: 0, name: "a b".into() }));
        let with_tools = |names: &[&str]| {
            let tools = names.iter().map(|name| function(name)).collect();
            conversation(&Chat { messages: vec![user("?")], tools, ..Chat::default() })
        };
        assert_eq!(with_tools(&["f", ""]), Err(ChatError::ToolName { tool: 1, name: String::new() }));
        assert_eq!(with_tools(&["f", "f"]), Err(ChatError::DuplicateTool { tool: 1, name: "f".into() }));
        assert!(with_tools(&["mcp__server__do-it.v2"]).is_ok());
    }
}
