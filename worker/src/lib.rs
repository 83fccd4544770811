//! The shell that holds weights and executes steps
#![forbid(unsafe_code)]
