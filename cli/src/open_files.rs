//! How many files this process may have open: each connection is one. Shells and containers mostly allow 1024 and let
//! whoever needs more ask for it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// More than any server here needs; some systems allow so many that programs which look at each take long.
const ENOUGH: u64 = 1 << 20;

/// As many as the system lets it have.
pub fn raise() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let most = maximum.map_or(ENOUGH, |maximum| maximum.min(ENOUGH));
    if current.is_some_and(|current| current < most) {
        // Where it may not, it goes on with what it has.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum });
    }
}

pub fn max() -> usize {
    getrlimit(Resource::Nofile)
        .current
        .map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX))
}
