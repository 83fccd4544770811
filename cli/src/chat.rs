//! `flotilla chat`: talks to any OpenAI-compatible server in the terminal.

pub mod server;

use crate::output;
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use futures::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};
use server::{Server, ServerArgs};
use std::io::{BufRead, IsTerminal};

/// Talk to a served model in the terminal.
#[derive(Debug, Args)]
pub struct ChatArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Model name [default: the first that the server lists]
    #[arg(long)]
    model: Option<String>,
    /// How much the model thinks before it answers
    #[arg(long, value_enum, default_value_t = Effort::Medium)]
    effort: Effort,
    /// 0 is greedy
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Instructions for the whole conversation
    #[arg(long)]
    system: Option<String>,
    /// Ask this and end, instead of reading from the terminal
    message: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Effort {
    Low,
    Medium,
    High,
}

impl Effort {
    fn name(self) -> &'static str {
        match self {
            Effort::Low => "low",
            Effort::Medium => "medium",
            Effort::High => "high",
        }
    }
}

const HELP: &str = "/new forgets the conversation, /quit ends; an empty line does nothing";

pub fn run(args: ChatArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(chat(args))
}

/// Asks one question and prints the answer.
pub async fn ask(url: &str, question: &str) -> Result<()> {
    let client = Client::connect(Server::plain(url)?, None).await?;
    let mut conversation =
        Conversation { messages: Vec::new(), effort: Effort::Medium.name(), temperature: 0.0 };
    conversation.say(question);
    client.answer(&mut conversation).await
}

async fn chat(args: ChatArgs) -> Result<()> {
    let client = Client::connect(Server::new(&args.server)?, args.model.clone()).await?;
    let mut conversation = Conversation::new(&args);
    if let Some(message) = &args.message {
        conversation.say(message);
        return client.answer(&mut conversation).await;
    }
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        println!("{} at {}. {HELP}", client.model, args.server.url);
    }
    loop {
        if terminal {
            print!("\n> ");
            output::flush();
        }
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.trim() {
            "" => {}
            "/quit" => return Ok(()),
            "/new" => conversation = Conversation::new(&args),
            command if command.starts_with('/') => println!("{HELP}"),
            message => {
                conversation.say(message);
                if let Err(error) = client.answer(&mut conversation).await {
                    conversation.unsay();
                    eprintln!("error: {error:#}");
                }
            }
        }
    }
}

/// What was said, as the API wants it.
struct Conversation {
    messages: Vec<Value>,
    effort: &'static str,
    temperature: f32,
}

impl Conversation {
    fn new(args: &ChatArgs) -> Self {
        let system = args.system.iter().map(|text| json!({ "role": "system", "content": text }));
        Conversation { messages: system.collect(), effort: args.effort.name(), temperature: args.temperature }
    }

    fn say(&mut self, text: &str) {
        self.messages.push(json!({ "role": "user", "content": text }));
    }

    /// Takes back what could not be answered.
    fn unsay(&mut self) {
        self.messages.pop();
    }
}

/// A server and the model to ask for.
struct Client {
    server: Server,
    model: String,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    delta: Delta,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    reasoning_content: Option<String>,
    tool_calls: Option<Value>,
}

impl Client {
    async fn connect(server: Server, model: Option<String>) -> Result<Client> {
        let model = match model {
            Some(model) => model,
            None => server.model().await?,
        };
        Ok(Client { server, model })
    }

    /// Prints the answer as it comes and adds it to the conversation.
    async fn answer(&self, conversation: &mut Conversation) -> Result<()> {
        let body = json!({
            "model": self.model,
            "messages": conversation.messages,
            "reasoning_effort": conversation.effort,
            "temperature": conversation.temperature,
            "stream": true,
        });
        let response = self.server.post("/v1/chat/completions", &body).await?;
        let mut printer = Printer::new();
        let mut lines = Lines::default();
        let mut bytes = response.bytes_stream();
        while let Some(part) = bytes.next().await {
            lines.push(&part.context("the stream broke")?);
            while let Some(line) = lines.next() {
                if let Some(data) = line.strip_prefix("data: ").filter(|data| *data != "[DONE]") {
                    printer
                        .chunk(serde_json::from_str(data).context("the server sent a malformed chunk")?)?;
                }
            }
        }
        printer.end();
        conversation.messages.push(json!({ "role": "assistant", "content": printer.content }));
        Ok(())
    }
}

/// Whole lines out of parts that may cut anywhere.
#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
}

impl Lines {
    fn push(&mut self, part: &[u8]) {
        self.bytes.extend_from_slice(part);
    }

    fn next(&mut self) -> Option<String> {
        let end = self.bytes.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.bytes.drain(..=end).collect();
        Some(String::from_utf8_lossy(&line).trim_end().to_owned())
    }
}

/// Thoughts dimmed on a terminal, the answer plain. Elsewhere only the answer goes to stdout, and thoughts to stderr:
/// who pipes the answer on wants nothing else.
struct Printer {
    terminal: bool,
    content: String,
    thinking: bool,
}

impl Printer {
    fn new() -> Printer {
        Printer { terminal: std::io::stdout().is_terminal(), content: String::new(), thinking: false }
    }

    fn end(&self) {
        if self.thinking {
            self.end_thoughts();
        }
        if !self.thinking || !self.terminal {
            println!();
        }
    }

    fn end_thoughts(&self) {
        match self.terminal {
            true => println!(),
            false => eprintln!(),
        }
    }

    fn chunk(&mut self, chunk: Chunk) -> Result<()> {
        if let Some(error) = chunk.error {
            bail!("the server ended the answer: {}", error["message"].as_str().unwrap_or("no reason given"));
        }
        for choice in chunk.choices {
            if let Some(text) = choice.delta.reasoning_content {
                self.print(&text, true);
            }
            if let Some(text) = choice.delta.content {
                self.print(&text, false);
                self.content.push_str(&text);
            }
            if let Some(calls) = choice.delta.tool_calls {
                self.print(&calls.to_string(), true);
            }
            if choice.finish_reason.as_deref() == Some("length") {
                self.print(" … (cut off: length)", true);
            }
        }
        output::flush();
        Ok(())
    }

    fn print(&mut self, text: &str, thinking: bool) {
        if text.is_empty() {
            return;
        }
        if self.thinking && !thinking {
            self.end_thoughts();
        }
        self.thinking = thinking;
        match (thinking, self.terminal) {
            (true, true) => print!("\x1b[2m{text}\x1b[0m"),
            (true, false) => eprint!("{text}"),
            (false, _) => print!("{text}"),
        }
    }
}
