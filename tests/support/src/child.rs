//! Child processes: this test binary, started again for one ignored test, which does nothing unless
//! an environment variable is set.

use std::{
    env,
    ffi::OsStr,
    fmt::Display,
    io::{BufRead, BufReader, Read, Write},
    process::{self, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// A started child.
pub struct Child {
    process: process::Child,
    output: BufReader<ChildStdout>,
}

impl Child {
    /// Starts the ignored test of this full name, with the variable set.
    pub fn start(test: &str, variable: &str, value: impl AsRef<OsStr>) -> Self {
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--ignored", "--nocapture", "--quiet"])
            .env(variable, value)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        Self { process, output }
    }

    /// Waits for the next thing that the child [says](say); `None` if it has ended.
    pub fn hear(&mut self) -> Option<String> {
        hear(&mut self.output)
    }

    /// Kills the child with SIGKILL after `moment`. Returns the lines that it has written until
    /// then.
    pub fn kill_after(self, moment: Duration) -> Vec<String> {
        let Self { mut process, mut output } = self;
        let listening =
            thread::spawn(move || std::iter::from_fn(|| hear(&mut output)).collect::<Vec<_>>());
        thread::sleep(moment);
        process.kill().unwrap();
        process.wait().unwrap();
        let said = listening.join().unwrap();
        let complaint = complaint(&mut process);
        assert!(!complaint.contains("panicked"), "{complaint}");
        said
    }

    /// Waits for a successful end.
    fn end(mut self) {
        std::io::copy(&mut self.output, &mut std::io::sink()).unwrap();
        let complaint = complaint(&mut self.process);
        assert!(self.process.wait().unwrap().success(), "{complaint}");
    }
}

/// Lines of the test harness have no `@`.
fn hear(from: &mut impl BufRead) -> Option<String> {
    from.lines().map_while(Result::ok).find_map(|line| Some(line.split_once('@')?.1.to_owned()))
}

fn complaint(process: &mut process::Child) -> String {
    let mut complaint = String::new();
    process.stderr.take().unwrap().read_to_string(&mut complaint).unwrap();
    complaint
}

/// Starts all [waiting](wait_for_start) children at the same moment. Returns the next line of each
/// of them, after all have ended successfully.
pub fn start_together(mut children: Vec<Child>) -> Vec<String> {
    // All children wait for the same instant, which starts them closer together than separate
    // messages would.
    let start = (SystemTime::now() + Duration::from_millis(20))
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_micros();
    for (number, child) in children.iter_mut().enumerate() {
        writeln!(child.process.stdin.take().unwrap(), "{number} {start}").unwrap();
    }
    let mut said = Vec::new();
    for mut child in children {
        said.extend(child.hear());
        child.end();
    }
    said
}

/// Writes a line to the parent. For use in a child, which does not fail if the parent has ended.
pub fn say(words: impl Display) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "@{words}").and_then(|()| out.flush()).ok();
}

/// Reports that the child is ready and waits for [`start_together`]. Returns the child's number.
pub fn wait_for_start() -> u128 {
    say("ready");
    let mut start = String::new();
    std::io::stdin().read_line(&mut start).unwrap();
    let (number, start) = start.trim().split_once(' ').unwrap();
    let start = UNIX_EPOCH + Duration::from_micros(start.parse().unwrap());
    thread::sleep(start.duration_since(SystemTime::now()).unwrap_or_default());
    number.parse().unwrap()
}
