//! One file for each noun.

mod events;
mod export;
mod lvol;
mod node;
mod orphan;
mod replica;
mod scrub;
mod snapshot;
mod store;
mod volume;

use crate::arguments::{DaemonCommand, Output};
use crate::client::Client;

/// Asks the daemon at `server`.
pub(crate) async fn run(server: &str, command: &DaemonCommand, output: Output) -> anyhow::Result<()> {
    let client = Client::connect(server).await?;
    match command {
        DaemonCommand::Events { follow } => events::run(&client, *follow, output).await,
        DaemonCommand::Node(command) => node::run(&client, command, output).await,
        DaemonCommand::Store(command) => store::run(&client, command, output).await,
        DaemonCommand::Lvol(command) => lvol::run(&client, command, output).await,
        DaemonCommand::Volume(command) => volume::run(&client, command, output).await,
        DaemonCommand::Snapshot(command) => snapshot::run(&client, command, output).await,
        DaemonCommand::Orphan(command) => orphan::run(&client, command, output).await,
        DaemonCommand::Replica(command) => replica::run(&client, command, output).await,
    }
}
