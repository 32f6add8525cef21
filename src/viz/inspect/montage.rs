//! Pictures of slices of cases with label overlays: one label map and a legend, or a reference above a prediction.

use ndarray::{Array3, ArrayView2, ArrayView3};

use super::case_report::LabelVolume;
use super::orientation::{Plane, Reorientation};
use super::view::CaseView;
use crate::canvas::{Anchor, BACKGROUND, Canvas, DIM_INK, INK, label_color, overlay};
use crate::picture::PictureError;
use crate::raster::text_width;

/// Pixels along the longer side of the largest slice of a case.
const SIDE: usize = 360;
pub(super) const MARGIN: usize = 14;
/// Height of a title with the space below.
pub(super) const TITLE_HEIGHT: usize = 26;
pub(super) const TITLE_SIZE: f64 = 16.0;
/// Font size of the legend, distance of its rows, side of a colored square, and space between columns.
const ENTRY_SIZE: f64 = 14.0;
const ENTRY_HEIGHT: usize = 22;
const SWATCH: usize = 14;
const COLUMN_GAP: usize = 28;
/// Font size of the directions at the edges of a slice.
const EDGE_SIZE: f64 = 15.0;

/// Renders an axial, a coronal and a sagittal slice of each case through the largest labeled area, one case per row, as
/// a PNG file.
///
/// Slices are in radiological orientation (patient right at the left) and in true proportions. Each case has a
/// gray-value window from percentile 0.5 to 99.5, and a legend.
///
/// # Errors
/// Returns an error if the PNG file cannot be encoded.
pub fn montage(views: &[CaseView]) -> Result<Vec<u8>, PictureError> {
    let rows: Vec<CaseRow> = views.iter().map(CaseRow::new).collect();
    let width = rows.iter().map(CaseRow::width).max().unwrap_or(0).max(1);
    let height = rows.iter().map(|row| row.height(width)).sum::<usize>().max(1);
    let mut canvas = Canvas::new([width, height], BACKGROUND);
    let mut y = 0;
    for row in rows {
        row.draw(&mut canvas, y, width);
        y += row.height(width);
    }
    canvas.to_png()
}

/// Renders the reference label map of a case above a prediction of the same shape, on the same slices, as a PNG file.
/// The slices are those with the largest labeled reference area, or the largest predicted area if the reference is
/// empty.
///
/// # Errors
/// Returns an error if the shapes differ or the PNG file cannot be encoded.
pub fn comparison(view: &CaseView, prediction: &Array3<i16>) -> Result<Vec<u8>, PictureError> {
    let shape = view.image.shape();
    if prediction.shape() != shape {
        return Err(PictureError::Shape { prediction: prediction.shape().to_vec(), image: shape.to_vec() });
    }
    let empty = Array3::zeros(prediction.raw_dim());
    let reference = view.labels.as_ref().unwrap_or(&empty);
    // Slices chosen by a prediction far from the reference would show nothing of the reference.
    let leading = if reference.iter().any(|label| *label > 0) { reference } else { prediction };

    let reorientation = Reorientation::from_geometry(&view.geometry);
    let image = reorientation.view(view.image.view());
    let panels = Panel::all(&reorientation, &image, Some(&reorientation.view(leading.view())));
    let width = panels_width(&panels) + MARGIN;
    let height = TITLE_HEIGHT + panels_height(&panels) + MARGIN;
    let mut canvas = Canvas::new([width, MARGIN + 2 * height], BACKGROUND);
    let mut top = MARGIN;
    for (name, labels) in [("reference", reference), ("prediction", prediction)] {
        canvas.text([MARGIN, top + TITLE_SIZE as usize], TITLE_SIZE, name, INK, Anchor::Left);
        let labels = reorientation.view(labels.view());
        let mut left = MARGIN;
        for panel in &panels {
            panel.draw(&mut canvas, [left, top + TITLE_HEIGHT], &image, Some(&labels), view.window);
            left += panel.size[0] + MARGIN;
        }
        top += height;
    }
    canvas.to_png()
}

