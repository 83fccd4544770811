//! What was typed, and what is said to words that are not known here: whoever comes from vLLM or llama.cpp has theirs.

mod others;

use clap::builder::{OsStr, Resettable};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, Error, Parser};
use std::env;

const TOKEN: &str = "export FLOTILLA_JOIN_TOKEN=$(openssl rand -hex 16), the same on coordinator and workers";
const MODEL: &str = "the model is named by a flag: --model DIR";
const SERVERS: [&str; 3] = ["up", "coordinator", "worker"];
const SERVE: &str = "`flotilla up --model DIR` serves a model from this machine";

/// As [`Parser::parse`], with hints.
pub fn parse<C: Parser>() -> C {
    let typed: Vec<String> = env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    // Its first letter would ask for help.
    if let Some(word) = typed.iter().take_while(|word| *word != "--").find(|word| word.starts_with("-hf")) {
        eprintln!("error: unexpected argument '{word}' found");
        end(others::find(word), 2);
    }
    try_parse::<C>().unwrap_or_else(|mut error| {
        let hint = hint(&error, &typed, &C::command());
        if hint.is_some() {
            // What only looks alike.
            error.remove(ContextKind::SuggestedArg);
            error.remove(ContextKind::Suggested);
        }
        // Of a stderr that is gone nobody reads it.
        let _ = error.print();
        end(hint.as_deref(), error.exit_code())
    })
}

fn try_parse<C: Parser>() -> Result<C, Error> {
    let mut matches = unset_empty(C::command()).try_get_matches()?;
    C::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut C::command()))
}

fn end(hint: Option<&str>, status: i32) -> ! {
    if let Some(hint) = hint {
        eprintln!("hint: {hint}");
    }
    std::process::exit(status)
}

/// A variable that is empty is not set: so files of variables mean it, those of systemd and compose.
fn unset_empty(command: Command) -> Command {
    let unset = |arg: clap::Arg| {
        let is_empty = |name: &std::ffi::OsStr| env::var_os(name).is_some_and(|value| value.is_empty());
        if arg.get_env().is_some_and(is_empty) { arg.env(Resettable::<OsStr>::Reset) } else { arg }
    };
    command.mut_args(unset).mut_subcommands(unset_empty)
}

fn hint(error: &Error, typed: &[String], program: &Command) -> Option<String> {
    let named = |kind| match error.get(kind) {
        Some(ContextValue::String(name)) => std::slice::from_ref(name),
        Some(ContextValue::Strings(names)) => names,
        _ => &[],
    };
    let unknown = named(ContextKind::InvalidArg);
    match error.kind() {
        ErrorKind::UnknownArgument => unknown.iter().find_map(|word| of_unknown(word, typed, program)),
        ErrorKind::InvalidSubcommand => {
            let is_serve = named(ContextKind::InvalidSubcommand).iter().any(|name| name == "serve");
            is_serve.then(|| SERVE.to_owned())
        }
        ErrorKind::MissingRequiredArgument => {
            unknown.iter().any(|name| name.starts_with("--join-token")).then(|| TOKEN.to_owned())
        }
        _ => None,
    }
}

fn of_unknown(word: &str, typed: &[String], program: &Command) -> Option<String> {
    let here = typed.iter().find_map(|word| program.find_subcommand(word));
    if !word.starts_with('-') {
        return here.filter(|here| has(here, "model")).map(|_| MODEL.to_owned());
    }
    // Of `-np 2` the first letter is what is not known.
    let whole = typed.iter().find(|typed| typed.starts_with(word)).map_or(word, String::as_str);
    let hint = others::find(whole)?;
    let flag = hint.strip_prefix("--").and_then(|rest| rest.split_whitespace().next()).unwrap_or_default();
    let homes =
        SERVERS.into_iter().filter(|name| program.find_subcommand(name).is_some_and(|it| has(it, flag)));
    let homes: Vec<String> = homes.map(|name| format!("`flotilla {name}`")).collect();
    // With the command whose flag it is, where that is another.
    match homes.is_empty() || here.is_some_and(|here| has(here, flag)) {
        true => Some(hint.to_owned()),
        false => Some(format!("{hint}; it is a flag of {}", homes.join(" and "))),
    }
}

fn has(command: &Command, flag: &str) -> bool {
    command.get_arguments().any(|arg| arg.get_long() == Some(flag))
}
