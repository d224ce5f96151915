//! A namespace and the device behind it.

use std::cell::Cell;
use std::rc::Rc;

use block_device::{BlockDevice, Geometry};
use nvmf_target_protocol::target::subsystem::{BlockSize, Namespace};
use nvmf_target_protocol::wire::log_page::AnaState;

use crate::Identity;

/// A volume attached to a subsystem.
pub(crate) struct Attached {
    pub(crate) device: Rc<dyn BlockDevice>,
    identity: Identity,
    description: Cell<Namespace>,
    /// Requests that the device has and has not answered.
    pub(crate) in_flight: Cell<usize>,
}

impl Attached {
    pub(crate) fn new(device: Rc<dyn BlockDevice>, identity: Identity, ana_state: AnaState) -> Self {
        let description = Cell::new(describe(&device.geometry(), &identity, ana_state));
        Self { device, identity, description, in_flight: Cell::new(0) }
    }

    /// The namespace as hosts see it now.
    #[inline]
    pub(crate) fn description(&self) -> Namespace {
        self.description.get()
    }

    pub(crate) fn set_ana_state(&self, ana_state: AnaState) {
        self.description.set(Namespace { ana_state, ..self.description.get() });
    }

    /// Takes over the device's geometry; whether it changed.
    pub(crate) fn refresh(&self) -> bool {
        let before = self.description.get();
        let now = describe(&self.device.geometry(), &self.identity, before.ana_state);
        self.description.set(now);
        now != before
    }
}

fn describe(geometry: &Geometry, identity: &Identity, ana_state: AnaState) -> Namespace {
    let block_size = BlockSize::from_bytes(geometry.block_size).unwrap_or(BlockSize::B512);
    Namespace {
        blocks: geometry.blocks,
        block_size,
        nguid: identity.nguid,
        uuid: *identity.uuid.as_bytes(),
        // Devices do not say how much of them is in use: all of it, as far as a host can tell.
        used_blocks: geometry.blocks,
        atomic_blocks: (geometry.atomic_write / geometry.block_size).max(1),
        ana_state,
    }
}
