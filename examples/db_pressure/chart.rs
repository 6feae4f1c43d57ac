//! Draws the numbers as bars, one picture for all runs.
//!
//! The picture is narrow, so that its text stays readable on a phone.

use crate::{CHATS, Run, TURNS, grouped};
use std::fmt::Write;

/// The picture has its own background, so that it is readable wherever it is shown. The last two
/// rules follow the theme of a page that rustdoc has made.
const STYLE: &str = "
    #pressure {
      max-width: 100%; height: auto;
      --ground: #ffffff; --frame: #d0d7de; --ink: #1f2328; --soft: #59636e; --others: #e5707a; --this: #1a7f37;
    }
    @media (prefers-color-scheme: dark) {
      #pressure {
        --ground: #0d1117; --frame: #30363d; --ink: #e6edf3; --soft: #9198a1; --others: #b3575a; --this: #56d364;
      }
    }
    :root[data-theme=\"light\"] #pressure {
      --ground: #ffffff; --frame: #d0d7de; --ink: #1f2328; --soft: #59636e; --others: #e5707a; --this: #1a7f37;
    }
    :root[data-theme=\"dark\"] #pressure, :root[data-theme=\"ayu\"] #pressure {
      --ground: #0d1117; --frame: #30363d; --ink: #e6edf3; --soft: #9198a1; --others: #b3575a; --this: #56d364;
    }
    #pressure .ground { fill: var(--ground); stroke: var(--frame) }
    #pressure text { fill: var(--ink) }
    #pressure .soft { fill: var(--soft) }
    #pressure .others { fill: var(--others) }
    #pressure .this { fill: var(--this) }";
const WIDTH: usize = 460;
const LEFT: usize = 16;
const LONGEST_BAR: f64 = 190.0;
/// From one bar to the next, and from the last bar of a group to the heading of the next group.
const STEP: usize = 46;
const GAP: usize = 22;

pub fn draw(runs: &[Run]) -> String {
    let mut bars = String::new();
    let (mut y, mut workspaces) = (46, 0);
    let most = runs.iter().map(|run| run.statements).max().unwrap_or(1).max(1) as f64;
    let text = |x: usize, y: usize, attributes: &str, text: &str| {
        format!("  <text x=\"{x}\" y=\"{y}\"{attributes}>{text}</text>\n")
    };
    for run in runs {
        if run.workspaces != workspaces {
            workspaces = run.workspaces;
            let group = if workspaces == 1 {
                "in one workspace".to_owned()
            } else {
                format!("in {workspaces} workspaces")
            };
            y += GAP;
            bars += &text(LEFT, y, " font-weight=\"600\"", &group);
            y += 26;
        }
        bars += &text(LEFT, y, "", run.way.name());
        let length = (run.statements as f64 / most * LONGEST_BAR).max(2.0);
        let class = if run.way.is_ours() { "this" } else { "others" };
        let _ = writeln!(
            bars,
            "  <rect class=\"{class}\" x=\"{LEFT}\" y=\"{}\" width=\"{length:.1}\" height=\"15\" rx=\"2\"/>",
            y + 8
        );
        let after = match run.later {
            0 => "none after turn 1".to_owned(),
            later => format!("{} after turn 1", grouped(later)),
        };
        let number = format!(
            "<tspan font-weight=\"600\">{}</tspan><tspan class=\"soft\" dx=\"9\">{after}</tspan>",
            grouped(run.statements)
        );
        bars += &text(LEFT + length as usize + 9, y + 21, "", &number);
        y += STEP;
    }
    let height = y - 4;
    let title = format!("SQL statements for {} chats of {TURNS} turns", grouped(CHATS as i64));
    let heading = text(LEFT, 32, " font-size=\"16.5\" font-weight=\"600\"", &title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" id=\"pressure\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" role=\"img\" aria-labelledby=\"pressure-title\" \
         font-family=\"system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif\" \
         font-size=\"14.5\">
  <title id=\"pressure-title\">{title}</title>
  <style>{STYLE}
  </style>
  <rect class=\"ground\" x=\".5\" y=\".5\" width=\"{}\" height=\"{}\" rx=\"10\"/>
{heading}{bars}</svg>
",
        WIDTH - 1,
        height - 1
    )
}
