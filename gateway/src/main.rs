//! The gateway as a program. `gateway/README.md` says how it is configured.

use bound_agent_gateway::{Config, Gateway, check_files, install_log, recorder, with_sources};
use std::{
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
};
use tokio::{
    select,
    signal::unix::{Signal, SignalKind, signal},
};

const USAGE: &str = "\
bound-agent-gateway [--config FILE] [--check]

  --config FILE  the configuration; without it, the environment has all of it
  --check        checks the configuration and the files that it names, and exits
  --version      prints the version

SIGTERM and SIGINT shut down gracefully, a second one at once. SIGHUP loads certificates again.";

/// The exit code of a wrong argument or configuration.
const WRONG: u8 = 2;

struct Arguments {
    config: Option<PathBuf>,
    only_check: bool,
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(Some(arguments)) => arguments,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}\n\n{USAGE}");
            return ExitCode::from(WRONG);
        }
    };
    let config = match load(arguments.config.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            complain(&*error);
            return ExitCode::from(WRONG);
        }
    };
    if arguments.only_check {
        println!("the configuration is valid");
        return ExitCode::SUCCESS;
    }
    install_log(&config.log);
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&*error);
            ExitCode::FAILURE
        }
    }
}

/// Reads the configuration, and checks the files that it names.
fn load(file: Option<&Path>) -> Result<Config, Box<dyn Error>> {
    let config = Config::load(file, std::env::vars())?;
    check_files(&config)?;
    Ok(config)
}

fn complain(error: &(dyn Error + 'static)) {
    eprintln!("bound-agent-gateway: {}", with_sources(error));
}

/// Parses the arguments; `None` if everything was said.
fn arguments() -> Result<Option<Arguments>, lexopt::Error> {
    use lexopt::prelude::{Long, Short, ValueExt};
    let mut arguments = Arguments { config: None, only_check: false };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("config") => arguments.config = Some(parser.value()?.parse()?),
            Long("check") => arguments.only_check = true,
            Long("version") => {
                println!("{}", env!("CARGO_PKG_VERSION"));
                return Ok(None);
            }
            Long("help") | Short('h') => {
                println!("{USAGE}");
                return Ok(None);
            }
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some(arguments))
}

#[tokio::main]
async fn run(config: Config) -> Result<(), Box<dyn Error>> {
    let recorder = recorder();
    let metrics = recorder.handle();
    metrics::set_global_recorder(recorder)?;
    // Before anything is served, so that no signal ends the process at once.
    let mut ends = Ends {
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
    };
    let mut hang_up = signal(SignalKind::hangup())?;
    let gateway = Gateway::start(config, metrics, None).await?;
    loop {
        select! {
            () = ends.next() => break,
            _ = hang_up.recv() => gateway.reload(),
        }
    }
    gateway.shut_down(async { ends.next().await }).await;
    Ok(())
}

/// The signals that end the gateway.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    async fn next(&mut self) {
        select! { _ = self.terminate.recv() => {}, _ = self.interrupt.recv() => {} }
    }
}
