//! The race as scripts that correspond to the table "What must hold", and as random orders of
//! events.
//!
//! A script's first line has the inputs of the call; each further line is `instant  event |
//! commands`: at that millisecond the event is reported, and these are *all* commands up to the
//! next wait. A target is a letter for its agent and a number for its generation; `a5@x` has an
//! address, `a` no generation. An answer's read began when it was asked for unless the line says
//! `began`; the workspace is to be asked again 2 s after it landed.

use super::*;
use crate::{AgentId, binding::target};
use uuid::Uuid;

mod orders;

const DELAY: u64 = 250;
const DEADLINE: u64 = 30_000;
const AGAIN: u64 = 2_000;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn name(target: &Target) -> String {
    let mut name = char::from(target.agent.into_uuid().as_u128() as u8).to_string();
    if let Some(generation) = target.generation {
        name += &generation.to_string();
    }
    if let Some(address) = &target.address {
        name += &format!("@{address}");
    }
    name
}

/// The state of the driver of an attempt: one dial, one question.
struct Bench {
    zero: Instant,
    attempt: Attempt,
    progress: Progress,
    /// Each dial waits for the dial service.
    busy: bool,
    asked: Option<Instant>,
    /// The answer to a request to start a dial over.
    probe: &'static str,
}

impl Bench {
    fn new(inputs: &str) -> Self {
        // Far from the clock's zero, so that reads may have begun before the call.
        let zero = Instant::now() + Duration::from_secs(3600);
        let mut limits = Limits {
            delay: ms(DELAY),
            deadline: zero + ms(DEADLINE),
            redial: Redial::Once,
            jitter: ms(0),
        };
        let (mut given_to, mut progress, mut busy) =
            (Inputs::default(), Progress::default(), false);
        let mut bound = None;
        let mut words = inputs.split_whitespace();
        while let Some(word) = words.next() {
            let mut next = || words.next().expect("a value");
            match word {
                "bound" => {
                    bound = Some(target(next()));
                    given_to.target.clone_from(&bound);
                }
                "known" => given_to.target = Some(target(next())),
                "unbound" => {}
                "doubt" => given_to.doubt = Some(zero - ms(next().parse().expect("an age"))),
                "wrong" => given_to.wrong.extend(given_to.target.clone()),
                "hold" => given_to.hold = true,
                "stopped" => given_to.denied = Some(Denied::Stopped),
                "deadline" => limits.deadline = zero + ms(next().parse().expect("an instant")),
                "redial-never" => limits.redial = Redial::Never,
                "dials" => progress.started = next().parse().expect("a number"),
                "busy" => busy = true,
                word => panic!("what is {word:?}?"),
            }
        }
        given_to.bound = bound.as_ref();
        Self {
            zero,
            attempt: Attempt::new(limits, given_to, zero),
            progress,
            busy,
            asked: None,
            probe: "granted",
        }
    }

    fn at(&self, millis: u64) -> Instant {
        self.zero + ms(millis)
    }

    fn event(&mut self, event: &str, now: Instant) {
        let words: Vec<&str> = event.split_whitespace().collect();
        let asked = self.asked;
        let began = |words: &[&str]| match words {
            ["began", "before"] => self.zero - ms(1),
            ["began", millis] => self.zero + ms(millis.parse().expect("an instant")),
            _ => asked.expect("an answer without a question"),
        };
        let answer = |bench: &mut Self, answer, began| {
            assert!(bench.asked.take().is_some(), "an answer without a question");
            bench.attempt.on_answer(answer, began, now + ms(AGAIN), now);
        };
        match words.as_slice() {
            ["begin" | "tick"] => {}
            ["connected"] => self.attempt.on_connected(),
            ["failed"] => self.attempt.on_dial_failed(now),
            ["wrong", "agent"] => self.attempt.on_wrong_agent(now),
            ["failed", "locally"] => self.attempt.on_dial_failed_locally(),
            ["answers", "later"] => self.progress.answers = Answers::Later,
            ["answers", "earlier"] => self.progress.answers = Answers::Earlier,
            ["awaited"] => self.progress.awaited = true,
            ["probes", "wait"] => self.probe = "wait",
            ["probes", "in", "vain"] => self.probe = "in vain",
            ["stopped", "in", "queue"] => self.attempt.on_denied_in_queue(Denied::Stopped),
            ["started"] => {
                self.progress = Progress {
                    started: self.progress.started + 1,
                    waiting: false,
                    ..self.progress
                };
                self.attempt.on_dial_started(now);
            }
            ["says", said, rest @ ..] => answer(self, Answer::Running(target(said)), began(rest)),
            ["starting", rest @ ..] => {
                answer(
                    self,
                    Answer::Denied(Denied::Starting { retry_after: Some(ms(700)) }),
                    began(rest),
                );
            }
            ["stopped", rest @ ..] => answer(self, Answer::Denied(Denied::Stopped), began(rest)),
            ["gone", rest @ ..] => answer(self, Answer::Denied(Denied::Gone), began(rest)),
            ["unknown", rest @ ..] => answer(self, Answer::Unknown, began(rest)),
            ["overtaken", rest @ ..] => answer(self, Answer::Overtaken, began(rest)),
            ["known", known] => {
                self.attempt.on_known(&target(known), None, now);
            }
            ["known", known, "doubt", since] => {
                let since = self.zero + ms(since.parse().expect("an instant"));
                self.attempt.on_known(&target(known), Some(since), now);
            }
            ["doubt"] => self.attempt.on_doubt(now, now),
            ["row", "unchanged"] => self.attempt.on_row_unchanged(),
            ["row", "unreadable"] => self.attempt.on_row_unreadable(),
            // Reports as the driver does: first the row, then the end of the read.
            ["row", named] => {
                if !self.attempt.on_known(&target(named), None, now) {
                    self.attempt.on_row_unchanged();
                }
            }
            // The row names this target, and nothing orders it and the candidate.
            ["contradicted", by] => {
                if self.attempt.keeps_its_dial() {
                    self.attempt.on_contradicted(now, now);
                } else {
                    self.attempt.on_known(&target(by), Some(now), now);
                }
            }
            event => panic!("what is {event:?}?"),
        }
    }

