//! A reverse proxy that sends each session to the agent that its workspace has now.
//!
//! The program `bound-agent-gateway` is a [`Gateway`] with a [`Config`] from a file. As a library
//! it takes an [`Authorize`](authorize::Authorize) of the application:
//!
//! ```no_run
//! use bound_agent_gateway::{Config, Gateway, authorize::Everybody, recorder};
//! use std::path::Path;
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let config = Config::load(Some(Path::new("gateway.toml")), std::env::vars())?;
//! let recorder = recorder();
//! let metrics = recorder.handle();
//! metrics::set_global_recorder(recorder)?;
//! let gateway = Gateway::start(config, metrics, Some(Box::new(Everybody))).await?;
//! println!("{}", gateway.address());
//! tokio::signal::ctrl_c().await?;
//! gateway.shut_down(std::future::pending()).await;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod admin;
mod agents;
pub mod authorize;
mod body;
mod config;
mod gateway;
mod log;
mod metrics;
mod outgoing;
mod proxy;
mod refused;
mod resolver;
mod server;
mod store;
mod tls;

pub use agents::DialError;
pub use config::*;
pub use gateway::{Gateway, StartError, check_files};
pub use log::{install as install_log, with_sources};
pub use metrics::recorder;
pub use resolver::{HttpResolver, ResolverError};
pub use store::OpenError;
pub use tls::TlsError;
