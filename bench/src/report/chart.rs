//! What a chart shows, apart from how it is drawn.

/// A chart.
#[derive(Debug, Clone)]
pub struct Chart {
    /// Its name in files and links.
    pub name: &'static str,
    /// What it is about.
    pub title: String,
    /// How it was measured.
    pub subtitle: String,
    /// What stands at the axis of values, with its unit.
    pub value_title: &'static str,
    /// Its content.
    pub content: Content,
}

/// The kinds of charts.
#[derive(Debug, Clone)]
pub enum Content {
    /// Values over a quantity; values on a logarithmic axis.
    Curves {
        /// What stands at the axis of the quantity, with its unit.
        quantity_title: &'static str,
        /// The curves.
        curves: Vec<Curve>,
    },
    /// Groups of bars.
    Bars {
        /// What stands below each group.
        groups: Vec<String>,
        /// Bars of one run, one for each group.
        series: Vec<Series>,
    },
}

/// A curve.
#[derive(Debug, Clone)]
pub struct Curve {
    /// For the legend.
    pub label: String,
    /// Whose it is: the number of its run, which gives the colour.
    pub run: usize,
    /// It is the second of its run.
    pub dashed: bool,
    /// Quantity and value, in the order in which they are joined.
    pub points: Vec<(f64, f64)>,
}

/// Bars of one run.
#[derive(Debug, Clone)]
pub struct Series {
    /// For the legend.
    pub label: String,
    /// The values, `None` where nothing was measured.
    pub values: Vec<Option<f64>>,
}

impl Chart {
    /// Whether there is anything to see.
    pub fn is_empty(&self) -> bool {
        match &self.content {
            Content::Curves { curves, .. } => curves.iter().all(|curve| curve.points.is_empty()),
            Content::Bars { series, .. } => series.iter().all(|bars| bars.values.iter().all(Option::is_none)),
        }
    }
}