    /// All commands up to the next wait.
    fn commands(&mut self, now: Instant) -> String {
        let mut said = Vec::new();
        loop {
            assert!(said.len() < 8, "it spins: {said:?}");
            let command = self.attempt.next(now, self.progress);
            said.push(match &command {
                Command::Dial(target) => {
                    self.progress.waiting = self.busy;
                    self.progress.answers = Answers::None;
                    self.progress.started += u8::from(!self.busy);
                    format!("dial {}", name(target))
                }
                Command::Stop => "stop".into(),
                Command::Validate => {
                    self.asked = Some(now);
                    "ask".into()
                }
                Command::Revalidate => {
                    self.attempt.on_asking(now);
                    self.asked = Some(now);
                    "ask".into()
                }
                Command::Probe => {
                    let (said, wait) = (self.probe, now + ms(DELAY));
                    match said {
                        "granted" => self.attempt.on_probe(now),
                        "wait" => self.attempt.on_paused(wait),
                        _ => self.attempt.on_probed_in_vain(),
                    }
                    format!("probe {said}")
                }
                Command::Reread => "read".into(),
                Command::Wait(until) => format!("wait {}", (*until - self.zero).as_millis()),
                Command::Serve => format!("serve {}", way(&self.attempt.outcome_kind())),
                Command::Fail(kind) => format!("fail {}", failure(kind)),
            });
            if matches!(command, Command::Wait(_) | Command::Serve | Command::Fail(_)) {
                return said.join(", ");
            }
        }
    }
}

fn way(path: &OutcomeKind) -> String {
    match path {
        OutcomeKind::Reused => "reused".into(),
        OutcomeKind::Confirmed => "confirmed".into(),
        OutcomeKind::Redialed => "redialed".into(),
        OutcomeKind::Switched { from } => format!("switched from {}", name(from)),
        OutcomeKind::FirstBind => "first bind".into(),
    }
}

fn failure(kind: &ErrorKind) -> String {
    match kind {
        ErrorKind::Unreachable { newer: None } => "unreachable".into(),
        ErrorKind::Unreachable { newer: Some(newer) } => {
            format!("unreachable, newer {}", name(newer))
        }
        ErrorKind::TimedOut { last } => format!("timed out {last:?}").to_lowercase(),
        ErrorKind::Starting { retry_after } => {
            format!("starting {}", retry_after.unwrap_or_default().as_millis())
        }
        kind => format!("{kind:?}").to_lowercase(),
    }
}

fn run(script: &str) {
    let mut lines = script.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut bench = Bench::new(lines.next().expect("what it begins with"));
    for line in lines {
        let (event, expected) = line.split_once('|').expect("event | commands");
        let (instant, event) = event.trim().split_once(' ').expect("instant event");
        let now = bench.at(instant.parse().expect("an instant"));
        bench.event(event, now);
        assert_eq!(bench.commands(now), expected.trim(), "at: {line}");
    }
}

