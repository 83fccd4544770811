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
        let listener = TcpListener::bind(args.listen).await;
        let listener = listener.map_err(|error| address::fault(args.listen, "--listen", error))?;
        Ok(Door { model, front, listener, tracer })
    }
}
