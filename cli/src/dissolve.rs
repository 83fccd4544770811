//! `flotilla dissolve`: orders a server to end one of its replicas, whose workers may then serve others.

use crate::chat::server::{Server, ServerArgs};
use anyhow::Result;
use clap::Args;
use serde_json::json;

/// End a replica of a server: its requests go on in the others, its workers wait for another group. Takes the key of an
/// administrator
#[derive(Debug, Args)]
pub struct DissolveArgs {
    /// Its number, from 0, as `flotilla top` shows it
    replica: usize,
    #[command(flatten)]
    server: ServerArgs,
    /// Also the last one that serves: then no request is served any more
    #[arg(long)]
    force: bool,
}

pub fn run(args: &DissolveArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let path = format!("/v1/cluster/replicas/{}/dissolve", args.replica);
        Server::new(&args.server)?.post(&path, &json!({"force": args.force})).await?;
        println!("replica {} is dissolved", args.replica);
        Ok(())
    })
}
