//! Which maps are in memory: those that someone uses, and for a while those that someone did.
//!
//! A map that is needed and is not here is read from the last checkpoint. When nobody uses it any more, and a checkpoint has what
//! changed in it, it goes: some time later, so that whoever opens an lvol again and again does not read its map each time, but at
//! once when too many wait for that.

use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::time::Duration;

use reactor::{now, timeout};
use tokio::sync::{Mutex, Notify};

use crate::catalog::Catalog;
use crate::core::Core;
use crate::error::StoreError;
use crate::map::Map;
use crate::maps::Idle;
use crate::reading::read_map;

/// How long a map that nobody uses stays at least; at most twice as long, if a checkpoint has it.
const LINGER: Duration = Duration::from_secs(10);

/// Bytes of maps that nobody uses, unless a store has a limit of its own. When more than half of it only waits for a checkpoint, one is
/// written for its sake.
const MOST_UNUSED: u64 = 32 << 20;

/// Bytes of maps that went at once: with fewer, the allocator may keep them for what comes next.
const WORTH_GIVING_BACK: u64 = 8 << 20;

/// Brings maps in, and lets them go.
pub(crate) struct Residency {
    signal: Rc<Signal>,
    /// The most bytes of maps that nobody uses.
    most_unused: Cell<u64>,
    /// Bytes of maps that someone used the last time that they were counted, less those that somebody let go since: what takes
    /// more than this may be unused.
    used: Cell<u64>,
    /// One map is read at a time: by whoever comes first, for all who want it.
    loading: Mutex<()>,
}

#[derive(Default)]
struct Signal {
    /// Some map may not be needed any more.
    wanted: Cell<bool>,
    ended: Cell<bool>,
    changed: Notify,
}

impl Default for Residency {
    fn default() -> Self {
        let (signal, loading) = (Rc::default(), Mutex::default());
        Self { signal, most_unused: Cell::new(MOST_UNUSED), used: Cell::new(0), loading }
    }
}

impl Residency {
    /// Changes how many bytes of maps that nobody uses there are at most.
    pub(crate) fn limit(&self, bytes: u64) {
        self.most_unused.set(bytes);
    }

    /// Somebody let go of maps of so many bytes.
    pub(crate) fn let_go(&self, bytes: u64) {
        self.used.set(self.used.get().saturating_sub(bytes));
        self.look();
    }

    /// A checkpoint is done, which held maps that nobody else uses.
    pub(crate) fn count_anew(&self) {
        self.let_go(u64::MAX);
    }

    fn most_dirty(&self) -> u64 {
        self.most_unused.get() / 2
    }

    /// Some map may not be needed any more.
    pub(crate) fn look(&self) {
        if !self.signal.wanted.replace(true) {
            self.signal.changed.notify_one();
        }
    }

    /// Nothing will go any more.
    pub(crate) fn end(&self) {
        self.signal.ended.set(true);
        self.signal.changed.notify_one();
    }
}

impl Drop for Residency {
    fn drop(&mut self) {
        self.end();
    }
}

impl Catalog {
    /// Lets go of volumes that nobody has open, and of the maps that nobody uses then.
    fn release(&mut self, at_once: bool) -> Idle {
        for node in self.lvols.values_mut() {
            node.volume.take_if(|volume| Rc::strong_count(volume) == 1);
        }
        self.maps.release(at_once)
    }
}

impl Core {
    /// The maps that `which` names, in its order, in memory as long as they are held. It is asked again after each wait: what it says
    /// may have changed meanwhile.
    pub(crate) async fn hold_maps(
        self: &Rc<Self>,
        which: impl Fn(&Catalog) -> Result<Vec<u32>, StoreError>,
    ) -> Result<Vec<Rc<Map>>, StoreError> {
        self.make_room().await;
        let mut loaded = Vec::new();
        loop {
            let ids = which(&self.catalog.borrow())?;
            let held: Vec<Option<Rc<Map>>> = {
                let mut catalog = self.catalog.borrow_mut();
                ids.iter().map(|&id| catalog.maps.hold(id)).collect()
            };
            if held.iter().all(Option::is_some) {
                return Ok(held.into_iter().flatten().collect());
            }
            for (id, _) in ids.into_iter().zip(&held).filter(|(_, map)| map.is_none()) {
                loaded.extend(self.load_map(id, Partial::Refused).await?);
            }
        }
    }

