//! What a controller knows of its subsystem: names and namespaces.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use crate::wire::Status;
use crate::wire::log_page::{AnaGroup, AnaState};

/// Greatest namespace identifier (NN), and number of ANA groups: each namespace is a group of its own, under its own
/// number, so that each can move between nodes by itself.
pub const NAMESPACES_MAX: u32 = 32;

/// An NVM subsystem: what its controllers report.
#[derive(Clone, Debug)]
pub struct Subsystem {
    nqn: String,
    serial: String,
    model: String,
    firmware: String,
    namespaces: BTreeMap<u32, Namespace>,
    ana_change_count: u64,
}

/// Bytes of a logical block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockSize {
    /// 512 bytes.
    B512,
    /// 4096 bytes.
    B4096,
}

impl BlockSize {
    /// The size of `bytes`, if there is one.
    pub fn from_bytes(bytes: u32) -> Option<Self> {
        match bytes {
            512 => Some(Self::B512),
            4096 => Some(Self::B4096),
            _ => None,
        }
    }

    /// Log2 of the size in bytes (LBADS).
    pub fn shift(self) -> u8 {
        match self {
            Self::B512 => 9,
            Self::B4096 => 12,
        }
    }

    /// The size in bytes.
    pub fn bytes(self) -> u32 {
        1 << self.shift()
    }
}

/// A namespace: a volume as its hosts see it. Thin, deallocatable, shared between controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Size and capacity in logical blocks.
    pub blocks: u64,
    /// Bytes of a logical block.
    pub block_size: BlockSize,
    /// Namespace Globally Unique Identifier (NGUID), big-endian. Never reused (I37).
    pub nguid: [u8; 16],
    /// The volume's UUID.
    pub uuid: [u8; 16],
    /// Logical blocks that hold data now (NUSE).
    pub used_blocks: u64,
    /// Logical blocks that a write changes as a whole or not at all, also in a power cut (I29); at least 1.
    pub atomic_blocks: u32,
    /// What this path can do for the namespace.
    pub ana_state: AnaState,
}

impl Subsystem {
    /// A subsystem without namespaces. `serial` has at most 20 ASCII characters, `model` 40, `firmware` 8.
    pub fn new(nqn: String, serial: String, model: String, firmware: String) -> Self {
        Self { nqn, serial, model, firmware, namespaces: BTreeMap::new(), ana_change_count: 0 }
    }

    /// NVM Subsystem NVMe Qualified Name (SUBNQN).
    pub fn nqn(&self) -> &str {
        &self.nqn
    }

    /// Serial Number (SN).
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Model Number (MN).
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Firmware Revision (FR).
    pub fn firmware(&self) -> &str {
        &self.firmware
    }

    /// Adds or replaces namespace `id`; tell the controllers with [`Notice`](crate::wire::log_page::Notice).
    ///
    /// # Panics
    /// If `id` is not 1 to [`NAMESPACES_MAX`], or `atomic_blocks` is 0.
    pub fn attach(&mut self, id: u32, namespace: Namespace) {
        assert!((1..=NAMESPACES_MAX).contains(&id), "namespace {id}");
        assert!(namespace.atomic_blocks > 0, "a block at least is atomic");
        let previous = self.namespaces.insert(id, namespace);
        if previous.is_some_and(|previous| previous.ana_state != namespace.ana_state) {
            self.ana_change_count += 1;
        }
    }

    /// Removes namespace `id`, if it is there.
    pub fn detach(&mut self, id: u32) -> Option<Namespace> {
        self.namespaces.remove(&id)
    }

    /// Namespace `id`, if it is active.
    pub fn namespace(&self, id: u32) -> Option<&Namespace> {
        self.namespaces.get(&id)
    }

    /// All active namespaces, by ascending identifier.
    pub fn namespaces(&self) -> impl Iterator<Item = (u32, &Namespace)> {
        self.namespaces.iter().map(|(id, namespace)| (*id, namespace))
    }

    /// The namespace of an I/O command, if this path serves it now.
    ///
    /// # Errors
    /// Invalid Namespace or Format, or the path related status of the namespace's ANA state.
    pub fn namespace_for_io(&self, id: u32) -> Result<&Namespace, Status> {
        let namespace = self.namespace(id).ok_or(Status::InvalidNamespaceOrFormat)?;
        match namespace.ana_state.refusal() {
            None => Ok(namespace),
            Some(status) => Err(status),
        }
    }

    /// Bytes of all namespaces together.
    pub fn capacity(&self) -> u64 {
        let bytes = |namespace: &Namespace| namespace.blocks.saturating_mul(u64::from(namespace.block_size.bytes()));
        self.namespaces.values().map(bytes).fold(0, u64::saturating_add)
    }

    /// Change count and groups of the ANA log page.
    pub fn ana(&self) -> (u64, Vec<AnaGroup>) {
        let group = |(id, namespace): (u32, &Namespace)| AnaGroup {
            group: id,
            change_count: self.ana_change_count,
            state: namespace.ana_state,
            namespaces: alloc::vec![id],
        };
        (self.ana_change_count, self.namespaces().map(group).collect())
    }
}
