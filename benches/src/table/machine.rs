//! What the machine's memory and processor do by themselves: copies and checksums, to see what figures of the path are made of.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crc_fast::{CrcAlgorithm, checksum};
use reactor::Buffer;

use super::Plan;
use crate::contestant::{SERVER_CORE, config};
use crate::report::{Row, median};
use crate::thread::block_on;

/// Bytes of a piece: a block.
const PIECE: usize = 4096;

/// Bytes that no cache holds: as much as the memory volumes have.
const LARGE: usize = 512 << 20;

/// Pieces between two looks at the clock.
const AT_ONCE: usize = 1024;

/// A step through the pieces of the large memory that comes to all of them, and to no two neighbours after each other.
const STEP: usize = 7919;

pub(super) fn measure(plan: &Plan) -> anyhow::Result<Vec<Row>> {
    let (time, repeat) = (plan.time, plan.repeat);
    // On the core that servers have, with nothing else on it.
    let reactor = reactor::Reactor::start(config("machine", SERVER_CORE))?;
    let figures = block_on(reactor.handle().call(move || async move { rates(time, repeat) }))?;
    let row =
        |(case, rate): (&str, f64)| Row::alone(case, "GB/s", rate).note(format!("{:.0} ns each", PIECE as f64 / rate));
    Ok(figures.into_iter().map(row).collect())
}

/// Bytes in a nanosecond, which are GB in a second.
fn rates(time: Duration, repeat: usize) -> Vec<(&'static str, f64)> {
    let (mut to, from) = (Buffer::zeroed(PIECE), Buffer::zeroed(PIECE));
    // Written, so that each page is there.
    let large = vec![0x5a_u8; LARGE];
    let piece = |number: usize| {
        let start = number * STEP % (LARGE / PIECE) * PIECE;
        &large[start..start + PIECE]
    };
    let mut cached = Vec::new();
    let mut cold = Vec::new();
    let mut digest = Vec::new();
    for _ in 0..repeat {
        cached.push(rate(time, |_| to.copy_from_slice(black_box(&from))));
        cold.push(rate(time, |number| to.copy_from_slice(black_box(piece(number)))));
        digest.push(rate(time, |_| {
            black_box(checksum(CrcAlgorithm::Crc32Iscsi, black_box(&from)));
        }));
    }
    vec![
        ("memcpy of 4 KiB, in the cache", median(&cached)),
        ("memcpy of 4 KiB, from anywhere in 512 MiB", median(&cold)),
        ("CRC-32C of 4 KiB, in the cache", median(&digest)),
    ]
}

fn rate(time: Duration, mut work: impl FnMut(usize)) -> f64 {
    let (start, mut done) = (Instant::now(), 0_usize);
    while start.elapsed() < time {
        (done..done + AT_ONCE).for_each(&mut work);
        done += AT_ONCE;
    }
    (done * PIECE) as f64 / start.elapsed().as_nanos() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_of_the_large_memory_has_its_turn() {
        let pieces = LARGE / PIECE;
        let mut seen = vec![false; pieces];
        (0..pieces).for_each(|number| seen[number * STEP % pieces] = true);
        assert!(seen.into_iter().all(|seen| seen));
    }

    #[test]
    fn all_rates_are_measured() {
        let rates = rates(Duration::from_millis(1), 1);
        assert!(rates.len() == 3 && rates.iter().all(|(_, rate)| *rate > 0.0), "{rates:?}");
    }
}
