//! Which of a schedule's snapshots or backups go, so that as many as wanted stay.

use std::time::SystemTime;

/// The label of a snapshot or a backup that a schedule made. Its value is the schedule's name.
pub const LABEL: &str = "ashlar.schedule";

/// A snapshot or a backup of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its name.
    pub name: String,
    /// The schedule that made it, by its label.
    pub schedule: Option<String>,
    /// When its content was taken: the time of the snapshot.
    pub taken: SystemTime,
    /// Whether it is whole: not in progress, and readable.
    pub is_complete: bool,
    /// Whether something needs it now: it is restored from, or the next backup builds on it.
    pub is_in_use: bool,
}

/// The names of those that go, the oldest first, so that `keep` complete ones of this schedule stay. What another schedule made or a person, is
/// in progress or in use, and the volume's newest complete one never go.
pub fn removals(of_volume: &[Kept], schedule: &str, keep: usize) -> Vec<String> {
    let age = |kept: &&Kept| (kept.taken, kept.name.clone());
    let newest = of_volume.iter().filter(|kept| kept.is_complete).max_by_key(age);
    let is_of_schedule = |kept: &&Kept| kept.is_complete && kept.schedule.as_deref() == Some(schedule);
    let mut complete: Vec<_> = of_volume.iter().filter(is_of_schedule).collect();
    complete.sort_by_key(age);
    complete.truncate(complete.len().saturating_sub(keep));
    let goes = |kept: &&Kept| !kept.is_in_use && newest.is_none_or(|newest| newest.name != kept.name);
    complete.into_iter().filter(goes).map(|kept| kept.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;

    fn kept(name: &str, schedule: &str, taken: u64) -> Kept {
        let schedule = (!schedule.is_empty()).then(|| schedule.to_owned());
        let taken = UNIX_EPOCH + Duration::from_secs(taken);
        Kept { name: name.to_owned(), schedule, taken, is_complete: true, is_in_use: false }
    }

    #[test]
    fn the_oldest_of_the_schedule_go() {
        let of_volume = [
            kept("b3", "daily", 30),
            kept("b1", "daily", 10),
            kept("w1", "weekly", 5),
            kept("b2", "daily", 20),
            kept("x1", "", 1),
        ];
        assert_eq!(removals(&of_volume, "daily", 2), ["b1"]);
        assert_eq!(removals(&of_volume, "daily", 1), ["b1", "b2"]);
        assert_eq!(removals(&of_volume, "weekly", 1), [""; 0]);
        assert_eq!(removals(&of_volume, "monthly", 1), [""; 0]);
    }

    #[test]
    fn one_in_progress_neither_goes_nor_counts() {
        let running = Kept { is_complete: false, ..kept("b3", "daily", 30) };
        let of_volume = [kept("b1", "daily", 10), kept("b2", "daily", 20), running];
        assert_eq!(removals(&of_volume, "daily", 1), ["b1"]);
    }

    #[test]
    fn one_that_is_restored_from_stays_until_it_is_done() {
        let mut of_volume = [kept("b1", "daily", 10), kept("b2", "daily", 20), kept("b3", "daily", 30)];
        of_volume[0].is_in_use = true;
        assert_eq!(removals(&of_volume, "daily", 1), ["b2"]);
        of_volume[0].is_in_use = false;
        assert_eq!(removals(&of_volume, "daily", 1), ["b1", "b2"]);
    }

    #[test]
    fn the_newest_complete_one_of_the_volume_stays_whatever_is_to_be_kept() {
        assert_eq!(removals(&[kept("b1", "daily", 10)], "daily", 0), [""; 0]);
        let of_volume = [kept("b1", "daily", 10), Kept { is_complete: false, ..kept("w1", "weekly", 20) }];
        assert_eq!(removals(&of_volume, "daily", 0), [""; 0]);
        let of_volume = [kept("b1", "daily", 10), kept("w1", "weekly", 20)];
        assert_eq!(removals(&of_volume, "daily", 0), ["b1"]);
    }

    fn any_kept() -> impl Strategy<Value = Vec<Kept>> {
        let one = (0..3_usize, 0..50_u64, proptest::bool::weighted(0.8), proptest::bool::weighted(0.1));
        proptest::collection::vec(one, 0..30).prop_map(|all| {
            let make = |(index, (schedule, taken, is_complete, is_in_use)): (usize, (usize, u64, bool, bool))| {
                let schedule = ["", "daily", "weekly"][schedule];
                Kept { is_complete, is_in_use, ..kept(&format!("b{index}"), schedule, taken) }
            };
            all.into_iter().enumerate().map(make).collect()
        })
    }

    proptest! {
        #[test]
        fn only_what_may_go_goes_and_enough_stays(of_volume in any_kept(), keep in 0..6_usize) {
            let gone = removals(&of_volume, "daily", keep);
            let (gone, left): (Vec<_>, Vec<_>) = of_volume.iter().cloned().partition(|kept| gone.contains(&kept.name));
            let complete = |all: &[Kept]| all.iter().filter(|kept| kept.is_complete).map(|kept| kept.taken).max();
            prop_assert_eq!(complete(&left), complete(&of_volume), "the newest is left");
            for kept in &gone {
                prop_assert!(kept.is_complete && !kept.is_in_use && kept.schedule.as_deref() == Some("daily"));
            }
            let of_schedule = |kept: &&Kept| kept.is_complete && kept.schedule.as_deref() == Some("daily");
            let stay: Vec<_> = left.iter().filter(of_schedule).collect();
            let all = of_volume.iter().filter(of_schedule).count();
            prop_assert!(stay.len() >= keep.min(all));
            // What stays beyond that is in use, or is the newest of all.
            let free = stay.iter().filter(|kept| !kept.is_in_use).count();
            prop_assert!(free <= keep.max(1));
            let oldest_left = stay.iter().filter(|kept| !kept.is_in_use).map(|kept| kept.taken).min();
            prop_assert!(gone.iter().all(|gone| oldest_left.is_none_or(|left| gone.taken <= left)));
            prop_assert!(removals(&left, "daily", keep).is_empty(), "once is enough");
        }
    }
}
