use nnunet_viz::chart::*;
use nnunet_viz::inspect::*;
use nnunet_viz::raster;
fn main() {
    for f in std::env::args().skip(2) {
        println!("{f}");
        filters(&f);
    }
    let out = std::env::args().nth(1).unwrap();
    let n = 60;
    let f = |a: f64, b: f64| {
        (0..n)
            .map(|e| (e as f64, a * (-(e as f64) / 15.0).exp() + b + 0.03 * ((e * 7919 % 13) as f64 / 13.0)))
            .collect::<Vec<_>>()
    };
    let g = |a: f64| {
        (0..n)
            .map(|e| (e as f64, a * (1.0 - (-(e as f64) / 15.0).exp()) + 0.05 * ((e * 7919 % 17) as f64 / 17.0)))
            .collect::<Vec<_>>()
    };
    let c = [
        Chart {
            x_axis: Axis::new("epoch", AxisRange::Integers),
            y_axis: Axis::new("loss", AxisRange::Values),
            right_axis: Some(Axis::new("pseudo Dice", AxisRange::Unit)),
            size: [900, 400],
            curves: vec![
                Curve {
                    on_right_axis: true,
                    is_main: true,
                    ..Curve::new("pseudo Dice, moving average", PALETTE[2], g(0.8))
                },
                Curve::new("training loss", PALETTE[0], f(1.5, -0.5)),
                Curve::new("validation loss", PALETTE[1], f(1.4, -0.4)),
            ],
            ..Chart::default()
        },
        Chart {
            x_axis: Axis::new("epoch", AxisRange::Integers),
            y_axis: Axis::new("epoch duration, s", AxisRange::FromZero),
            size: [900, 290],
            has_legend: false,
            curves: vec![Curve::new("x", PALETTE[0], f(0.1, 0.1))],
            ..Chart::default()
        },
    ];
    let svg = column_svg(&c).unwrap();
    std::fs::write(format!("{out}/c.svg"), &svg).unwrap();
    let t = std::time::Instant::now();
    for s in [1.0, 1.25, 1.5, 2.0] {
        let png = raster::to_png(&svg, s).unwrap();
        println!("{s}: {} bytes {:?}", png.len(), t.elapsed());
        std::fs::write(format!("{out}/c{s}.png"), png).unwrap();
    }
    let names = [
        "spleen",
        "right kidney",
        "left kidney",
        "gallbladder",
        "esophagus",
        "liver",
        "stomach",
        "aorta",
        "inferior vena cava",
        "portal and splenic vein",
        "pancreas",
        "right adrenal gland",
        "left adrenal gland",
        "duodenum",
        "bladder",
        "prostate/uterus",
        "left lung",
        "right lung",
        "heart",
        "trachea",
    ];
    let shape = (40, 60, 60);
    let mut labels = ndarray::Array3::<i16>::zeros(shape);
    let image = ndarray::Array3::from_shape_fn(shape, |(z, y, x)| {
        let d = ((z as f32 - 20.0) / 18.0).powi(2)
            + ((y as f32 - 30.0) / 28.0).powi(2)
            + ((x as f32 - 30.0) / 28.0).powi(2);
        if d < 1.0 { 120.0 + 40.0 * ((x * 31 + y * 17 + z * 7) % 11) as f32 / 11.0 } else { 5.0 }
    });
    for ((z, y, x), l) in labels.indexed_iter_mut() {
        if image[[z, y, x]] > 50.0 {
            let (cy, cx) = (y / 12, x / 12);
            let k = (cy * 5 + cx) as i16 + 1;
            let d = ((y % 12) as f32 - 6.0).powi(2) + ((x % 12) as f32 - 6.0).powi(2) + ((z % 14) as f32 - 7.0).powi(2);
            if d < 25.0 && k <= 20 {
                *l = k
            }
        }
    }
    let legend = names
        .iter()
        .zip(1..)
        .map(|(n, l)| {
            let v = labels.iter().filter(|x| **x == l).count();
            LabelVolume { label: l, name: n.to_string(), voxels: v, mm3: v as f64 * 3.0, ml: v as f64 * 0.3 }
        })
        .collect();
    let view = CaseView {
        name: "abdomen_0042 (synthetic, 20 classes)".into(),
        image,
        window: [-160.0, 240.0],
        labels: Some(labels),
        geometry: nnunet_image::Geometry { spacing: [1.5, 1.0, 1.0], ..Default::default() },
        legend,
    };
    let png = montage(&[view]).unwrap();
    println!("montage {}", png.len());
    std::fs::write(format!("{out}/m20.png"), png).unwrap();
}
#[allow(dead_code)]
fn filters(file: &str) {
    let mut d = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(file).unwrap()));
    d.set_transformations(png::Transformations::EXPAND);
    let mut r = d.read_info().unwrap();
    let mut p = vec![0; r.output_buffer_size().unwrap()];
    let i = r.next_frame(&mut p).unwrap();
    for f in [
        png::Filter::NoFilter,
        png::Filter::Sub,
        png::Filter::Up,
        png::Filter::Avg,
        png::Filter::Paeth,
        png::Filter::Adaptive,
        png::Filter::MinEntropy,
    ] {
        let mut o = Vec::new();
        let t = std::time::Instant::now();
        let mut e = png::Encoder::new(&mut o, i.width, i.height);
        e.set_color(png::ColorType::Rgb);
        e.set_compression(png::Compression::High);
        e.set_filter(f);
        let mut w = e.write_header().unwrap();
        w.write_image_data(&p).unwrap();
        w.finish().unwrap();
        println!("{f:?} {} {:?}", o.len(), t.elapsed());
    }
}
