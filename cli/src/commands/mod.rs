//! One file for each noun.

mod backup;
mod events;
mod export;
mod lvol;
mod node;
mod operation;
mod orphan;
mod replica;
mod scrub;
mod snapshot;
mod store;
mod volume;

pub(crate) use self::events::{Since, utc};
use crate::arguments::DaemonCommand;
use crate::client::Destination;
use crate::output::Output;

/// Asks a daemon.
pub(crate) async fn run(destination: &Destination, command: &DaemonCommand, output: Output) -> anyhow::Result<()> {
    let client = destination.connect().await?;
    match command {
        DaemonCommand::Events { follow, since } => events::run(&client, *follow, *since, output).await,
        DaemonCommand::Node(command) => node::run(&client, command, output).await,
        DaemonCommand::Store(command) => store::run(&client, command, output).await,
        DaemonCommand::Lvol(command) => lvol::run(&client, command, output).await,
        DaemonCommand::Volume(command) => volume::run(&client, command, output).await,
        DaemonCommand::Snapshot(command) => snapshot::run(&client, command, output).await,
        DaemonCommand::Target(command) => backup::target(&client, command, output).await,
        DaemonCommand::Backup(command) => backup::run(&client, command, output).await,
        DaemonCommand::Standby(command) => backup::standby(&client, command, output).await,
        DaemonCommand::Schedule(command) => backup::schedule(&client, command, output).await,
        DaemonCommand::Operation(command) => operation::run(&client, command, output).await,
        DaemonCommand::Orphan(command) => orphan::run(&client, command, output).await,
        DaemonCommand::Replica(command) => replica::run(&client, command, output).await,
    }
}
