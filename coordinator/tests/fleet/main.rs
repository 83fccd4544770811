//! The door for workers, with workers that are not ours (see [`faked`]): what each is told that may not join, how they
//! are made a group, and what of their answers ends it.

mod door;
mod faked;
mod groups;
mod kinds;
mod links;
mod meeting;
mod planning;
mod wrong_answers;
