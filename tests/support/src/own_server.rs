//! A database server that one test owns, and may kill, freeze and restart.

use crate::servers::left_out;
use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// A running server. It ends when this value is dropped, even if the test panics or is killed,
/// through `own_server.sh`.
pub struct OwnServer {
    script: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    folder: PathBuf,
}

impl OwnServer {
    /// Starts a server, which may not accept connections yet. Returns `None` and prints a message
    /// if it is not installed.
    pub fn start(kind: &str) -> Option<Self> {
        Self::run(&[kind])
    }

    /// Starts a PgBouncer in this mode, with at most `connections` connections to the PostgreSQL
    /// whose socket is in the folder.
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
            // The script is in a process group of its own, so that it can clean up when the test is
            // interrupted.
            .process_group(0)
            .spawn()
            .unwrap();
        let (commands, answers) =
            (script.stdin.take(), BufReader::new(script.stdout.take().unwrap()));
        let mut server = Self { script, commands, answers, folder: PathBuf::new() };
        let answer = server.answer();
        if let Some(what) = answer.strip_prefix("missing ") {
            left_out(&format!("missing: {what}"));
            return None;
        }
        server.folder =
            answer.strip_prefix("folder ").expect("the server starts; its log is above").into();
        server.command("start");
        Some(server)
    }

    /// Returns the folder of its socket.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Kills all its processes at once with SIGKILL, and returns when they have ended.
    pub fn kill(&mut self) {
        self.command("kill");
    }

    /// Restarts the killed server on the same data.
    pub fn restart(&mut self) {
        self.command("start");
    }

    /// Stops all its processes. The kernel still accepts connections and data for them.
    pub fn freeze(&mut self) {
        self.command("freeze");
    }

    pub fn thaw(&mut self) {
        self.command("thaw");
    }

    /// Returns its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    fn command(&mut self, command: &str) {
        writeln!(self.commands.as_mut().unwrap(), "{command}").unwrap();
        assert_eq!(self.answer(), "done", "{command}\n{}", self.log());
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        drop(self.commands.take());
        let _ = self.script.wait();
    }
}
