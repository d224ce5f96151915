//! Comparing the data of snapshots with the hashes that the store has of it.

use std::ops::Range;

use reactor::Disk;
use uuid::Uuid;

use super::export::Part;
use super::findings::{Finding, Remedy, Severity, Structure};
use super::ranges::Ranges;
use super::reader::Reader;
use super::state::State;
use crate::format::BLOCK;
use crate::hashes::{REGION, hash, is_immutable, values_of};
use crate::info::Role;

/// What came of one snapshot.
#[derive(Default)]
struct Compared {
    regions: u64,
    bad: Ranges,
}

/// Reads all regions of all snapshots that have a value, as a scrub does. What cannot be read at all is told of elsewhere.
pub(super) async fn check_hashes(disk: &Disk, state: &mut State) {
    let mut found = Vec::new();
    let (mut regions, mut snapshots, mut others) = (0, 0, 0);
    for (uuid, known) in state.lvols.iter().filter(|(_, known)| is_immutable(&known.record)) {
        let compared = compare(disk, state, *uuid).await;
        regions += compared.regions;
        if compared.regions > 0 {
            snapshots += 1
        } else {
            others += 1
        }
        let unknown: Vec<Range<u64>> = compared.bad.below(known.record.size).collect();
        if !unknown.is_empty() {
            let text = "it does not read as its hashes say: the disk changed it, or some of what it reads through";
            let what = "scrub the store (ashlar store scrub), which keeps wrong bytes from being served, and replace the replica";
            let remedy = Remedy::Impossible(what.to_owned());
            let finding = Finding::new(Severity::Error, Structure::Data, text, remedy).of(*uuid);
            found.push(Finding { unknown, ..finding });
        }
    }
    if snapshots + others > 0 {
        let text =
            format!("{regions} regions of {snapshots} snapshots were compared with their hashes; {others} have none");
        found.push(Finding::new(Severity::Note, Structure::Data, text, Remedy::Nothing));
    }
    state.findings.append(&mut found);
}

async fn compare(disk: &Disk, state: &State, snapshot: Uuid) -> Compared {
    let mut compared = Compared::default();
    let is_table = |uuid: &&Uuid| {
        let internal = state.lvols[*uuid].record.internal;
        internal.is_some_and(|internal| internal.owner == snapshot && internal.role == Role::Hashes)
    };
    let Some(table) = state.lvols.keys().find(is_table) else { return compared };
    let (chain, size) = (state.chain(snapshot), state.lvols[&snapshot].record.size);
    let end_reason = state.chain_end(&chain);
    let data = Reader { disk, state, chain: &chain, size, end_reason: end_reason.as_deref() };
    let table_size = state.lvols[table].record.size;
    let values = Reader { disk, state, chain: &[*table], size: table_size, end_reason: None };
    let mut at = 0;
    while at < table_size {
        let (part, end) = values.part(at, table_size).await;
        if let Part::Data(part) = part {
            for (address, block) in (part.offset..).step_by(BLOCK as usize).zip(part.bytes.chunks_exact(BLOCK as usize))
            {
                for (region, value) in values_of(block, snapshot, address) {
                    let range = (region * REGION).min(size)..((region + 1) * REGION).min(size);
                    if let Some(content) = content(&data, range.clone()).await {
                        compared.regions += 1;
                        if hash(&content) != value {
                            compared.bad.insert(range);
                        }
                    }
                }
            }
        }
        at = end;
    }
    compared
}

/// What a range reads as; none if some of it is not known, or there is nothing.
async fn content(reader: &Reader<'_>, range: Range<u64>) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let (part, end) = reader.part(at, range.end).await;
        match part {
            Part::Data(data) => content.extend(data.bytes),
            Part::Zeroes(zeroes) => content.resize(content.len() + (zeroes.end - zeroes.start) as usize, 0),
            Part::Unknown(..) => return None,
        }
        at = end;
    }
    (!range.is_empty()).then_some(content)
}
