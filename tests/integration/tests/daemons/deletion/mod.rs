//! What deletes, errors and crashes leave behind: nothing, or something that is found (I40, I42; lessons L2, L3, L5).

mod deletes;
mod failing;
pub(crate) mod failpoints;
mod left;
mod orphans;
mod records;
mod restarts;
mod tear_down;
