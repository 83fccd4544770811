//! Requests that make steps fail or end workers, in virtual time: the real driver and scheduler over workers that refuse
//! steps or are lost. Who is to blame ends with an error, everybody else has all of its tokens, and a fleet that fails
//! whatever it is given is not tried for ever.

mod faked;
mod losses;
mod replicas;
mod steps;
