//! The paths beside each other, as SVG: bars of ratios to iptables, with the range of the rounds.

use std::fmt::Write as _;

use super::path::Path;
use super::rows::{Metric, Rows};

const WIDTH: f64 = 760.0;
const LABELS: f64 = 190.0;
const BAR: f64 = 9.0;
const GAP: f64 = 12.0;
/// Ratios above are cut off: pod to pod without a mesh is ten times as fast.
const LONGEST: f64 = 3.0;

fn colour(path: Path) -> &'static str {
    match path {
        Path::NoMesh => "#bbbbbb",
        Path::Iptables => "#d08c3c",
        Path::Redirect => "#a9d2de",
        Path::Default => "#4a9bb5",
        Path::Flows => "#7fb5a0",
        Path::Full => "#1f6f8b",
    }
}

/// Draws one metric of all cells.
pub(super) fn draw(rows: &Rows, metric: Metric) -> String {
    let scale = (WIDTH - LABELS - 120.0) / LONGEST;
    let mut body = String::new();
    let mut y = 54.0;
    for cell in rows.cells() {
        let label = format!("{}, {}", cell.0.name(), cell.1);
        let _ = writeln!(body, r#"<text x="8" y="{:.1}">{label}</text>"#, y + BAR);
        for path in Path::ALL {
            let Some(it) = rows.compare(cell, path, metric) else {
                continue;
            };
            let length = it.ratio.min(LONGEST) * scale;
            let (low, high) = (
                LABELS + (it.ratio - it.noise).clamp(0.0, LONGEST) * scale,
                LABELS + (it.ratio + it.noise).min(LONGEST) * scale,
            );
            let (fill, middle) = (colour(path), y + BAR / 2.0);
            let _ = writeln!(
                body,
                r##"<rect x="{LABELS}" y="{y:.1}" width="{length:.1}" height="{BAR}" fill="{fill}"/>
<line x1="{low:.1}" x2="{high:.1}" y1="{middle:.1}" y2="{middle:.1}" stroke="#333"/>
<text x="{:.1}" y="{:.1}">{:.2}x</text>"##,
                high.max(LABELS + length) + 4.0,
                y + BAR - 1.0,
                it.ratio,
            );
            y += BAR + 2.0;
        }
        y += GAP;
    }
    let one = LABELS + scale;
    let mut legend = String::new();
    for (index, path) in (0_u32..).zip(Path::ALL) {
        let x = LABELS + 110.0 * f64::from(index);
        let (fill, name) = (colour(path), path.name());
        let _ = writeln!(
            legend,
            r#"<rect x="{x}" y="30" width="9" height="9" fill="{fill}"/><text x="{}" y="38">{name}</text>"#,
            x + 13.0
        );
    }
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" font-family="sans-serif" font-size="10">
<rect width="100%" height="100%" fill="white"/>
<text x="8" y="18" font-size="14">{}: ratio to iptables of the same round (median; line: range of the rounds)</text>
{legend}{body}<line x1="{one}" x2="{one}" y1="48" y2="{y}" stroke="#d08c3c" stroke-dasharray="3 3"/>
</svg>
"##,
        metric.name()
    )
}
