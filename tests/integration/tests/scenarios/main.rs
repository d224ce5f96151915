//! What goes wrong in life, done to real daemons, each on a network of its own: processes that die or hang, cables that are pulled,
//! packets that get lost one way, disks that hang or are full. A host writes all the time and checks what it reads; at the end
//! nothing that was acknowledged is missing, and all replicas are equal to the byte, read from their stores.
//!
//! Needs root for the namespaces; otherwise each says that it is skipped.

mod administration;
mod crashes;
mod disks;
mod frozen;
mod partitions;
mod scene;
