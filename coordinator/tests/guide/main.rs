//! Answers that are bound to a form: what a guide lets a model write, token by token, and that whatever comes
//! of it has the form. The "model" here picks tokens by chance, or wants to say what a test gives it.

mod chance;
mod faults;
mod masks;
mod model;
mod published;
mod schemas;
