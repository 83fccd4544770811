//! Who is trusted, and what was done: TLS from files that may change, ports that bound who has shown nothing yet, refusals
//! in words, and the audit log.
//! rustls with ring, the one provider of the whole program.
#![forbid(unsafe_code)]

mod another_client;
pub mod audit;
mod client;
pub mod door;
mod file;
mod often;
mod refusal;
mod server;
mod stamp;
mod watched;

pub use client::{ClientFiles, ClientTls, NotAName};
pub use file::{File, TlsError, check_signed};
pub use refusal::Refusal;
pub use server::{ServerFiles, ServerTls, Versions};
pub use stamp::Stamp;
pub use tokio_rustls::{client::TlsStream as ToServer, server::TlsStream as ToClient};
