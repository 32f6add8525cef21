//! Letters for plots: fonts are not on every cluster node, and five by seven points are enough for an axis.

/// Columns and rows of a letter, without the space between letters.
pub const WIDTH: usize = 5;
pub const HEIGHT: usize = 7;

/// The rows of a letter, the leftmost point in the highest of five bits; blank for what there is no letter for.
/// Small letters look like capitals.
pub fn rows(letter: char) -> [u8; HEIGHT] {
    let picture = match letter.to_ascii_uppercase() {
        '0' => ".###. #...# #..## #.#.# ##..# #...# .###.",
        '1' => "..#.. .##.. ..#.. ..#.. ..#.. ..#.. .###.",
        '2' => ".###. #...# ....# ..##. .#... #.... #####",
        '3' => ".###. #...# ....# ..##. ....# #...# .###.",
        '4' => "...#. ..##. .#.#. #..#. ##### ...#. ...#.",
        '5' => "##### #.... ####. ....# ....# #...# .###.",
        '6' => "..##. .#... #.... ####. #...# #...# .###.",
        '7' => "##### ....# ...#. ..#.. ..#.. ..#.. ..#..",
        '8' => ".###. #...# #...# .###. #...# #...# .###.",
        '9' => ".###. #...# #...# .#### ....# ...#. .##..",
        'A' => ".###. #...# #...# ##### #...# #...# #...#",
        'B' => "####. #...# #...# ####. #...# #...# ####.",
        'C' => ".###. #...# #.... #.... #.... #...# .###.",
        'D' => "####. #...# #...# #...# #...# #...# ####.",
        'E' => "##### #.... #.... ####. #.... #.... #####",
        'F' => "##### #.... #.... ####. #.... #.... #....",
        'G' => ".###. #...# #.... #.### #...# #...# .####",
        'H' => "#...# #...# #...# ##### #...# #...# #...#",
        'I' => ".###. ..#.. ..#.. ..#.. ..#.. ..#.. .###.",
        'L' => "#.... #.... #.... #.... #.... #.... #####",
        'M' => "#...# ##.## #.#.# #.#.# #...# #...# #...#",
        'N' => "#...# ##..# #.#.# #.#.# #..## #...# #...#",
        'O' => ".###. #...# #...# #...# #...# #...# .###.",
        'P' => "####. #...# #...# ####. #.... #.... #....",
        'R' => "####. #...# #...# ####. #.#.. #..#. #...#",
        'S' => ".#### #.... #.... .###. ....# ....# ####.",
        'T' => "##### ..#.. ..#.. ..#.. ..#.. ..#.. ..#..",
        'U' => "#...# #...# #...# #...# #...# #...# .###.",
        'V' => "#...# #...# #...# #...# #...# .#.#. ..#..",
        '.' => "..... ..... ..... ..... ..... .##.. .##..",
        '-' => "..... ..... ..... .###. ..... ..... .....",
        _ => "",
    };
    let mut rows = [0; HEIGHT];
    for (row, points) in rows.iter_mut().zip(picture.split(' ')) {
        *row = points.bytes().fold(0, |bits, point| bits << 1 | u8::from(point == b'#'));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_letter_used_in_plots_is_drawn_and_none_is_another() {
        let used = "0123456789.-EPOCHTRAINVALDUSGM";
        let drawn: Vec<_> = used.chars().map(rows).collect();
        for (index, glyph) in drawn.iter().enumerate() {
            assert_ne!(*glyph, [0; HEIGHT]);
            let twin = drawn[..index].iter().position(|other| other == glyph);
            assert!(twin.is_none_or(|twin| used.as_bytes()[twin] == used.as_bytes()[index]));
        }
        assert_eq!(rows('a'), rows('A'));
        assert_eq!(rows(' '), [0; HEIGHT]);
    }
}
