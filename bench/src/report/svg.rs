//! Charts as SVG.
//!
//! Everything is laid out in one coordinate system of 900 by 480, with room for the longest labels there are;
//! a test reads the drawing back and sees to it that nothing is cut off.

use std::fmt::Write as _;

use super::chart::{Chart, Content, Curve, Series};
use super::picture::FONT_FAMILY;
use super::scale::{linear, logarithmic, short};

/// Series that can be told apart.
pub const SERIES_MAX: usize = 6;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 480.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = WIDTH - 28.0;
const BOTTOM: f64 = HEIGHT - 66.0;
/// Where the first row of the legend stands; the plot begins below the last.
const LEGEND_TOP: f64 = 76.0;
const LEGEND_ROW: f64 = 22.0;

/// Width of a letter of the legend, about.
const LETTER: f64 = 7.4;

/// Letters of a label at most; longer ones are cut.
const LABEL_LETTERS_MAX: usize = 36;

/// Colours of the series: on light ground, and on dark.
const COLOURS: [(&str, &str); SERIES_MAX] = [
    ("#2563eb", "#6ea8fe"),
    ("#ea580c", "#fb923c"),
    ("#059669", "#34d399"),
    ("#9333ea", "#c084fc"),
    ("#db2777", "#f472b6"),
    ("#0e7490", "#22d3ee"),
];

/// Ground, text, faint text, and grid: on light ground, and on dark.
const GROUND: (&str, &str) = ("#ffffff", "#161b22");
const TEXT: (&str, &str) = ("#1f2937", "#e6edf3");
const FAINT: (&str, &str) = ("#4b5563", "#9da7b3");
const GRID: (&str, &str) = ("#e5e7eb", "#30363d");

/// Whose colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Theme {
    /// Light, or dark where the reader prefers it.
    Reader,
    /// Light, for pictures.
    Picture,
}

/// Draws a chart.
pub fn draw(chart: &Chart, theme: Theme) -> String {
    let mut drawing = Drawing(String::new());
    drawing.line(format_args!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
         height=\"{HEIGHT}\" role=\"img\" font-family=\"system-ui, 'Segoe UI', {FONT_FAMILY}, Helvetica, \
         sans-serif\" font-size=\"13\">"
    ));
    drawing.line(format_args!("<title>{}</title>", escape(&chart.title)));
    drawing.style(theme);
    drawing.line(format_args!(
        "<rect class=\"ground\" x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"10\"/>",
        WIDTH - 1.0,
        HEIGHT - 1.0
    ));
    drawing.text(
        (LEFT - 56.0, 34.0),
        "text",
        "start",
        "font-size=\"20\" font-weight=\"600\"",
        &chart.title,
    );
    drawing.text((LEFT - 56.0, 56.0), "faint", "start", "", &chart.subtitle);
    match &chart.content {
        Content::Curves {
            quantity_title,
            curves,
        } => drawing.curves(quantity_title, chart.value_title, curves),
        Content::Bars { groups, series } => drawing.bars(chart.value_title, groups, series),
    }
    drawing.line(format_args!("</svg>"));
    drawing.0
}

/// Text for SVG and HTML.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            letter if letter.is_control() => escaped.push(' '),
            letter => escaped.push(letter),
        }
    }
    escaped
}

/// The area of the values, and how high it is.
struct Plot {
    top: f64,
}

impl Plot {
    /// The height of a value that is so far up, from 0 to 1.
    fn at(&self, share: f64) -> f64 {
        BOTTOM - (BOTTOM - self.top) * share.clamp(0.0, 1.0)
    }
}

/// How a series looks in the legend.
#[derive(Debug, Clone, Copy)]
enum Mark {
    Line,
    Dashes,
    Square,
}

impl Mark {
    fn of(curve: &Curve) -> Self {
        if curve.dashed { Self::Dashes } else { Self::Line }
    }

    fn dash(self) -> &'static str {
        match self {
            Self::Dashes => " stroke-dasharray=\"6 4\"",
            Self::Line | Self::Square => "",
        }
    }
}

