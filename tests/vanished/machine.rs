//! An agent on a machine of its own, which can vanish.
#![allow(unreachable_pub)]

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::parent_id,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};
use support::{gateway::program, servers::left_out};
use tempfile::TempDir;
use tower_bound_agent::{AgentId, Target};
use uuid::Uuid;

const INSIDE: &str = "TEST_OF_VANISHED_MACHINES";

/// Runs the test in its own process and network namespace. Skips it if namespaces are not
/// permitted.
pub fn alone<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    if std::env::var(INSIDE).is_ok_and(|parent| parent == parent_id().to_string()) {
        ip(&["link", "set", "lo", "up"]);
        return tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(test());
    }
    // The name in the test harness: the path of the test's future, without the crate.
    let path = std::any::type_name::<F>();
    let name = path
        .split("::")
        .skip(1)
        .take_while(|part| !part.starts_with('{'))
        .collect::<Vec<_>>()
        .join("::");
    if let Err(why) =
        unshared().arg("true").output().map_err(|error| error.to_string()).and_then(|tried| {
            tried
                .status
                .success()
                .then_some(())
                .ok_or_else(|| String::from_utf8_lossy(&tried.stderr).trim().to_owned())
        })
    {
        return left_out(&format!("there are no network namespaces: {why}"));
    }
    let ran = unshared()
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, std::process::id().to_string())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(
        ran.status.success() && out.contains("1 passed"),
        "{name}: {}\n{out}\n{err}",
        ran.status
    );
    print!("{out}{err}");
}

/// A command in a network namespace of its own. It does not survive this thread.
fn unshared() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--net"]);
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n");
    if !is_root {
        command.arg("--map-root-user");
    }
    command
}

pub fn script() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vanished/machine.sh")
}

fn ip(arguments: &[&str]) {
    run(Command::new("ip").args(arguments));
}

fn run(command: &mut Command) {
    let ran = command.output().unwrap();
    assert!(ran.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ran.stderr));
}

/// The link to a machine: its address, and the id of a process there.
#[derive(Clone, Debug)]
pub struct Line {
    pub address: String,
    pub pid: u64,
}

impl Line {
    /// Drops all packets in both directions: they are sent to a link address that no machine has.
    pub fn cut(&self) {
        let (ip_address, device) = (self.ip_address(), self.device());
        let unused = ["lladdr", "02:00:00:00:00:00", "nud", "permanent"];
        self.there(
            &[&["neighbour", "replace", "192.0.2.254", "dev", "eth0"], &unused[..]].concat(),
        );
        ip(&[&["neighbour", "replace", &ip_address, "dev", &device], &unused[..]].concat());
    }

    /// Runs `ip` on the machine.
    fn there(&self, arguments: &[&str]) {
        run(Command::new("nsenter")
            .arg(format!("--net=/proc/{}/ns/net", self.pid))
            .arg("ip")
            .args(arguments));
    }

    fn ip_address(&self) -> String {
        self.address.split_once(':').unwrap().0.to_owned()
    }

    fn device(&self) -> String {
        format!("agent{}", self.ip_address().rsplit_once('.').unwrap().1)
    }

    /// Returns the number of connections to the machine in this namespace.
    pub fn connections(&self) -> usize {
        let (ip_address, port) = self.address.split_once(':').unwrap();
        let mut bytes =
            ip_address.split('.').map(|byte| byte.parse::<u8>().unwrap()).collect::<Vec<_>>();
        bytes.reverse();
        let hex = bytes.iter().map(|byte| format!("{byte:02X}")).collect::<String>();
        let remote = format!("{hex}:{:04X}", port.parse::<u16>().unwrap());
        let table = fs::read_to_string("/proc/self/net/tcp").unwrap();
        let held = |line: &&str| {
            let fields = line.split_whitespace().collect::<Vec<_>>();
            // A connection without an inode belongs to the system alone and is about to end.
            fields[2] == remote && fields[9] != "0"
        };
        table.lines().skip(1).filter(held).count()
    }
}

/// An agent, and its machine.
pub struct Machine {
    pub line: Line,
    pub target: Target,
    child: Child,
    folder: TempDir,
}

impl Machine {
    pub fn start(generation: i64) -> Self {
        let (folder, id) = (tempfile::tempdir().unwrap(), AgentId::new(Uuid::new_v4()));
        let mut child = Command::new(script())
            .arg(program())
            .args(["agent", "--id", &id.to_string(), "--journal"])
            .arg(folder.path().join("journal"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
        let line = Line { address: address.trim_end().to_owned(), pid: child.id().into() };
        let target = Target::new(id).with_generation(generation).with_address(&*line.address);
        Self { line, target, child, folder }
    }

    /// Returns how often the request with this key was executed.
    pub fn carried_out(&self, key: &str) -> usize {
        carried_out(&self.folder.path().join("journal"), key)
    }
}

pub fn carried_out(journal: &std::path::Path, key: &str) -> usize {
    let journal = fs::read_to_string(journal).unwrap_or_default();
    journal.lines().filter(|line| line.split(' ').next() == Some(key)).count()
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Awaits a future within a generous limit.
pub async fn bounded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("in time")
}
