//! The numbers as bars, one drawing for all runs.

use crate::{CHATS, Run, TURNS, grouped};
use std::fmt::Write;

/// Brings its own ground, so that it can be read wherever it is shown.
const STYLE: &str = "
    .ground { fill: #ffffff; stroke: #d0d7de }
    .ink { fill: #1f2328 }
    .soft { fill: #59636e }
    .theirs { fill: #cf222e; fill-opacity: .65 }
    .ours { fill: #1a7f37 }
    @media (prefers-color-scheme: dark) {
      .ground { fill: #0d1117; stroke: #30363d }
      .ink { fill: #e6edf3 }
      .soft { fill: #9198a1 }
      .theirs { fill: #ff7b72; fill-opacity: .65 }
      .ours { fill: #56d364 }
    }";
const WIDTH: usize = 880;
/// Where bars begin, and how long the longest is.
const LEFT: usize = 310;
const LONGEST: f64 = 280.0;
const LINE: usize = 30;

pub fn draw(runs: &[Run]) -> String {
    let mut bars = String::new();
    let (mut y, mut workspaces) = (34, 0);
    let most = runs.iter().map(|run| run.statements).max().unwrap_or(1).max(1) as f64;
    let text = |class: &str, x: usize, y: usize, more: &str, text: &str| {
        format!("  <text class=\"{class}\" x=\"{x}\" y=\"{y}\"{more}>{text}</text>\n")
    };
    for run in runs {
        if run.workspaces != workspaces {
            workspaces = run.workspaces;
            let all = if workspaces == 1 {
                "all in one workspace".to_owned()
            } else {
                format!("in {workspaces} workspaces")
            };
            y += LINE + 10;
            bars += &text("ink", 20, y, " font-weight=\"600\"", &all);
        }
        y += LINE;
        let length = (run.statements as f64 / most * LONGEST).max(1.0);
        let class = if run.way.is_ours() { "ours" } else { "theirs" };
        let _ = writeln!(
            bars,
            "  <rect class=\"{class}\" x=\"{LEFT}\" y=\"{}\" width=\"{length:.1}\" height=\"18\" rx=\"2\"/>",
            y - 14
        );
        bars += &text("ink", LEFT - 12, y, " text-anchor=\"end\"", run.way.name());
        let after = match run.later {
            0 => "none after the first turn".to_owned(),
            later => format!("{} after the first turn", grouped(later)),
        };
        let number =
            format!("{}<tspan class=\"soft\" dx=\"8\">{after}</tspan>", grouped(run.statements));
        bars += &text("ink", LEFT + length as usize + 8, y, "", &number);
    }
    let height = y + 24;
    let title = format!("SQL statements for {} chats of {TURNS} turns each", grouped(CHATS as i64));
    let heading = text("ink", 20, 34, " font-size=\"16\" font-weight=\"600\"", &title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-labelledby=\"title\"
     font-family=\"system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif\" font-size=\"14\">
  <title id=\"title\">{title}</title>
  <style>{STYLE}
  </style>
  <rect class=\"ground\" x=\".5\" y=\".5\" width=\"{}\" height=\"{}\" rx=\"6\"/>
{heading}{bars}</svg>
",
        WIDTH - 1,
        height - 1
    )
}
