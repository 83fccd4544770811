//! Workers that hand on what they hold.

use super::{exactly_32, need, wrong};
use crate::{WireError, wire};
use flotilla_shared::{HOLDERS_MAX, Held, Holder, ModelSpec};

/// Of an address.
const ADDRESS_BYTES_MAX: usize = 256;

impl From<&Holder> for wire::Holder {
    fn from(holder: &Holder) -> Self {
        wire::Holder {
            address: holder.address.clone(),
            key: holder.key.to_vec().into(),
            held: Some((&holder.held).into()),
        }
    }
}

/// Those of an assignment: what each holds lies in the model.
pub fn holders(holders: Vec<wire::Holder>, spec: &ModelSpec) -> Result<Vec<Holder>, WireError> {
    if holders.len() > HOLDERS_MAX {
        return Err(wrong("Assignment.holders", format!("are {}, at most {HOLDERS_MAX}", holders.len())));
    }
    holders.into_iter().map(|it| holder(it, spec)).collect()
}

fn holder(wire: wire::Holder, spec: &ModelSpec) -> Result<Holder, WireError> {
    let wire::Holder { address, key, held } = wire;
    if address.is_empty() || address.len() > ADDRESS_BYTES_MAX || address.chars().any(char::is_control) {
        return Err(wrong("Holder.address", format!("must be 1 to {ADDRESS_BYTES_MAX} printable bytes")));
    }
    let held = Held::try_from(need(held, "Holder.held")?)?;
    if !held.lies_in(spec) {
        return Err(wrong("Holder.held", "does not lie in the model"));
    }
    Ok(Holder { address, key: exactly_32(&key, "Holder.key")?, held })
}
