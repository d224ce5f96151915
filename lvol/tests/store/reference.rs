//! What a store should contain: plain vectors, one a lvol.

use std::collections::BTreeMap;

use block_device::Range;
use uuid::Uuid;

/// An lvol of the reference.
#[derive(Clone)]
pub(crate) struct ReferenceLvol {
    pub(crate) name: String,
    pub(crate) attributes: BTreeMap<String, Vec<u8>>,
    pub(crate) content: Vec<u8>,
    pub(crate) snapshot: bool,
    pub(crate) parent: Option<Uuid>,
}

/// A store without a disk.
#[derive(Clone, Default)]
pub(crate) struct Reference {
    pub(crate) lvols: BTreeMap<Uuid, ReferenceLvol>,
}

impl Reference {
    pub(crate) fn create(&mut self, id: Uuid, size: u64) {
        self.insert_head(id, vec![0; size as usize], None);
    }

    pub(crate) fn write(&mut self, id: Uuid, offset: u64, data: &[u8]) {
        self.part(id, Range { offset, length: data.len() as u64 }).copy_from_slice(data);
    }

    pub(crate) fn zero(&mut self, id: Uuid, range: Range) {
        self.part(id, range).fill(0);
    }

    fn insert_head(&mut self, id: Uuid, content: Vec<u8>, parent: Option<Uuid>) {
        let (name, attributes) = (id.to_string(), BTreeMap::new());
        self.lvols.insert(id, ReferenceLvol { name, attributes, content, snapshot: false, parent });
    }

    pub(crate) fn rename(&mut self, id: Uuid, name: String) {
        self.lvols.get_mut(&id).expect("known to the caller").name = name;
    }

    pub(crate) fn set_attributes(&mut self, id: Uuid, changes: Vec<(String, Option<Vec<u8>>)>) {
        let attributes = &mut self.lvols.get_mut(&id).expect("known to the caller").attributes;
        for (key, value) in changes {
            match value {
                Some(value) => attributes.insert(key, value),
                None => attributes.remove(&key),
            };
        }
    }

    pub(crate) fn snapshot(&mut self, head: Uuid, snapshot: Uuid, name: String) {
        let lvol = self.lvols.get_mut(&head).expect("known to the caller");
        let copy = ReferenceLvol { name, attributes: BTreeMap::new(), snapshot: true, ..lvol.clone() };
        lvol.parent = Some(snapshot);
        self.lvols.insert(snapshot, copy);
    }

    pub(crate) fn clone_snapshot(&mut self, snapshot: Uuid, id: Uuid, size: u64) {
        let mut content = self.lvols[&snapshot].content.clone();
        content.resize(size as usize, 0);
        self.insert_head(id, content, Some(snapshot));
    }

    pub(crate) fn revert(&mut self, head: Uuid, snapshot: Uuid) {
        let mut content = self.lvols[&snapshot].content.clone();
        let lvol = self.lvols.get_mut(&head).expect("known to the caller");
        content.resize(lvol.content.len(), 0);
        (lvol.content, lvol.parent) = (content, Some(snapshot));
    }

    pub(crate) fn grow(&mut self, id: Uuid, size: u64) {
        self.lvols.get_mut(&id).expect("known to the caller").content.resize(size as usize, 0);
    }

    pub(crate) fn snapshots(&self) -> Vec<Uuid> {
        self.lvols.iter().filter(|(_, lvol)| lvol.snapshot).map(|(id, _)| *id).collect()
    }

    /// The snapshots that an lvol reads through.
    pub(crate) fn ancestors(&self, id: Uuid) -> Vec<Uuid> {
        std::iter::successors(self.lvols[&id].parent, |id| self.lvols[id].parent).collect()
    }

    /// What read through it reads through its parent from then on: no content changes.
    pub(crate) fn delete(&mut self, id: Uuid) {
        let Some(gone) = self.lvols.remove(&id) else { return };
        for lvol in self.lvols.values_mut().filter(|lvol| lvol.parent == Some(id)) {
            lvol.parent = gone.parent;
        }
    }

    pub(crate) fn heads(&self) -> Vec<Uuid> {
        self.lvols.iter().filter(|(_, lvol)| !lvol.snapshot).map(|(id, _)| *id).collect()
    }

    pub(crate) fn depth(&self, id: Uuid) -> usize {
        std::iter::successors(Some(id), |id| self.lvols[id].parent).count()
    }

    fn part(&mut self, id: Uuid, range: Range) -> &mut [u8] {
        let lvol = self.lvols.get_mut(&id).expect("known to the caller");
        &mut lvol.content[range.offset as usize..range.end() as usize]
    }
}
