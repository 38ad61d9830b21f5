//! `daos`: work with pools, containers, objects and files.

mod arguments;
mod containers;
mod files;
mod objects;

use std::process::ExitCode;

use clap::CommandFactory;
use daos::{Client, Container, OpenOptions, Pool};

use self::arguments::{Command, ContainerPath, Daos, PoolCommand};
use crate::{
    output::{Answer, Failure, completion, finish, parse},
    pools,
};

/// The program.
pub fn main() -> ExitCode {
    let arguments: Daos = match parse("daos") {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    if let Command::Completion { shell } = arguments.command {
        return finish("daos", false, Ok(completion(shell, &mut Daos::command(), "daos")));
    }
    let json = arguments.system.json;
    let outcome =
        arguments.system.connect().and_then(|client| client.block_on(run(&client, arguments.command, json)));
    finish("daos", json, outcome)
}

async fn run(client: &Client, command: Command, json: bool) -> Result<Answer, Failure> {
    match command {
        Command::Pool(PoolCommand::Query { pool }) => pools::query(client, &pool).await,
        Command::Pool(PoolCommand::ListContainers { pool }) => containers::list(client, &pool).await,
        Command::Container(command) => containers::run(client, command).await,
        Command::Filesystem(command) => files::run(client, command, json).await,
        Command::Kv(command) => objects::kv(client, command, json).await,
        Command::Array(command) => objects::array(client, command, json).await,
        Command::Object(command) => objects::list(client, command).await,
        Command::Completion { .. } => unreachable!("handled before the system is asked"),
    }
}

/// A container that a command has open.
struct Opened {
    pool: Pool,
    container: Container,
}

impl Opened {
    async fn open(
        client: &Client,
        pool: &str,
        container: &str,
        options: OpenOptions,
    ) -> Result<Self, Failure> {
        let pool = client.pool_connect(pool).await?;
        match pool.container_open(container, options).await {
            Ok(container) => Ok(Self { pool, container }),
            Err(error) => {
                let _ = pool.disconnect().await;
                Err(error.into())
            }
        }
    }

    async fn open_path(client: &Client, path: &ContainerPath, options: OpenOptions) -> Result<Self, Failure> {
        Self::open(client, &path.pool, &path.container, options).await
    }

    /// Closes what was opened, whatever came of the work, and passes its outcome on.
    async fn close<T>(self, outcome: Result<T, Failure>) -> Result<T, Failure> {
        let closed = self.container.close().await;
        let disconnected = self.pool.disconnect().await;
        let value = outcome?;
        closed?;
        disconnected?;
        Ok(value)
    }
}
