//! The page: everything in one file, nothing loaded from elsewhere.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::chart::{Chart, Content};
use super::run::Run;
use super::scale::short;
use super::svg::{self, Theme, escape};

const STYLE: &str = "
:root { color-scheme: light dark; --ground: #f6f8fa; --text: #1f2937; --faint: #4b5563; --line: #d0d7de; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #0d1117; --text: #e6edf3; --faint: #9da7b3; --line: #30363d; }
}
body { background: var(--ground); color: var(--text); font: 15px/1.5 system-ui, sans-serif;
  max-width: 940px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: 0.2rem; }
p, summary, figcaption { color: var(--faint); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.25rem 0.8rem 0.25rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
figure { margin: 1.6rem 0; }
figure > svg { width: 100%; height: auto; display: block; }
a { color: inherit; }
";

/// The page with these charts, each with its picture.
pub fn render(title: &str, runs: &[Run], charts: &[(Chart, Vec<u8>)]) -> String {
    let mut page = String::new();
    let title = escape(title);
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>"
    );
    runs_table(&mut page, runs);
    for (chart, png) in charts {
        let _ = writeln!(page, "<figure id=\"{}\">", chart.name);
        page.push_str(&svg::draw(chart, Theme::Reader));
        let _ = writeln!(
            page,
            "<figcaption><a download=\"{0}.png\" href=\"data:image/png;base64,{1}\">{0}.png</a></figcaption>",
            chart.name,
            STANDARD.encode(png)
        );
        chart_table(&mut page, chart);
        page.push_str("</figure>\n");
    }
    page.push_str("</body>\n</html>\n");
    page
}

fn runs_table(page: &mut String, runs: &[Run]) {
    page.push_str(
        "<table>\n<tr><th>run</th><th>device</th><th>jobs</th><th>day</th>\
         <th>machine of the load</th></tr>\n",
    );
    for run in runs {
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}, Linux {}</td></tr>",
            escape(&run.label),
            escape(&run.device),
            run.jobs,
            run.day(),
            escape(&run.machine),
            escape(&run.kernel)
        );
    }
    page.push_str("</table>\n");
}

fn chart_table(page: &mut String, chart: &Chart) {
    let _ = writeln!(
        page,
        "<details><summary>the figures: {}</summary>\n<table>",
        escape(chart.value_title)
    );
    match &chart.content {
        Content::Curves {
            quantity_title,
            curves,
        } => {
            let _ = writeln!(
                page,
                "<tr><th></th><th colspan=\"8\">{}: value</th></tr>",
                escape(quantity_title)
            );
            for curve in curves {
                let _ = write!(page, "<tr><td>{}</td>", escape(&curve.label));
                for (quantity, value) in &curve.points {
                    let _ = write!(page, "<td>{}: {}</td>", short(*quantity), short(*value));
                }
                page.push_str("</tr>\n");
            }
        }
        Content::Bars { groups, series } => {
            page.push_str("<tr><th></th>");
            for group in groups {
                let _ = write!(page, "<th>{}</th>", escape(group));
            }
            page.push_str("</tr>\n");
            for bars in series {
                let _ = write!(page, "<tr><td>{}</td>", escape(&bars.label));
                for value in &bars.values {
                    let _ = write!(page, "<td>{}</td>", value.map_or("–".to_owned(), short));
                }
                page.push_str("</tr>\n");
            }
        }
    }
    page.push_str("</table></details>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::charts;

    #[test]
    fn names_cannot_break_the_page() {
        let run = Run::begin("<script>alert(1)</script>", "malloc:///a?size=1\"<b>", 1);
        let page = render("a & b", std::slice::from_ref(&run), &[]);
        assert!(!page.contains("<script>") && !page.contains("<b>"));
        assert!(page.contains("a &amp; b"));
        assert!(charts::all(&[run]).is_empty(), "nothing was measured");
    }
}
