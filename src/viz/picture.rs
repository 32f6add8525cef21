//! Colors, and errors of drawing.

/// Red, green and blue.
pub type Color = [u8; 3];

/// A picture that cannot be drawn.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// A chart whose axes cannot be drawn.
    #[error("the chart cannot be drawn: {0}")]
    Chart(String),
    /// The text or SVG cannot be rasterized.
    #[error("the SVG cannot be rasterized: {0}")]
    Svg(String),
    /// The PNG file cannot be encoded.
    #[error("the PNG file cannot be encoded: {0}")]
    Png(#[from] png::EncodingError),
    /// A label map does not belong to the image.
    #[error("the shape of the prediction, {prediction:?}, differs from {image:?} of the image")]
    Shape {
        /// Shape of the label map, `(z, y, x)`.
        prediction: Vec<usize>,
        /// Shape of the image, `(z, y, x)`.
        image: Vec<usize>,
    },
}
