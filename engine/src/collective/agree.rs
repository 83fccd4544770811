//! How the ranks of a group come to know of each other what is not part of a step: over the group itself,
//! once, while it forms.

use super::{Collective, CollectiveError, Operation};
use flotilla_shared::Rank;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What each rank says, in rank order.
pub(super) fn gather<T: Serialize + DeserializeOwned>(
    link: &mut impl Collective,
    mine: &impl Serialize,
) -> Result<Vec<T>, CollectiveError> {
    let mut out = Vec::new();
    let mut mine = serde_json::to_vec(mine).expect("what ranks tell each other can be written");
    mine.push(b'\n');
    link.all_gather(&mine, &mut out)?;
    let all: Result<Vec<T>, _> = serde_json::Deserializer::from_slice(&out).into_iter().collect();
    match all {
        Ok(all) if all.len() == link.size() => Ok(all),
        all => Err(CollectiveError::Mismatch {
            peer: all.map_or(0, |all| all.len()).try_into().map_or(Rank(0), Rank),
            operation: Operation::AllGather,
            field: "word to all ranks",
            expected: std::any::type_name::<T>().into(),
            found: String::from_utf8_lossy(&out).chars().take(200).collect(),
        }),
    }
}

/// `mine` if all ranks have one; otherwise everybody's reasons why not.
pub(super) fn agree<T>(
    link: &mut impl Collective,
    mine: Result<T, String>,
) -> Result<Result<T, String>, CollectiveError> {
    let reasons: Vec<Option<String>> = gather(link, &mine.as_ref().err())?;
    let said = |(place, reason): (usize, Option<String>)| {
        reason.map(|reason| format!("rank {}: {reason}", link.member(place)))
    };
    let said: Vec<String> = reasons.into_iter().enumerate().filter_map(said).collect();
    Ok(if said.is_empty() { mine } else { Err(said.join("; ")) })
}
