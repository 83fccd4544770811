//! What a server needs before anybody is put to work for it, and what users get wrong most: the files of the
//! front, the port, and numbers that do not go together.

use super::args::ServeArgs;
use super::front::Front;
use crate::address;
use crate::model::Model;
use anyhow::Result;
use flotilla_coordinator::traces::Tracer;
use tokio::net::TcpListener;

pub struct Door {
    pub model: Model,
    pub front: Front,
    pub listener: TcpListener,
    pub tracer: Tracer,
}

impl Door {
    pub async fn open(args: &ServeArgs, model: Model) -> Result<Door> {
        let front = args.front.open()?;
        args.check_settings(&model)?;
        let tracer = args.traces.open()?;
        let listener = TcpListener::bind(args.listen).await.map_err(|error| {
            let words = address::not_listened_on(args.listen, "--listen", &error);
            anyhow::Error::new(error).context(words)
        })?;
        Ok(Door { model, front, listener, tracer })
    }
}