struct Drawing(String);

impl Drawing {
    fn line(&mut self, arguments: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.0.write_fmt(arguments);
        self.0.push('\n');
    }

    fn style(&mut self, theme: Theme) {
        self.line(format_args!("<style>"));
        self.colours(|(light, _)| light);
        if theme == Theme::Reader {
            self.line(format_args!("@media (prefers-color-scheme: dark) {{"));
            self.colours(|(_, dark)| dark);
            self.line(format_args!("}}"));
        }
        self.line(format_args!("</style>"));
    }

    fn colours(&mut self, choose: impl Fn((&'static str, &'static str)) -> &'static str) {
        let (ground, text, faint, grid) = (choose(GROUND), choose(TEXT), choose(FAINT), choose(GRID));
        self.line(format_args!(".ground {{ fill: {ground}; stroke: {grid}; }}"));
        self.line(format_args!(".text {{ fill: {text}; }}"));
        self.line(format_args!(".faint {{ fill: {faint}; }}"));
        self.line(format_args!(".grid {{ stroke: {grid}; stroke-width: 1; }}"));
        self.line(format_args!(".axis {{ stroke: {faint}; stroke-width: 1; }}"));
        for (number, colours) in COLOURS.into_iter().enumerate() {
            let colour = choose(colours);
            self.line(format_args!(".s{number} {{ fill: {colour}; }}"));
            self.line(format_args!(
                ".l{number} {{ stroke: {colour}; fill: none; stroke-width: 2.5; stroke-linejoin: round; }}"
            ));
        }
    }

