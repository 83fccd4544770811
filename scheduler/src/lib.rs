//! Which rows run in the next step: a state machine without clock, network or threads
#![forbid(unsafe_code)]
