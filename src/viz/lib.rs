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
mod picture;
pub mod raster;

pub use canvas::label_color;
pub use chart::Chart;
pub use picture::{Color, PictureError};