/// One row of the montage: a case.
struct CaseRow<'a> {
    view: &'a CaseView,
    reorientation: Reorientation,
    panels: Vec<Panel>,
    legend: Vec<LegendEntry<'a>>,
}

/// A class with the widths of its texts in pixels.
struct LegendEntry<'a> {
    class: &'a LabelVolume,
    volume: String,
    name_width: usize,
    width: usize,
}

/// One slice.
struct Panel {
    plane: Plane,
    index: usize,
    /// Size in pixels, `(x, y)`.
    size: [usize; 2],
}

/// Width of panels, each with the margin at its left.
fn panels_width(panels: &[Panel]) -> usize {
    panels.iter().map(|panel| panel.size[0] + MARGIN).sum()
}

fn panels_height(panels: &[Panel]) -> usize {
    panels.iter().map(|panel| panel.size[1]).max().unwrap_or(0)
}

impl<'a> LegendEntry<'a> {
    fn new(class: &'a LabelVolume) -> Self {
        let volume = format!("{:.1} ml", class.ml);
        let [name_width, volume_width] =
            [&class.name, &volume].map(|text| text_width(text, ENTRY_SIZE).ceil() as usize);
        Self { class, volume, name_width, width: SWATCH + 8 + name_width + 8 + volume_width }
    }
}

impl<'a> CaseRow<'a> {
    fn new(view: &'a CaseView) -> Self {
        let reorientation = Reorientation::from_geometry(&view.geometry);
        let labels = view.labels.as_ref().map(|labels| reorientation.view(labels.view()));
        let panels = Panel::all(&reorientation, &reorientation.view(view.image.view()), labels.as_ref());
        let legend = view.legend.iter().map(LegendEntry::new).collect();
        Self { view, reorientation, panels, legend }
    }

    /// Displayed intensities.
    fn window(&self) -> String {
        let [low, high] = self.view.window;
        format!("window {low:.0} to {high:.0}")
    }

    /// Width of the widest part: slices, title, or an entry of the legend.
    fn width(&self) -> usize {
        let title = text_width(&self.view.name, TITLE_SIZE) + text_width(&self.window(), ENTRY_SIZE);
        let title = MARGIN + title.ceil() as usize + COLUMN_GAP;
        let legend = MARGIN + self.legend.iter().map(|entry| entry.width).max().unwrap_or(0);
        panels_width(&self.panels).max(title).max(legend) + MARGIN
    }

    fn height(&self, width: usize) -> usize {
        let [_, rows] = self.legend_shape(width);
        let legend = if rows > 0 { rows * ENTRY_HEIGHT + MARGIN / 2 } else { 0 };
        MARGIN + TITLE_HEIGHT + panels_height(&self.panels) + MARGIN + legend
    }

    /// Numbers of columns and rows of the legend; columns have the width of the widest entry.
    fn legend_shape(&self, width: usize) -> [usize; 2] {
        let widest = self.legend.iter().map(|entry| entry.width).max().unwrap_or(0);
        let columns = ((width + COLUMN_GAP).saturating_sub(2 * MARGIN) / (widest + COLUMN_GAP)).max(1);
        let rows = self.legend.len().div_ceil(columns);
        // As many columns as needed: no empty ones.
        [if rows > 0 { self.legend.len().div_ceil(rows) } else { 0 }, rows]
    }

    fn draw(&self, canvas: &mut Canvas, top: usize, width: usize) {
        let baseline = top + MARGIN + TITLE_SIZE as usize;
        canvas.text([MARGIN, baseline], TITLE_SIZE, &self.view.name, INK, Anchor::Left);
        let after = MARGIN + text_width(&self.view.name, TITLE_SIZE).ceil() as usize + COLUMN_GAP / 2;
        canvas.text([after, baseline], ENTRY_SIZE, &self.window(), DIM_INK, Anchor::Left);
        let (mut x, y) = (MARGIN, top + MARGIN + TITLE_HEIGHT);
        let image = self.reorientation.view(self.view.image.view());
        let labels = self.view.labels.as_ref().map(|labels| self.reorientation.view(labels.view()));
        for panel in &self.panels {
            panel.draw(canvas, [x, y], &image, labels.as_ref(), self.view.window);
            x += panel.size[0] + MARGIN;
        }
        self.draw_legend(canvas, y + panels_height(&self.panels) + MARGIN, width);
    }

