//! Several processes that set up the same tables at once.
//!
//! A child is this test binary, started again for one test that does nothing unless it is asked to.

use super::*;
use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdout, Command, Stdio},
    thread,
};

const TABLE: &str = "STORE_SERVERS_CHILD_TABLE";
const PROCESSES: u128 = 8;

fn child(table: &str) -> (Child, BufReader<ChildStdout>) {
    let (_, module) = module_path!().split_once("::").unwrap();
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::sets_up"), "--ignored", "--nocapture", "--quiet"])
        .env(TABLE, table)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    (child, out)
}

/// Says something to the parent. Lines of the test harness do not begin like this.
fn say(word: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "@{word}").and_then(|()| out.flush()).unwrap();
}

/// The next thing that a child says.
fn hear(from: &mut impl BufRead) -> Option<String> {
    from.lines().map_while(Result::ok).find_map(|line| Some(line.split_once('@')?.1.to_owned()))
}

#[tokio::test]
#[ignore = "a child of eight_processes_set_up_at_the_same_moment"]
async fn sets_up() {
    let Ok(table) = env::var(TABLE) else { return };
    let store = Store::new(pool(&options().unwrap(), 1)).with_table(table).unwrap();
    drop(store.pool().acquire().await.unwrap());
    say("ready");
    let mut start = String::new();
    std::io::stdin().read_line(&mut start).unwrap();
    let (number, start) = start.trim().split_once(' ').unwrap();
    let (number, start): (u128, u64) = (number.parse().unwrap(), start.parse().unwrap());
    thread::sleep(
        (UNIX_EPOCH + Duration::from_micros(start))
            .duration_since(SystemTime::now())
            .unwrap_or_default(),
    );
    store.set_up().await.unwrap();
    // A row of its own, and one that all of them want.
    assert!(matches!(
        store.create(new(number, 1, Some(target(1)))).await.unwrap(),
        Swap::Applied(_)
    ));
    let common = store.create(new(100, number, Some(target(number as i64)))).await.unwrap();
    say(if matches!(common, Swap::Applied(_)) { "won" } else { "lost" });
}

#[tokio::test]
async fn eight_processes_set_up_at_the_same_moment() {
    for _ in 0..3 {
        let Some(case) = Case::bare(1).await else { return };
        let mut children: Vec<_> = (0..PROCESSES).map(|_| child(&case.table)).collect();
        for (_, out) in &mut children {
            assert_eq!(hear(out).as_deref(), Some("ready"));
        }
        assert_eq!(case.everything().await, [""; 0]);
        // All of them wait for the same moment, which is closer than eight messages, one after
        // another, would be.
        let start = (SystemTime::now() + Duration::from_millis(20))
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_micros();
        for (number, (child, _)) in children.iter_mut().enumerate() {
            writeln!(child.stdin.take().unwrap(), "{number} {start}").unwrap();
        }
        let mut said = Vec::new();
        for (mut child, mut out) in children {
            said.push(hear(&mut out));
            let mut complaint = String::new();
            std::io::copy(&mut out, &mut std::io::sink()).unwrap();
            child.stderr.take().unwrap().read_to_string(&mut complaint).unwrap();
            assert!(child.wait().unwrap().success(), "{complaint}");
        }
        assert_eq!(said.iter().flatten().filter(|word| *word == "won").count(), 1, "{said:?}");
        assert_eq!(said.iter().flatten().filter(|word| *word == "lost").count(), 7, "{said:?}");
        case.store.check().await.unwrap();
        assert_eq!(case.number("SELECT count(*) FROM M").await, Some(1));
        let sessions: Vec<_> = (0..PROCESSES).map(session).collect();
        let mut rows = case.store.load_many(&sessions).await.unwrap();
        rows.sort_by_key(|row| row.session);
        let expected: Vec<_> =
            (0..PROCESSES).map(|s| row(s, 1, Some(target(1)), 1, None)).collect();
        assert_eq!(rows, expected);
    }
}
