use proptest::prelude::*;

use super::*;
use crate::format::layout::{Layout, Region};
use crate::format::page::{MapPages, PageContext};

// Under Miri one of each width of entries: the largest take minutes there.
const SIZES: &[u32] = if cfg!(miri) { &[64 << 10, 128 << 10] } else { &[16 << 10, 64 << 10, 128 << 10, 4 << 20] };

fn map(cluster_size: u32) -> Map {
    Map::new(1, Shape::new(cluster_size))
}

const CONTEXT: PageContext = PageContext { format_id: [4; 16], checkpoint: 6 };

/// The pages of a map, as a checkpoint has them.
fn pages_of(map: &Map) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut pages = MapPages::new(CONTEXT, 1, map.shape().words(), 0, &mut bytes);
    let (mut leaf, mut counts) = (0, Counts::default());
    while let Some(put) = map.put_leaf(leaf, &mut pages, &mut counts) {
        leaf = put + 1;
    }
    pages.finish();
    assert_eq!(counts, map.counts());
    bytes
}

/// A map from its pages, on a disk of this many clusters.
fn take_all(bytes: &[u8], cluster_size: u32, clusters: u64) -> Result<Map, Inconsistent> {
    let layout = Layout { cluster_size, first_cluster: 1, clusters: clusters - 1, ..LAYOUT };
    let mut loader = Loader::new(1, &layout, true);
    let mut claimed = 0;
    for (page, address) in bytes.chunks(4096).zip((0..).step_by(4096)) {
        loader.take(CONTEXT.open_map(page, address).expect("just encoded"), |_| claimed += 1)?;
    }
    assert_eq!(loader.seen().1.clusters, claimed);
    Ok(loader.into_map().expect("wanted"))
}

const LAYOUT: Layout = Layout {
    size: 0,
    cluster_size: 0,
    journal: Region { offset: 0, length: 0 },
    areas: [Region { offset: 0, length: 0 }; 2],
    first_cluster: 1,
    clusters: 0,
};

fn loaded(map: &Map, cluster_size: u32) -> Result<Map, Inconsistent> {
    take_all(&pages_of(map), cluster_size, 1 << 32)
}

#[test]
fn an_entry_of_64_kib_fits_in_eight_bytes() {
    assert_eq!(Shape::new(64 << 10).words(), 1);
    assert_eq!(Shape::new(128 << 10).words(), 2);
    assert_eq!(Shape::new(4 << 20).words(), 17);
}

#[test]
fn what_was_set_is_held_and_the_rest_is_not() {
    for &size in SIZES {
        let map = map(size);
        let blocks = map.shape().blocks();
        map.set(70, 900, 1, blocks - 2, &mut Vec::new());
        assert_eq!(map.run(70, 0, blocks), Run { held: Held::Nothing, count: 1 });
        assert_eq!(map.run(70, 1, blocks - 1), Run { held: Held::Data(900), count: blocks - 2 });
        assert_eq!(map.run(70, blocks - 1, 1), Run { held: Held::Nothing, count: 1 });
        assert_eq!(map.run(69, 0, blocks), Run { held: Held::Nothing, count: blocks });
        assert_eq!((map.next_used(0), map.next_used(127), map.next_used(128)), (Some(64), Some(127), None));
    }
}

#[test]
fn a_cluster_is_freed_when_its_last_block_goes() {
    let map = map(64 << 10);
    let mut freed = Vec::new();
    map.set(3, 900, 0, 16, &mut freed);
    map.clear(3 * 16, 15, &mut freed);
    assert_eq!((freed.as_slice(), map.counts().clusters), ([].as_slice(), 1));
    map.clear(3 * 16 + 15, 1, &mut freed);
    assert_eq!(
        (freed.as_slice(), map.counts().clusters, map.shape().checkpoint_bytes(map.counts())),
        ([900].as_slice(), 0, 0)
    );
}

#[test]
fn zeroes_replace_a_cluster_and_whole_leaves_cost_nothing_more() {
    let map = map(64 << 10);
    let mut freed = Vec::new();
    map.set(64, 900, 0, 16, &mut freed);
    map.zero(0, 1 << 20, &mut freed);
    assert_eq!(freed, [900]);
    assert_eq!(map.kind(64), Held::Zero);
    assert_eq!(map.shape().checkpoint_bytes(map.counts()), (1 << 20) / 16 / 64 * 16);
    map.set(64, 901, 2, 1, &mut freed);
    assert_eq!(map.run(64, 2, 14), Run { held: Held::Data(901), count: 1 });
    assert_eq!(map.run(65, 0, 16), Run { held: Held::Zero, count: 16 });
}

