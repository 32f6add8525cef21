//! Picture of slices of cases with label overlays.

use ndarray::{ArrayView2, ArrayView3};

use super::canvas::{Canvas, Colour, LETTER, text_width};
use super::view::{Plane, Turn};
use super::{LabelVolume, View};

/// Pixels along the longer side of the largest slice of a case.
const SIDE: usize = 360;
pub(super) const MARGIN: usize = 14;
/// Height of a line of text with the space below.
pub(super) const LINE: usize = LETTER + 10;
pub(super) const BACKGROUND: Colour = [18, 18, 18];
pub(super) const INK: Colour = [230, 230, 230];
/// Opacity of a label's interior; its border is opaque.
const OPACITY: f32 = 0.35;
/// Colors of classes 1, 2, ...; repeated cyclically.
const COLOURS: [Colour; 12] = [
    [230, 60, 60],
    [70, 190, 90],
    [80, 130, 240],
    [250, 190, 50],
    [200, 90, 220],
    [60, 205, 215],
    [245, 130, 50],
    [170, 220, 70],
    [250, 150, 190],
    [150, 120, 90],
    [110, 110, 250],
    [240, 240, 120],
];

/// Renders an axial, a coronal and a sagittal slice of each case through the largest labeled area, one case per row, as
/// a PNG file.
///
/// Slices are in radiological orientation (patient right at the left) and in true proportions. Each case has a
/// gray-value window from percentile 0.5 to 99.5, and a legend.
///
/// # Errors
/// Returns the error of the PNG encoder.
pub fn montage(views: &[View]) -> Result<Vec<u8>, String> {
    let rows: Vec<Row> = views.iter().map(Row::of).collect();
    let width = rows.iter().map(Row::width).max().unwrap_or(0).max(1);
    let height = rows.iter().map(|row| row.height(width)).sum::<usize>().max(1);
    let mut canvas = Canvas::new(width, height, BACKGROUND);
    let mut y = 0;
    for row in rows {
        row.draw(&mut canvas, y, width);
        y += row.height(width);
    }
    canvas.png()
}

/// One row of the picture: a case.
struct Row<'a> {
    view: &'a View,
    turn: Turn,
    panels: Vec<Panel>,
}

/// One slice.
pub(super) struct Panel {
    plane: Plane,
    index: usize,
    /// Size in pixels, `(x, y)`.
    pub size: [usize; 2],
}

impl<'a> Row<'a> {
    fn of(view: &'a View) -> Self {
        let turn = Turn::of(&view.geometry);
        let labels = view.labels.as_ref().map(|labels| turn.view(labels.view()));
        let panels = Panel::all(&turn, &turn.view(view.image.view()), labels.as_ref());
        Self { view, turn, panels }
    }

    fn title(&self) -> String {
        let [low, high] = self.view.window;
        format!("{}  {low:.0} - {high:.0}", self.view.name)
    }

    fn width(&self) -> usize {
        let panels: usize = self.panels.iter().map(|panel| panel.size[0] + MARGIN).sum();
        panels.max(text_width(&self.title()) + MARGIN) + MARGIN
    }

    fn panels_height(&self) -> usize {
        self.panels.iter().map(|panel| panel.size[1]).max().unwrap_or(0)
    }

    fn height(&self, width: usize) -> usize {
        MARGIN + LINE + self.panels_height() + MARGIN + self.legend(width).last().map_or(0, |(at, _)| at[1] + LINE)
    }

    /// Position of each legend entry relative to the bottom of the panels.
    fn legend(&self, width: usize) -> Vec<([usize; 2], &LabelVolume)> {
        let mut at = [MARGIN, 0];
        let place = |class| {
            let needs = LETTER + 6 + text_width(&entry(class)) + MARGIN;
            if at[0] + needs > width && at[0] > MARGIN {
                at = [MARGIN, at[1] + LINE];
            }
            let place = at;
            at[0] += needs;
            (place, class)
        };
        self.view.legend.iter().map(place).collect()
    }

    fn draw(&self, canvas: &mut Canvas, top: usize, width: usize) {
        canvas.text([MARGIN, top + MARGIN], &self.title(), INK);
        let (mut x, y) = (MARGIN, top + MARGIN + LINE);
        let image = self.turn.view(self.view.image.view());
        let labels = self.view.labels.as_ref().map(|labels| self.turn.view(labels.view()));
        for panel in &self.panels {
            panel.draw(canvas, [x, y], &image, labels.as_ref(), self.view.window);
            x += panel.size[0] + MARGIN;
        }
        let below = y + self.panels_height() + MARGIN;
        for ([x, y], class) in self.legend(width) {
            canvas.rectangle([x, below + y], [LETTER; 2], label_colour(class.label));
            canvas.text([x + LETTER + 6, below + y], &entry(class), INK);
        }
    }
}

impl Panel {
    /// Slices of a reoriented image through the largest labeled area.
    pub fn all(turn: &Turn, image: &ArrayView3<f32>, labels: Option<&ArrayView3<i16>>) -> Vec<Self> {
        // A 2D image has one plane.
        let is_flat = image.shape().contains(&1);
        let planes = Plane::ALL.into_iter().filter(|plane| !is_flat || image.len_of(plane.across()) == 1);
        let mut panels: Vec<Self> = planes
            .map(|plane| Self { plane, index: plane.fullest(labels, image.len_of(plane.across())), size: [1, 1] })
            .collect();
        let in_mm = |panel: &Self| {
            let (rows, columns) = panel.plane.slice(image, panel.index).dim();
            let [y, x] = panel.plane.spacing(turn);
            [columns as f64 * x, rows as f64 * y]
        };
        let longest = panels.iter().flat_map(in_mm).fold(f64::MIN_POSITIVE, f64::max);
        for panel in &mut panels {
            panel.size = in_mm(panel).map(|mm| ((mm / longest * SIDE as f64).round() as usize).max(1));
        }
        panels
    }

