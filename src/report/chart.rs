//! SVG charts of values over epochs.

use super::html::{Html, join, tag, text};
use super::text::number;

/// Size of the chart and margins for axis labels, in SVG units.
const SIZE: [f64; 2] = [560.0, 230.0];
const LEFT: f64 = 58.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 26.0;
/// Maximum number of epochs for which each value has a marker with a tooltip.
const POINTS: usize = 60;
/// Color classes of the style sheet.
const COLOURS: [&str; 8] = ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7"];

/// Curves in one coordinate system.
pub struct Chart {
    /// Anchor within the page.
    pub id: &'static str,
    pub title: String,
    pub unit: &'static str,
    /// Epoch numbers, from 1.
    pub epochs: Vec<usize>,
    pub curves: Vec<Curve>,
    pub scale: Scale,
    /// Draw stacked areas instead of lines.
    pub is_stacked: bool,
}

/// One value per epoch; the line has a gap where there is none.
pub struct Curve {
    pub name: String,
    pub values: Vec<Option<f64>>,
    /// Drawn with a thicker line.
    pub is_main: bool,
}

/// Range of the value axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// Range of the values.
    Tight,
    /// From 0 to the maximum.
    FromZero,
    /// From 0 to 1.
    Unit,
}

/// Range of an axis and the distance of its ticks.
struct Axis {
    low: f64,
    high: f64,
    step: f64,
}

impl Chart {
    /// Title, legend with the last values, and the chart.
    pub fn figure(&self) -> Html {
        let entry = |(index, curve): (usize, &Curve)| {
            let last = curve.last().map_or("-".to_owned(), number);
            tag(
                "li",
                &[("class", COLOURS[index % COLOURS.len()])],
                [text(&curve.name), text(" "), tag("b", &[], [text(last)])],
            )
        };
        let unit = if self.unit.is_empty() { String::new() } else { format!(", {}", self.unit) };
        let title = tag("h3", &[], [text(format!("{}{unit}", self.title))]);
        let legend = tag("ul", &[("class", "legend")], self.curves.iter().enumerate().map(entry));
        let caption = tag("figcaption", &[], [title, legend]);
        tag("figure", &[("class", "chart")], [caption, self.svg()])
    }

    fn svg(&self) -> Html {
        let title_id = format!("chart-{}", self.id);
        let [width, height] = SIZE;
        let view = format!("0 0 {width} {height}");
        let x = self.x_axis();
        let layers = self.layers();
        let y = self.y_axis(&layers);
        let mut inside = vec![tag("title", &[("id", &title_id)], [text(self.description())])];
        inside.extend(grid(&x, &y));
        for (index, _) in self.curves.iter().enumerate().rev() {
            inside.push(if self.is_stacked { self.area(index, &layers, &x, &y) } else { self.line(index, &x, &y) });
        }
        tag("svg", &[("viewBox", &view), ("role", "img"), ("aria-labelledby", &title_id)], inside)
    }

    /// Description for screen readers.
    fn description(&self) -> String {
        let last = |curve: &Curve| Some(format!("{} {}", curve.name, number(curve.last()?)));
        let lasts: Vec<String> = self.curves.iter().filter_map(last).collect();
        format!("{} over {} epoch(s), last values {}", self.title, self.epochs.len(), lasts.join(", "))
    }

    fn x_axis(&self) -> Axis {
        let (first, last) =
            (self.epochs.first().copied().unwrap_or(1) as f64, self.epochs.last().copied().unwrap_or(1) as f64);
        // An area is as wide as its epoch; a single point is centered.
        let air = if self.is_stacked || first == last { 0.5 } else { 0.0 };
        Axis { low: first - air, high: last + air, step: step((last - first) / 6.0).max(1.0) }
    }

