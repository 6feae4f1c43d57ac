//! The playground's page in Chromium, and the playground as a process.
#![cfg(target_os = "linux")]
#![allow(unreachable_pub)] // modules of a test have no outside

mod browser;
mod buttons;
mod looks;
mod playground;
mod process;
mod turns;
