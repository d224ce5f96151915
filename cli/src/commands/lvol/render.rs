//! Lvols as people see them.

use std::collections::BTreeMap;
use std::fmt::Write;

use proto::v1::{Lvol, LvolState};

use crate::output::{Fixed, Name, Table, Wide, Width};
use crate::size::Size;

/// Damaged ranges that are printed; JSON has more.
const MOST_RANGES: usize = 20;

pub(super) fn render_list(lvols: &[Lvol], width: Width) -> String {
    if lvols.is_empty() {
        return "There are no lvols. Make one with `ashlar lvol create NAME --store STORE --size 1GiB`.\n".to_owned();
    }
    let names: BTreeMap<&str, &str> = lvols.iter().map(|lvol| (lvol.uuid.as_str(), lvol.name.as_str())).collect();
    let columns = [
        Name("NAME"),
        Name("STORE"),
        Fixed("KIND"),
        Fixed("STATE"),
        Fixed("SIZE"),
        Fixed("USED"),
        Name("PARENT"),
        Wide("UUID"),
        Wide("VOLUME UUID"),
    ];
    let mut table = Table::new(&columns);
    for lvol in lvols {
        table.row(vec![
            lvol.name.clone(),
            lvol.store.clone(),
            kind(lvol).to_owned(),
            state(lvol),
            Size(lvol.size_bytes).to_string(),
            Size(lvol.used_bytes).to_string(),
            names.get(lvol.parent_uuid.as_str()).map_or("-", |name| *name).to_owned(),
            lvol.uuid.clone(),
            if lvol.volume_uuid.is_empty() { "-".to_owned() } else { lvol.volume_uuid.clone() },
        ]);
    }
    let damaged = lvols.iter().filter(|lvol| lvol.state() == LvolState::Damaged);
    let text = damaged
        .fold(table.render(width), |text, lvol| format!("{text}\n{} ({}): {}\n", lvol.name, lvol.uuid, lvol.reason));
    let bad = lvols.iter().filter(|lvol| lvol.bad_regions > 0);
    bad.fold(text, |text, lvol| {
        let (name, uuid, regions) = (&lvol.name, &lvol.uuid, lvol.bad_regions);
        format!("{text}\n{name} ({uuid}): the last scrub found {regions} regions of it damaged\n")
    })
}

pub(super) fn render(lvol: &Lvol) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &dyn std::fmt::Display| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{label:9} {value}");
    };
    let size = Size(lvol.size_bytes);
    line(kind(lvol), &format_args!("{} ({size}, blocks of {} bytes)", lvol.name, lvol.block_size_bytes));
    line("uuid", &lvol.uuid);
    line("store", &lvol.store);
    line("state", &state(lvol));
    if !lvol.reason.is_empty() {
        line("reason", &lvol.reason);
    }
    if belongs_to_replica(lvol) {
        line("replica", &format_args!("{}\n{:9} of volume {}", lvol.replica_uuid, "", lvol.volume_uuid));
    }
    if !lvol.parent_uuid.is_empty() {
        line("parent", &lvol.parent_uuid);
    }
    for child in &lvol.children_uuids {
        line("child", child);
    }
    line("used", &Size(lvol.used_bytes));
    if let Some(usage) = &lvol.usage {
        line("unique", &format_args!("{} come back when it is deleted", Size(usage.unique_bytes)));
        line("data", &format_args!("{} with what it reads through", Size(usage.referenced_bytes)));
    }
    if let Some(deletion) = &lvol.deletion {
        let cancel = if deletion.is_merging { "can only go on" } else { "can be cancelled" };
        line("deletion", &format_args!("{} left; it {cancel}", Size(deletion.left_bytes)));
        if !deletion.waits_for.is_empty() {
            line("waits", &deletion.waits_for);
        }
    }
    if lvol.bad_regions > 0 {
        line("scrub", &format_args!("the last one found {} regions damaged", lvol.bad_regions));
    }
    for range in lvol.damaged.iter().take(MOST_RANGES) {
        line("damaged", &format_args!("{} at {}: reads fail", Size(range.length_bytes), range.offset_bytes));
    }
    for internal in &lvol.internal {
        line("internal", &format_args!("{}: {} used", internal.role, Size(internal.used_bytes)));
    }
    text
}

