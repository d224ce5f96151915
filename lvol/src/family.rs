//! Who belongs to whom among all lvols, and what they come to together: so that nobody has to look at all of them to find a few.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use crate::format::record::LvolRecord;

/// What follows from the records of all lvols.
#[derive(Default)]
pub(crate) struct Family {
    /// Who reads through an lvol, next to it.
    children: Groups,
    /// The internal lvols of an owner.
    internal: Groups,
    /// Those that are to be deleted.
    doomed: BTreeSet<Uuid>,
    /// The lvols of each group, if somebody groups them.
    grouped: Groups,
    grouping: Option<Grouping>,
    /// Bytes of all heads.
    provisioned: u128,
}

/// The group that an lvol with these attributes is in, if it is in one: what is above the store gives attributes a meaning.
pub type Grouping = fn(&BTreeMap<String, Vec<u8>>) -> Option<Uuid>;

#[derive(Default)]
struct Groups(BTreeMap<Uuid, BTreeSet<Uuid>>);

impl Family {
    /// There is an lvol with this record from now on.
    pub(crate) fn add(&mut self, record: &LvolRecord) {
        let uuid = record.uuid;
        record.parent.iter().for_each(|parent| self.children.add(*parent, uuid));
        record.internal.iter().for_each(|internal| self.internal.add(internal.owner, uuid));
        if record.deletion.is_some() {
            self.doomed.insert(uuid);
        }
        self.group_of(record).into_iter().for_each(|group| self.grouped.add(group, uuid));
        self.provisioned += head_bytes(record);
    }

    /// There is none with this record any more.
    pub(crate) fn remove(&mut self, record: &LvolRecord) {
        let uuid = record.uuid;
        record.parent.iter().for_each(|parent| self.children.remove(*parent, uuid));
        record.internal.iter().for_each(|internal| self.internal.remove(internal.owner, uuid));
        self.doomed.remove(&uuid);
        self.group_of(record).into_iter().for_each(|group| self.grouped.remove(group, uuid));
        self.provisioned -= head_bytes(record);
    }

    /// Who reads through an lvol, next to it, by UUID.
    pub(crate) fn children(&self, parent: Uuid) -> impl Iterator<Item = Uuid> + '_ {
        self.children.of(parent)
    }

    /// The internal lvols of an owner.
    pub(crate) fn internal(&self, owner: Uuid) -> impl Iterator<Item = Uuid> + '_ {
        self.internal.of(owner)
    }

    /// Those that are to be deleted.
    pub(crate) fn doomed(&self) -> impl Iterator<Item = Uuid> + '_ {
        self.doomed.iter().copied()
    }

    /// Groups those that there are, and all that come.
    pub(crate) fn group_by<'a>(&mut self, grouping: Grouping, records: impl Iterator<Item = &'a LvolRecord>) {
        self.grouping = Some(grouping);
        self.grouped = Groups::default();
        for record in records {
            self.group_of(record).into_iter().for_each(|group| self.grouped.add(group, record.uuid));
        }
    }

    /// The lvols of a group.
    pub(crate) fn group(&self, group: Uuid) -> impl Iterator<Item = Uuid> + '_ {
        self.grouped.of(group)
    }

    fn group_of(&self, record: &LvolRecord) -> Option<Uuid> {
        self.grouping.filter(|_| record.internal.is_none()).and_then(|grouping| grouping(&record.attributes))
    }

    /// Bytes of all heads.
    pub(crate) fn provisioned(&self) -> u64 {
        u64::try_from(self.provisioned).unwrap_or(u64::MAX)
    }
}

impl Groups {
    fn add(&mut self, group: Uuid, uuid: Uuid) {
        self.0.entry(group).or_default().insert(uuid);
    }

    fn remove(&mut self, group: Uuid, uuid: Uuid) {
        if let Some(members) = self.0.get_mut(&group) {
            members.remove(&uuid);
            if members.is_empty() {
                self.0.remove(&group);
            }
        }
    }

    fn of(&self, group: Uuid) -> impl Iterator<Item = Uuid> + '_ {
        self.0.get(&group).into_iter().flatten().copied()
    }
}

fn head_bytes(record: &LvolRecord) -> u128 {
    let is_head = !record.snapshot && record.internal.is_none();
    if is_head { u128::from(record.size) } else { 0 }
}
