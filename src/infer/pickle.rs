//! Case properties in the format that nnU-Net v2 reads together with probabilities.

use std::fmt::Write;

use serde_json::{Value, json};

use nnunet_data::store::CaseProperties;
use nnunet_image::Geometry;

/// Writes the pickle `CASE.pkl` that `nnUNetv2_ensemble` needs to convert `CASE.npz` to a label map: the geometry of
/// the image for the SimpleITK and nibabel readers, and the cropping.
pub fn properties_pickle(properties: &CaseProperties) -> Vec<u8> {
    let Geometry { spacing: [z, y, x], origin, direction } = &properties.geometry;
    // The affine is RAS, ITK uses LPS.
    let affine = |row: usize| {
        let sign = if row < 2 { -1.0 } else { 1.0 };
        let [d0, d1, d2] = direction[row];
        [sign * d0 * x, sign * d1 * y, sign * d2 * z, sign * origin[row]]
    };
    let value = json!({
        "sitk_stuff": {"spacing": [x, y, z], "origin": origin, "direction": direction.concat()},
        "nibabel_stuff": {"original_affine": [affine(0), affine(1), affine(2), [0.0, 0.0, 0.0, 1.0]]},
        "spacing": properties.geometry.spacing,
        "shape_before_cropping": properties.shape_before_cropping,
        "bbox_used_for_cropping": properties.bbox_used_for_cropping,
        "shape_after_cropping_and_before_resampling": properties.shape_after_cropping_and_before_resampling,
    });
    let mut text = String::new();
    pickle(&value, &mut text);
    text.push('.');
    text.into_bytes()
}

/// Appends a value in pickle protocol 0, a text format: opcode, argument, newline (Python's `pickletools.py`).
fn pickle(value: &Value, text: &mut String) {
    let result = match value {
        Value::Null => write!(text, "N"),
        Value::Bool(value) => writeln!(text, "I0{}", u8::from(*value)),
        Value::Number(number) if number.is_f64() => writeln!(text, "F{number}"),
        Value::Number(number) => writeln!(text, "I{number}"),
        // Property names contain no characters that need escaping.
        Value::String(string) => writeln!(text, "V{string}"),
        Value::Array(items) => {
            text.push_str("(l");
            items.iter().for_each(|item| {
                pickle(item, text);
                text.push('a');
            });
            Ok(())
        }
        Value::Object(fields) => {
            text.push_str("(d");
            fields.iter().for_each(|(key, value)| {
                let _ = writeln!(text, "V{key}");
                pickle(value, text);
                text.push('s');
            });
            Ok(())
        }
    };
    result.expect("a string takes any text");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected bytes as in `pickletools.dis`, checked with Python's `pickle.loads`.
    #[test]
    fn values_are_pickled_in_protocol_0() {
        let mut text = String::new();
        pickle(&json!({"a": [1, -0.5], "b": {"c": true, "d": null}}), &mut text);
        assert_eq!(text, "(dVa\n(lI1\naF-0.5\nasVb\n(dVc\nI01\nsVd\nNss");
    }
}
