//! Every op of a backend against a plain f64 forward: one test body an op, run on each backend that there is.
//!
//! `cpu` always; `cuda-emulated` where there is a C++ compiler; in its place `cuda`, the machine's first card,
//! with FLOTILLA_TEST_DEVICE=cuda. What a card rounds on purpose, the expected values round too, so that
//! the tolerances are those of the sums alone, and faults show.

mod attention;
mod batches;
mod close;
mod experts;
mod finish;
mod graphs;
mod int8;
mod model;
mod planted;
mod reference;
mod route;
mod stages;
mod subject;
mod vocabulary;
mod whole;
