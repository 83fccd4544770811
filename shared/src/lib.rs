//! The words of Flotilla: ids, model spec, plan, step, sampling
#![forbid(unsafe_code)]
