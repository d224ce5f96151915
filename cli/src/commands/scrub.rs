//! `ashlar store scrub`.

use std::time::{Duration, SystemTime};

use anyhow::bail;
use proto::v1::{GetStoreRequest, StartScrubRequest, StopScrubRequest, Store, StoreScrub};

use crate::client::{Client, answer};
use crate::output::{Output, Progress};
use crate::size::Size;

/// How often a wait looks.
const POLL: Duration = Duration::from_millis(500);

/// In seconds.
const HOUR: u64 = 60 * 60;

/// Bad regions that are printed; JSON has more.
const SHOWN: usize = 20;

pub(super) async fn start(
    client: &Client,
    store: &str,
    bytes_per_second: u64,
    wait: bool,
    output: Output,
) -> anyhow::Result<()> {
    let request = StartScrubRequest { store: store.to_owned(), bytes_per_second };
    let mut found = answer(client.stores().start_scrub(request).await)?;
    let mut progress = Progress::new("compared");
    while wait && is_running(&found) {
        if let Some(scrub) = &found.scrub
            && let Some(run) = &scrub.run
        {
            let total = run.bytes.saturating_add(run.left_bytes);
            progress.show_with(run.bytes, total, &format!("snapshot {} of {}", run.snapshots, scrub.snapshots));
        }
        tokio::time::sleep(POLL).await;
        found = answer(client.stores().get(GetStoreRequest { store: store.to_owned() }).await)?;
    }
    drop(progress);
    show(&found, output)?;
    if wait { judge(&found) } else { Ok(()) }
}

pub(super) async fn stop(client: &Client, store: &str, output: Output) -> anyhow::Result<()> {
    let request = StopScrubRequest { store: store.to_owned() };
    show(&answer(client.stores().stop_scrub(request).await)?, output)
}

pub(super) fn show(store: &Store, output: Output) -> anyhow::Result<()> {
    output.print(store, |store, _| render(store))
}

/// How the last scrub of a store was, or the one under way is.
pub(super) fn render(store: &Store) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    render_at(&store.name, &store.scrub.clone().unwrap_or_default(), now)
}

fn is_running(store: &Store) -> bool {
    store.scrub.as_ref().and_then(|scrub| scrub.run.as_ref()).is_some_and(|run| run.ended_at == 0)
}

/// An error if it was not through, or found damage.
fn judge(store: &Store) -> anyhow::Result<()> {
    match store.scrub.as_ref().and_then(|scrub| scrub.run.as_ref()) {
        None => bail!("the store was closed before its scrub was through"),
        Some(run) if !run.error.is_empty() => bail!("the scrub was not through: {}", run.error),
        Some(run) if run.bad_regions > 0 => bail!("{} regions are damaged", run.bad_regions),
        Some(_) => Ok(()),
    }
}

fn render_at(name: &str, scrub: &StoreScrub, now: u64) -> String {
    let mut text = format!(
        "store      {name}\nhashed     {} of {} snapshots\ndamaged    {}\n",
        scrub.hashed_snapshots,
        scrub.snapshots,
        Size(scrub.damaged_bytes)
    );
    if scrub.next_at > 0 {
        text += &format!("next       {}\n", distance(scrub.next_at.saturating_sub(now)));
    }
    let Some(run) = &scrub.run else { return text + "scrub      none so far\n" };
    let state = match (run.ended_at, run.error.as_str()) {
        (0, _) => "under way".to_owned(),
        (_, "") => "done".to_owned(),
        (_, error) => error.to_owned(),
    };
    text += &format!(
        "scrub      {state}\ncompared   {} of {} snapshots\nunhashed   {} regions\nbad        {} regions\n",
        Size(run.bytes),
        run.snapshots,
        run.unhashed_regions,
        run.bad_regions
    );
    run.bad.iter().take(SHOWN).fold(text, |text, bad| format!("{text}  {} at {}\n", bad.lvol_uuid, bad.offset_bytes))
}

/// How long it is until then.
fn distance(seconds: u64) -> String {
    match seconds / HOUR {
        0 => "within an hour".to_owned(),
        hours @ 1..48 => format!("in {hours} hours"),
        hours => format!("in {} days", hours / 24),
    }
}

#[cfg(test)]
mod tests {
    use proto::v1::{BadRegion, ScrubRun};

    use super::*;

    fn store(run: ScrubRun) -> Store {
        let scrub = StoreScrub {
            snapshots: 2,
            hashed_snapshots: 1,
            damaged_bytes: 4096,
            run: Some(run),
            next_at: 100 * HOUR,
            ..StoreScrub::default()
        };
        Store { name: "main".into(), scrub: Some(scrub), ..Store::default() }
    }

    #[test]
    fn damage_is_named_and_fails_a_wait() {
        let bad = vec![BadRegion { lvol_uuid: "u".into(), offset_bytes: 65536 }];
        let run = ScrubRun {
            started_at: 1,
            ended_at: 2,
            snapshots: 2,
            bytes: 1 << 20,
            unhashed_regions: 3,
            bad_regions: 1,
            bad,
            ..ScrubRun::default()
        };
        let store = store(run);
        let expected = "\
store      main
hashed     1 of 2 snapshots
damaged    4 KiB
next       in 2 days
scrub      done
compared   1 MiB of 2 snapshots
unhashed   3 regions
bad        1 regions
  u at 65536
";
        assert_eq!(render_at(&store.name, &store.scrub.clone().unwrap_or_default(), 40 * HOUR), expected);
        assert!(judge(&store).is_err_and(|error| error.to_string().contains("1 regions")));
    }

    #[test]
    fn what_is_next_is_told_in_days_or_hours() {
        assert_eq!(distance(30 * 24 * HOUR), "in 30 days");
        assert_eq!(distance(47 * HOUR + 1), "in 47 hours");
        assert_eq!(distance(59), "within an hour");
    }

    #[test]
    fn only_a_whole_scrub_without_damage_is_good() {
        assert!(judge(&store(ScrubRun { ended_at: 2, ..ScrubRun::default() })).is_ok());
        assert!(judge(&store(ScrubRun { ended_at: 2, error: "stopped".into(), ..ScrubRun::default() })).is_err());
        assert!(judge(&Store::default()).is_err());
        assert!(is_running(&store(ScrubRun::default())));
    }
}
