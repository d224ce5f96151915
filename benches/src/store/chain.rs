//! Random reads of a head that reads through 249 snapshots, against one without any.

use std::rc::Rc;

use anyhow::Context;
use lvol::{Lvol, Store};
use reactor::Disk;
use reactor::simulated::Random;

use super::Plan;
use super::load::{self, Load};
use super::rig::{self, CLUSTER, GIB, MIB};
use crate::report::{Row, Target, median};

const DEPTH: usize = 32;

/// Lvols in a chain, the head included.
const CHAIN: u64 = 250;

/// The numbers of the heads, and the first of their snapshots.
const ALONE: u64 = 1;
const SPREAD: u64 = 1000;
const BOTTOM: u64 = 2000;

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<Vec<Row>> {
    let size = GIB / plan.scale;
    let disk = rig::written_file(&plan.folder.join("chain"), total(size)).await?;
    let mut rows = measure_on(plan, disk, size, "file").await?;
    // More than caches hold, less than three of them take of a small machine.
    let size = 512 * MIB / plan.scale;
    let disk = Disk::memory(total(size)).context("no memory")?;
    rows.extend(measure_on(plan, disk, size, "memory").await?);
    Ok(rows)
}

/// Bytes for three lvols, and the metadata of all their snapshots.
fn total(size: u64) -> u64 {
    3 * size + GIB
}

async fn measure_on(plan: &Plan, disk: Disk, size: u64, backing: &str) -> anyhow::Result<Vec<Row>> {
    let store = rig::format(&disk).await?;
    let contestants = [alone(&store, size).await?, spread(&store, size).await?, all_at_the_bottom(&store, size).await?];
    let load = Load { writes: false, region: 0..size, depth: DEPTH, time: plan.time };
    let mut samples = vec![Vec::new(); contestants.len()];
    for _ in 0..plan.repeat {
        for (lvol, samples) in contestants.iter().zip(&mut samples) {
            samples.push(load::warmed(&**lvol, &load).await?.iops());
        }
    }
    let alone = median(&samples[0]);
    let places = ["blocks all over the chain", "all blocks in the oldest"];
    let rows = places.iter().zip(&samples[1..]).map(|(place, samples)| {
        let case = format!("random 4 KiB read, chain of {CHAIN}, against one, {backing}");
        Row::compared(case, "IOPS", median(samples), alone)
            .target(Target::RatioAtLeast(0.85))
            .note(format!("depth {DEPTH}, {place}"))
    });
    Ok(rows.collect())
}

async fn alone(store: &Store, size: u64) -> anyhow::Result<Rc<Lvol>> {
    let lvol = rig::create(store, ALONE, size).await?;
    load::fill(&*lvol, 0..size, MIB).await?;
    Ok(lvol)
}

/// Bytes that come to lie together in a chain whose blocks are spread: whole clusters, so that the space is that of one lvol.
const PIECE: u64 = 4 * CLUSTER;

/// Each lvol of the chain has its share of the pieces.
async fn spread(store: &Store, size: u64) -> anyhow::Result<Rc<Lvol>> {
    let lvol = rig::create(store, SPREAD, size).await?;
    let mut pieces: Vec<u64> = (0..size).step_by(PIECE as usize).collect();
    let mut random = Random::new(1);
    for place in (1..pieces.len()).rev() {
        pieces.swap(place, random.index(place + 1));
    }
    let data = load::incompressible(PIECE as usize, &mut random);
    let share = pieces.len().div_ceil(CHAIN as usize);
    let mut shares = pieces.chunks(share);
    for number in 1..=CHAIN {
        load::write_at(&*lvol, shares.next().unwrap_or_default().iter().copied(), &data, 4).await?;
        if number < CHAIN {
            rig::snapshot(store, SPREAD, SPREAD + number).await?;
        }
    }
    Ok(lvol)
}

async fn all_at_the_bottom(store: &Store, size: u64) -> anyhow::Result<Rc<Lvol>> {
    let lvol = rig::create(store, BOTTOM, size).await?;
    load::fill(&*lvol, 0..size, MIB).await?;
    for number in 1..CHAIN {
        rig::snapshot(store, BOTTOM, BOTTOM + number).await?;
    }
    Ok(lvol)
}
