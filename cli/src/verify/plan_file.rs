//! `--plan-file`: a plan as JSON, alone or as `flotilla plan --json` prints it among other things.

use anyhow::{Context, Result, bail};
use flotilla_shared::{ModelSpec, Plan};
use serde::Deserialize;
use std::fs;
use std::path::Path;

const HINT: &str = "hint: `flotilla plan --json` writes one";

/// What `flotilla plan --json` prints, as far as it is read.
#[derive(Deserialize)]
struct Printed {
    plan: Plan,
}

/// The plan in a file, which must be one of this model.
pub fn read(path: &Path, spec: &ModelSpec) -> Result<Plan> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let plan = parse(&text).with_context(|| format!("{} holds no plan\n{HINT}", path.display()))?;
    if let Err(fault) = plan.check(spec) {
        bail!("the plan in {} {fault}\n{HINT}", path.display());
    }
    Ok(plan)
}

fn parse(text: &str) -> serde_json::Result<Plan> {
    match serde_json::from_str(text) {
        Ok(Printed { plan }) => Ok(plan),
        // Of what is neither, the mistake in a plan alone is said.
        Err(_) => serde_json::from_str(text),
    }
}
