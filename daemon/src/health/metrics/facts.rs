//! Engines with their replicas, and stores: what the reactors said last.

use proto::v1::{Engine, Member, MemberState, Store, StoreWork};

use super::text::{Family, Text, counter, gauge};

/// Writes a family for each thing that has a value.
fn write<T>(text: &mut Text, family: Family, things: &[T], mut sample: impl FnMut(&mut Text, Family, &T)) {
    text.family(family);
    things.iter().for_each(|thing| sample(text, family, thing));
}

/// Engines: a family each call, so that others get their turn in between; false when there are no more.
pub(super) fn write_engines(text: &mut Text, step: usize, engines: &[Engine]) -> bool {
    let volume = |text: &mut Text, family, engine: &Engine, value: u64| {
        text.sample(family, &[("volume", &engine.name), ("uuid", &engine.volume_uuid)], value);
    };
    match step {
        0 => write(text, gauge("ashlar_volume_size_bytes", "Size."), engines, |text, family, engine| {
            volume(text, family, engine, engine.size_bytes);
        }),
        1 => write(
            text,
            gauge("ashlar_volume_state", "1 for the state that the engine is in."),
            engines,
            |text, family, engine| {
                let state = engine.state().to_string();
                let labels = [("volume", engine.name.as_str()), ("uuid", &engine.volume_uuid), ("state", &state)];
                text.sample(family, &labels, 1);
            },
        ),
        2 => each_member(
            text,
            gauge("ashlar_replica_in_sync", "Whether it has every acknowledged write."),
            engines,
            |member| Some(u64::from(member.state() == MemberState::InSync)),
        ),
        3 => {
            each_member(text, gauge("ashlar_replica_connected", "Whether the engine reaches it."), engines, |member| {
                Some(u64::from(member.connected))
            })
        }
        4 => write(
            text,
            gauge("ashlar_replica_state", "1 for the state that it is in."),
            engines,
            |text, family, engine| {
                for member in &engine.members {
                    let state = member.state().to_string();
                    let labels = labels(engine, member);
                    text.sample(family, &[&labels[..], &[("state", &state)]].concat(), 1);
                }
            },
        ),
        5 => each_member(
            text,
            gauge("ashlar_replica_rebuilt_bytes", "What its rebuild has dealt with."),
            engines,
            |member| is_rebuilt(member).then_some(member.rebuilt_bytes),
        ),
        6 => each_member(
            text,
            gauge("ashlar_replica_rebuild_size_bytes", "What its rebuild has to deal with."),
            engines,
            |member| is_rebuilt(member).then_some(member.rebuild_total_bytes),
        ),
        7 => each_member(
            text,
            counter("ashlar_replica_departures_total", "How often it left since the engine started."),
            engines,
            |member| Some(u64::from(member.departures)),
        ),
        8 => each_member(
            text,
            counter("ashlar_replica_repaired_total", "Places that were mended from another replica."),
            engines,
            |member| Some(member.repaired),
        ),
        9 => each_member(
            text,
            gauge("ashlar_replica_unrepaired", "Places that could not be mended."),
            engines,
            |member| Some(member.unrepaired),
        ),
        10 => each_member(
            text,
            gauge("ashlar_replica_lag_bytes", "What it may lack of what was acknowledged; 0 in sync."),
            engines,
            |member| Some(member.lag_bytes),
        ),
        11 => {
            let family = gauge("ashlar_replica_oldest_request_seconds", "Age of its oldest request; 0 without one.");
            write(text, family, engines, |text, family, engine| {
                for member in &engine.members {
                    let age = member.oldest_request_ms.unwrap_or(0) as f64 / 1e3;
                    text.sample(family, &labels(engine, member), age);
                }
            });
        }
        _ => return false,
    }
    true
}

fn is_rebuilt(member: &Member) -> bool {
    member.state() == MemberState::Rebuilding
}

fn labels<'a>(engine: &'a Engine, member: &'a Member) -> [(&'static str, &'a str); 4] {
    [("volume", &engine.name), ("uuid", &engine.volume_uuid), ("replica", &member.replica_uuid), ("node", &member.node)]
}

fn each_member(text: &mut Text, family: Family, engines: &[Engine], value: impl Fn(&Member) -> Option<u64>) {
    write(text, family, engines, |text, family, engine| {
        for member in &engine.members {
            if let Some(value) = value(member) {
                text.sample(family, &labels(engine, member), value);
            }
        }
    });
}

/// Stores, all of them: a node has few.
pub(super) fn write_stores(text: &mut Text, stores: &[Store]) {
    write(text, gauge("ashlar_store_state", "1 for the state that it is in."), stores, |text, family, store| {
        let state = store.state().to_string();
        text.sample(family, &[("store", &store.name), ("uuid", &store.uuid), ("state", &state)], 1);
    });
    let mut each = |family: Family, value: &dyn Fn(&Store, &StoreWork) -> f64| {
        text.family(family);
        for store in stores {
            // What is not open says nothing.
            if let Some(work) = &store.work {
                text.sample(family, &[("store", &store.name), ("uuid", &store.uuid)], value(store, work));
            }
        }
    };
    each(gauge("ashlar_store_size_bytes", "Space for data."), &|store, _| store.size_bytes as f64);
    each(gauge("ashlar_store_free_bytes", "Space of it that is free."), &|store, _| store.free_bytes as f64);
    each(gauge("ashlar_store_reserved_bytes", "Free space that writes of hosts leave."), &|store, _| {
        store.reserve_bytes as f64
    });
    each(gauge("ashlar_store_provisioned_bytes", "Sizes of all heads."), &|store, _| store.provisioned_bytes as f64);
    each(gauge("ashlar_store_metadata_bytes", "Space that metadata takes or may take."), &|store, _| {
        store.metadata_bytes as f64
    });
    each(gauge("ashlar_store_metadata_size_bytes", "Space for metadata."), &|store, _| {
        store.metadata_room_bytes as f64
    });
    each(gauge("ashlar_store_lvols", "Lvols in it."), &|store, _| f64::from(store.lvols));
    each(gauge("ashlar_store_damaged_bytes", "Bytes that are known to be wrong."), &|store, _| {
        store.scrub.as_ref().map_or(0.0, |scrub| scrub.damaged_bytes as f64)
    });
    each(gauge("ashlar_store_journal_bytes", "What a recovery would replay of the journal."), &|_, work| {
        work.journal_bytes as f64
    });
    each(gauge("ashlar_store_journal_size_bytes", "The journal."), &|_, work| work.journal_size_bytes as f64);
    each(counter("ashlar_store_journal_written_bytes_total", "What was written to the journal."), &|_, work| {
        work.journal_written_bytes as f64
    });
    each(counter("ashlar_store_journal_batches_total", "Batches of it."), &|_, work| work.journal_batches as f64);
    each(counter("ashlar_store_checkpoints_total", "Checkpoints."), &|_, work| work.checkpoints as f64);
    each(counter("ashlar_store_flushes_total", "Flushes of the disk."), &|_, work| work.flushes as f64);
    each(counter("ashlar_store_flush_seconds_total", "Time that flushes took."), &|_, work| work.flush_us as f64 / 1e6);
}