    fn text(&mut self, (x, y): (f64, f64), class: &str, anchor: &str, more: &str, text: &str) {
        self.line(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" text-anchor=\"{anchor}\" {more}>{}</text>",
            escape(text)
        ));
    }

    /// Entries from left to right, in as many rows as they need; returns the plot below.
    fn legend(&mut self, entries: &[(String, usize, Mark)]) -> Plot {
        let (mut x, mut y) = (LEFT - 56.0, LEGEND_TOP);
        for (label, number, mark) in entries {
            let label = shortened(label);
            let width = 34.0 + LETTER * label.chars().count() as f64 + 18.0;
            if x + width > RIGHT && x > LEFT {
                (x, y) = (LEFT - 56.0, y + LEGEND_ROW);
            }
            let (middle, dash) = (y - 4.5, mark.dash());
            match mark {
                Mark::Line | Mark::Dashes => self.line(format_args!(
                    "<line class=\"l{number}\" x1=\"{x:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" \
                     y2=\"{middle:.1}\"{dash}/>",
                    x + 24.0
                )),
                Mark::Square => self.line(format_args!(
                    "<rect class=\"s{number}\" x=\"{:.1}\" y=\"{:.1}\" width=\"14\" height=\"14\" rx=\"2\"/>",
                    x + 8.0,
                    middle - 7.0
                )),
            }
            self.text((x + 32.0, y), "text", "start", "", &label);
            x += width;
        }
        Plot { top: y + 26.0 }
    }

    /// A line across the plot with its value, and the line at the bottom.
    fn value_line(&mut self, plot: &Plot, share: f64, value: f64) {
        let y = plot.at(share);
        let class = if share == 0.0 { "axis" } else { "grid" };
        self.line(format_args!(
            "<line class=\"{class}\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>"
        ));
        self.text((LEFT - 10.0, y + 4.5), "faint", "end", "", &short(value));
    }

    fn value_title(&mut self, plot: &Plot, title: &str) {
        let (x, y) = (24.0, f64::midpoint(plot.top, BOTTOM));
        let turn = format!("transform=\"rotate(-90 {x:.1} {y:.1})\"");
        self.text((x, y), "faint", "middle", &turn, title);
    }

    fn curves(&mut self, quantity_title: &str, value_title: &str, curves: &[Curve]) {
        let entries: Vec<_> = curves
            .iter()
            .map(|curve| (curve.label.clone(), curve.run % SERIES_MAX, Mark::of(curve)))
            .collect();
        let plot = self.legend(&entries);
        let points = || curves.iter().flat_map(|curve| curve.points.iter().copied());
        let (low, high, ticks) = logarithmic(points().map(|(_, value)| value));
        let share = |value: f64| (value / low).log10() / (high / low).log10();
        for tick in ticks {
            self.value_line(&plot, share(tick), tick);
        }
        let (end, step) = linear(points().map(|(quantity, _)| quantity).fold(0.0, f64::max));
        let x_of = |quantity: f64| LEFT + (RIGHT - LEFT) * (quantity / end).clamp(0.0, 1.0);
        for tick in (0..=(end / step).round() as usize).map(|number| number as f64 * step) {
            let x = x_of(tick);
            self.line(format_args!(
                "<line class=\"axis\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{BOTTOM}\" y2=\"{:.1}\"/>",
                BOTTOM + 5.0
            ));
            self.text((x, BOTTOM + 21.0), "faint", "middle", "", &short(tick));
        }
        self.value_title(&plot, value_title);
        let middle = f64::midpoint(LEFT, RIGHT);
        self.text((middle, BOTTOM + 46.0), "faint", "middle", "", quantity_title);
        for curve in curves {
            let number = curve.run % SERIES_MAX;
            let places: Vec<(f64, f64)> = curve
                .points
                .iter()
                .map(|&(quantity, value)| (x_of(quantity), plot.at(share(value))))
                .collect();
            let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let dash = Mark::of(curve).dash();
            self.line(format_args!(
                "<polyline class=\"l{number}\" points=\"{}\"{dash}/>",
                path.join(" ")
            ));
            for (x, y) in places {
                self.line(format_args!(
                    "<circle class=\"s{number}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>"
                ));
            }
        }
    }

    fn bars(&mut self, value_title: &str, groups: &[String], series: &[Series]) {
        let entries: Vec<_> = series
            .iter()
            .enumerate()
            .map(|(number, bars)| (bars.label.clone(), number % SERIES_MAX, Mark::Square))
            .collect();
        let plot = self.legend(&entries);
        let values = || {
            series
                .iter()
                .flat_map(|bars| bars.values.iter().flatten().copied())
        };
        let (end, step) = linear(values().fold(0.0, f64::max));
        for tick in (0..=(end / step).round() as usize).map(|number| number as f64 * step) {
            self.value_line(&plot, tick / end, tick);
        }
        self.value_title(&plot, value_title);
        let group_width = (RIGHT - LEFT) / groups.len().max(1) as f64;
        let bar_width = (group_width * 0.78 / series.len().max(1) as f64).min(64.0);
        let font = if bar_width < 30.0 {
            "font-size=\"10\""
        } else {
            "font-size=\"12\""
        };
        for (place, group) in groups.iter().enumerate() {
            let middle = LEFT + group_width * (place as f64 + 0.5);
            let start = middle - bar_width * series.len() as f64 / 2.0;
            for (number, bars) in series.iter().enumerate() {
                let x = start + bar_width * number as f64;
                let (inner, gap) = (bar_width * 0.9, bar_width * 0.05);
                let Some(value) = bars.values.get(place).copied().flatten() else {
                    self.text((x + bar_width / 2.0, BOTTOM - 6.0), "faint", "middle", font, "–");
                    continue;
                };
                let y = plot.at(value / end);
                self.line(format_args!(
                    "<rect class=\"s{}\" x=\"{:.1}\" y=\"{y:.1}\" width=\"{inner:.1}\" height=\"{:.1}\" \
                     rx=\"2\"/>",
                    number % SERIES_MAX,
                    x + gap,
                    BOTTOM - y
                ));
                self.text(
                    (x + bar_width / 2.0, y - 5.0),
                    "text",
                    "middle",
                    font,
                    &short(value),
                );
            }
            self.text((middle, BOTTOM + 22.0), "text", "middle", "", group);
        }
    }
}

