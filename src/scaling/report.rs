//! Measurements and predictions as a table, as CSV and as a plot.

use super::{Link, Measurement, ScalingMode, StepCost, predict};
use nnunet_viz::chart::{Axis, AxisRange, Chart, Curve, PALETTE, column_svg};
use nnunet_viz::{Color, PictureError, raster};

/// Numbers of GPUs to predict.
const PREDICTED: [usize; 8] = [8, 16, 32, 64, 128, 256, 512, 1024];

const MEASURED: Color = PALETTE[0];
const COMPUTATION: Color = PALETTE[1];
const EFFICIENCY: Color = PALETTE[2];
const IDEAL: Color = [170, 176, 184];

/// Throughput per rank relative to that of the first measurement.
fn efficiency(measurements: &[Measurement], measurement: &Measurement) -> f64 {
    let per_rank = |measurement: &Measurement| measurement.samples_per_s() / measurement.ranks as f64;
    per_rank(measurement) / per_rank(&measurements[0])
}

/// Measurements, the fitted link, and the predicted efficiency of larger jobs, as text.
pub fn table(mode: ScalingMode, measurements: &[Measurement]) -> String {
    let Some(first) = measurements.first() else { return String::new() };
    let mut text = format!(
        "{} scaling, {} steps each; seconds are means per step and rank\n\
         ranks  batch  samples/s  efficiency   step s  compute s  data wait s  stragglers s  exposed comm s\n",
        if mode == ScalingMode::Weak { "weak" } else { "strong" },
        first.steps,
    );
    for measurement in measurements {
        let Measurement { ranks, global_batch_size, step_s, compute_s, data_wait_s, straggler_s, exposed_s, .. } =
            measurement;
        text += &format!(
            "{ranks:>5}  {global_batch_size:>5}  {:>9.3}  {:>9.1} %  {step_s:>7.4}  {compute_s:>9.4}  {data_wait_s:>11.4}  \
             {straggler_s:>12.4}  {exposed_s:>14.4}\n",
            measurement.samples_per_s(),
            100.0 * efficiency(measurements, measurement),
        );
    }
    let times: Vec<_> = measurements.iter().flat_map(|measurement| measurement.all_reduces.clone()).collect();
    let fitted = Link::fit(&times);
    match &fitted {
        Some(link) => {
            text += &format!(
                "\nmeasured all-reduce: latency {:.1} us, {:.3} GB/s\n",
                1e6 * link.latency_s,
                link.bytes_per_s / 1e9
            );
        }
        None => text += "\nno all-reduce was measured; that requires at least two ranks\n",
    }
    text + &predictions(first, fitted)
}

/// Predictions of the alpha-beta model for larger jobs with the step of the first measurement.
fn predictions(first: &Measurement, fitted: Option<Link>) -> String {
    let step = StepCost {
        busy_s: first.compute_s + first.data_wait_s,
        gradient_bytes: first.gradient_bytes,
        last_bucket_bytes: first.last_bucket_bytes,
    };
    let [nvlink, fast, slow] = Link::presets();
    let mut text = format!(
        "\nPREDICTED efficiency, not measured: a step of {:.4} s, {:.1} MB of gradients, alpha-beta model of the \
         all-reduce,\noverlapped with the backward pass except for the last bucket; NVLink between 8 ranks per node\n",
        step.busy_s,
        step.gradient_bytes as f64 / 1e6,
    );
    text += "GPUs";
    for ranks in PREDICTED {
        text += &format!("  {ranks:>7}");
    }
    text.push('\n');
    let links = [(&fast, Some(&nvlink)), (&slow, Some(&nvlink))];
    for (link, within_node) in links.into_iter().chain(fitted.as_ref().map(|link| (link, None))) {
        text += &format!("{}\n    ", if within_node.is_some() { &link.name } else { "measured link for all ranks" });
        for ranks in PREDICTED {
            text += &format!("  {:>5.1} %", 100.0 * predict(step, ranks, link, within_node).efficiency);
        }
        text.push('\n');
    }
    text
}

