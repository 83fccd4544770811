//! `flotilla chat`: talks to any OpenAI-compatible server in the terminal.

mod plain;
mod printer;
pub mod route;
pub mod server;
mod stream;

use crate::{describe, log, output};
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use futures::StreamExt;
use plain::plain;
use printer::Printer;
use reqwest::Response;
use serde_json::{Value, json};
use server::{Server, ServerArgs};
use std::io::{BufRead, IsTerminal};
use stream::Stream;

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
    #[arg(long, default_value_t = 0.0, value_parser = temperature)]
    temperature: f32,
    /// Instructions for the whole conversation
    #[arg(long)]
    system: Option<String>,
    /// Ask this and end, instead of reading from the terminal
    message: Vec<String>,
}

/// A number as JSON has them: others would be sent as none, and the server's own would count.
fn temperature(text: &str) -> std::result::Result<f32, String> {
    let number = text.parse().ok().filter(|number: &f32| number.is_finite());
    number.ok_or_else(|| "expected a number, such as 0.7".into())
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
    if !args.message.is_empty() {
        conversation.say(&args.message.join(" "));
        return client.answer(&mut conversation).await;
    }
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        println!("{} at {}. {HELP}", plain(&client.model), args.server.url);
    }
    loop {
        if terminal {
            print!("\n> ");
            output::flush();
        }
        let mut line = Vec::new();
        if std::io::stdin().lock().read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        // What is no UTF-8 is a slip of the keyboard, or another encoding: no reason to end the conversation.
        match String::from_utf8_lossy(&line).trim() {
            "" => {}
            "/quit" => return Ok(()),
            "/new" => conversation = Conversation::new(&args),
            command if command.starts_with('/') => println!("{HELP}"),
            message => {
                conversation.say(message);
                if let Err(error) = client.answer(&mut conversation).await {
                    conversation.unsay();
                    log::fail(describe(&error));
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
        match print_all(response, &mut printer).await {
            Ok(()) => printer.end(),
            Err(error) => {
                printer.break_off();
                return Err(error);
            }
        }
        conversation.messages.push(json!({ "role": "assistant", "content": printer.content }));
        Ok(())
    }
}

/// To the end of the answer, which must be said.
async fn print_all(response: Response, printer: &mut Printer) -> Result<()> {
    let (mut stream, mut bytes) = (Stream::default(), response.bytes_stream());
    loop {
        let part = bytes.next().await.transpose().context("the answer broke off")?;
        // The last line may lack its end.
        stream.push(part.as_deref().unwrap_or(b"\n"));
        while let Some(chunk) = stream.next()? {
            chunk.choices.into_iter().for_each(|choice| printer.choice(choice));
        }
        if part.is_none() || stream.is_done() {
            return stream.end();
        }
    }
}