/// A label that fits.
fn shortened(label: &str) -> String {
    if label.chars().count() <= LABEL_LETTERS_MAX {
        return label.to_owned();
    }
    let mut short: String = label.chars().take(LABEL_LETTERS_MAX - 1).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use resvg::usvg::{Group, Node, Tree};

    use super::*;
    use crate::report::picture::{render, svg_options};

    /// All texts of a drawing, with their left, top, right and bottom.
    fn texts(group: &Group, found: &mut Vec<(String, [f32; 4])>) {
        for node in group.children() {
            match node {
                Node::Group(group) => texts(group, found),
                Node::Text(text) => {
                    let shown = text.chunks().iter().map(|chunk| chunk.text()).collect();
                    let place = text.abs_bounding_box();
                    found.push((shown, [place.left(), place.top(), place.right(), place.bottom()]));
                }
                _ => {}
            }
        }
    }

    fn check(chart: &Chart) {
        for theme in [Theme::Reader, Theme::Picture] {
            let tree = Tree::from_str(&draw(chart, theme), &svg_options()).expect("good SVG");
            let mut found = Vec::new();
            texts(tree.root(), &mut found);
            assert!(found.len() > 5, "{}: text is missing", chart.name);
            for (index, (text, [left, top, right, bottom])) in found.iter().enumerate() {
                let inside = *left >= 2.0 && *top >= 2.0 && *right <= 898.0 && *bottom <= 478.0;
                assert!(inside, "{}: `{text}` is cut off", chart.name);
                for (other, [other_left, other_top, other_right, other_bottom]) in &found[..index] {
                    let apart =
                        right < other_left || other_right < left || bottom < other_top || other_bottom < top;
                    assert!(apart, "{}: `{text}` is on `{other}`", chart.name);
                }
            }
        }
    }

    #[test]
    fn a_picture_is_drawn() {
        let chart = Chart {
            name: "bars",
            title: "Random IOPS".to_owned(),
            subtitle: String::new(),
            value_title: "requests",
            content: Content::Bars {
                groups: vec!["read".to_owned()],
                series: vec![Series {
                    label: label(0),
                    values: vec![Some(1.0)],
                }],
            },
        };
        assert!(render(&chart).expect("a picture").starts_with(b"\x89PNG"));
    }

    fn label(number: usize) -> String {
        format!("the run number {number} & a <long> name of it, longer than any that fits")
    }

    #[test]
    fn no_label_of_a_curve_is_cut_off() {
        for runs in 1..=SERIES_MAX {
            let curves = (0..runs * 2).map(|number| Curve {
                label: label(number),
                run: number / 2,
                dashed: number % 2 == 1,
                points: (0..8)
                    .map(|step| (f64::from(step * step) * 19.7, 10.0 + f64::from(step) * 300.0))
                    .collect(),
            });
            check(&Chart {
                name: "curves",
                title: "Latency by load".to_owned(),
                subtitle: "random reads".to_owned(),
                value_title: "latency, µs",
                content: Content::Curves {
                    quantity_title: "thousands of reads a second",
                    curves: curves.collect(),
                },
            });
        }
    }

    #[test]
    fn no_label_of_a_bar_is_cut_off() {
        for runs in 1..=4 {
            for most in [0.0, 0.093, 88.0, 943.0, 1234.0] {
                let series = (0..runs).map(|number| Series {
                    label: label(number),
                    values: (0..6)
                        .map(|place| (place != 4).then(|| most / (1.0 + place as f64 / 3.0)))
                        .collect(),
                });
                check(&Chart {
                    name: "bars",
                    title: "Random IOPS".to_owned(),
                    subtitle: "requests of 4 KiB".to_owned(),
                    value_title: "thousands of requests a second",
                    content: Content::Bars {
                        groups: (0..6).map(|place| format!("write, depth 12{place}")).collect(),
                        series: series.collect(),
                    },
                });
            }
        }
    }
}
