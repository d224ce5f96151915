//! A load on a block device, on the reactor of the device: no network, no task for an I/O.

use std::future::poll_fn;
use std::ops::Range;
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::Context;
use block_device::{BlockDevice, Buffer, Completions, Outcome, Reply, Request, Slice};
use nvmf_initiator::load::Histogram;
use reactor::simulated::Random;

/// Bytes of an I/O.
pub(super) const BLOCK: u64 = 4096;

/// Runs before each measurement, so that nobody is measured cold.
pub(super) const WARM_UP: Duration = Duration::from_millis(300);

/// What is done.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) writes: bool,
    /// In bytes.
    pub(crate) region: Range<u64>,
    pub(crate) depth: usize,
    pub(crate) time: Duration,
}

/// What came of it.
pub(super) struct Reached {
    pub(super) latency: Histogram,
    pub(super) elapsed: Duration,
}

impl Reached {
    pub(super) fn iops(&self) -> f64 {
        self.latency.count() as f64 / self.elapsed.as_secs_f64()
    }

    /// The longest latency in milliseconds.
    pub(super) fn longest_ms(&self) -> f64 {
        self.latency.max() as f64 / 1e6
    }
}

/// Random reads or writes of 4 KiB for some time, after a short warm-up.
pub(super) async fn warmed(device: &dyn BlockDevice, load: &Load) -> anyhow::Result<Reached> {
    random(device, &Load { time: WARM_UP.min(load.time), ..load.clone() }).await?;
    random(device, load).await
}

/// Random reads or writes of 4 KiB for some time.
pub(super) async fn random(device: &dyn BlockDevice, load: &Load) -> anyhow::Result<Reached> {
    let blocks = (load.region.end - load.region.start) / BLOCK;
    let mut random = Random::new(reactor::random());
    let data = incompressible(BLOCK as usize, &mut random);
    let mut next = || {
        let offset = load.region.start + random.below(blocks) * BLOCK;
        if load.writes { Request::write(offset, data.clone()) } else { Request::read(offset, BLOCK) }
    };
    let start = Instant::now();
    let end = start + load.time;
    let mut latency = Histogram::default();
    drive(device, load.depth, |done, now| {
        if let Some(begun) = done {
            latency.record(nanoseconds(now - begun));
        }
        (now < end).then(&mut next)
    })
    .await?;
    Ok(Reached { latency, elapsed: start.elapsed() })
}

/// Writes all of a region once, in order, in pieces of `size` bytes.
pub(super) async fn fill(device: &dyn BlockDevice, region: Range<u64>, size: u64) -> anyhow::Result<()> {
    let data = incompressible(size as usize, &mut Random::new(1));
    let mut offsets = region.step_by(size as usize);
    drive(device, 8, |_, _| offsets.next().map(|offset| Request::write(offset, data.clone()))).await
}

/// Writes one block, or data, at each of these places, in their order.
pub(super) async fn write_at(
    device: &dyn BlockDevice,
    offsets: impl IntoIterator<Item = u64>,
    data: &Slice,
    depth: usize,
) -> anyhow::Result<()> {
    let mut offsets = offsets.into_iter();
    drive(device, depth, |_, _| offsets.next().map(|offset| Request::write(offset, data.clone()))).await
}

/// Reads one block at each of these places.
pub(super) async fn read_at(device: &dyn BlockDevice, offsets: impl IntoIterator<Item = u64>) -> anyhow::Result<()> {
    let mut offsets = offsets.into_iter();
    drive(device, 32, |_, _| offsets.next().map(|offset| Request::read(offset, BLOCK))).await
}

/// Makes everything durable.
pub(super) async fn flush(device: &dyn BlockDevice) -> anyhow::Result<()> {
    block_device::execute(device, Request::Flush).await.map(drop).context("a flush failed")
}

/// Bytes that no disk makes less of.
pub(crate) fn incompressible(length: usize, random: &mut Random) -> Slice {
    let mut data = Buffer::new(length);
    data.chunks_mut(8).for_each(|bytes| {
        let word = random.next_u64().to_le_bytes();
        bytes.copy_from_slice(&word[..bytes.len()]);
    });
    data.freeze()
}

/// Keeps `depth` requests in flight until `next` has no more. It is told when the request that was there before began.
async fn drive(
    device: &dyn BlockDevice,
    depth: usize,
    mut next: impl FnMut(Option<Instant>, Instant) -> Option<Request>,
) -> anyhow::Result<()> {
    let completions = Completions::new();
    let mut begun = vec![Instant::now(); depth];
    let mut in_flight = 0;
    let submit = |slot: usize, request: Request| device.submit(request, Reply::new(completions.clone(), slot as u64));
    let now = Instant::now();
    for (slot, begun) in begun.iter_mut().enumerate() {
        let Some(request) = next(None, now) else { break };
        *begun = now;
        in_flight += 1;
        submit(slot, request);
    }
    let mut done: Vec<(u64, Outcome)> = Vec::new();
    while in_flight > 0 {
        let mut waited = false;
        poll_fn(|context| {
            let poll = completions.poll_ready(context);
            waited |= poll.is_pending();
            poll
        })
        .await;
        if !waited {
            // What answers at once must not keep others from running: the store's own tasks, say.
            reactor::yield_now().await;
        }
        completions.take(&mut done);
        let now = Instant::now();
        for (slot, outcome) in done.drain(..) {
            outcome.context("an I/O failed")?;
            let slot = slot as usize;
            in_flight -= 1;
            if let Some(request) = next(Some(begun[slot]), now) {
                begun[slot] = now;
                in_flight += 1;
                submit(slot, request);
            }
        }
    }
    Ok(())
}

/// Submits these requests together and waits for all.
pub(super) async fn batch(device: &dyn BlockDevice, requests: Vec<Request>) -> anyhow::Result<()> {
    let depth = requests.len();
    let mut requests = requests.into_iter();
    drive(device, depth, |_, _| requests.next()).await
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Runs two futures in one task and waits for both.
pub(super) async fn beside<A, B>(first: impl Future<Output = A>, second: impl Future<Output = B>) -> (A, B) {
    let (mut first, mut second) = (std::pin::pin!(first), std::pin::pin!(second));
    let (mut one, mut two) = (None, None);
    poll_fn(|context| {
        if one.is_none()
            && let Poll::Ready(value) = first.as_mut().poll(context)
        {
            one = Some(value);
        }
        if two.is_none()
            && let Poll::Ready(value) = second.as_mut().poll(context)
        {
            two = Some(value);
        }
        if one.is_some() && two.is_some() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    // Both are there: that is what was waited for.
    (one.expect("ready"), two.expect("ready"))
}
