//! An in-memory RGB image with drawing functions.

use crate::{chart, glyphs};

pub type Colour = [u8; 3];

/// Pixels per glyph point.
const SCALE: usize = 2;
/// Height of a letter in pixels.
pub const LETTER: usize = glyphs::HEIGHT * SCALE;

/// RGB pixels in row-major order. Drawing outside of the image is ignored.
pub struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Canvas {
    pub fn new(width: usize, height: usize, colour: Colour) -> Self {
        Self { width, height, pixels: colour.repeat(width * height) }
    }

    pub fn set(&mut self, x: usize, y: usize, colour: Colour) {
        if x < self.width && y < self.height {
            let at = (y * self.width + x) * 3;
            self.pixels[at..at + 3].copy_from_slice(&colour);
        }
    }

    pub fn rectangle(&mut self, [x, y]: [usize; 2], [width, height]: [usize; 2], colour: Colour) {
        for y in y..y + height {
            (x..x + width).for_each(|x| self.set(x, y, colour));
        }
    }

    /// Draws text with its upper left corner at `(x, y)`.
    pub fn text(&mut self, [x, y]: [usize; 2], text: &str, colour: Colour) {
        for (index, letter) in text.chars().enumerate() {
            for (row, bits) in glyphs::rows(letter).into_iter().enumerate() {
                for column in (0..glyphs::WIDTH).filter(|column| bits >> (glyphs::WIDTH - 1 - column) & 1 == 1) {
                    let x = x + (index * (glyphs::WIDTH + 1) + column) * SCALE;
                    self.rectangle([x, y + row * SCALE], [SCALE; 2], colour);
                }
            }
        }
    }

    /// Encodes the image as PNG.
    pub fn png(&self) -> Result<Vec<u8>, String> {
        chart::encode(&self.pixels, self.width as u32, self.height as u32)
    }
}

/// Width of a text in pixels.
pub fn text_width(text: &str) -> usize {
    text.chars().count() * (glyphs::WIDTH + 1) * SCALE
}