    /// Entries in columns, filled from the top.
    fn draw_legend(&self, canvas: &mut Canvas, top: usize, width: usize) {
        let [_, rows] = self.legend_shape(width);
        let widest = self.legend.iter().map(|entry| entry.width).max().unwrap_or(0);
        for (index, entry) in self.legend.iter().enumerate() {
            let x = MARGIN + index / rows * (widest + COLUMN_GAP);
            let y = top + index % rows * ENTRY_HEIGHT;
            canvas.rectangle([x, y], [SWATCH; 2], label_color(entry.class.label));
            let (name, baseline) = (x + SWATCH + 8, y + SWATCH - 2);
            canvas.text([name, baseline], ENTRY_SIZE, &entry.class.name, INK, Anchor::Left);
            canvas.text([name + entry.name_width + 8, baseline], ENTRY_SIZE, &entry.volume, DIM_INK, Anchor::Left);
        }
    }
}

impl Panel {
    /// Slices of a reoriented image through the largest labeled area.
    fn all(reorientation: &Reorientation, image: &ArrayView3<f32>, labels: Option<&ArrayView3<i16>>) -> Vec<Self> {
        // A 2D image has one plane.
        let is_flat = image.shape().contains(&1);
        let planes = Plane::ALL.into_iter().filter(|plane| !is_flat || image.len_of(plane.across()) == 1);
        let mut panels: Vec<Self> = planes
            .map(|plane| Self { plane, index: plane.largest_slice(labels, image.len_of(plane.across())), size: [1, 1] })
            .collect();
        let in_mm = |panel: &Self| {
            let (rows, columns) = panel.plane.slice(image, panel.index).dim();
            let [y, x] = panel.plane.spacing(reorientation);
            [columns as f64 * x, rows as f64 * y]
        };
        let longest = panels.iter().flat_map(in_mm).fold(f64::MIN_POSITIVE, f64::max);
        for panel in &mut panels {
            panel.size = in_mm(panel).map(|mm| ((mm / longest * SIDE as f64).round() as usize).max(1));
        }
        panels
    }

    /// Draws the slice of a reoriented image with its label overlay, upper left corner at `(left, top)`.
    fn draw(
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
                let value = interpolate(&image, row(v) - 0.5, column(u) - 0.5);
                let gray = 255.0 * ((value - low) / (high - low).max(f32::MIN_POSITIVE)).clamp(0.0, 1.0);
                let gray = if gray.is_nan() { 0.0 } else { gray };
                let own = label(u, v);
                let is_border = own > 0
                    && [(u.wrapping_sub(1), v), (u + 1, v), (u, v.wrapping_sub(1)), (u, v + 1)]
                        .into_iter()
                        .any(|(u, v)| u < width && v < height && label(u, v) != own);
                canvas.set(left + u, top + v, overlay(gray, own, is_border));
            }
        }
        self.draw_edges(canvas, [left, top]);
    }

    /// Directions at the middle of the edges.
    fn draw_edges(&self, canvas: &mut Canvas, [left, top]: [usize; 2]) {
        let [width, height] = self.size;
        let letter = EDGE_SIZE as usize;
        let (middle_x, middle_y) = (left + width / 2, top + height / 2 + letter / 3);
        let [at_left, at_right, at_top, at_bottom] = self.plane.edges();
        canvas.text([left + 5, middle_y], EDGE_SIZE, at_left, INK, Anchor::Left);
        canvas.text([(left + width).saturating_sub(5), middle_y], EDGE_SIZE, at_right, INK, Anchor::Right);
        canvas.text([middle_x, top + letter + 2], EDGE_SIZE, at_top, INK, Anchor::Center);
        canvas.text([middle_x, (top + height).saturating_sub(6)], EDGE_SIZE, at_bottom, INK, Anchor::Center);
    }
}

