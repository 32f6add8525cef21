//! Values of a file that single precision, in which all intensities are kept, cannot represent.

/// Counts and first examples of the values that change when they are converted to `f32`.
///
/// Rounding of a fraction is not counted: a value counts if it overflows to infinity, or if it is an integer that
/// becomes another one.
#[derive(Clone, Copy, Debug, Default)]
pub struct InexactValues {
    infinite: Changed,
    rounded: Changed,
}

/// Values that change in one way.
#[derive(Clone, Copy, Debug, Default)]
struct Changed {
    count: usize,
    first: f64,
}

impl InexactValues {
    /// Counts a value if its conversion changes it.
    #[inline]
    pub fn look_at(&mut self, value: f64) {
        let single = f64::from(value as f32);
        if single != value && (single.is_infinite() || value.fract() == 0.0) {
            let changed = if single.is_infinite() { &mut self.infinite } else { &mut self.rounded };
            changed.add(value);
        }
    }

    /// Describes the changed values; `None` if there are none.
    pub fn remark(&self) -> Option<String> {
        let described: Vec<String> = [self.infinite, self.rounded].iter().filter_map(Changed::describe).collect();
        (!described.is_empty()).then(|| format!("values do not fit into 32-bit floats: {}", described.join(", ")))
    }
}

impl Changed {
    #[cold]
    fn add(&mut self, value: f64) {
        if self.count == 0 {
            self.first = value;
        }
        self.count += 1;
    }

    fn describe(&self) -> Option<String> {
        let Self { count, first } = *self;
        let (from, to) = (number(first), number(f64::from(first as f32)));
        (count > 0).then(|| format!("{from} becomes {to} ({count} such values)"))
    }
}

fn number(value: f64) -> String {
    if value.abs() < 1e21 { value.to_string() } else { format!("{value:e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remark(values: &[f64]) -> Option<String> {
        let mut inexact = InexactValues::default();
        values.iter().for_each(|value| inexact.look_at(*value));
        inexact.remark()
    }

    #[test]
    fn changed_integers_and_infinities_are_reported() {
        assert_eq!(remark(&[0.1, -3.0, 16_777_216.0, f64::NAN, f64::INFINITY, 1e-60]), None);
        let found = remark(&[1.0, 16_777_217.0, 1e40]).unwrap();
        assert!(found.contains("16777217 becomes 16777216 (1 such"), "{found}");
        assert!(found.contains("1e40 becomes inf (1 such values)"), "{found}");
    }
}
