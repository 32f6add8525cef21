//! Charts and pictures of cases.
//!
//! [`Chart`] draws curves as SVG, which a page embeds as it is and [`raster::to_png`] turns into a PNG file. [`inspect`]
//! reads cases and renders slices with their labels. All text is real text, in one font that is compiled in, so that
//! pictures look the same on machines without fonts.
//!
//! ```
//! use nnunet_viz::chart::{Axis, AxisRange, Chart, Curve, PALETTE};
//! use nnunet_viz::raster;
//!
//! let chart = Chart {
//!     x_axis: Axis::new("epoch", AxisRange::Integers),
//!     y_axis: Axis::new("loss", AxisRange::Values),
//!     curves: vec![Curve::new("training", PALETTE[0], vec![(0.0, 1.2), (1.0, 0.7), (2.0, 0.4)])],
//!     ..Chart::default()
//! };
//! let svg = chart.to_svg()?;
//! assert!(svg.contains("training"));
//! let png = raster::to_png(&svg, 1.0)?;
//! assert!(png.starts_with(b"\x89PNG"));
//! # Ok::<(), nnunet_viz::PictureError>(())
//! ```

mod canvas;
pub mod chart;
pub mod inspect;
pub mod raster;

pub use canvas::label_color;
pub use chart::Chart;

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