/// Bilinear interpolation with edge extension.
fn interpolate(image: &ArrayView2<f32>, row: f64, column: f64) -> f32 {
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

#[cfg(test)]
mod tests {
    use ndarray::s;

    use super::*;
    use crate::picture::Color;
    use crate::raster::decode_png;
    use nnunet_image::Geometry;

    fn view(image: Array3<f32>, labels: Array3<i16>, spacing: [f64; 3], legend: Vec<LabelVolume>) -> CaseView {
        let geometry = Geometry { spacing, ..Geometry::default() };
        let window = [0.0, image.iter().copied().fold(0.0, f32::max)];
        CaseView { name: "case".into(), image, window, labels: Some(labels), geometry, legend }
    }

    fn class(label: i16, name: &str) -> LabelVolume {
        LabelVolume { label, name: name.into(), voxels: 200, mm3: 2000.0, ml: 2.0 }
    }

    fn count(pixels: &[Color], color: Color) -> usize {
        pixels.iter().filter(|pixel| **pixel == color).count()
    }

    #[test]
    fn labels_are_drawn_in_true_proportions() {
        // 10 mm along z, so that a coronal slice of 6 x 30 voxels is 60 x 30 mm.
        let image = Array3::from_shape_fn((6, 20, 30), |(_, _, x)| x as f32);
        let mut labels = Array3::zeros((6, 20, 30));
        labels.slice_mut(s![2..4, 5..15, 10..20]).fill(2);
        let view = view(image, labels, [10.0, 1.0, 1.0], vec![class(2, "core")]);
        let row = CaseRow::new(&view);
        let sizes: Vec<_> = row.panels.iter().map(|panel| panel.size).collect();
        assert_eq!(sizes, [[180, 120], [180, 360], [120, 360]]);
        assert_eq!(row.panels[0].index, 2);
        let (pixels, _) = decode_png(&montage(&[view]).unwrap());
        // The outlines of three boxes and the square of the legend.
        let border = count(&pixels, label_color(2));
        assert!((800..2000).contains(&border), "{border}");
    }

    #[test]
    fn a_legend_of_many_classes_is_complete() {
        let legend: Vec<_> = (1..=20).map(|label| class(label, &format!("class of a long name {label}"))).collect();
        let view = view(Array3::ones((4, 20, 10)), Array3::zeros((4, 20, 10)), [1.0; 3], legend);
        let row = CaseRow::new(&view);
        let width = row.width();
        let [columns, rows] = row.legend_shape(width);
        let widest = row.legend.iter().map(|entry| entry.width).max().unwrap();
        assert!(columns * rows >= 20 && 2 * MARGIN + columns * widest + (columns - 1) * COLUMN_GAP <= width);
        let (pixels, [_, height]) = decode_png(&montage(&[view]).unwrap());
        assert_eq!(pixels.len(), width * height as usize);
        for label in 1..=20 {
            assert_eq!(count(&pixels, label_color(label)), SWATCH * SWATCH, "{label}");
        }
    }

    #[test]
    fn both_label_maps_are_drawn_over_the_same_slices() {
        let shape = (20, 20, 20);
        let (mut reference, mut prediction) = (Array3::zeros(shape), Array3::zeros(shape));
        reference.slice_mut(s![4..10, 4..10, 4..10]).fill(1);
        prediction.slice_mut(s![4..12, 4..12, 4..12]).fill(2);
        // Larger than the whole reference.
        prediction.slice_mut(s![11..20, 11..20, 11..20]).fill(2);
        let image = Array3::from_shape_fn(shape, |(_, _, x)| x as f32);
        let view = view(image, reference, [1.0; 3], Vec::new());
        let (pixels, _) = decode_png(&comparison(&view, &prediction).unwrap());
        let (upper, lower) = pixels.split_at(pixels.len() / 2);
        let counts =
            [(upper, 1), (upper, 2), (lower, 1), (lower, 2)].map(|(half, label)| count(half, label_color(label)));
        assert!(counts[0] > 300 && counts[1] == 0 && counts[2] == 0 && counts[3] > 500, "{counts:?}");
        let other = comparison(&view, &Array3::zeros((20, 20, 21))).unwrap_err().to_string();
        assert!(other.contains("[20, 20, 21]"), "{other}");
    }
}