/// What kind of lvol it is, in a word or two.
pub(super) fn kind(lvol: &Lvol) -> &'static str {
    match (belongs_to_replica(lvol), lvol.is_snapshot) {
        (false, false) => "head",
        (false, true) => "snapshot",
        (true, false) => "replica",
        (true, true) => "cut",
    }
}

fn belongs_to_replica(lvol: &Lvol) -> bool {
    !lvol.replica_uuid.is_empty()
}

fn state(lvol: &Lvol) -> String {
    match (lvol.state(), &lvol.deletion) {
        (LvolState::Deleting, Some(deletion)) => format!("deleting {} %", deletion.percent),
        (state, _) => state.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{InternalLvol, LvolDeletion, LvolRange, LvolUsage};

    fn head() -> Lvol {
        Lvol {
            uuid: "00000000-0000-0000-0000-000000000001".into(),
            name: "web".into(),
            store: "main".into(),
            size_bytes: 1 << 30,
            block_size_bytes: 4096,
            parent_uuid: "00000000-0000-0000-0000-000000000002".into(),
            used_bytes: 1 << 20,
            state: LvolState::Ready.into(),
            usage: Some(LvolUsage { unique_bytes: 1 << 20, referenced_bytes: 3 << 20 }),
            internal: vec![InternalLvol { role: "hashes".into(), used_bytes: 65536, ..InternalLvol::default() }],
            ..Lvol::default()
        }
    }

    fn snapshot() -> Lvol {
        Lvol {
            uuid: "00000000-0000-0000-0000-000000000002".into(),
            name: "monday".into(),
            store: "main".into(),
            size_bytes: 1 << 30,
            block_size_bytes: 512,
            is_snapshot: true,
            children_uuids: vec!["00000000-0000-0000-0000-000000000001".into()],
            used_bytes: 2 << 20,
            state: LvolState::Deleting.into(),
            reason: "it is being deleted".into(),
            deletion: Some(LvolDeletion { percent: 42, left_bytes: 1 << 20, ..LvolDeletion::default() }),
            ..Lvol::default()
        }
    }

    #[test]
    fn the_list_tells_what_reads_through_what() {
        let expected = "\
NAME    STORE  KIND      STATE          SIZE   USED   PARENT
web     main   head      ready          1 GiB  1 MiB  monday
monday  main   snapshot  deleting 42 %  1 GiB  2 MiB  -
";
        assert_eq!(render_list(&[head(), snapshot()], Width::Narrow), expected);
    }

    #[test]
    fn the_list_fits_a_terminal_whatever_the_names() {
        let long = |lvol: Lvol, letter: &str| Lvol {
            name: letter.repeat(63),
            store: "s".repeat(63),
            used_bytes: (1 << 40) - 1,
            ..lvol
        };
        let all = [long(head(), "h"), long(snapshot(), "p")];
        let text = render_list(&all, Width::Narrow);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("deleting 42 %") && text.contains("1024.0 GiB"), "{text}");
        let wide = render_list(&all, Width::Full);
        assert!(wide.contains(&"s".repeat(63)) && wide.contains(&head().uuid), "{wide}");
    }

    #[test]
    fn damage_is_told_with_its_place() {
        let bad =
            Lvol { bad_regions: 2, damaged: vec![LvolRange { offset_bytes: 65536, length_bytes: 8192 }], ..snapshot() };
        let text = render(&bad);
        assert!(text.contains("scrub     the last one found 2 regions damaged\n"), "{text}");
        assert!(text.contains("damaged   8 KiB at 65536: reads fail\n"), "{text}");
        let list = render_list(&[head(), bad], Width::Narrow);
        assert!(list.ends_with("0002): the last scrub found 2 regions of it damaged\n"), "{list}");
    }

    #[test]
    fn an_lvol_is_shown_in_full() {
        let expected = "\
head      web (1 GiB, blocks of 4096 bytes)
uuid      00000000-0000-0000-0000-000000000001
store     main
state     ready
parent    00000000-0000-0000-0000-000000000002
used      1 MiB
unique    1 MiB come back when it is deleted
data      3 MiB with what it reads through
internal  hashes: 64 KiB used
";
        assert_eq!(render(&head()), expected);
        let deleting = render(&snapshot());
        assert!(deleting.contains("deletion  1 MiB left; it can be cancelled\n"), "{deleting}");
    }
}
