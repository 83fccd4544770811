//! The workers: they dial, are admitted by token, wait until enough are there, are formed into a group
//! by a plan, load, and step. The only folder of this crate that speaks gRPC.

mod assign;
mod figures;
mod first;
mod form;
mod gather;
mod growing;
mod holders;
mod known_links;
mod lending;
mod listener;
mod measuring;
mod meeting;
mod planning;
mod pool;
mod remote;
mod rests;
mod service;
mod stall;
mod weights;
mod worker;

pub use figures::Figures;
pub use form::{FormError, FormFailure, Formation, Progress, Weights};
pub use gather::After;
pub use growing::Members;
pub use planning::Planning;
pub use pool::{Growing, Pool};
pub use remote::{RemoteGroup, join};
pub use service::{Fleet, FleetError};
