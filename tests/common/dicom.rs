//! Series of DICOM files as scanners write them.
#![allow(dead_code)]

use std::path::Path;

use dicom_core::{DataElement, PrimitiveValue, VR};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject, Tag};

pub const EXPLICIT: &str = "1.2.840.10008.1.2.1";
pub const IMPLICIT: &str = "1.2.840.10008.1.2";
const CT: &str = "1.2.840.10008.5.1.4.1.1.2";

/// A series of slices of 2 rows and 3 columns; slice `k` holds `100 k` to `100 k + 5`, stored in 12 of 16 bits.
#[derive(Clone)]
pub struct Series {
    pub uid: &'static str,
    pub syntax: &'static str,
    pub photometric: &'static str,
    /// Bits allocated, bits stored, high bit.
    pub bits: [u16; 3],
    pub signed: bool,
    /// Slope and intercept.
    pub rescale: [&'static str; 2],
    pub frames: Option<&'static str>,
    pub orientation: &'static str,
    pub positions: Vec<[f64; 3]>,
}

impl Default for Series {
    /// Axial slices 2.5 mm apart, the topmost first.
    fn default() -> Self {
        Self {
            uid: "1.2.3.1",
            syntax: EXPLICIT,
            photometric: "MONOCHROME2",
            bits: [16, 12, 11],
            signed: false,
            rescale: ["1", "-1024"],
            frames: None,
            orientation: "1\\0\\0\\0\\1\\0",
            positions: (0..4).map(|k| [-10.0, 20.0, 7.5 - 2.5 * f64::from(k)]).collect(),
        }
    }
}

impl Series {
    pub fn write(&self, folder: &Path) {
        for (index, position) in self.positions.iter().enumerate() {
            let name = format!("{}_{index:02}.dcm", self.uid);
            self.write_slice(&folder.join(name), index as u16, position);
        }
    }

    fn write_slice(&self, path: &Path, index: u16, position: &[f64; 3]) {
        let mut object = InMemDicomObject::new_empty();
        let instance = format!("{}.{index}", self.uid);
        let [x, y, z] = position;
        let position = format!("{x}\\{y}\\{z}");
        for (group, element, vr, text) in [
            (0x0008, 0x0016, VR::UI, CT),
            (0x0008, 0x0018, VR::UI, instance.as_str()),
            (0x0008, 0x0060, VR::CS, "CT"),
            (0x0008, 0x103E, VR::LO, "thorax"),
            (0x0018, 0x0050, VR::DS, "5"),
            (0x0020, 0x000E, VR::UI, self.uid),
            (0x0020, 0x0032, VR::DS, position.as_str()),
            (0x0020, 0x0037, VR::DS, self.orientation),
            (0x0028, 0x0004, VR::CS, self.photometric),
            (0x0028, 0x0030, VR::DS, "0.75\\0.5"),
            (0x0028, 0x1052, VR::DS, self.rescale[1]),
            (0x0028, 0x1053, VR::DS, self.rescale[0]),
        ] {
            object.put(DataElement::new(Tag(group, element), vr, PrimitiveValue::from(text)));
        }
        if let Some(frames) = self.frames {
            object.put(DataElement::new(Tag(0x0028, 0x0008), VR::IS, PrimitiveValue::from(frames)));
        }
        let [allocated, stored, high] = self.bits;
        for (element, number) in [
            (0x0002, 1),
            (0x0010, 2),
            (0x0011, 3),
            (0x0100, allocated),
            (0x0101, stored),
            (0x0102, high),
            (0x0103, u16::from(self.signed)),
        ] {
            object.put(DataElement::new(Tag(0x0028, element), VR::US, PrimitiveValue::from(number)));
        }
        let values = (0..6u16).map(|pixel| 100 * index + pixel);
        let pixels = match allocated {
            8 => PrimitiveValue::U8(values.map(|value| (value % 256) as u8).collect()),
            // The bits above the stored ones are not zero.
            _ if stored < 16 => PrimitiveValue::U16(values.map(|value| value | 0xA000).collect()),
            _ => PrimitiveValue::U16(values.map(|value| value.wrapping_sub(300)).collect()),
        };
        let vr = if allocated == 8 { VR::OB } else { VR::OW };
        object.put(DataElement::new(Tag(0x7FE0, 0x0010), vr, pixels));
        let meta = FileMetaTableBuilder::new()
            .transfer_syntax(self.syntax)
            .media_storage_sop_class_uid(CT)
            .media_storage_sop_instance_uid(instance);
        object.with_meta(meta).unwrap().write_to_file(path).unwrap();
    }
}
