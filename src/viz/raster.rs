//! SVG to pixels, and pixels to PNG files.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use resvg::tiny_skia::{IntSize, Pixmap, Transform};
use resvg::usvg::{self, Tree, fontdb};

use crate::picture::{Color, PictureError};

/// Inter, reduced to Latin and the symbols of charts; see `fonts/README.md`.
const FONT: &[u8] = include_bytes!("fonts/Inter-Latin.otf");
const FAMILY: &str = "Inter";
/// Maximum number of colors of a PNG file with a palette.
const PALETTE: usize = 256;

/// Options with the only font, read once.
static OPTIONS: LazyLock<usvg::Options> = LazyLock::new(|| {
    let mut fonts = fontdb::Database::new();
    fonts.load_font_data(FONT.to_vec());
    fonts.set_sans_serif_family(FAMILY);
    usvg::Options { font_family: FAMILY.to_owned(), fontdb: Arc::new(fonts), ..usvg::Options::default() }
});

/// Rasterizes an SVG document on white with `scale` pixels per unit, and encodes it as PNG with at most 256 colors:
/// the shades of smoothed edges are rounded.
///
/// # Errors
/// Returns an error if `svg` is not a valid SVG document.
pub fn to_png(svg: &str, scale: f32) -> Result<Vec<u8>, PictureError> {
    let tree = parse(svg)?;
    let [width, height] = [tree.size().width(), tree.size().height()].map(|side| (side * scale).ceil() as u32);
    let mut pixels = vec![255; width as usize * height as usize * 3];
    render(&tree, scale, &mut pixels, [width, height])?;
    reduce_colors(&mut pixels);
    encode_png(&pixels, [width, height])
}

/// Draws an SVG document over RGB pixels of `[width, height]`, one pixel per unit.
pub(crate) fn draw_over(pixels: &mut [u8], size: [u32; 2], svg: &str) -> Result<(), PictureError> {
    render(&parse(svg)?, 1.0, pixels, size)
}

/// Width of a text in units, at a font size in units.
pub(crate) fn text_width(text: &str, font_size: f64) -> f64 {
    let svg = svg_document(
        [1, 1],
        &format!("<text font-size=\"{font_size}\" xml:space=\"preserve\">{}</text>", escape(text)),
    );
    parse(&svg).map_or(0.0, |tree| f64::from(tree.root().abs_bounding_box().width()))
}

/// An SVG document of `[width, height]` units with some elements.
pub(crate) fn svg_document([width, height]: [u32; 2], elements: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"{FAMILY}\">{elements}</svg>"
    )
}

/// Text with the markup characters of XML escaped, and without control characters.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            letter if letter.is_control() => escaped.push('\u{fffd}'),
            letter => escaped.push(letter),
        }
    }
    escaped
}

/// Encodes RGB pixels of `[width, height]` as PNG: with a palette if there are at most 256 colors.
///
/// # Errors
/// Returns an error if the size is 0 or does not match the number of pixels.
pub fn encode_png(pixels: &[u8], [width, height]: [u32; 2]) -> Result<Vec<u8>, PictureError> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_compression(png::Compression::High);
    let indexed = palette(pixels).map(|colors| {
        let numbers: HashMap<Color, u8> =
            colors.iter().zip(0..=u8::MAX).map(|(color, number)| (*color, number)).collect();
        encoder.set_palette(colors.as_flattened().to_vec());
        let runs = pixels.as_chunks::<3>().0.chunk_by(|a, b| a == b);
        runs.flat_map(|run| std::iter::repeat_n(numbers[&run[0]], run.len())).collect::<Vec<u8>>()
    });
    encoder.set_color(if indexed.is_some() { png::ColorType::Indexed } else { png::ColorType::Rgb });
    if indexed.is_some() {
        // Differences of palette numbers mean nothing.
        encoder.set_filter(png::Filter::NoFilter);
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(indexed.as_deref().unwrap_or(pixels))?;
    writer.finish()?;
    Ok(file)
}

/// Colors of an image, most frequent first; `None` if there are more than a palette has.
fn palette(pixels: &[u8]) -> Option<Vec<Color>> {
    let counts = color_counts(pixels);
    let mut colors: Vec<_> = counts.into_iter().collect();
    colors.sort_by_key(|(color, count)| (std::cmp::Reverse(*count), *color));
    (colors.len() <= PALETTE).then(|| colors.into_iter().map(|(color, _)| color).collect())
}

/// Number of pixels of each color.
fn color_counts(pixels: &[u8]) -> HashMap<Color, usize> {
    let mut counts = HashMap::new();
    // Most pixels have the color of the one before.
    for run in pixels.as_chunks::<3>().0.chunk_by(|a, b| a == b) {
        *counts.entry(run[0]).or_default() += run.len();
    }
    counts
}

