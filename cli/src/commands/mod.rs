//! One file for each noun.

mod node;
mod replica;
mod store;
mod volume;

use crate::arguments::{Arguments, Command};
use crate::client::Client;

/// Runs a command against the daemon.
pub(crate) async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let client = Client::connect(&arguments.server).await?;
    let output = arguments.output;
    match &arguments.command {
        Command::Node(command) => node::run(&client, command, output).await,
        Command::Store(command) => store::run(&client, command, output).await,
        Command::Volume(command) => volume::run(&client, command, output).await,
        Command::Replica(command) => replica::run(&client, command, output).await,
    }
}
