//! `POST /v1/cluster/replicas/{number}/dissolve`: a replica ends, its requests go on in the others, and its workers wait
//! in the pool. Only a key with `admin = true` may order it; where there are no keys, nobody may.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use flotilla_trust::audit::{self, Act};
use serde_json::{Value, json};

use super::Api;
use super::error::ApiError;
use super::fields::Node;
use super::log::RequestLog;

pub async fn dissolve(
    State(api): State<Arc<Api>>,
    Path(number): Path<String>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let who = match admin(&request) {
        Ok(who) => who,
        Err(error) => {
            api.bodies.drop_unread(request).await;
            return Err(error);
        }
    };
    let (body, _room) = api.bodies.read(request.into_body()).await?.json()?;
    let mut fields = Node::body(body).object()?;
    let force = fields.take("force").map_or(Ok(false), Node::bool)?;
    fields.finish()?;
    let replica = number.parse().map_err(|_| ApiError::NoReplica { number: number.clone() })?;
    let what = if force { format!("replica {number}, by force") } else { format!("replica {number}") };
    if let Err(reason) = api.replicas.dissolve(replica, force) {
        audit::refused(Act::DissolveReplica, who, format!("{what}: {reason}"));
        return Err(reason.into());
    }
    audit::done(Act::DissolveReplica, who, what);
    Ok(Json(json!({"object": "replica", "replica": replica, "status": "dissolved"})))
}

/// The name of the key, if it may.
fn admin(request: &Request) -> Result<String, ApiError> {
    let log = request.extensions().get::<RequestLog>().expect("every request has a log");
    let key = log.visit().map(|visit| &visit.key);
    match key {
        Some(key) if key.admin => Ok(key.name.clone()),
        _ => {
            let who = key.map_or("nobody", |key| &key.name);
            audit::refused(Act::DissolveReplica, who, "this takes a key with admin = true");
            Err(ApiError::NotAdmin)
        }
    }
}
