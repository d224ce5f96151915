//! What happens between a host and the export of its volume: limits, and connections that break.

use std::rc::Rc;

use block_device::Limits;

use super::Course;
use crate::cluster::volume::{Volume, Way};

impl Course<'_> {
    /// Limits are the volume's: they hold for the engines that follow, too.
    pub(super) fn limit(&self, number: usize, limits: Limits) {
        let volume = &self.cluster.volumes[&number];
        volume.limits.set(limits);
        self.on_the_way(volume, |volume, way| async move {
            if let Some((export, _)) = way.export {
                // Whatever they are by now: a process that is stopped does it later.
                export.set_limits(volume.limits.get());
            }
        });
    }

    /// The host comes back once everything that its old connection left with the engine is answered, as the frontends see to it (I16).
    ///
    /// The engine goes on, and so does what is being done to the volume: nobody could tell what of that the host still hears. So it happens
    /// while nothing is.
    pub(super) fn disconnect(&self, number: usize) {
        let volume = &self.cluster.volumes[&number];
        let Some(engine) = volume.engine.borrow().clone() else { return };
        if volume.acts.get() > 0 {
            return;
        }
        self.on_the_way(volume, |volume, way| {
            let node = Rc::clone(self.node(way.node));
            let path = volume.leave_path();
            volume.way.borrow_mut().take();
            async move {
                let Some((export, connection)) = way.export else { return };
                connection.cut();
                connection.drained().await;
                if volume.is_on(path) {
                    volume.note(format!("its host is connected again: path {path}"));
                    let is_replaced = node.replacement(&volume, &engine);
                    volume.use_way(node.way_through(&export), path, is_replaced);
                }
            }
        });
    }

    pub(super) fn abort(&self, number: usize) {
        self.on_the_way(&self.cluster.volumes[&number], |_, way| async move {
            if let Some((_, connection)) = way.export {
                connection.abort();
            }
        });
    }

    /// Does something where the host's way leads, if it has one.
    fn on_the_way<F>(&self, volume: &Rc<Volume>, act: impl FnOnce(Rc<Volume>, Way) -> F)
    where
        F: Future<Output = ()> + 'static,
    {
        let way = volume.way.borrow().clone();
        if let Some(way) = way.filter(|way| self.cluster.world.is_running(self.node(way.node).id)) {
            let node = self.node(way.node).id;
            self.cluster.world.spawn(node, act(Rc::clone(volume), way));
        }
    }
}
