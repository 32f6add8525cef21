//! Slices of a case with two label maps, one row each.

use ndarray::Array3;

use super::View;
use super::canvas::Canvas;
use super::montage::{BACKGROUND, INK, LINE, MARGIN, Panel};
use super::view::Turn;

/// Renders the reference label map of a case above a prediction of the same shape, on the same slices, as a PNG file.
/// The slices are those with the largest labeled reference area, or the largest predicted area if the reference is
/// empty.
///
/// # Errors
/// Returns an error if the shapes differ or the encoder fails.
pub fn comparison(view: &View, prediction: &Array3<i16>) -> Result<Vec<u8>, String> {
    let shape = view.image.shape();
    if prediction.shape() != shape {
        return Err(format!("the prediction's shape, {:?}, differs from the image's, {shape:?}", prediction.shape()));
    }
    let nothing = Array3::zeros(prediction.raw_dim());
    let truth = view.labels.as_ref().unwrap_or(&nothing);
    // Slices chosen by a prediction far from the reference would show nothing of the reference.
    let leading = if truth.iter().any(|label| *label > 0) { truth } else { prediction };

    let turn = Turn::of(&view.geometry);
    let image = turn.view(view.image.view());
    let panels = Panel::all(&turn, &image, Some(&turn.view(leading.view())));
    let width = panels.iter().map(|panel| panel.size[0] + MARGIN).sum::<usize>() + MARGIN;
    let height = LINE + panels.iter().map(|panel| panel.size[1]).max().unwrap_or(0) + MARGIN;
    let mut canvas = Canvas::new(width, MARGIN + 2 * height, BACKGROUND);
    let mut top = MARGIN;
    for (name, labels) in [("truth", truth), ("prediction", prediction)] {
        canvas.text([MARGIN, top], name, INK);
        let labels = turn.view(labels.view());
        let mut left = MARGIN;
        for panel in &panels {
            panel.draw(&mut canvas, [left, top + LINE], &image, Some(&labels), view.window);
            left += panel.size[0] + MARGIN;
        }
        top += height;
    }
    canvas.png()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use ndarray::s;

    use super::*;
    use crate::inspect::label_colour;
    use nnunet_image::Geometry;

    #[test]
    fn both_label_maps_are_drawn_over_the_same_slices() {
        let shape = (20, 20, 20);
        let (mut truth, mut prediction) = (Array3::zeros(shape), Array3::zeros(shape));
        truth.slice_mut(s![4..10, 4..10, 4..10]).fill(1);
        prediction.slice_mut(s![4..12, 4..12, 4..12]).fill(2);
        // Larger than the whole reference.
        prediction.slice_mut(s![11..20, 11..20, 11..20]).fill(2);
        let view = View {
            name: "case".into(),
            image: Array3::from_shape_fn(shape, |(_, _, x)| x as f32),
            window: [0.0, 19.0],
            labels: Some(truth),
            geometry: Geometry::default(),
            legend: Vec::new(),
        };
        let mut reader = png::Decoder::new(Cursor::new(comparison(&view, &prediction).unwrap())).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size()];
        reader.next_frame(&mut pixels).unwrap();
        let pixels = pixels.as_chunks::<3>().0;
        let (upper, lower) = pixels.split_at(pixels.len() / 2);
        let count = |half: &[[u8; 3]], label| half.iter().filter(|pixel| **pixel == label_colour(label)).count();
        assert!(count(upper, 1) > 300 && count(upper, 2) == 0, "{} {}", count(upper, 1), count(upper, 2));
        assert!(count(lower, 2) > 500 && count(lower, 1) == 0, "{} {}", count(lower, 2), count(lower, 1));
        assert!(comparison(&view, &Array3::zeros((20, 20, 21))).unwrap_err().contains("[20, 20, 21]"));
    }
}
