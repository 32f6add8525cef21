//! An RGB image with boxes and text, and the colors of labels.

use std::fmt::Write;

use crate::picture::{Color, PictureError};
use crate::raster::{draw_over, encode_png, escape, svg_document};

pub(crate) const BACKGROUND: Color = [18, 18, 18];
pub(crate) const INK: Color = [235, 235, 235];
/// Color of less important text.
pub(crate) const DIM_INK: Color = [160, 165, 170];
/// Opacity of a label's interior; its border is opaque.
const LABEL_OPACITY: f32 = 0.35;

/// Colors of labels 1, 2, ...; repeated cyclically. From the seventh on, each is the color of medium lightness farthest
/// in Oklab from all before it and from gray.
const LABEL_COLORS: [Color; 24] = [
    [230, 60, 60],
    [70, 190, 90],
    [80, 130, 240],
    [250, 190, 50],
    [200, 90, 220],
    [60, 205, 215],
    [115, 10, 250],
    [115, 115, 10],
    [250, 175, 250],
    [175, 250, 10],
    [145, 70, 115],
    [250, 145, 130],
    [190, 250, 190],
    [10, 145, 160],
    [250, 10, 160],
    [160, 70, 10],
    [190, 145, 55],
    [10, 70, 250],
    [145, 175, 250],
    [100, 85, 175],
    [160, 10, 175],
    [10, 250, 160],
    [190, 115, 160],
    [10, 145, 10],
];

/// Display color of a label above 0.
pub fn label_color(label: i16) -> Color {
    LABEL_COLORS[(i32::from(label) - 1).rem_euclid(LABEL_COLORS.len() as i32) as usize]
}

/// Color of a pixel with a gray value of 0 to 255 under a label; labels of 0 and below are transparent.
pub(crate) fn overlay(gray: f32, label: i16, is_border: bool) -> Color {
    let opacity = match label {
        label if label <= 0 => 0.0,
        _ if is_border => 1.0,
        _ => LABEL_OPACITY,
    };
    label_color(label).map(|channel| (f32::from(channel) * opacity + gray * (1.0 - opacity)).round() as u8)
}

/// Point of a text that stands at its position.
#[derive(Clone, Copy)]
pub(crate) enum Anchor {
    Left,
    Center,
    Right,
}

/// RGB pixels in row-major order. Drawing outside of the image is ignored.
pub(crate) struct Canvas {
    size: [usize; 2],
    pixels: Vec<u8>,
    /// SVG elements of the texts, drawn above the pixels.
    texts: String,
}

impl Canvas {
    pub fn new(size: [usize; 2], color: Color) -> Self {
        Self { size, pixels: color.repeat(size[0] * size[1]), texts: String::new() }
    }

    pub fn set(&mut self, x: usize, y: usize, color: Color) {
        let [width, height] = self.size;
        if x < width && y < height {
            let at = (y * width + x) * 3;
            self.pixels[at..at + 3].copy_from_slice(&color);
        }
    }

    pub fn rectangle(&mut self, [x, y]: [usize; 2], [width, height]: [usize; 2], color: Color) {
        for y in y..y + height {
            (x..x + width).for_each(|x| self.set(x, y, color));
        }
    }

    /// Writes a text with its baseline at `y`, outlined in black so that it is legible on an image.
    pub fn text(&mut self, [x, y]: [usize; 2], font_size: f64, text: &str, color: Color, anchor: Anchor) {
        let [red, green, blue] = color;
        let anchor = match anchor {
            Anchor::Left => "start",
            Anchor::Center => "middle",
            Anchor::Right => "end",
        };
        let written = write!(
            self.texts,
            "<text x=\"{x}\" y=\"{y}\" font-size=\"{font_size}\" text-anchor=\"{anchor}\" fill=\"rgb({red},{green},{blue})\" \
             stroke=\"black\" stroke-opacity=\"0.6\" stroke-width=\"2.5\" stroke-linejoin=\"round\" paint-order=\"stroke\" \
             xml:space=\"preserve\">{}</text>",
            escape(text)
        );
        written.expect("writing to a string cannot fail");
    }

    /// Encodes the image as PNG.
    pub fn to_png(&self) -> Result<Vec<u8>, PictureError> {
        let size = self.size.map(|side| side as u32);
        let mut pixels = self.pixels.clone();
        draw_over(&mut pixels, size, &svg_document(size, &self.texts))?;
        encode_png(&pixels, size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raster::decode_png;

    #[test]
    fn texts_are_drawn_over_the_pixels() {
        let mut canvas = Canvas::new([60, 20], BACKGROUND);
        canvas.rectangle([0, 0], [4, 200], INK);
        canvas.text([10, 15], 14.0, "<i>", [255, 0, 0], Anchor::Left);
        let (pixels, size) = decode_png(&canvas.to_png().unwrap());
        assert_eq!((size, pixels[60 * 19]), ([60, 20], INK));
        assert!(pixels.iter().filter(|pixel| pixel[0] > 200 && pixel[1] < 60).count() > 10);
    }

    #[test]
    fn labels_have_different_colors_and_the_background_none() {
        let colors: std::collections::BTreeSet<_> = (1..=24).map(label_color).collect();
        assert_eq!((colors.len(), label_color(25)), (24, label_color(1)));
        assert_eq!(
            [overlay(9.0, 0, true), overlay(9.0, -1, false), overlay(9.0, 2, true)],
            [[9; 3], [9; 3], label_color(2)]
        );
    }
}