    fn y_axis(&self, layers: &[Vec<f64>]) -> Axis {
        let stacked = layers.last().into_iter().flatten().copied();
        let single = self.curves.iter().flat_map(|curve| &curve.values).flatten().copied();
        let values: Vec<f64> = if self.is_stacked { stacked.collect() } else { single.collect() };
        let finite = || values.iter().copied().filter(|value| value.is_finite());
        let (low, high) = (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
        match self.scale {
            _ if low > high => Axis { low: 0.0, high: 1.0, step: 0.25 },
            Scale::Unit => Axis { low: 0.0, high: 1.0, step: 0.2 },
            scale => {
                let low = if scale == Scale::FromZero { low.min(0.0) } else { low };
                let span = if high > low { high - low } else { high.abs().max(1e-9) };
                let step = step(span / 4.0);
                let end = (high / step).ceil() * step;
                let low = (low / step).floor() * step;
                Axis { low, high: if end > low { end } else { low + step }, step }
            }
        }
    }

    /// Cumulative sums of the curves.
    fn layers(&self) -> Vec<Vec<f64>> {
        let mut sums = vec![0.0; self.epochs.len()];
        let layer = |curve: &Curve| {
            sums.iter_mut()
                .zip(&curve.values)
                .for_each(|(sum, value)| *sum += value.filter(|value| value.is_finite()).unwrap_or(0.0));
            sums.clone()
        };
        self.curves.iter().map(layer).collect()
    }

    /// A layer of the stack, drawn in steps as wide as an epoch.
    fn area(&self, index: usize, layers: &[Vec<f64>], x: &Axis, y: &Axis) -> Html {
        let nothing = vec![0.0; self.epochs.len()];
        let (lower, upper) = (if index == 0 { &nothing } else { &layers[index - 1] }, &layers[index]);
        let corner =
            |epoch: usize, side: f64, value: f64| format!("{:.1},{:.1}", x.across(epoch as f64 + side), y.up(value));
        let forth = self
            .epochs
            .iter()
            .zip(upper)
            .flat_map(|(&epoch, &value)| [corner(epoch, -0.5, value), corner(epoch, 0.5, value)]);
        let back = self
            .epochs
            .iter()
            .zip(lower)
            .rev()
            .flat_map(|(&epoch, &value)| [corner(epoch, 0.5, value), corner(epoch, -0.5, value)]);
        let points = forth.chain(back).collect::<Vec<_>>().join(" ");
        tag("polygon", &[("class", &format!("area {}", COLOURS[index % COLOURS.len()])), ("points", &points)], [])
    }

    fn line(&self, index: usize, x: &Axis, y: &Axis) -> Html {
        let curve = &self.curves[index];
        let colour = COLOURS[index % COLOURS.len()];
        let mut path = String::new();
        let mut points = Vec::new();
        let mut pen = 'M';
        for (&epoch, value) in self.epochs.iter().zip(&curve.values) {
            let Some(value) = value.filter(|value| value.is_finite()) else {
                pen = 'M';
                continue;
            };
            let [across, up] = [x.across(epoch as f64), y.up(value)].map(|place| format!("{place:.1}"));
            path += &format!("{pen}{across} {up}");
            pen = 'L';
            if self.epochs.len() <= POINTS {
                let label = tag("title", &[], [text(format!("{}, epoch {epoch}: {}", curve.name, number(value)))]);
                let radius = if self.epochs.len() == 1 { "4" } else { "2.5" };
                points.push(tag("circle", &[("class", "point"), ("cx", &across), ("cy", &up), ("r", radius)], [label]));
            }
        }
        let class = if curve.is_main { "line main" } else { "line" };
        tag("g", &[("class", colour)], [tag("path", &[("class", class), ("d", &path)], []), join(points)])
    }
}

impl Curve {
    /// Last finite value.
    fn last(&self) -> Option<f64> {
        self.values.iter().rev().find_map(|value| value.filter(|value| value.is_finite()))
    }
}

impl Axis {
    fn across(&self, value: f64) -> f64 {
        LEFT + (value - self.low) / (self.high - self.low) * (SIZE[0] - LEFT - RIGHT)
    }

    fn up(&self, value: f64) -> f64 {
        SIZE[1] - BOTTOM - (value - self.low) / (self.high - self.low) * (SIZE[1] - TOP - BOTTOM)
    }