/// All entries of an all-zero leaf count at once; whichever of them goes first, the counts stay true.
#[test]
fn an_entry_of_an_all_zero_leaf_can_become_empty() {
    for &size in SIZES {
        let map = map(size);
        let blocks = u64::from(map.shape().blocks());
        map.zero(0, u64::from(LEAF) * blocks, &mut Vec::new());
        for cleared in 1..=LEAF {
            map.clear(u64::from(cleared - 1) * blocks, blocks, &mut Vec::new());
            let entries = u64::from(LEAF - cleared);
            let segment = if entries == 0 { 0 } else { 16 + entries * map.shape().words() as u64 * 8 };
            assert_eq!(map.shape().checkpoint_bytes(map.counts()), segment);
        }
    }
}

#[test]
fn segments_rebuild_the_map() {
    for &size in SIZES {
        let first = map(size);
        let blocks = u64::from(first.shape().blocks());
        for index in [0, 1, 63, 64, 4095, 4096, 100_000] {
            first.set(index, 1000 + u64::from(index), index % 4, 1, &mut Vec::new());
        }
        first.zero(200 * blocks, 64 * blocks, &mut Vec::new());
        let second = loaded(&first, size).expect("good pages");
        assert_eq!(second.counts(), first.counts());
        assert_eq!((second.counts().clusters, second.heap_bytes()), (7, first.heap_bytes()));
        for index in (0..300).chain([4095, 4096, 100_000]) {
            assert_eq!(second.run(index, index % 4, 1), first.run(index, index % 4, 1));
        }
    }
}

/// What the map says it takes, counted anew.
fn all_bytes(map: &Map) -> u64 {
    map.table.borrow().nodes.iter().map(Node::all_bytes).sum()
}

/// Entries come and go in any order, until a node has all of them and none: it changes its form, and says the same.
#[test]
#[cfg_attr(miri, ignore = "takes minutes there")]
fn a_node_holds_the_same_in_each_of_its_forms() {
    let mut random = 1u64;
    let mut below = |limit: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % limit
    };
    for in_order in [true, false] {
        let map = map(64 << 10);
        let mut model = vec![0u64; 3 * 4096];
        let mut places: Vec<usize> = (0..4096).collect();
        if !in_order {
            (1..places.len()).rev().for_each(|at| places.swap(at, below(at + 1)));
        }
        for (number, &place) in places.iter().enumerate() {
            let (index, cluster) = (4096 + place, 100 + place as u64);
            map.set(index as u32, cluster, 0, if in_order { 16 } else { 1 }, &mut Vec::new());
            model[index] = cluster;
            if number % 5 == 0 && !in_order {
                let gone = below(model.len());
                let mut freed = Vec::new();
                map.clear(gone as u64 * 16, 16, &mut freed);
                assert_eq!(freed, Vec::from_iter((model[gone] != 0).then_some(model[gone])));
                model[gone] = 0;
            }
            if number % 256 == 255 {
                assert_eq!(map.table.borrow().heap, all_bytes(&map), "{number}");
                let again = loaded(&map, 64 << 10).expect("good pages");
                assert!(again.heap_bytes() <= map.heap_bytes(), "{number}");
                for map in [&map, &again] {
                    let held = |cluster: u64| if cluster == 0 { Held::Nothing } else { Held::Data(cluster) };
                    (0..).zip(&model).for_each(|(index, cluster)| assert_eq!(map.kind(index), held(*cluster)));
                    let mut clusters = Vec::new();
                    map.each_cluster(|cluster| clusters.push(cluster));
                    assert!(clusters.iter().eq(model.iter().filter(|cluster| **cluster != 0)));
                    assert_eq!(map.counts().clusters as usize, clusters.len());
                    let next =
                        (0..).zip(&model).filter(|(_, cluster)| **cluster != 0).map(|(index, _)| index / 64 * 64);
                    assert_eq!(map.next_used(0), next.min());
                }
            }
        }
        map.clear(0, 3 * 4096 * 16, &mut Vec::new());
        assert_eq!((map.counts(), map.next_used(0)), (Counts::default(), None));
    }
}

/// MiB of memory for a TiB mapped, one cluster of each `stride`, with nothing in a row and no cluster whole.
fn scattered(cluster_size: u32, stride: u32) -> u64 {
    let count = 16384;
    let map = map(cluster_size);
    for number in 0..count {
        map.set(number * stride, 1 + u64::from(2 * number), 0, 1, &mut Vec::new());
    }
    // The root grows ahead: that is of the size of the lvol, not of what is mapped.
    let bytes = map.table.borrow().heap;
    (bytes * ((1 << 40) / u64::from(cluster_size)) / u64::from(count)) >> 20
}

/// The figures of docs/on-disk-format.md.
#[test]
#[cfg_attr(miri, ignore = "takes minutes there")]
fn a_map_takes_little_however_thinly_it_is_scattered() {
    let found = [1, 2, 4, 8, 16, 64, 4096].map(|stride| scattered(64 << 10, stride));
    assert_eq!(found, [106, 112, 112, 113, 115, 124, 768]);
    let large = [1, 64].map(|stride| scattered(1 << 20, stride));
    assert_eq!(large, [40, 2600]);
}

