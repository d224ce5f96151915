//! Which lvols a store should have: heads, snapshots, and snapshots that are deleted but stay while several read through them.

use std::collections::BTreeMap;

/// The lvols of a store by UUID; a volume's head has the UUID of the volume here.
#[derive(Debug, Default)]
pub(crate) struct Tree(BTreeMap<String, Lvol>);

#[derive(Debug)]
struct Lvol {
    parent: Option<String>,
    deleted: bool,
}

impl Tree {
    pub(crate) fn create(&mut self, head: &str, parent: Option<&str>) {
        self.0.insert(head.to_owned(), Lvol { parent: parent.map(str::to_owned), deleted: false });
    }

    pub(crate) fn snapshot(&mut self, head: &str, snapshot: &str) {
        let below = self.reparent(head, Some(snapshot.to_owned()));
        self.0.insert(snapshot.to_owned(), Lvol { parent: below, deleted: false });
    }

    pub(crate) fn revert(&mut self, head: &str, snapshot: &str) {
        self.reparent(head, Some(snapshot.to_owned()));
        self.settle();
    }

    pub(crate) fn delete(&mut self, lvol: &str) {
        if let Some(lvol) = self.0.get_mut(lvol) {
            lvol.deleted = true;
        }
        self.settle();
    }

    /// How many there are when all that can be merged is.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    fn reparent(&mut self, lvol: &str, parent: Option<String>) -> Option<String> {
        let lvol = self.0.get_mut(lvol)?;
        std::mem::replace(&mut lvol.parent, parent)
    }

    fn children(&self, of: &str) -> Vec<String> {
        let children = self.0.iter().filter(|(_, lvol)| lvol.parent.as_deref() == Some(of));
        children.map(|(uuid, _)| uuid.clone()).collect()
    }

    /// What is deleted goes when one at most reads through it.
    fn settle(&mut self) {
        let goes = |tree: &Self| {
            let mut deleted = tree.0.iter().filter(|(_, lvol)| lvol.deleted);
            deleted.find(|(uuid, _)| tree.children(uuid).len() < 2).map(|(uuid, _)| uuid.clone())
        };
        while let Some(uuid) = goes(self) {
            let parent = self.0.remove(&uuid).and_then(|lvol| lvol.parent);
            for child in self.children(&uuid) {
                self.reparent(&child, parent.clone());
            }
        }
    }
}