macro_rules! scripts {
    ($($(#[$meta:meta])* $name:ident: $script:literal;)*) => {
        $(#[test] $(#[$meta])* fn $name() { run($script) })*
    };
}

/// Rows that contradict the resolver, and nothing orders the two.
mod contradictions {
    use super::run;

    scripts! {
        a_row_that_contradicts_the_target_is_followed_while_two_dials_are_left: "bound a known b
            0    begin           | dial b, wait 250
            10   contradicted c  | dial c, ask, wait 30000
            20   says b          | dial b, wait 2020
            30   connected       | serve switched from a";

        the_last_dial_is_not_spent_before_the_resolver_has_answered: "bound a
            0    begin           | dial a, wait 250
            250  tick            | ask, wait 30000
            260  says b          | dial b, wait 2260
            300  contradicted c  | ask, wait 30000
            310  connected       | wait 30000
            320  says b          | serve switched from a";

        the_last_dial_goes_to_the_row_if_the_resolver_names_it: "bound a
            0    begin           | dial a, wait 250
            250  tick            | ask, wait 30000
            260  says b          | dial b, wait 2260
            300  contradicted c  | ask, wait 30000
            320  says c          | dial c, wait 2320
            330  connected       | serve switched from a";

        a_connection_is_contradicted_before_it_is_returned: "bound a dials 2
            0    begin           | dial a, wait 250
            10   contradicted c  | ask, wait 30000
            20   connected       | wait 30000
            30   contradicted c  | wait 30000
            40   says a began 9  | ask, wait 30000
            50   says a          | serve confirmed";

        without_an_answer_the_dial_goes_on: "bound a
            0    begin           | dial a, wait 250
            250  tick            | ask, wait 30000
            260  says b          | dial b, wait 2260
            300  contradicted c  | ask, wait 30000
            320  unknown         | wait 2320
            330  connected       | serve switched from a";

        without_an_answer_a_held_connection_is_good: "bound a
            0    begin           | dial a, wait 250
            250  tick            | ask, wait 30000
            260  says b          | dial b, wait 2260
            300  contradicted c  | ask, wait 30000
            310  connected       | wait 30000
            320  unknown         | serve switched from a";

        at_the_deadline_a_held_connection_is_returned: "bound a dials 2
            0     begin          | dial a, wait 250
            10    contradicted c | ask, wait 30000
            20    connected      | wait 30000
            30000 tick           | serve reused";

        a_dial_that_has_failed_is_not_kept: "bound a
            0    begin           | dial a, wait 250
            250  tick            | ask, wait 30000
            260  says b          | dial b, wait 2260
            270  failed          | ask, wait 520
            300  contradicted c  | dial c, wait 30000
            310  connected       | serve switched from a";

        a_denial_decides_with_the_row: "bound a dials 2
            0    begin           | dial a, wait 250
            250  tick            | ask, wait 30000
            260  stopped         | read, wait 30000
            270  contradicted c  | fail unreachable, newer c";
    }
}

/// Lost dials, queues, and errors of this process.
mod herd {
    use super::run;

    scripts! {
        row_27_a_dial_whose_target_answers_later_dials_is_started_over: "bound a5
            0    begin           | dial a5, wait 250
            100  answers later   | wait 250
            250  tick            | dial a5, wait 500
            260  connected       | serve reused";

        row_27_evidence_that_comes_after_the_delay_counts_at_the_next_look: "bound a5
            0    begin           | dial a5, wait 250
            250  tick            | ask, wait 30000
            300  says a5         | wait 2300
            1000 answers later   | dial a5, wait 1250
            1010 connected       | serve confirmed";

        row_27_a_switched_dial_is_started_over: "bound a5
            0    begin           | dial a5, wait 250
            250  tick            | ask, wait 30000
            260  says b6         | dial b6, wait 2260
            300  answers later   | wait 510
            510  tick            | dial b6, wait 760
            520  connected       | serve switched from a5";

        row_27_a_lost_dial_continues_if_no_dial_is_left: "bound a5
            0    begin           | dial a5, wait 250
            10   answers later   | wait 250
            250  tick            | dial a5, wait 500
            260  answers later   | wait 500
            500  tick            | dial a5, wait 750
            510  answers later   | wait 750
            750  tick            | ask, wait 30000
            760  says a5         | wait 2760
            800  connected       | serve confirmed";

        row_27_a_dial_that_is_started_over_and_fails_is_a_failed_dial: "bound a5
            0    begin           | dial a5, wait 250
            100  answers later   | wait 250
            250  tick            | dial a5, wait 500
            260  failed          | ask, wait 510
            270  says a5         | dial a5, wait 2270
            280  connected       | serve redialed";

        row_27_a_doubt_about_a_lost_dial_is_validated: "bound a5
            0    begin           | dial a5, wait 250
            100  answers later   | wait 250
            110  doubt           | ask, wait 250
            120  says b6         | dial b6, wait 2120";

        calls_to_a_target_that_answers_others_share_its_validations: "bound a5
            0    begin           | dial a5, wait 250
            100  answers earlier | wait 250
            250  tick            | ask, wait 30000
            260  says a5         | wait 2260
            2260 tick            | probe granted, dial a5, wait 2510
            2270 connected       | serve confirmed";

        a_dial_is_not_probed_before_the_resolver_has_named_the_target: "bound a5
            0    begin           | dial a5, wait 250
            100  awaited         | wait 250
            250  tick            | ask, wait 30000
            260  unknown         | wait 2260
            2260 tick            | ask, wait 30000
            2270 says a5         | wait 4270
            4270 tick            | probe granted, dial a5, wait 4520";

        a_dial_waits_for_the_result_of_another_calls_probe: "bound a5
            0    probes wait     | dial a5, wait 250
            100  awaited         | wait 250
            250  tick            | ask, wait 30000
            260  says a5         | wait 2260
            2260 tick            | probe wait, wait 2510
            2300 answers later   | dial a5, wait 2550";

        after_a_failed_probe_the_resolver_is_asked: "bound a5
            0    probes in vain  | dial a5, wait 250
            100  awaited         | wait 250
            250  tick            | ask, wait 30000
            260  says a5         | wait 2260
            2260 tick            | probe in vain, ask, wait 30000
            2270 says b6         | dial b6, wait 4270";

        row_28_a_queued_call_asks_no_question: "bound a5 busy
            0    begin           | dial a5, wait 30000
            5000 started         | wait 5250
            5250 tick            | ask, wait 30000";

        row_28_a_denial_while_it_was_queued_ends_it: "bound a5 busy
            0    begin           | dial a5, wait 30000
            250  stopped in queue | read, wait 30000
            260  row unchanged   | fail stopped";

        row_28_a_denial_while_it_was_queued_gives_way_to_a_newer_row: "bound a5 busy
            0    begin           | dial a5, wait 30000
            250  stopped in queue | read, wait 30000
            260  row b6          | dial b6, wait 30000";

        row_48_another_agent_at_the_address_and_the_same_target: "bound a5
            0    begin           | dial a5, wait 250
            10   wrong agent     | ask, wait 30000
            20   says a5         | fail wrongagent";

        row_48_another_agent_at_the_address_and_another_target: "bound a5
            0    begin           | dial a5, wait 250
            10   wrong agent     | ask, wait 30000
            20   says b6         | dial b6, wait 2020
            30   connected       | serve switched from a5";

        row_48_the_same_agent_at_another_address_is_another_target: "bound a5@x
            0    begin           | dial a5@x, wait 250
            10   wrong agent     | ask, wait 30000
            20   says a5@y       | dial a5@y, wait 2020
            30   connected       | serve switched from a5@x";

        row_48_an_answer_from_before_the_dial_failed_does_not_count: "bound a5
            0    begin           | dial a5, wait 250
            250  tick            | ask, wait 30000
            260  wrong agent     | wait 30000
            270  says a5         | ask, wait 30000
            280  says b6         | dial b6, wait 2280";

        row_48_a_confirmed_target_is_asked_about_again: "bound a5
            0    begin           | dial a5, wait 250
            250  tick            | ask, wait 30000
            260  says a5         | wait 2260
            900  wrong agent     | ask, wait 30000
            910  says a5         | fail wrongagent";

        row_48_without_an_answer_there_is_nothing_to_dial: "bound a5
            0    begin           | dial a5, wait 250
            10   wrong agent     | ask, wait 30000
            5010 unknown         | fail wrongagent";

        row_48_after_a_denial_the_row_decides: "bound a5
            0    begin           | dial a5, wait 250
            250  tick            | ask, wait 30000
            260  stopped         | read, wait 30000
            265  wrong agent     | wait 30000
            270  row unchanged   | fail stopped";

        row_48_the_second_dial_reaches_another_agent: "bound a5
            0    begin           | dial a5, wait 250
            10   failed          | ask, wait 260
            20   says a5         | dial a5, wait 2020
            30   wrong agent     | fail wrongagent";

        row_48_a_switch_back_does_not_dial_again: "bound a
            0    begin           | dial a, wait 250
            10   wrong agent     | ask, wait 30000
            20   says b          | dial b, wait 2020
            30   failed          | ask, wait 280
            40   says a          | fail wrongagent";

        row_48_a_switch_back_waits_for_an_answer_that_is_under_way: "bound a
            0    begin           | dial a, wait 250
            10   wrong agent     | ask, wait 30000
            20   says b          | dial b, wait 2020
            2020 tick            | ask, wait 30000
            2030 known a         | stop, wait 30000
            2040 says c          | dial c, wait 4040";

        row_48_a_newer_generation_at_the_same_address_is_dialed: "bound a5
            0    begin           | dial a5, wait 250
            10   wrong agent     | ask, wait 30000
            20   says a6         | dial a6, wait 2020
            30   wrong agent     | fail wrongagent";

        row_48_a_call_that_begins_again_asks_and_does_not_dial_it: "bound a5 wrong
            0    begin           | ask, wait 30000
            10   says a5         | fail wrongagent";

        row_48_a_call_that_begins_again_dials_another_target: "bound a5 wrong
            0    begin           | ask, wait 30000
            10   says b6         | dial b6, wait 2010
            20   connected       | serve switched from a5";

        row_48_without_redials_the_error_is_the_same: "bound a5 redial-never
            0    begin           | dial a5, wait 250
            10   wrong agent     | ask, wait 30000
            20   says a5         | fail wrongagent";

        row_49_a_local_error_ends_the_call: "bound a5
            0    begin           | dial a5, wait 250
            100  failed locally  | fail local";

        row_49_a_local_error_while_the_resolver_is_asked_ends_the_call: "bound a5
            0    begin           | dial a5, wait 250
            250  tick            | ask, wait 30000
            260  failed locally  | fail local";

        row_49_a_local_error_after_a_denial_leaves_the_decision_to_the_row: "bound a5
            0    begin           | dial a5, wait 250
            250  tick            | ask, wait 30000
            260  stopped         | read, wait 30000
            265  failed locally  | wait 30000
            270  row unchanged   | fail stopped";
    }
}

mod rows {
    use super::run;

    scripts! {
        row_1_an_undoubted_binding_that_answers_in_time: "bound a5
            0    begin          | dial a5, wait 250
            249  connected      | serve reused";

        row_2_slow_and_the_same_target: "bound a5
            0    begin          | dial a5, wait 250
            249  tick           | wait 250
            250  tick           | ask, wait 30000
            300  says a5        | wait 2300
            2299 connected      | serve confirmed";

        row_3_slow_and_another_target: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            260  says b6        | dial b6, wait 2260
            270  connected      | serve switched from a5";

        row_3_without_generations: "bound a
            0    begin          | dial a, wait 250
            250  tick           | ask, wait 30000
            260  says b         | dial b, wait 2260
            270  connected      | serve switched from a";

        row_5_slow_and_stopped: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            260  stopped        | read, wait 30000
            270  row unchanged  | fail stopped";

        row_21_a_fresh_denial_ends_a_call_without_a_target: "unbound stopped
            0    begin          | fail stopped";

        row_5_slow_and_gone: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            260  gone           | read, wait 30000
            270  row a5         | fail gone";

        row_5_slow_and_starting: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            260  starting       | read, wait 30000
            270  row unchanged  | fail starting 700";

        row_5_a_newer_target_in_the_row_wins: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            260  stopped        | read, wait 30000
            270  row b6         | dial b6, wait 520
            280  connected      | serve switched from a5";

        row_5_the_dial_succeeds_before_the_row_is_read: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            260  stopped        | read, wait 30000
            265  connected      | serve reused";

        row_5_the_row_cannot_be_read_so_the_dial_goes_on: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            260  stopped        | read, wait 30000
            270  row unreadable | wait 2260
            900  connected      | serve reused";

        row_5_no_dial_and_no_row_leave_the_verdict: "bound a5
            0    begin          | dial a5, wait 250
            100  failed         | ask, wait 350
            260  gone           | read, wait 30000
            270  row unreadable | fail gone";

        row_6_the_validation_fails: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            260  unknown        | wait 2260
            900  connected      | serve reused";

        row_6_the_validation_hangs: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            4000 connected      | serve reused";

        row_7_failed_and_another_target: "bound a5
            0    begin          | dial a5, wait 250
            10   failed         | ask, wait 260
            20   says b6        | dial b6, wait 2020
            30   connected      | serve switched from a5";

        row_8_failed_and_the_same_target: "bound a5
            0    begin          | dial a5, wait 250
            10   failed         | ask, wait 260
            20   says a5        | dial a5, wait 2020
            30   connected      | serve redialed";

        row_8_no_third_dial: "bound a5
            0    begin          | dial a5, wait 250
            10   failed         | ask, wait 260
            20   says a5        | dial a5, wait 2020
            30   failed         | fail unreachable";

        row_9_failed_and_the_validation_fails: "bound a5
            0    begin          | dial a5, wait 250
            10   failed         | ask, wait 260
            20   unknown        | dial a5, wait 2020
            30   failed         | fail unreachable";

        row_9_failed_and_the_validation_hangs: "bound a5
            0    begin          | dial a5, wait 250
            10   failed         | ask, wait 260
            260  tick           | dial a5, wait 30000
            270  failed         | wait 30000
            5010 unknown        | fail unreachable";

        row_9_the_redial_of_a_hanging_validation_answers: "bound a5
            0    begin          | dial a5, wait 250
            10   failed         | ask, wait 260
            260  tick           | dial a5, wait 30000
            270  connected      | serve redialed";

        row_9_the_late_answer_still_names_another: "bound a5
            0    begin          | dial a5, wait 250
            10   failed         | ask, wait 260
            260  tick           | dial a5, wait 30000
            270  failed         | wait 30000
            300  says b6        | dial b6, wait 2300
            310  connected      | serve switched from a5";

        row_10_failed_after_it_was_confirmed: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            260  says a5        | wait 2260
            900  failed         | ask, wait 1150
            910  says b6        | dial b6, wait 2910
            920  connected      | serve switched from a5";

        row_10_failed_after_it_was_confirmed_and_again_the_same: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            260  says a5        | wait 2260
            900  failed         | ask, wait 1150
            910  says a5        | dial a5, wait 2910
            920  connected      | serve redialed";

        row_11_connected_while_a_validation_runs: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            251  connected      | serve reused";

        row_12_a_confirmed_dial_is_asked_about_again: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            260  says a5        | wait 2260
            2260 tick           | ask, wait 30000
            2270 says a5        | wait 4270
            4270 tick           | ask, wait 30000
            4280 says b6        | dial b6, wait 6280
            4290 connected      | serve switched from a5";

        row_14_timed_out_without_an_answer: "bound a5
            0     begin         | dial a5, wait 250
            250   tick          | ask, wait 30000
            5250  unknown       | wait 7250
            7250  tick          | ask, wait 30000
            30000 tick          | fail timed out unknown";

        row_14_timed_out_while_the_same: "bound a5
            0     begin         | dial a5, wait 250
            250   tick          | ask, wait 30000
            28990 says a5       | wait 30000
            30000 tick          | fail timed out same";

        row_14_timed_out_at_the_newer_target: "bound a5
            0     begin         | dial a5, wait 250
            250   tick          | ask, wait 30000
            28990 says b6       | dial b6, wait 30000
            30000 tick          | fail timed out superseded";

        row_14_the_news_arrives_before_the_answer: "bound a5
            0     begin         | dial a5, wait 250
            250   tick          | ask, wait 30000
            28990 known b6      | dial b6, wait 30000
            28990 says b6       | wait 30000
            30000 tick          | fail timed out superseded";

        row_14_timed_out_with_a_target_that_only_another_call_has_heard_of: "unbound
            0     begin         | ask, wait 30000
            10    known a5      | dial a5, wait 30000
            5000  unknown       | wait 7000
            7000  tick          | ask, wait 30000
            30000 tick          | fail timed out unknown";

        row_14_timed_out_with_a_target_that_the_resolver_has_named_first: "unbound
            0     begin         | ask, wait 30000
            10    says a5       | dial a5, wait 2010
            2010  tick          | ask, wait 30000
            30000 tick          | fail timed out same";

        row_14_timed_out_while_stopped_and_the_row_is_unreadable: "bound a5
            0     begin         | dial a5, wait 250
            250   tick          | ask, wait 30000
            28990 stopped       | read, wait 30000
            29000 row unreadable| wait 30000
            30000 tick          | fail timed out stopped";

        row_15_an_earlier_doubt_is_validated_at_once: "bound a5 doubt 100
            0    begin          | dial a5, ask, wait 30000
            10   says b6        | dial b6, wait 2010
            20   connected      | serve switched from a5";

        row_16_a_pending_call_uses_the_target_that_another_call_learned: "bound a5
            0    begin          | dial a5, wait 250
            50   known b6       | dial b6, wait 300
            60   connected      | serve switched from a5";

        row_16_a_call_after_the_discovery_waits_no_delay: "bound a5 known b6
            0    begin          | dial b6, wait 250
            10   connected      | serve switched from a5";

        row_17_the_new_dial_fails: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            260  says b6        | dial b6, wait 2260
            270  failed         | ask, wait 520
            280  says b6        | dial b6, wait 2280
            290  failed         | fail unreachable";

        row_21_no_known_target: "unbound
            0    begin          | ask, wait 30000
            40   says a5        | dial a5, wait 2040
            50   connected      | serve first bind";

        row_21_known_and_undoubted: "unbound known a5
            0    begin          | dial a5, wait 250
            10   connected      | serve first bind";

        row_21_stopped: "unbound
            0    begin          | ask, wait 30000
            40   stopped        | read, wait 30000
            50   row unchanged  | fail stopped";

        row_21_starting_and_no_row: "unbound
            0    begin          | ask, wait 30000
            40   starting       | read, wait 30000
            50   row unreadable | fail starting 700";

        row_21_the_resolver_fails: "unbound
            0    begin          | ask, wait 30000
            40   unknown        | fail resolver";

        row_21_an_overtaken_answer_is_asked_for_again: "unbound
            0    begin          | ask, wait 30000
            40   overtaken      | ask, wait 30000
            50   overtaken      | ask, wait 30000
            60   says a6        | dial a6, wait 2060
            70   connected      | serve first bind";

        row_21_an_overtaken_answer_is_asked_for_again_until_the_deadline: "unbound
            0     begin         | ask, wait 30000
            40    overtaken     | ask, wait 30000
            30000 tick          | fail timed out unknown";

        an_overtaken_answer_is_like_a_failed_validation_if_there_is_a_dial: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            260  overtaken      | wait 2260
            270  failed         | ask, wait 520
            280  overtaken      | dial a5, wait 2280
            290  failed         | fail unreachable";

        row_21_a_failed_first_dial_is_validated_and_repeated: "unbound
            0    begin          | ask, wait 30000
            40   says a5        | dial a5, wait 2040
            50   failed         | ask, wait 300
            60   says a5        | dial a5, wait 2060
            70   connected      | serve first bind";
    }
}

mod bounds {
    use super::run;

    scripts! {
        no_fourth_dial_and_the_newer_target_is_named: "bound a5 dials 2
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            260  says b6        | fail unreachable, newer b6";

        a_redial_without_a_dial_left_fails: "bound a5 dials 2
            0    begin          | dial a5, wait 250
            10   failed         | ask, wait 260
            20   says a5        | fail unreachable";

        a_dial_that_never_began_is_not_counted: "busy bound a5 dials 2
            0    begin          | dial a5, wait 30000
            10   known b6       | dial b6, wait 30000
            20   started        | wait 270
            30   connected      | serve switched from a5";

        the_deadline_is_not_moved_by_a_switch: "bound a5
            0     begin         | dial a5, wait 250
            29990 known b6      | dial b6, wait 30000
            30000 tick          | fail timed out superseded";

        a_connection_at_the_deadline_is_served: "bound a5
            0     begin         | dial a5, wait 250
            250   tick          | ask, wait 30000
            30000 connected     | serve reused";

        the_delay_begins_when_the_dial_service_is_ready: "busy bound a5
            0    begin          | dial a5, wait 30000
            400  tick           | wait 30000
            500  started        | wait 750
            750  tick           | ask, wait 30000
            760  connected      | serve reused";

        a_doubt_does_not_wait_for_the_dial_service: "busy bound a5 doubt 10
            0    begin          | dial a5, ask, wait 30000
            10   says b6        | dial b6, wait 30000
            20   started        | wait 2010
            30   connected      | serve switched from a5";

        a_fresh_verdict_is_not_asked_for_again_because_the_dial_service_was_slow: "busy bound a5 doubt 10
            0    begin          | dial a5, ask, wait 30000
            10   says a5        | wait 30000
            20   started        | wait 2010
            30   connected      | serve confirmed";

        an_old_verdict_is_asked_for_again_after_a_slow_dial_service: "busy bound a5 doubt 10
            0    begin          | dial a5, ask, wait 30000
            10   says a5        | wait 30000
            2500 started        | wait 2750
            2750 tick           | ask, wait 30000";
    }
}

mod readings {
    use super::run;

    scripts! {
        a_newer_generation_at_the_same_endpoint_keeps_the_dial: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            260  says a6        | wait 2260
            270  connected      | serve confirmed";

        a_smaller_generation_is_unknown: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            260  says b4        | wait 2260
            270  connected      | serve reused";

        no_generation_where_one_is_known_is_unknown: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            260  says b         | wait 2260
            270  connected      | serve reused";

        a_smaller_generation_after_a_failure_is_like_a_failed_validation: "bound a5
            0    begin          | dial a5, wait 250
            10   failed         | ask, wait 260
            20   says b4        | dial a5, wait 2020
            30   failed         | fail unreachable";

        an_equal_generation_elsewhere_is_another: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            260  says b5        | dial b5, wait 2260";

        another_address_is_another: "bound a5@x
            0    begin          | dial a5@x, wait 250
            250  tick           | ask, wait 30000
            260  says a5@y      | dial a5@y, wait 2260";

        another_that_was_read_before_the_doubt_is_asked_for_again: "bound a
            0    begin          | dial a, wait 250
            250  tick           | ask, wait 30000
            260  says b began 249 | ask, wait 30000
            270  says b         | dial b, wait 2270";

        the_same_that_was_read_before_the_doubt_is_asked_for_again: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            260  says a5 began 249 | ask, wait 30000
            270  says a5        | wait 2270";

        a_denial_that_was_read_before_the_doubt_is_asked_for_again: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            260  gone began 249 | ask, wait 30000
            270  says b6        | dial b6, wait 2270";

        a_newer_generation_counts_at_any_age: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            260  says b6 began 100 | dial b6, wait 2260";

        a_failure_is_a_doubt_of_its_own: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            300  failed         | wait 550
            310  says a5        | ask, wait 550
            320  says a5        | dial a5, wait 2320";

        a_failure_during_the_redials_validation_is_not_repeated: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            300  failed         | wait 550
            550  tick           | dial a5, wait 30000
            560  failed         | wait 30000
            570  says a5        | fail unreachable";

        a_verdict_from_before_the_failure_does_not_confirm_the_redial: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            300  failed         | wait 550
            550  tick           | dial a5, wait 30000
            560  says a5        | ask, wait 30000
            570  says b6        | dial b6, wait 2570";

        a_hint_reaches_a_pending_call: "bound a5
            0    begin          | dial a5, wait 250
            100  doubt          | ask, wait 30000
            110  says b6        | dial b6, wait 2110";

        a_hint_during_the_question_asks_again: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            255  doubt          | wait 30000
            260  says a5        | ask, wait 30000
            270  says a5        | wait 2270";

        a_hint_during_the_redials_question_asks_again: "bound a5
            0    begin          | dial a5, wait 250
            10   failed         | ask, wait 260
            260  tick           | dial a5, wait 30000
            300  doubt          | wait 30000
            310  says a5        | ask, wait 30000
            320  says b6        | dial b6, wait 2320";

        an_unbound_session_takes_an_answer_of_any_age: "unbound
            0    begin          | ask, wait 30000
            10   says a began before | dial a, wait 2010";

        an_unbound_session_in_doubt_takes_no_answer_from_before_it: "unbound doubt 0
            0    begin          | ask, wait 30000
            10   says a began before | ask, wait 30000
            20   says b         | dial b, wait 2020";

        an_unbound_session_in_doubt_takes_none_from_before_the_hint: "unbound
            0    begin          | ask, wait 30000
            20   doubt          | wait 30000
            30   says a         | ask, wait 30000
            40   says b         | dial b, wait 2040";

        an_unbound_session_takes_no_denial_from_before_the_call: "unbound
            0    begin          | ask, wait 30000
            10   stopped began before | ask, wait 30000
            20   says a5        | dial a5, wait 2020";

        the_row_is_read_without_a_second_question_meanwhile: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            260  stopped        | read, wait 30000
            2260 tick           | wait 30000
            2500 row unreadable | ask, wait 30000
            2600 says a5        | wait 4600
            2700 connected      | serve confirmed";

        a_dial_that_fails_while_the_row_is_read_follows_the_row: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            260  stopped        | read, wait 30000
            270  failed         | wait 30000
            280  row b6         | dial b6, wait 530";

        a_dial_that_fails_while_the_row_is_read_is_a_denial: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            260  stopped        | read, wait 30000
            270  failed         | wait 30000
            280  row unchanged  | fail stopped";

        a_read_from_before_the_switch_decides_nothing: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            260  stopped        | read, wait 30000
            265  known b6       | dial b6, wait 515
            270  row unchanged  | wait 515
            280  connected      | serve switched from a5";

        a_reported_connection_is_held_until_the_verdict: "bound a5 doubt 10 hold
            0    begin          | dial a5, ask, wait 30000
            10   connected      | wait 250
            20   says a5        | serve confirmed";

        a_reported_agent_that_was_confirmed_is_not_held: "bound a5 doubt 10 hold
            0    begin          | dial a5, ask, wait 30000
            10   says a5        | wait 2010
            20   connected      | serve confirmed";

        a_reported_connection_is_good_if_the_row_cannot_be_read: "bound a5 doubt 10 hold
            0    begin          | dial a5, ask, wait 30000
            10   connected      | wait 250
            20   stopped        | read, wait 250
            30   row unreadable | serve reused";

        a_reported_connection_is_dropped_for_another: "bound a5 doubt 10 hold
            0    begin          | dial a5, ask, wait 30000
            10   connected      | wait 250
            20   says b6        | dial b6, wait 2020
            30   connected      | serve switched from a5";

        a_reported_connection_is_held_for_the_delay_at_most: "bound a5 doubt 10 hold
            0    begin          | dial a5, ask, wait 30000
            10   connected      | wait 250
            250  tick           | serve reused";

        a_reported_connection_is_served_at_the_deadline: "bound a5 doubt 10 hold deadline 100
            0    begin          | dial a5, ask, wait 100
            40   connected      | wait 100
            100  tick           | serve reused";

        a_reported_connection_is_not_held_against_a_failed_validation: "bound a5 doubt 10 hold
            0    begin          | dial a5, ask, wait 30000
            10   connected      | wait 250
            20   unknown        | serve reused";

        a_reported_connection_in_a_stopped_workspace_is_not_served: "bound a5 doubt 10 hold
            0    begin          | dial a5, ask, wait 30000
            10   connected      | wait 250
            20   stopped        | read, wait 250
            30   row unchanged  | fail stopped";

        a_reported_connection_waits_no_longer_than_the_delay_for_the_row: "bound a5 doubt 10 hold
            0    begin          | dial a5, ask, wait 30000
            10   connected      | wait 250
            20   stopped        | read, wait 250
            250  tick           | serve reused";

        a_late_connection_of_a_reported_agent_is_not_held_at_all: "bound a5 doubt 10 hold
            0    begin          | dial a5, ask, wait 30000
            300  connected      | serve reused";

        without_redials_the_first_failure_stands: "bound a5 redial-never
            0    begin          | dial a5, wait 250
            10   failed         | ask, wait 30000
            20   says a5        | fail unreachable";

        without_redials_a_failed_validation_ends_the_call: "bound a5 redial-never
            0    begin          | dial a5, wait 250
            10   failed         | ask, wait 30000
            20   unknown        | fail unreachable";

        without_redials_another_target_is_dialed: "bound a5 redial-never
            0    begin          | dial a5, wait 250
            10   failed         | ask, wait 30000
            20   says b6        | dial b6, wait 2020";

        the_new_target_is_doubted_as_the_first_one_was: "bound a5
            0    begin          | dial a5, wait 250
            50   known b6       | dial b6, wait 300
            300  tick           | ask, wait 30000
            310  says c7        | dial c7, wait 2310
            320  connected      | serve switched from a5";

        a_new_target_that_is_in_doubt_is_asked_about_at_once: "bound a5
            0    begin          | dial a5, wait 250
            50   known b6 doubt 40 | dial b6, ask, wait 30000
            60   says b6        | wait 2060
            70   connected      | serve switched from a5";

        a_denial_that_was_asked_for_before_the_new_target_was_known_is_asked_for_again: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            300  known b6       | dial b6, wait 30000
            310  stopped        | ask, wait 30000
            320  stopped        | read, wait 30000
            330  row unchanged  | fail stopped";

        a_doubt_about_the_new_target_outlives_an_older_question: "bound a5
            0    begin          | dial a5, wait 250
            250  tick           | ask, wait 30000
            300  known b6 doubt 290 | dial b6, wait 30000
            310  says b6        | ask, wait 30000
            320  says c7        | dial c7, wait 2320";

        a_doubt_about_the_dialed_target_is_validated: "bound a5
            0    begin          | dial a5, wait 250
            50   known a5 doubt 40 | ask, wait 30000
            60   says b6        | dial b6, wait 2060";

        a_second_switch_back_to_the_bound_endpoint_is_no_switch: "bound a
            0    begin          | dial a, wait 250
            50   known b        | dial b, wait 300
            60   known a        | dial a, wait 310
            70   connected      | serve reused";

        an_answer_from_before_two_switches_confirms_nothing: "bound a
            0    begin          | dial a, wait 250
            250  tick           | ask, wait 30000
            260  says a         | wait 2260
            270  known b        | dial b, wait 520
            280  known a        | dial a, wait 530
            290  connected      | serve reused";
    }
}