#[test]
fn entries_that_cannot_be_are_refused() {
    let load = |size: u32, words: Vec<u64>| {
        let mut bytes = Vec::new();
        let mut pages = MapPages::new(CONTEXT, 1, words.len(), 0, &mut bytes);
        pages.put_entries(0, 1, &words);
        pages.finish();
        take_all(&bytes, size, 100).is_ok()
    };
    assert!(load(64 << 10, vec![99 << 16 | 1]));
    assert!(!load(64 << 10, vec![100 << 16 | 1]));
    assert!(!load(64 << 10, vec![0]));
    assert!(!load(64 << 10, vec![99 << 16 | 1, 1]));
    assert!(!load(16 << 10, vec![99 << 16 | 0x10]));
    assert!(load(128 << 10, vec![99 << 16, 0xffff_ffff]));
    assert!(!load(128 << 10, vec![99 << 16, 1 << 32]));
    assert!(!load(128 << 10, vec![99 << 16 | 1, 1]));
}

/// What the model knows of a block.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Model {
    Nothing,
    Zero,
    Data(u64),
}

#[derive(Clone, Debug)]
enum Step {
    Set { index: u32, first: u32, count: u32 },
    Clear { first: u64, count: u64 },
    ZeroClusters { index: u32, count: u32 },
}

fn step(blocks: u32) -> impl Strategy<Value = Step> {
    let clusters = 200u32;
    prop_oneof![
        (0..clusters, 0..blocks, 1..=blocks).prop_map(move |(index, first, count)| Step::Set {
            index,
            first,
            count: count.min(blocks - first)
        }),
        (0..u64::from(clusters * blocks), 1..u64::from(blocks * 80))
            .prop_map(|(first, count)| Step::Clear { first, count }),
        (0..clusters, 1..150u32).prop_map(|(index, count)| Step::ZeroClusters { index, count }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    #[cfg_attr(miri, ignore = "takes minutes there")]
    fn a_map_does_what_a_plain_list_of_blocks_does(steps in prop::collection::vec(step(16), 1..60)) {
        let map = map(64 << 10);
        let mut model = vec![Model::Nothing; 400 * 16];
        let mut next = 1000;
        for step in steps {
            let mut freed = Vec::new();
            match step {
                Step::Set { index, first, count } => {
                    let start = index as usize * 16;
                    let cluster = match map.kind(index) {
                        Held::Data(cluster) => cluster,
                        _ => { next += 1; next }
                    };
                    // Zeroes of the entry are written into the new cluster first, as the store does.
                    if map.kind(index) == Held::Zero {
                        for block in 0..16 {
                            if model[start + block] == Model::Zero { model[start + block] = Model::Data(cluster); }
                        }
                        let set: Vec<u32> = (0..16).filter(|&block| model[start + block as usize] == Model::Data(cluster)).collect();
                        for block in set { map.set(index, cluster, block, 1, &mut freed); }
                    }
                    map.set(index, cluster, first, count, &mut freed);
                    model[start + first as usize..start + (first + count) as usize].fill(Model::Data(cluster));
                }
                Step::Clear { first, count } => {
                    map.clear(first, count, &mut freed);
                    let end = model.len().min((first + count) as usize);
                    model[(first as usize).min(end)..end].fill(Model::Nothing);
                }
                Step::ZeroClusters { index, count } => {
                    map.zero(u64::from(index) * 16, u64::from(count) * 16, &mut freed);
                    model[index as usize * 16..(index + count) as usize * 16].fill(Model::Zero);
                }
            }
            let mut clusters: Vec<u64> = model.iter().filter_map(|block| match block { Model::Data(cluster) => Some(*cluster), _ => None }).collect();
            clusters.dedup();
            prop_assert_eq!(map.counts().clusters, clusters.len() as u32);
            for cluster in freed { prop_assert!(!clusters.contains(&cluster)); }
        }
        for (at, expected) in model.iter().enumerate() {
            let run = map.run(at as u32 / 16, at as u32 % 16, 1);
            let expected = match expected { Model::Nothing => Held::Nothing, Model::Zero => Held::Zero, Model::Data(cluster) => Held::Data(*cluster) };
            prop_assert_eq!(run.held, expected);
        }
        prop_assert_eq!(map.table.borrow().heap, all_bytes(&map));
        let again = loaded(&map, 64 << 10).expect("good pages");
        prop_assert_eq!(again.counts(), map.counts());
        prop_assert_eq!(again.table.borrow().heap, all_bytes(&again));
        for at in 0..model.len() as u32 {
            prop_assert_eq!(again.run(at / 16, at % 16, 1), map.run(at / 16, at % 16, 1));
        }
    }
}
