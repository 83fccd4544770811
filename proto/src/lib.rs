//! The wire between coordinator and workers
#![forbid(unsafe_code)]
