//! Planted faults: each kernel with one mistake in it must fail its own check, or the check is blind.

use crate::{attention, cut, dense, experts, norm, route, sample, support, synthetic};
use flotilla_engine::backend::cuda::route::Prompts;
use flotilla_engine::cuda::{Card, Source};

type Check = fn(&Card, &dyn Fn(Source) -> Source) -> Result<(), String>;
/// What is wrong, and the one replace that makes it so.
type Fault = (&'static str, &'static str, &'static str);

/// The check passes without a fault and fails with each. Every fault has a stream of its own: one that
/// touches memory which is not its own leaves the stream unusable, and the next would fail for nothing.
fn all_are_noticed(faults: &[Fault], check: Check) {
    for support::TestCard { card, .. } in support::cards() {
        check(&card, &|source| source).expect("without a fault");
    }
    for (name, from, to) in faults {
        for support::TestCard { card, .. } in support::cards() {
            card.upload(&[1u32]).expect("the fault before has left the card usable");
            let found = check(&card, &|source: Source| {
                // A family's sources are edited alike: only one of them has the line.
                match source.text.matches(from).count() {
                    0 => source,
                    1 => Source { text: Box::leak(source.text.replace(from, to).into_boxed_str()), ..source },
                    count => panic!("{name}: {from:?} is in {} {count} times", source.name),
                }
            });
            assert!(found.is_err(), "not noticed: {name}");
        }
    }
}

#[test]
fn norms() {
    all_are_noticed(&norm::PLANTED, norm::check);
}

#[test]
fn dense_products() {
    all_are_noticed(&dense::PLANTED, dense::check);
}

#[test]
fn rotation() {
    all_are_noticed(&attention::PLANTED_ROTATION, attention::check_rotation);
}

#[test]
fn decode_attention() {
    all_are_noticed(&attention::PLANTED_DECODE, attention::check_decode);
}

#[test]
fn prefill_attention() {
    all_are_noticed(&attention::PLANTED_TILES, attention::check_tiles);
}

#[test]
fn routing() {
    all_are_noticed(&route::PLANTED, route::check);
}

#[test]
fn experts_in_common() {
    all_are_noticed(&experts::PLANTED, experts::check);
}

#[test]
fn experts_of_few_rows() {
    all_are_noticed(&experts::PLANTED_FEW, experts::check_few);
}

#[test]
fn experts_of_many_rows() {
    all_are_noticed(&experts::PLANTED_MANY, experts::check_many);
}

#[test]
fn experts_of_many_rows_by_warpgroups() {
    let cards = support::cards();
    if cards.iter().all(|on| experts::prompts(&on.card).contains(&Prompts::Wgmma)) {
        all_are_noticed(&experts::PLANTED_WGMMA, experts::check_wgmma);
    }
}

#[test]
fn sampling() {
    all_are_noticed(&sample::PLANTED, sample::check);
}

#[test]
fn rows_that_are_cut() {
    all_are_noticed(&cut::PLANTED, cut::check);
}

#[test]
fn synthetic_weights() {
    all_are_noticed(&synthetic::PLANTED, synthetic::check);
}
