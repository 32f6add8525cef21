//! One slice with several label maps, side by side.

use ndarray::{ArrayView2, Zip};

use super::montage::{MARGIN, TITLE_HEIGHT, TITLE_SIZE};
use crate::canvas::{Anchor, BACKGROUND, Canvas, INK, overlay};
use crate::picture::PictureError;

/// Minimum length of the longer side of the slice in pixels.
const SIDE: usize = 256;

/// Renders a slice `(y, x)` once per label map, with the labels as overlay and the name as title. Returns a PNG file
/// with its width and height. A voxel is a square of whole pixels; labels of 0 and below are not drawn. Gray values are
/// scaled to the range of the slice.
///
/// # Errors
/// Returns an error if the PNG file cannot be encoded.
pub fn side_by_side(
    image: ArrayView2<f32>,
    labels: &[(&str, ArrayView2<i16>)],
) -> Result<(Vec<u8>, [u32; 2]), PictureError> {
    let (rows, columns) = image.dim();
    let scale = SIDE.div_ceil(rows.max(columns).max(1)).max(1);
    let [width, height] = [columns * scale, rows * scale];
    let size = [MARGIN + labels.len() * (width + MARGIN), 2 * MARGIN + TITLE_HEIGHT + height];
    let mut canvas = Canvas::new(size, BACKGROUND);
    let gray = gray_scale(image);
    for (number, (name, labels)) in labels.iter().enumerate() {
        let left = MARGIN + number * (width + MARGIN);
        canvas.text([left, MARGIN + TITLE_SIZE as usize], TITLE_SIZE, name, INK, Anchor::Left);
        Zip::indexed(labels).for_each(|(row, column), &label| {
            let at = [left + column * scale, MARGIN + TITLE_HEIGHT + row * scale];
            let color = overlay(gray(image[[row, column]]), label, is_border(labels, row, column));
            canvas.rectangle(at, [scale; 2], color);
        });
    }
    Ok((canvas.to_png()?, size.map(|pixels| pixels as u32)))
}

/// Mapping of intensities to gray values 0 to 255 over the range of the slice.
fn gray_scale(image: ArrayView2<f32>) -> impl Fn(f32) -> f32 {
    let finite = image.iter().copied().filter(|value| value.is_finite());
    let (low, high) = finite.fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    let range = (high - low).max(f32::MIN_POSITIVE);
    move |value| if value.is_finite() { 255.0 * ((value - low) / range).clamp(0.0, 1.0) } else { 0.0 }
}

/// Whether a neighbor within the slice has another label.
fn is_border(labels: &ArrayView2<i16>, row: usize, column: usize) -> bool {
    let neighbors =
        [(row.wrapping_sub(1), column), (row + 1, column), (row, column.wrapping_sub(1)), (row, column + 1)];
    let own = labels[[row, column]];
    neighbors.into_iter().filter_map(|at| labels.get(at)).any(|label| *label != own)
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, s};

    use super::*;
    use crate::canvas::label_color;
    use crate::raster::decode_png;

    #[test]
    fn each_label_map_has_its_own_half() {
        let image = Array2::from_shape_fn((20, 30), |(_, x)| x as f32);
        let (mut truth, mut prediction) = (Array2::zeros((20, 30)), Array2::zeros((20, 30)));
        truth.slice_mut(s![5..15, 5..15]).fill(1);
        prediction.slice_mut(s![5..15, 5..10]).fill(2);
        let (png, [width, height]) =
            side_by_side(image.view(), &[("truth", truth.view()), ("prediction", prediction.view())]).unwrap();
        // Nine pixels per voxel.
        let expected = [MARGIN + 2 * (270 + MARGIN), 2 * MARGIN + TITLE_HEIGHT + 180];
        assert_eq!([width, height], expected.map(|pixels| pixels as u32));
        let (pixels, size) = decode_png(&png);
        assert_eq!(size, [width, height]);
        let count = |half: usize, label: i16| {
            let rows = pixels.chunks(width as usize);
            let halves = rows.flat_map(|row| &row[half * width as usize / 2..(half + 1) * width as usize / 2]);
            halves.filter(|pixel| **pixel == label_color(label)).count()
        };
        // The borders: 36 voxels around 10 x 10, and 26 around 10 x 5.
        assert_eq!([count(0, 1), count(0, 2), count(1, 1), count(1, 2)], [36 * 81, 0, 0, 26 * 81]);
        assert!(pixels.contains(&INK), "no names");
    }
}
