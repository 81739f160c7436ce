//! The command line: a client of the daemon's gRPC API, plus `run`, which is
//! the daemon itself.
//!
//! Exit status: 0 done, 1 the request failed, 64 bad usage or configuration,
//! 69 no daemon at the socket, 77 no permission on the socket.

mod args;
mod client;
mod demo;
mod errors;
mod explain;
mod join;
mod json;
mod listen;
mod netcheck;
mod output;
mod payload;
mod peers;
mod queue;
mod reach;
mod run;
mod send;
mod shell;
mod signals;
mod socket;
mod status;
mod watch;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Cli, ClientCommand, Command, Global};
use errors::{Failure, exit};
use output::Out;

/// Threads of the client's runtime: one for the connection, one for the
/// command, so that a slow terminal does not stop the connection.
const WORKERS: usize = 2;

/// Parses the arguments of this process, does what they say and tells how it
/// went.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to be done when even stderr is gone.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::DONE });
        }
    };
    let outcome = match cli.command {
        Command::Run(args) => run::run(args, cli.global),
        Command::Completions(args) => shell::completions(&args),
        Command::Man(args) => shell::man(&args),
        Command::Version => shell::version(Out::new(cli.global.json)),
        Command::Client(command) => in_runtime(command, &cli.global),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report();
            ExitCode::from(failure.status())
        }
    }
}

fn in_runtime(command: ClientCommand, global: &Global) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("cannot start the runtime: {error}")))?;
    let outcome = runtime.block_on(dispatch(command, global));
    // A read of stdin or a write to a stuck terminal must not hold up the end.
    runtime.shutdown_background();
    outcome
}

async fn dispatch(command: ClientCommand, global: &Global) -> Result<(), Failure> {
    let out = Out::new(global.json);
    match command {
        ClientCommand::Demo => demo::demo(out).await,
        ClientCommand::Status => status::status(global, out).await,
        ClientCommand::Peers(args) if args.watch => watch::watch(args.online, global, out).await,
        ClientCommand::Peers(args) => peers::list(&args, global, out).await,
        ClientCommand::Peer(command) => peers::peer(command, global, out).await,
        ClientCommand::Invite(args) => join::invite(args, global, out).await,
        ClientCommand::Join(args) => join::join(args, global, out).await,
        ClientCommand::Send(args) => Box::pin(send::send(args, global, out)).await,
        ClientCommand::Listen(args) => listen::listen(args, global, out).await,
        ClientCommand::Queue(command) => queue::queue(command, global, out).await,
        ClientCommand::Ping(args) => reach::ping(&args, global, out).await,
        ClientCommand::Connect(args) => reach::connect(args, global, out).await,
        ClientCommand::Find(args) => explain::find(args, global, out).await,
        ClientCommand::Explain(args) => explain::explain(args, global, out).await,
        ClientCommand::Netcheck => netcheck::netcheck(global, out).await,
        ClientCommand::Disconnect(args) => reach::disconnect(args, global, out).await,
    }
}
