//! Micro-batches: where the model is cut into stages, as many steps run at once as there are stages, one behind the
//! other. A sequence has its next row only when its last token is sampled, at the end of the last stage; so what
//! decodes is dealt into as many lanes as there are stages, and steps go round the lanes. While one lane's rows are
//! in the last stage, the next lane's are in the one before, and no stage is idle. Rows of prompts depend on no
//! token, and go into every step.
//!
//! One stage has one lane, which everybody is in.

use crate::settings::Settings;
use std::time::Duration;

/// The number of a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lane(pub usize);

pub struct Lanes {
    lanes: Vec<State>,
    turn: usize,
}

#[derive(Clone, Default)]
struct State {
    /// Sequences.
    running: usize,
    /// Steps in flight.
    in_flight: usize,
    /// Set while a step waits for masks.
    masks_until: Option<Duration>,
}

impl Lanes {
    pub fn new(stages: usize) -> Lanes {
        Lanes { lanes: vec![State::default(); stages.max(1)], turn: 0 }
    }

    pub fn count(&self) -> usize {
        self.lanes.len()
    }

    /// Steps of all lanes that may be in flight: one in each stage, and as many ahead as with one stage.
    pub fn steps_in_flight_max(&self, settings: &Settings) -> usize {
        self.lanes.len() - 1 + settings.steps_in_flight_max
    }

    /// Whose step is next.
    pub fn turn(&self) -> Lane {
        Lane(self.turn)
    }

    pub fn pass(&mut self) {
        self.turn = (self.turn + 1) % self.lanes.len();
    }

    pub fn in_flight(&self, lane: Lane) -> usize {
        self.lanes[lane.0].in_flight
    }

    pub fn begin_step(&mut self, lane: Lane) {
        self.lanes[lane.0].in_flight += 1;
    }

    pub fn end_step(&mut self, lane: Lane) {
        self.lanes[lane.0].in_flight -= 1;
    }

    pub fn masks_until(&mut self, lane: Lane) -> &mut Option<Duration> {
        &mut self.lanes[lane.0].masks_until
    }

    pub fn wait_no_more(&mut self) {
        self.lanes.iter_mut().for_each(|lane| lane.masks_until = None);
    }

    /// The first end of a wait for masks after `now`. A lane whose wait is over, and which has no step all the same, has
    /// to wait for something else, and is looked at again when that happens.
    pub fn wakes_at(&self, now: Duration) -> Option<Duration> {
        self.lanes.iter().filter_map(|lane| lane.masks_until).filter(|until| *until > now).min()
    }

    /// One more runs, in one of the emptiest lanes: in that of its first rows, if it can be.
    pub fn join(&mut self, first: Lane) -> Lane {
        let count = self.lanes.len();
        let from_first = (0..count).map(|after| (first.0 + after) % count);
        let lane = from_first.min_by_key(|&lane| self.lanes[lane].running).expect("there is a lane");
        self.lanes[lane].running += 1;
        Lane(lane)
    }

    pub fn leave(&mut self, lane: Lane) {
        self.lanes[lane.0].running -= 1;
    }

    /// A lane with two more at least.
    pub fn fuller_than(&self, lane: Lane) -> Option<Lane> {
        let least = self.lanes[lane.0].running + 2;
        self.lanes.iter().position(|other| other.running >= least).map(Lane)
    }

    pub fn move_one(&mut self, from: Lane, to: Lane) {
        self.lanes[from.0].running -= 1;
        self.lanes[to.0].running += 1;
    }

    #[cfg(debug_assertions)]
    pub fn running(&self) -> impl Iterator<Item = (Lane, usize)> {
        self.lanes.iter().enumerate().map(|(lane, state)| (Lane(lane), state.running))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else who asks for the time to wake would be told the past, and ask again at once, without end.
    #[test]
    fn a_wait_that_is_over_wakes_nobody() {
        let mut lanes = Lanes::new(3);
        let at = Duration::from_millis;
        (*lanes.masks_until(Lane(0)), *lanes.masks_until(Lane(2))) = (Some(at(5)), Some(at(8)));
        assert_eq!(
            [0, 4, 5, 8].map(|now| lanes.wakes_at(at(now))),
            [Some(at(5)), Some(at(5)), Some(at(8)), None]
        );
    }

    #[test]
    fn who_comes_and_goes_leaves_the_lanes_even() {
        let mut lanes = Lanes::new(3);
        let joined: Vec<usize> = (0..5).map(|_| lanes.join(Lane(1)).0).collect();
        assert_eq!(joined, [1, 2, 0, 1, 2]);
        assert_eq!(lanes.fuller_than(Lane(0)), None);
        lanes.leave(Lane(0));
        assert_eq!(lanes.fuller_than(Lane(0)), Some(Lane(1)));
        lanes.move_one(Lane(1), Lane(0));
        assert!((0..3).all(|lane| lanes.fuller_than(Lane(lane)).is_none()));
    }

    #[test]
    fn one_stage_has_one_lane() {
        let (mut lanes, settings) = (Lanes::new(1), Settings::default());
        assert_eq!(lanes.steps_in_flight_max(&settings), settings.steps_in_flight_max);
        lanes.pass();
        assert_eq!((lanes.turn(), lanes.join(Lane(0)), lanes.join(Lane(0))), (Lane(0), Lane(0), Lane(0)));
    }
}
