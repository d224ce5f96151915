//! How many files may be open: a connection is one at each end.

use anyhow::{Context, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Has this process, and the daemons that it starts from here on, have so many files open, where the machine lets it.
pub(super) fn allow(count: u64) -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    match raised(limit, count)? {
        Some(limit) => setrlimit(Resource::Nofile, limit).context("cannot have more files open"),
        None => Ok(()),
    }
}

/// The limit to ask for, if this one is too low.
fn raised(limit: Rlimit, count: u64) -> anyhow::Result<Option<Rlimit>> {
    // None is no limit.
    let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= count);
    if enough(limit.current) {
        return Ok(None);
    }
    let most = limit.maximum.unwrap_or_default();
    ensure!(enough(limit.maximum), "it takes {count} open files, and only {most} are allowed (`ulimit -Hn`)");
    Ok(Some(Rlimit { current: Some(count), ..limit }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_raised_where_it_is_too_low_and_may_be() {
        let asked = |current, maximum| raised(Rlimit { current, maximum }, 10_000).map(|limit| limit?.current);
        assert_eq!(asked(Some(20_000), Some(20_000)).expect("enough"), None);
        assert_eq!(asked(None, None).expect("enough"), None);
        assert_eq!(asked(Some(1024), Some(20_000)).expect("allowed"), Some(10_000));
        assert_eq!(asked(Some(1024), None).expect("allowed"), Some(10_000));
        assert!(asked(Some(1024), Some(4096)).expect_err("refused").to_string().contains("only 4096"));
    }
}