/// Replaces similar colors by the most frequent of them until a palette has room for all.
///
/// Colors are similar if their channels agree up to the lowest bits. The colors of lines and text stay exact, because
/// they are more frequent than the shades at their edges.
fn reduce_colors(pixels: &mut [u8]) {
    let counts = color_counts(pixels);
    for bits in 0..8 {
        let mut kept: HashMap<Color, (usize, Color)> = HashMap::new();
        for (color, count) in &counts {
            let candidate = (*count, *color);
            kept.entry(color.map(|channel| channel >> bits))
                .and_modify(|best| *best = candidate.max(*best))
                .or_insert(candidate);
        }
        if kept.len() <= PALETTE {
            for run in pixels.as_chunks_mut::<3>().0.chunk_by_mut(|a, b| a == b) {
                run.fill(kept[&run[0].map(|channel| channel >> bits)].1);
            }
            return;
        }
    }
}

fn parse(svg: &str) -> Result<Tree, PictureError> {
    Tree::from_str(svg, &OPTIONS).map_err(|error| PictureError::Svg(error.to_string()))
}

/// Draws over opaque RGB pixels.
fn render(tree: &Tree, scale: f32, pixels: &mut [u8], [width, height]: [u32; 2]) -> Result<(), PictureError> {
    let rgba = pixels.as_chunks::<3>().0.iter().flat_map(|&[r, g, b]| [r, g, b, 255]).collect();
    let map = IntSize::from_wh(width, height).and_then(|size| Pixmap::from_vec(rgba, size));
    let mut map = map.ok_or_else(|| PictureError::Svg(format!("{width} x {height} pixels")))?;
    resvg::render(tree, Transform::from_scale(scale, scale), &mut map.as_mut());
    for (pixel, drawn) in pixels.as_chunks_mut::<3>().0.iter_mut().zip(map.data().as_chunks::<4>().0) {
        *pixel = [drawn[0], drawn[1], drawn[2]];
    }
    Ok(())
}

/// RGB pixels of a PNG file and its `[width, height]`.
#[cfg(test)]
pub(crate) fn decode_png(file: &[u8]) -> (Vec<Color>, [u32; 2]) {
    let mut decoder = png::Decoder::new(std::io::Cursor::new(file));
    decoder.set_transformations(png::Transformations::EXPAND);
    let mut reader = decoder.read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    (pixels.as_chunks().0.to_vec(), [info.width, info.height])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_drawn_with_the_bundled_font() {
        let document =
            |text| svg_document([200, 40], &format!("<text x=\"5\" y=\"30\" font-size=\"24\">{text}</text>"));
        let dark = |text| {
            let (pixels, size) = decode_png(&to_png(&document(text), 1.0).unwrap());
            assert_eq!(size, [200, 40]);
            pixels.iter().filter(|pixel| pixel[0] < 64).count()
        };
        assert_eq!(dark(""), 0);
        // Digits, Latin with accents, and the symbols of charts.
        for text in ["0123456789", "Leber\u{fc}", "3 \u{d7} 4 \u{b5}m", "\u{3b1} \u{2264} 90\u{b0}"] {
            assert!(dark(text) > 100, "{text}: {}", dark(text));
        }
        assert!(dark("Dice") < dark("Dice Dice"));
    }

    #[test]
    fn text_width_grows_with_text_and_size() {
        let widths = ["i", "M", "Mi", "pseudo Dice"].map(|text| text_width(text, 10.0));
        assert!(widths.is_sorted() && widths[0] > 1.0 && widths[3] < 80.0, "{widths:?}");
        assert!((text_width("pseudo Dice", 20.0) / widths[3] - 2.0).abs() < 0.05);
        assert_eq!(text_width("", 10.0), 0.0);
    }

    #[test]
    fn few_colors_make_a_palette_and_stay_exact() {
        let few: Vec<u8> = (0..100u8).flat_map(|index| [index, 7, 255 - index]).collect();
        let many: Vec<u8> = (0..40_000u32).flat_map(|index| [(index % 256) as u8, (index / 256) as u8, 9]).collect();
        for (pixels, size, kind) in [(few, [10, 10], png::ColorType::Indexed), (many, [200, 200], png::ColorType::Rgb)]
        {
            let file = encode_png(&pixels, size).unwrap();
            let info = png::Decoder::new(std::io::Cursor::new(&file)).read_info().unwrap().info().color_type;
            assert_eq!((info, decode_png(&file).0.as_flattened()), (kind, pixels.as_slice()));
        }
    }

    #[test]
    fn frequent_colors_survive_the_reduction() {
        let mut pixels: Vec<u8> =
            (0..40_000u32).flat_map(|index| [(index % 256) as u8, (index / 256) as u8, 9]).collect();
        pixels.extend([200, 100, 50].repeat(500));
        reduce_colors(&mut pixels);
        assert!(color_counts(&pixels).len() <= PALETTE);
        assert!(color_counts(&pixels)[&[200, 100, 50]] >= 500);
    }

    #[test]
    fn names_with_markup_and_control_characters_are_valid_xml() {
        assert_eq!(escape("a<b>&\"\0"), "a&lt;b&gt;&amp;&quot;\u{fffd}");
        assert!(text_width("<script>\u{1}", 10.0) > 10.0);
    }

    #[test]
    fn invalid_svg_is_an_error() {
        assert!(matches!(to_png("<svg", 1.0), Err(PictureError::Svg(_))));
        assert!(matches!(to_png("<svg xmlns=\"http://www.w3.org/2000/svg\"/>", 0.0), Err(PictureError::Svg(_))));
    }
}
