//! Charts as PNG: the same SVG, drawn with a font that comes along, so that it looks alike everywhere.

use std::sync::Arc;

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree, fontdb};

use super::Error;
use super::chart::Chart;
use super::svg::{self, Theme};

/// Dots for each unit of the drawing.
const DOTS: f32 = 2.0;

/// The family of the font that comes along.
pub const FONT_FAMILY: &str = "Ubuntu";

/// What to read SVG with: this font and no other.
pub fn svg_options() -> Options<'static> {
    let mut fonts = fontdb::Database::new();
    fonts.load_font_data(epaint_default_fonts::UBUNTU_LIGHT.to_vec());
    Options {
        font_family: FONT_FAMILY.to_owned(),
        fontdb: Arc::new(fonts),
        ..Options::default()
    }
}

/// Draws a chart.
pub fn render(chart: &Chart) -> Result<Vec<u8>, Error> {
    let failed = |reason: String| Error::Picture {
        chart: chart.name,
        reason,
    };
    let text = svg::draw(chart, Theme::Picture);
    let tree = Tree::from_str(&text, &svg_options()).map_err(|error| failed(error.to_string()))?;
    let size = tree.size();
    let (width, height) = ((size.width() * DOTS) as u32, (size.height() * DOTS) as u32);
    let mut picture = Pixmap::new(width, height).ok_or_else(|| failed("it has no size".to_owned()))?;
    resvg::render(&tree, Transform::from_scale(DOTS, DOTS), &mut picture.as_mut());
    picture.encode_png().map_err(|error| failed(error.to_string()))
}
