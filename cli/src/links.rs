//! `--collective`, `--collective-wire`: how workers reach each other. Said where a group is formed, since all
//! its workers must do the same; how cards sum is another matter, `--sum` in [`crate::device`].

use clap::Args;
use flotilla_shared::{LinkChoice, WireFormat};

#[derive(Clone, Copy, Debug, Args)]
pub struct LinkArgs {
    /// How workers reach each other: shm (memory of one host, or no group), tcp, or auto (memory where
    /// workers of one host can share it, TCP elsewhere)
    #[arg(help_heading = "Workers", long, default_value_t = LinkChoice::Auto)]
    pub collective: LinkChoice,
    /// What travels of a sum between workers that share no memory: f32, or int8 (a third of the bytes and
    /// less, rounded; for slow networks)
    #[arg(help_heading = "Workers", long, default_value_t = WireFormat::F32)]
    pub collective_wire: WireFormat,
}
