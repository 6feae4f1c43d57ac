//! A database server of a test's own, that may be killed, frozen and started again.

use crate::servers::left_out;
use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// Ends with this value, also if the test panics or is killed: `own_server.sh` sees to it.
pub struct OwnServer {
    script: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    folder: PathBuf,
}

impl OwnServer {
    /// Started, but it may not take connections yet. `None` if it is not installed, which is said.
    pub fn start(kind: &str) -> Option<Self> {
        Self::run(&[kind])
    }

    /// A PgBouncer in this mode, with at most so many connections to the PostgreSQL whose socket is
    /// in that folder.
    pub fn bouncer(server: &Path, mode: &str, connections: u32) -> Option<Self> {
        Self::run(&["pgbouncer", server.to_str().unwrap(), mode, &connections.to_string()])
    }

    fn run(arguments: &[&str]) -> Option<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/own_server.sh");
        let mut script = Command::new("bash")
            .arg(script)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Not reached by what interrupts the test: it has to clean up.
            .process_group(0)
            .spawn()
            .unwrap();
        let (orders, answers) =
            (script.stdin.take(), BufReader::new(script.stdout.take().unwrap()));
        let mut server = Self { script, orders, answers, folder: PathBuf::new() };
        let answer = server.answer();
        if let Some(what) = answer.strip_prefix("missing ") {
            left_out(&format!("missing: {what}"));
            return None;
        }
        server.folder = answer.strip_prefix("folder ").expect("its log is above").into();
        server.order("start");
        Some(server)
    }

    /// Where its socket is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// All its processes at once, without a goodbye. They are gone on return.
    pub fn kill(&mut self) {
        self.order("kill");
    }

    /// After it was killed, on the same data.
    pub fn restart(&mut self) {
        self.order("start");
    }

    /// All its processes stop where they are. The kernel still takes connections for it, and what
    /// is sent to it.
    pub fn freeze(&mut self) {
        self.order("freeze");
    }

    pub fn thaw(&mut self) {
        self.order("thaw");
    }

    /// What it has written to its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders.as_mut().unwrap(), "{order}").unwrap();
        assert_eq!(self.answer(), "done", "{order}\n{}", self.log());
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.script.wait();
    }
}
