//! The real daemon and command line, each test with daemons of its own. One program, so that it is linked once.

mod certificates;
mod changes;
mod clones;
mod crashes;
mod deletion;
mod events;
mod health;
mod hosts;
mod identity;
mod iscsi;
mod lvols;
mod membership;
mod mending;
mod merges;
mod metrics;
mod namesakes;
mod offline;
mod opening;
mod output;
mod rebuilds;
mod records;
mod refusals;
mod scrubs;
mod space;
mod stores;
mod transfers;