    /// Draws the slice of a reoriented image with its label overlay, upper left corner at `(left, top)`.
    pub fn draw(
        &self,
        canvas: &mut Canvas,
        [left, top]: [usize; 2],
        image: &ArrayView3<f32>,
        labels: Option<&ArrayView3<i16>>,
        [low, high]: [f32; 2],
    ) {
        let image = self.plane.slice(image, self.index);
        let labels = labels.map(|labels| self.plane.slice(labels, self.index));
        let [width, height] = self.size;
        let (rows, columns) = image.dim();
        // Pixel center in voxel coordinates.
        let row = |v: usize| (v as f64 + 0.5) / height as f64 * rows as f64;
        let column = |u: usize| (u as f64 + 0.5) / width as f64 * columns as f64;
        let label = |u: usize, v: usize| labels.map_or(0, |labels| labels[[row(v) as usize, column(u) as usize]]);
        for v in 0..height {
            for u in 0..width {
                let value = blend(&image, row(v) - 0.5, column(u) - 0.5);
                let grey = 255.0 * ((value - low) / (high - low).max(f32::MIN_POSITIVE)).clamp(0.0, 1.0);
                let grey = if grey.is_nan() { 0.0 } else { grey };
                let own = label(u, v);
                let is_border = || {
                    [(u.wrapping_sub(1), v), (u + 1, v), (u, v.wrapping_sub(1)), (u, v + 1)]
                        .into_iter()
                        .any(|(u, v)| u < width && v < height && label(u, v) != own)
                };
                let part = match own {
                    label if label <= 0 => 0.0,
                    _ if is_border() => 1.0,
                    _ => OPACITY,
                };
                let pixel = label_colour(own).map(|c| (f32::from(c) * part + grey * (1.0 - part)).round() as u8);
                canvas.set(left + u, top + v, pixel);
            }
        }
        let [at_left, at_right, at_top, at_bottom] = self.plane.edges();
        let (middle_x, middle_y) =
            (left + (width / 2).saturating_sub(LETTER / 2), top + (height / 2).saturating_sub(LETTER / 2));
        canvas.text([left + 4, middle_y], at_left, INK);
        canvas.text([(left + width).saturating_sub(LETTER + 2), middle_y], at_right, INK);
        canvas.text([middle_x, top + 4], at_top, INK);
        canvas.text([middle_x, (top + height).saturating_sub(LETTER + 4)], at_bottom, INK);
    }
}

/// Bilinear interpolation with edge extension.
fn blend(image: &ArrayView2<f32>, row: f64, column: f64) -> f32 {
    let (rows, columns) = image.dim();
    let pair = |position: f64, len: usize| {
        let position = position.clamp(0.0, (len - 1) as f64);
        (position as usize, (position as usize + 1).min(len - 1), position.fract() as f32)
    };
    let ((a, b, v), (c, d, u)) = (pair(row, rows), pair(column, columns));
    let upper = image[[a, c]] * (1.0 - u) + image[[a, d]] * u;
    let lower = image[[b, c]] * (1.0 - u) + image[[b, d]] * u;
    upper * (1.0 - v) + lower * v
}

/// Display color of a label.
pub fn label_colour(label: i16) -> Colour {
    COLOURS[(i32::from(label) - 1).rem_euclid(COLOURS.len() as i32) as usize]
}

fn entry(class: &LabelVolume) -> String {
    format!("{} {:.1} ml", class.name, class.ml)
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;

    use super::*;
    use nnunet_image::Geometry;

    #[test]
    fn labels_are_drawn_in_true_proportions() {
        // 10 mm along z, so that a coronal slice of 6 x 30 voxels is 60 x 30 mm.
        let image = Array3::from_shape_fn((6, 20, 30), |(_, _, x)| x as f32);
        let mut labels = Array3::zeros((6, 20, 30));
        labels.slice_mut(ndarray::s![2..4, 5..15, 10..20]).fill(2);
        let view = View {
            name: "case".into(),
            image,
            window: [0.0, 29.0],
            labels: Some(labels),
            geometry: Geometry { spacing: [10.0, 1.0, 1.0], ..Geometry::default() },
            legend: vec![LabelVolume { label: 2, name: "core".into(), voxels: 200, mm3: 2000.0, ml: 2.0 }],
        };
        let row = Row::of(&view);
        let sizes: Vec<_> = row.panels.iter().map(|panel| panel.size).collect();
        assert_eq!(sizes, [[180, 120], [180, 360], [120, 360]]);
        assert_eq!(row.panels[0].index, 2);
        let mut reader = png::Decoder::new(std::io::Cursor::new(montage(&[view]).unwrap())).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size()];
        reader.next_frame(&mut pixels).unwrap();
        let border = pixels.as_chunks::<3>().0.iter().filter(|pixel| **pixel == COLOURS[1]).count();
        // The outlines of three boxes and the square of the legend.
        assert!((800..2000).contains(&border), "{border}");
    }
}
