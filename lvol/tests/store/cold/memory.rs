//! The bound on the memory of maps that nobody uses, while more lvols are used one after the other than fit.

use std::collections::BTreeMap;

use lvol::{CreateLvol, FormatOptions, Store};
use reactor::simulated::Random;
use uuid::Uuid;

use super::cool;
use crate::rig::{Rig, disk, id, lvol, open, options, read, stamped, unmap, write};

const LVOLS: u128 = 40;

/// Maps of clusters as large as these take much, however little is in them.
const CLUSTER: u64 = 128 << 10;

/// Clusters that a piece of a map is for: one write in each makes the map as large as it can be.
const STRIDE: u64 = 4096;

/// Places that each lvol has.
const PLACES: u64 = 8;

/// Bytes of maps that nobody uses.
const LIMIT: u64 = 64 << 10;

fn wide(number: u128) -> CreateLvol {
    lvol(number, PLACES * STRIDE * CLUSTER)
}

/// The store, with what was last written to each place of each lvol.
struct Work {
    store: Store,
    stamps: BTreeMap<(Uuid, u64), u64>,
    random: Random,
    /// The most that one map takes.
    largest: u64,
}

impl Work {
    async fn new(seed: u64) -> Self {
        let store = open().await;
        store.limit_unused_maps(LIMIT);
        let mut work = Self { store, stamps: BTreeMap::new(), random: Random::new(seed), largest: 0 };
        for number in 1..=LVOLS {
            work.store.create(&wide(number)).await.expect("created");
            for place in 0..PLACES {
                work.write(id(number), place).await;
            }
            if number == 1 {
                cool(&work.store).await;
                let lvol = work.store.open_lvol(id(1)).await.expect("opened");
                work.largest = work.store.info().map_bytes;
                drop(lvol);
            }
            work.check_bound();
        }
        assert!(work.largest * LVOLS as u64 > 4 * LIMIT, "they all fit");
        work
    }

    async fn write(&mut self, uuid: Uuid, place: u64) {
        let lvol = self.store.open_lvol(uuid).await.expect("opened");
        let stamp = self.random.next_u64();
        write(&lvol, place * STRIDE * CLUSTER, stamped(stamp, 4096)).await.expect("written");
        self.stamps.insert((uuid, place), stamp);
    }

    /// One lvol is open at a time; what is made room for is what comes in.
    fn check_bound(&self) {
        let info = self.store.info();
        let most = LIMIT + 2 * self.largest.max(16 << 10);
        assert!(info.map_bytes <= most, "{} bytes of {} maps are in memory", info.map_bytes, info.maps_in_memory);
    }

    async fn step(&mut self) {
        let (uuid, place) = (id(1 + u128::from(self.random.below(LVOLS as u64))), self.random.below(PLACES));
        match self.random.below(10) {
            0..=4 => {
                let lvol = self.store.open_lvol(uuid).await.expect("opened");
                let found = read(&lvol, place * STRIDE * CLUSTER, 4096).await.expect("read");
                assert!(found == stamped(self.stamps[&(uuid, place)], 4096)[..], "{uuid} reads wrong at {place}");
            }
            5..=8 => self.write(uuid, place).await,
            _ => {
                let lvol = self.store.open_lvol(uuid).await.expect("opened");
                unmap(&lvol, place * STRIDE * CLUSTER, CLUSTER).await.expect("unmapped");
                self.stamps.insert((uuid, place), 0);
            }
        }
        self.check_bound();
    }
}

fn formatted(seed: u64) -> Rig {
    let rig = Rig::with_disk(seed, 128 << 20, 512);
    rig.run(async {
        let options = FormatOptions { cluster_size: CLUSTER as u32, ..options() };
        Store::format(&disk(), &options).await.expect("formatted");
    });
    rig
}

#[test]
fn unused_maps_stay_within_their_limit_while_more_lvols_are_used_than_fit() {
    let rig = formatted(91);
    rig.run(async {
        let mut work = Work::new(91).await;
        for _ in 0..3000 {
            work.step().await;
        }
        // What is used counts besides, whatever it takes, and stays.
        let mut held = Vec::new();
        for number in 1..=LVOLS {
            held.push(work.store.open_lvol(id(number)).await.expect("opened"));
        }
        let info = work.store.info();
        assert_eq!(info.maps_in_memory as u128, LVOLS);
        assert!(info.map_bytes > 2 * LIMIT);
        drop(held);
        for _ in 0..100 {
            work.step().await;
        }
        cool(&work.store).await;
        assert_eq!((work.store.info().maps_in_memory, work.store.info().map_bytes), (0, 0));
        work.store.close().await.expect("closed");
    });
}