    /// Brings the map of an lvol that is about to be deleted into memory: of a damaged one what there is.
    pub(crate) async fn hold_to_drop(&self, map: u32) -> Result<Option<Rc<Map>>, StoreError> {
        self.load_map(map, Partial::Taken).await
    }

    /// Reads a map; `None` if it is not there any more, or was found damaged.
    async fn load_map(&self, id: u32, partial: Partial) -> Result<Option<Rc<Map>>, StoreError> {
        let _one = self.residency.loading.lock().await;
        loop {
            if let map @ Some(_) = self.catalog.borrow_mut().maps.hold(id) {
                return Ok(map);
            }
            let Some(place) = self.catalog.borrow().maps.cold(id) else { return Ok(None) };
            let read = read_map(&self.disk, &self.layout(), self.format_id, id, place).await;
            let mut catalog = self.catalog.borrow_mut();
            if catalog.maps.cold(id) != Some(place) {
                // A checkpoint has it elsewhere now, and the next one may have been written over what was read.
                continue;
            }
            let (map, result) = read?;
            if let Err(error) = result {
                // I28: what is wrong with it is wrong on disk.
                catalog.maps.damage(id, error.0);
                self.damaged.set(true);
                if partial == Partial::Refused {
                    return Ok(None);
                }
            }
            catalog.maps.attach(id, map);
            return Ok(catalog.maps.hold(id));
        }
    }

    /// Before more maps come into memory: if more than the limit may be unused, those go, and if too many of them only wait for a
    /// checkpoint, so does the caller.
    async fn make_room(self: &Rc<Self>) {
        let most = self.residency.used.get().saturating_add(self.residency.most_unused.get());
        if self.catalog.borrow().maps.memory_bytes() <= most {
            return;
        }
        let idle = self.release_maps(true);
        // Without a checkpoint they stay: nobody goes without an lvol for that.
        if idle.dirty > self.residency.most_dirty() && self.checkpoint().await.is_ok() {
            self.release_maps(true);
        }
    }

    /// Lets go of what nobody uses.
    pub(crate) fn release_maps(&self, at_once: bool) -> Idle {
        let idle = self.catalog.borrow_mut().release(at_once);
        let left = self.catalog.borrow().maps.memory_bytes();
        self.residency.used.set(left - idle.clean - idle.dirty);
        if idle.gone >= WORTH_GIVING_BACK {
            reactor::give_back_freed_memory();
        }
        idle
    }
}

/// What to do with a map of which only a part can be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Partial {
    Refused,
    Taken,
}

/// Looks at the maps some time after someone stopped to use one. Holds the store only while it does something.
pub(crate) fn watch(core: &Rc<Core>) -> impl Future<Output = ()> + use<> {
    let signal = Rc::clone(&core.residency.signal);
    run(Rc::downgrade(core), signal)
}

async fn run(core: Weak<Core>, signal: Rc<Signal>) {
    while !signal.ended.get() {
        if !signal.wanted.get() {
            signal.changed.notified().await;
            continue;
        }
        let until = now() + LINGER;
        while !signal.ended.get() && now() < until {
            let _ = timeout(until.saturating_duration_since(now()), signal.changed.notified()).await;
        }
        let Some(core) = core.upgrade() else { return };
        signal.wanted.set(false);
        let idle = core.release_maps(false);
        let many_dirty = idle.dirty > core.residency.most_dirty();
        if many_dirty && core.check_running().is_ok() {
            core.start_checkpoint();
        }
        // Those that only wait for a checkpoint go after the next one, whoever it is written for.
        if idle.clean > 0 || many_dirty {
            signal.wanted.set(true);
        }
    }
}
