//! A collective that sums wrongly does not pass the check at the start.

use super::*;

/// `host.cu`, with a mistake in it.
fn faulty(size: usize, right: &str, wrong: &str) -> Source {
    let mut source = host::source(size);
    assert_eq!(source.text.matches(right).count(), 1, "{right}");
    source.text = Box::leak(source.text.replace(right, wrong).into_boxed_str());
    source
}

/// A mistake on one rank only, which the ways in `faulty_ways` do not survive; what comes after them does.
fn planted_in(faulty_ways: &[SumPath], right: &str, wrong: &str) {
    let only = faulty_ways.iter().map(|&path| SumChoice::Only(path));
    for choice in [SumChoice::Auto].into_iter().chain(only) {
        let settings = CardSettings { deadline: Duration::from_secs(4), ..settings(choice) };
        on_threads(group_with_deadline(3, PATIENCE), |rank, link| {
            let source = if rank == 1 { faulty(3, right, wrong) } else { host::source(3) };
            let card = card_of(rank, false);
            let group = CardCollective::form_with(&card, link, &settings, &source);
            if let SumChoice::Only(asked) = choice {
                let error = group.err().expect("it was asked for");
                let told = matches!(error, CollectiveError::NoSuchPath { path, .. } if path == asked);
                return assert!(told, "{error}");
            }
            let mut group = group.unwrap_or_else(|error| panic!("{wrong}: {error}"));
            let passed_over: Vec<SumPath> = group.report().passed_over.iter().map(|way| way.0).collect();
            assert_eq!(passed_over, faulty_ways, "{wrong}: {:?}", group.report());
            assert!(group.report().passed_over.iter().all(|(_, reason)| reason.contains("rank")));
            let left = [SumPath::Host, SumPath::Staged].into_iter().find(|path| !faulty_ways.contains(path));
            assert_eq!(group.path(), left, "{wrong}");
            let mut y = buffer(&card, 100);
            fill(&card, &mut y, &values(0, rank, 100));
            group.all_reduce(&mut y).unwrap();
            settle(&mut group).unwrap();
            check(&card, &y, &sums(0, 3, 100), wrong);
        });
    }
}

fn planted(right: &str, wrong: &str) {
    planted_in(&[SumPath::Shared, SumPath::Host], right, wrong);
}

#[test]
fn a_sum_in_another_order_does_not_pass_the_check() {
    planted(
        "r++) sum = r == 0 ? parts[0] : add(sum, parts[r - first]);",
        "r++) sum = r == 0 ? parts[RANKS - 1] : add(sum, parts[RANKS - 1 - r]);",
    );
}

#[test]
fn a_flag_that_is_never_raised_does_not_pass_the_check() {
    planted("unsigned* flag = &flags[rank * FLAGS + chunk];", "unsigned lost, *flag = &lost;");
}

#[test]
fn a_short_sum_in_another_order_does_not_pass_the_check() {
    planted(
        "sums[unit][0] = r == 0 ? a : __fadd_rn(sums[unit][0], a);",
        "sums[unit][0] = r == 0 ? 0.0f : r == 1 ? a : __fadd_rn(__fadd_rn(sums[unit][0], a), value_of(got[unit][0].first));",
    );
}

/// Values of the operation before, taken for this one's.
#[test]
fn a_short_sum_that_does_not_wait_does_not_pass_the_check() {
    planted(
        "return (unsigned)(pairs.first >> 32) == operation && (unsigned)(pairs.second >> 32) == operation;",
        "return true;",
    );
}

#[test]
fn an_odd_value_that_is_not_pushed_does_not_pass_the_check() {
    planted("mine[unit][1] = 2 * i + 1 < n ? y[2 * i + 1] : 0.0f;", "mine[unit][1] = 0.0f;");
}

/// What is wrong in a card's memory only leaves the machine's.
#[test]
fn a_fault_within_a_card_leaves_the_machines_memory() {
    planted_in(&[SumPath::Shared], "store_release_card(flag, operation);", ";");
}

#[test]
fn a_tail_that_is_not_pushed_does_not_pass_the_check() {
    planted("if (tail >= start && tail < end) slot[tail] = y[tail];", "");
}

/// A link that, on one rank, changes one bit of every sum, and lies when the check's sums are compared.
pub(super) struct Corrupting(pub(super) ThreadsCollective, pub(super) bool);

/// How the word on the check's sums begins.
const HASH: &str = r#"{"hash":""#;

impl AllReduce<[f32]> for Corrupting {
    fn all_reduce(&mut self, x: &mut [f32]) -> Result<(), CollectiveError> {
        self.0.all_reduce(x)?;
        if let (true, Some(last)) = (self.1, x.last_mut()) {
            *last = f32::from_bits(last.to_bits() ^ 1);
        }
        Ok(())
    }
}

impl Collective for Corrupting {
    fn rank(&self) -> Rank {
        self.0.rank()
    }

    fn size(&self) -> usize {
        self.0.size()
    }

    fn all_gather(&mut self, mine: &[u8], out: &mut Vec<u8>) -> Result<(), CollectiveError> {
        match std::str::from_utf8(mine) {
            Ok(text) if self.1 && text.starts_with(HASH) => {
                self.0.all_gather(text.replacen(HASH, &format!("{HASH}0"), 1).as_bytes(), out)
            }
            _ => self.0.all_gather(mine, out),
        }
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.0.barrier()
    }

    fn end(&mut self, error: CollectiveError) {
        self.0.end(error);
    }

    fn abort_handle(&self) -> AbortHandle {
        self.0.abort_handle()
    }
}

#[test]
fn a_link_that_changes_a_bit_does_not_pass_the_check() {
    on_threads(group_with_deadline(2, PATIENCE), |rank, link| {
        let link = Corrupting(link, rank == 1);
        let group = CardCollective::form(&card_of(rank, false), link, &only(SumPath::Staged));
        let error = group.err().expect("nothing is left to fall back to").to_string();
        assert!(error.contains("cannot sum by `staged`: rank 1: value 0 of 1 is"), "{error}");
    });
}