/// One line per measurement, with a header.
pub fn csv(measurements: &[Measurement]) -> String {
    let mut text = String::from(
        "ranks,global_batch_size,steps,samples_per_s,efficiency,step_s,compute_s,data_wait_s,straggler_s,exposed_comm_s\n",
    );
    for measurement in measurements {
        let Measurement {
            ranks, global_batch_size, steps, step_s, compute_s, data_wait_s, straggler_s, exposed_s, ..
        } = measurement;
        text += &format!(
            "{ranks},{global_batch_size},{steps},{},{},{step_s},{compute_s},{data_wait_s},{straggler_s},{exposed_s}\n",
            measurement.samples_per_s(),
            efficiency(measurements, measurement),
        );
    }
    text
}

/// Plots measured and ideal throughput with the efficiency, and the step time with its computation, over the number of
/// ranks, as a PNG file.
///
/// # Errors
/// Returns an error if the picture cannot be drawn.
pub fn plot(measurements: &[Measurement]) -> Result<Vec<u8>, PictureError> {
    let curve = |name, color, value: &dyn Fn(&Measurement) -> f64| {
        let point = |measurement: &Measurement| (measurement.ranks as f64, value(measurement));
        Curve::new(name, color, measurements.iter().map(point).collect())
    };
    let chart = |label, curves| Chart {
        x_axis: Axis::new("ranks", AxisRange::Integers),
        y_axis: Axis::new(label, AxisRange::FromZero),
        curves,
        ..Chart::default()
    };
    let ideal = |measurement: &Measurement| {
        measurements[0].samples_per_s() * measurement.ranks as f64 / measurements[0].ranks as f64
    };
    let efficiency = curve("efficiency", EFFICIENCY, &|measurement| efficiency(measurements, measurement));
    let throughput = vec![
        Curve { is_main: true, ..curve("measured throughput", MEASURED, &Measurement::samples_per_s) },
        curve("ideal throughput", IDEAL, &ideal),
        Curve { on_right_axis: true, ..efficiency },
    ];
    let times = vec![
        Curve { is_main: true, ..curve("step", MEASURED, &|measurement| measurement.step_s) },
        curve("computation", COMPUTATION, &|measurement| measurement.compute_s),
    ];
    let throughput = Chart {
        right_axis: Some(Axis::new("efficiency", AxisRange::FromZero)),
        size: [900, 400],
        ..chart("samples/s", throughput)
    };
    raster::to_png(&column_svg(&[throughput, chart("time per step, s", times)])?, 1.25)
}

#[cfg(test)]
mod tests {
    use super::super::AllReduceTime;
    use super::*;

    fn measurements() -> Vec<Measurement> {
        let measurement = |ranks: usize, step_s: f64| Measurement {
            ranks,
            global_batch_size: 2 * ranks,
            steps: 10,
            step_s,
            compute_s: 1.0,
            data_wait_s: 0.0,
            straggler_s: 0.0,
            exposed_s: step_s - 1.0,
            gradient_bytes: 22_000_000,
            last_bucket_bytes: 1_000_000,
            all_reduces: [1 << 10, 1 << 20]
                .map(|bytes| AllReduceTime { ranks, bytes, seconds: 1e-4 + bytes as f64 / 1e9 })
                .to_vec(),
        };
        vec![measurement(1, 1.0), measurement(2, 1.25)]
    }

    #[test]
    fn the_table_has_efficiency_link_and_predictions() {
        let text = table(ScalingMode::Weak, &measurements());
        for words in ["weak scaling", "80.0 %", "measured all-reduce: latency", "PREDICTED", "1024", "100 Gb/s"] {
            assert!(text.contains(words), "no `{words}` in\n{text}");
        }
    }

    #[test]
    fn the_csv_has_a_line_per_measurement() {
        let text = csv(&measurements());
        assert_eq!(text.lines().nth(2), Some("2,4,10,3.2,0.8,1.25,1,0,0,0.25"));
    }

    #[test]
    fn the_plot_has_all_curves() {
        let mut decoder = png::Decoder::new(std::io::Cursor::new(plot(&measurements()).unwrap()));
        decoder.set_transformations(png::Transformations::EXPAND);
        let mut reader = decoder.read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        for color in [MEASURED, IDEAL, EFFICIENCY, COMPUTATION] {
            let count = pixels.as_chunks::<3>().0.iter().filter(|pixel| **pixel == color).count();
            assert!(count > 300, "{color:?}: {count}");
        }
    }
}