    /// Multiples of the step.
    fn ticks(&self) -> impl Iterator<Item = f64> + '_ {
        let first = (self.low / self.step - 1e-9).ceil() as i64;
        let last = (self.high / self.step + 1e-9).floor() as i64;
        (first..=last).map(|tick| tick as f64 * self.step)
    }

    /// Formats a tick with the number of decimals of the step.
    fn label(&self, tick: f64) -> String {
        let digits = (-(self.step.log10() + 1e-9).floor()).max(0.0) as usize;
        if digits > 5 && tick != 0.0 {
            format!("{tick:.0e}")
        } else {
            format!("{tick:.*}", if digits > 5 { 0 } else { digits })
        }
    }
}

/// Smallest of 1, 2, 5, 10, 20, ... that is not below `least`.
fn step(least: f64) -> f64 {
    let power = 10f64.powf(least.max(1e-12).log10().floor());
    [1.0, 2.0, 5.0]
        .into_iter()
        .map(|digit| digit * power)
        .find(|step| *step >= least * (1.0 - 1e-9))
        .unwrap_or(10.0 * power)
}

fn grid(x: &Axis, y: &Axis) -> Vec<Html> {
    let place = |place: f64| format!("{place:.1}");
    let (left, right, bottom) = (place(LEFT), place(SIZE[0] - RIGHT), SIZE[1] - BOTTOM);
    let label = |class, at: [f64; 2], label: String| {
        tag("text", &[("class", class), ("x", &place(at[0])), ("y", &place(at[1]))], [text(label)])
    };
    let mut parts = Vec::new();
    for tick in y.ticks() {
        let up = place(y.up(tick));
        parts.push(tag("line", &[("class", "grid"), ("x1", &left), ("x2", &right), ("y1", &up), ("y2", &up)], []));
        parts.push(label("tick end", [LEFT - 6.0, y.up(tick) + 4.0], y.label(tick)));
    }
    for tick in x.ticks() {
        parts.push(label("tick middle", [x.across(tick), bottom + 18.0], x.label(tick)));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(values: Vec<Option<f64>>, scale: Scale, is_stacked: bool) -> Chart {
        let epochs = (1..=values.len()).collect();
        let curve = Curve { name: "<loss>".into(), values, is_main: false };
        Chart { id: "x", title: "Loss".into(), unit: "s", epochs, curves: vec![curve], scale, is_stacked }
    }

    #[test]
    fn axes_have_round_numbers_around_the_values() {
        let chart = chart(vec![Some(0.13), Some(0.87)], Scale::Tight, false);
        let y = chart.y_axis(&[]);
        assert_eq!(y.ticks().map(|tick| y.label(tick)).collect::<Vec<_>>(), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!((y.up(y.low), y.up(y.high)), (SIZE[1] - BOTTOM, TOP));
        assert_eq!([0.7, 1.0, 3.0, 60.0].map(step), [1.0, 1.0, 5.0, 100.0]);
    }

    #[test]
    fn a_line_has_gaps_where_there_are_no_values() {
        let svg = format!(
            "{:?}",
            chart(vec![Some(1.0), None, Some(f64::NAN), Some(2.0), Some(3.0)], Scale::FromZero, false).figure()
        );
        assert_eq!(svg.matches('M').count(), 2, "{svg}");
        assert_eq!(svg.matches("circle").count(), 2 * 3);
        assert!(svg.contains("&lt;loss&gt;, epoch 5: 3.00") && !svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn odd_values_do_no_harm() {
        for values in [vec![], vec![None], vec![Some(0.0)], vec![Some(-1e300), Some(1e300)], vec![Some(5e-324)]] {
            for scale in [Scale::Tight, Scale::FromZero, Scale::Unit] {
                for is_stacked in [false, true] {
                    let svg = format!("{:?}", chart(values.clone(), scale, is_stacked).figure());
                    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{values:?}: {svg}");
                }
            }
        }
    }
}
