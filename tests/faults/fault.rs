//! What goes wrong, when, and to whom.

use crate::dice::Dice;
use crate::fleet::{Fleet, WORKERS};
use crate::support::relay::Weather;
use std::time::Duration;
use tokio::time::sleep;

/// Of one worker of the three, or of several.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    Kill,
    /// As whoever upgrades it does.
    Terminate,
    KillTwo,
    /// Another one, while the group forms again.
    KillTwice,
    /// The link to the coordinator breaks and comes back; the process knows nothing of it.
    Cut,
    /// The link is there and nothing passes, for longer than anybody waits.
    Silence,
    /// The process stands still, for longer than anybody waits.
    Hang,
    /// The links to the other workers break, and come back.
    PeersCut,
    /// Nothing passes on them, for longer than a sum may take.
    PeersSilent,
    PeersSlow,
    /// Every message comes late, and nothing may end because of it.
    Slow,
}

/// Longer than a silent worker is waited for.
const SILENCE: Duration = Duration::from_millis(6500);

impl Fault {
    /// Those that end in a silence take seconds, and are rare.
    pub fn thrown(dice: &mut Dice) -> Fault {
        match dice.below(100) {
            0..36 => Fault::Kill,
            36..48 => Fault::Terminate,
            48..58 => Fault::KillTwo,
            58..72 => Fault::KillTwice,
            72..90 => Fault::Cut,
            90..92 => Fault::Silence,
            92..94 => Fault::Hang,
            _ => Fault::Slow,
        }
    }

    /// Of the links between workers.
    pub fn thrown_between(dice: &mut Dice) -> Fault {
        match dice.below(10) {
            0..5 => Fault::PeersCut,
            5..6 => Fault::PeersSilent,
            6..8 => Fault::PeersSlow,
            _ => Fault::Kill,
        }
    }

    pub async fn strike(self, fleet: &mut Fleet, dice: &mut Dice) {
        sleep(Duration::from_millis(dice.below(250))).await;
        let victim = dice.below(WORKERS as u64) as usize;
        let other = (victim + 1 + dice.below(WORKERS as u64 - 1) as usize) % WORKERS;
        match self {
            Fault::Kill => fleet.kill(victim).await,
            Fault::Terminate => fleet.signal(victim, "TERM"),
            Fault::KillTwo => {
                fleet.signal(other, "KILL");
                fleet.kill(victim).await;
            }
            Fault::KillTwice => {
                fleet.kill(victim).await;
                fleet.restart_ended();
                sleep(Duration::from_millis(dice.below(300))).await;
                fleet.kill(other).await;
            }
            Fault::Cut => {
                fleet.relay(victim).set(Weather::Cut);
                sleep(Duration::from_millis(20 + dice.below(300))).await;
                fleet.relay(victim).set(Weather::Fair);
            }
            Fault::Silence => {
                fleet.relay(victim).set(Weather::Silent);
                sleep(SILENCE).await;
                // What was on its way does not come any more.
                fleet.relay(victim).set(Weather::Cut);
                fleet.relay(victim).set(Weather::Fair);
            }
            Fault::Hang => {
                fleet.signal(victim, "STOP");
                sleep(SILENCE).await;
                fleet.signal(victim, "CONT");
            }
            Fault::PeersCut => {
                fleet.between_all(Weather::Cut);
                sleep(Duration::from_millis(20 + dice.below(300))).await;
                fleet.between_all(Weather::Fair);
            }
            Fault::PeersSilent => {
                fleet.between_all(Weather::Silent);
                sleep(SILENCE).await;
                fleet.between_all(Weather::Cut);
                fleet.between_all(Weather::Fair);
            }
            Fault::PeersSlow => {
                fleet.between_all(Weather::Slow(Duration::from_millis(1 + dice.below(4))));
                sleep(Duration::from_millis(dice.below(500))).await;
                fleet.between_all(Weather::Fair);
            }
            Fault::Slow => {
                fleet.relay(victim).set(Weather::Slow(Duration::from_millis(5 + dice.below(30))));
                sleep(Duration::from_millis(dice.below(500))).await;
                fleet.relay(victim).set(Weather::Fair);
            }
        }
        fleet.restart_ended();
    }
}
