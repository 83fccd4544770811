//! The secret that admits workers: from the environment, a file, or, where nobody else can read it, the command line.

use crate::local_workers::TOKEN_VARIABLE;
use anyhow::{Context, Result, ensure};
use clap::Args;
use std::fs;
use std::path::{Path, PathBuf};
use tracing::warn;

/// Of 16 random bytes as text there are 32.
const CHARS_MIN: usize = 16;

#[derive(Debug, Args)]
pub struct TokenArgs {
    /// Secret that admits workers, the same on coordinator and workers
    #[arg(long, env = TOKEN_VARIABLE, hide_env_values = true, required_unless_present = "join_token_file")]
    join_token: Option<String>,
    /// File with that secret on one line, read at the start; it counts where both are given
    #[arg(long, value_name = "FILE")]
    join_token_file: Option<PathBuf>,
}

impl TokenArgs {
    pub fn open(&self) -> Result<String> {
        match &self.join_token_file {
            Some(file) => read(file),
            None => {
                let token = self.join_token.clone().unwrap_or_default();
                ensure!(!token.is_empty(), "--join-token must not be empty");
                Ok(token)
            }
        }
    }

    /// For whoever is protected by it.
    pub fn open_to_admit(&self) -> Result<String> {
        let token = self.open()?;
        if token.len() < CHARS_MIN {
            warn!(
                "the join token has fewer than {CHARS_MIN} characters, and may be guessed; openssl rand -hex 16 makes one"
            );
        }
        Ok(token)
    }
}

fn read(file: &Path) -> Result<String> {
    let hint = "hint: --join-token-file is a file with the token on one line";
    let text = fs::read_to_string(file)
        .with_context(|| format!("cannot read the join token from {}\n{hint}", file.display()))?;
    let token = text.trim();
    let is_one_line = !token.is_empty() && token.lines().count() == 1;
    ensure!(is_one_line, "{} does not hold one line\n{hint}", file.display());
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_the_token_on_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        for (text, token) in [
            ("swordfish\n", Some("swordfish")),
            (" a b \r\n", Some("a b")),
            ("swordfish", Some("swordfish")),
            ("", None),
            ("\n", None),
            ("a\nb\n", None),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(read(&path).ok().as_deref(), token, "{text:?}");
        }
        let error = format!("{:#}", read(&folder.path().join("none")).unwrap_err());
        assert!(error.contains("none") && error.contains("hint: --join-token-file"), "{error}");
    }
}
