//! The server: the same label maps as `predict` writes, for many clients at once, also if some of them send invalid
//! data.

use std::fs;
use std::io::{Cursor, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use flate2::{Compression, write::GzEncoder};
use ndarray::{Array3, Array4, Axis, concatenate, s};
use ndarray_npy::NpzReader;
use nnunet_dist::dataset::DatasetJson;
use nnunet_dist::image::{Geometry, Volume, read_labels, write_volume};
use nnunet_dist::model::ModelDescription;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client;
use crate::http::{Response, Server, head, multipart, wait_until};
use crate::tiny_model::{image, model, oblique, write_checkpoint};

/// A model and images, with `predict`'s results for them.
struct Desk(TempDir);

impl Desk {
    fn new(edit: impl FnOnce(&mut Value, &mut DatasetJson)) -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        write_checkpoint(&desk.checkpoint(), &model("3d_fullres", edit), 5);
        desk
    }

    fn checkpoint(&self) -> PathBuf {
        self.0.path().join("checkpoint")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes an image for `predict`, and returns it uncompressed.
    fn file(&self, name: &str, volume: &Volume) -> Vec<u8> {
        let [path, compressed] = ["nii", "nii.gz"].map(|ending| self.path(&format!("{name}.{ending}")));
        write_volume(&compressed, volume).unwrap();
        write_volume(&path, volume).unwrap();
        fs::read(path).unwrap()
    }

    /// The label map that `predict` writes for the files of a case.
    fn predicted(&self, names: &[&str]) -> Vec<u8> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nnunet-dist"));
        command.args(["predict", "--no-tta", "-r"]).arg(self.checkpoint()).arg("-o").arg(self.path("out"));
        command.arg("-i").args(names.iter().map(|name| self.path(&format!("{name}.nii.gz"))));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let case = names[0].split('_').next().unwrap();
        fs::read(self.path(&format!("out/{case}.nii.gz"))).unwrap()
    }
}

/// A large image with few nonzero voxels, which the network processes quickly.
fn mostly_empty(number: usize) -> Volume {
    let mut data = Array4::zeros((1, 60, 128, 128));
    let [z, y, x] = [18 + number, 20, 17];
    let content = image([z, y, x], 0, oblique());
    data.slice_mut(s![.., 5..5 + z, 40..40 + y, 70..70 + x]).assign(&content.data);
    Volume { data, geometry: content.geometry }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn fifty_clients_get_what_predict_writes() {
    let desk = Desk::new(|_, _| {});
    let images: Vec<_> = (0..5).map(|number| desk.file(&format!("c{number}_0000"), &mostly_empty(number))).collect();
    let expected: Vec<_> = (0..5).map(|number| desk.predicted(&[&format!("c{number}_0000")])).collect();
    let server = Server::start(&desk.checkpoint(), &["--queue", "64"]);
    // Warm-up: buffers are allocated, and both threads have processed an image.
    images.iter().take(3).for_each(|image| assert_eq!(server.predict(image).status, 200));
    let warm = server.memory();

    let mut most = 0;
    thread::scope(|scope| {
        let clients: Vec<_> = (0..50)
            .map(|client| {
                let (server, images, expected) = (&server, &images, &expected);
                scope.spawn(move || {
                    // Compressed and uncompressed uploads give the same result.
                    let image = &images[client % 5];
                    let sent = if client % 2 == 0 { image.clone() } else { gzip(image) };
                    let response = server.predict(&sent);
                    assert_eq!(response.status, 200, "{}", response.text());
                    assert!(response.body == expected[client % 5], "client {client} got a different label map");
                })
            })
            .collect();
        while clients.iter().any(|client| !client.is_finished()) {
            most = most.max(server.memory());
            thread::sleep(std::time::Duration::from_millis(5));
        }
    });
    // The files of all 50 images take 200 MB; two are in memory at a time.
    let grown = most.saturating_sub(warm) >> 20;
    assert!(grown < 100, "{grown} MiB more than the {} of a warm server", warm >> 20);
    assert_eq!(server.metric("nnunet_cases_predicted_total"), 53.0);
    assert_eq!(server.metric("nnunet_request_seconds_count"), 53.0);
    assert_eq!(server.metric("nnunet_queue_depth"), 0.0);
    server.wait_for_empty_spool();
}

#[test]
fn channels_are_multipart_parts_or_an_axis() {
    let desk = Desk::new(|plans, dataset| {
        dataset.channel_names = [("0", "T1"), ("1", "FLAIR")].map(|(key, name)| (key.into(), name.into())).into();
        let configuration = &mut plans["configurations"]["3d_fullres"];
        configuration["normalization_schemes"] = json!(["ZScoreNormalization", "ZScoreNormalization"]);
        configuration["use_mask_for_norm"] = json!([false, false]);
    });
    let t1 = image([18, 20, 19], 1, oblique());
    let flair = Volume { data: t1.data.mapv(|intensity| (intensity * 0.3).cos() * intensity), ..t1.clone() };
    let both = Volume { data: concatenate![Axis(0), t1.data, flair.data], ..t1.clone() };
    let files = [desk.file("a_0000", &t1), desk.file("a_0001", &flair)];
    let [t1, flair] = files.each_ref().map(Vec::as_slice);
    let both = desk.file("b", &both);
    let expected = desk.predicted(&["a_0000", "a_0001"]);
    let server = Server::start(&desk.checkpoint(), &[]);
    let form = "multipart/form-data; boundary=b";
    for body in [
        multipart(&[("0", t1), ("1", flair)]),
        multipart(&[("FLAIR", flair), ("T1", t1)]),
        multipart(&[("0", &both[..])]),
    ] {
        let response = server.post("/predict", form, &body);
        assert_eq!(response.status, 200, "{}", response.text());
        assert!(response.body == expected);
        assert_eq!(response.header("content-disposition"), Some("attachment; filename=\"labels.nii.gz\""));
    }
    assert!(server.predict(&both).body == expected);
    assert!(server.post("/predict", form, &multipart(&[("1", t1), ("0", flair)])).body != expected);

    let refuse = |body: &[u8], status, part| server.post("/predict", form, body).refuses(status, part);
    refuse(&multipart(&[("0", t1), ("2", flair)]), 400, "a part is named \"2\"; the channels are 0 (T1), 1 (FLAIR)");
    refuse(&multipart(&[("0", t1), ("T1", t1)]), 400, "two parts for channel 0");
    refuse(&multipart(&[("1", t1)]), 400, "no part for channel 0");
    refuse(&multipart(&[("0", t1)]), 422, "the image has 1 channels, the networks take 2");
    refuse(&multipart(&[]), 400, "no part for channel 0");
    refuse(&multipart(&[("0", t1), ("1", flair)])[..900], 400, "multipart");
    refuse(&[b"--b\r\nX: ".as_slice(), vec![b'x'; 1 << 20].as_slice()].concat(), 400, "multipart");
    let smaller = desk.file("c", &image([18, 20, 18], 1, oblique()));
    refuse(&multipart(&[("0", t1), ("1", &smaller[..])]), 422, "channel 1.nii: shape [18, 20, 18] differs");
    server.post("/predict", "multipart/form-data", t1).refuses(400, "boundary");
}

#[test]
fn probabilities_come_with_their_labels() {
    let desk = Desk::new(|_, _| {});
    let image = desk.file("a_0000", &image([18, 20, 19], 1, oblique()));
    desk.predicted(&["a_0000"]);
    let expected = read_labels(&desk.path("out/a.nii.gz")).unwrap().data;
    let server = Server::start(&desk.checkpoint(), &[]);
    let response = server.post("/predict?probabilities=1", "application/octet-stream", &image);
    assert_eq!(response.status, 200, "{}", response.text());
    let mut npz = NpzReader::new(Cursor::new(response.body)).unwrap();
    let labels: Array3<i16> = npz.by_name("labels").unwrap();
    let probabilities: Array4<f32> = npz.by_name("probabilities").unwrap();
    assert_eq!(labels, expected);
    assert_eq!(probabilities.dim(), (3, 18, 20, 19));
    for (label, classes) in labels.iter().zip(probabilities.lanes(Axis(0))) {
        assert!(classes.iter().all(|p| *p <= classes[*label as usize]));
    }
}

/// Adds a coarse stage, and a second stage with its segmentation as input.
fn add_cascade(plans: &mut Value) {
    let configurations = &mut plans["configurations"];
    configurations["3d_lowres"] = json!({"inherits_from": "3d_fullres", "data_identifier": "nnUNetPlans_3d_lowres",
                                         "spacing": [2.5, 1.9, 2.1], "next_stage": "3d_cascade_fullres"});
    configurations["3d_cascade_fullres"] = json!({"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"});
}

#[test]
fn a_cascade_answers_with_both_stages() {
    let desk = Desk::new(|plans, _| add_cascade(plans));
    let fullres = model("3d_fullres", |plans, _| add_cascade(plans));
    let [first, second] = [("3d_lowres", 5), ("3d_cascade_fullres", 6)].map(|(configuration, seed)| {
        let path = desk.path(configuration);
        write_checkpoint(&path, &ModelDescription { configuration: configuration.into(), ..fullres.clone() }, seed);
        path
    });
    let image = desk.file("a_0000", &image([18, 20, 19], 1, oblique()));
    let mut predict = Command::new(env!("CARGO_BIN_EXE_nnunet-dist"));
    predict.args(["predict", "--no-tta", "-r"]).arg(&second).arg("--prev-stage").arg(&first);
    predict.arg("-i").arg(desk.path("a_0000.nii.gz")).arg("-o").arg(desk.path("out"));
    let output = predict.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let expected = fs::read(desk.path("out/a.nii.gz")).unwrap();
    assert!(read_labels(&desk.path("out/previous_stage/a.nii.gz")).unwrap().data.iter().any(|label| *label > 0));

    let server = Server::start(&second, &["--prev-stage", first.to_str().unwrap()]);
    let help: Value = serde_json::from_slice(&server.get("/").body).unwrap();
    assert_eq!(help["model"]["previous_stage"], "3d_lowres");
    for _ in 0..2 {
        let response = server.predict(&image);
        assert_eq!(response.status, 200, "{}", response.text());
        assert!(response.body == expected, "a different label map from that of predict");
    }
    // Each network by itself is refused, and so is a wrong one in its place.
    let refused = |model: &Path, flags: &[&Path], part: &str| {
        let mut serve = Command::new(env!("CARGO_BIN_EXE_nnunet-dist"));
        let output = serve.args(["serve", "-r"]).arg(model).args(flags).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(3) && error.contains(part), "{error}");
    };
    let flag = Path::new("--prev-stage");
    refused(&second, &[], "needs the segmentations of 3d_lowres");
    refused(&first, &[flag, &second], "is not the second stage of a cascade");
    refused(&second, &[flag, &desk.checkpoint()], "trained as 3d_fullres");
}

#[test]
fn it_reports_its_model_and_its_health() {
    let desk = Desk::new(|_, _| {});
    let server = Server::start(&desk.checkpoint(), &["--queue", "3"]);
    let help: Value = serde_json::from_slice(&server.get("/").body).unwrap();
    assert_eq!(help["model"]["configuration"], "3d_fullres");
    assert_eq!(help["model"]["networks"], 1);
    assert_eq!(help["labels"]["background"], 0);
    assert_eq!(help["channels"].as_object().unwrap().len(), 1);
    assert_eq!(help["limits"]["queue"], 3);
    assert_eq!(server.get("/healthz").text(), "ok\n");
    assert_eq!(server.get("/readyz").text(), "ready\n");
    server.get("/nowhere").refuses(404, "GET /");
    server.get("/predict").refuses(405, "POST /predict");
    let metrics = server.get("/metrics");
    assert!(metrics.header("content-type").unwrap().starts_with("text/plain"));
    for line in
        ["nnunet_requests_total{code=\"404\"} 1", "# TYPE nnunet_queue_depth gauge", "# HELP nnunet_queue_depth Images"]
    {
        assert!(metrics.text().lines().any(|found| found.starts_with(line)), "no {line} in {}", metrics.text());
    }
}

/// A header that claims more data than the body holds.
fn claiming(file: &[u8], dim: [i16; 3]) -> Vec<u8> {
    let mut file = file.to_vec();
    dim.iter().enumerate().for_each(|(axis, extent)| file[42 + 2 * axis..][..2].copy_from_slice(&extent.to_le_bytes()));
    file
}

#[test]
fn invalid_uploads_are_refused_with_one_line() {
    let desk = Desk::new(|_, _| {});
    let volume = image([18, 20, 19], 1, Geometry::default());
    let good = desk.file("a_0000", &volume);
    let expected = desk.predicted(&["a_0000"]);
    // 16 MiB of body, 64 MiB of image.
    let server = Server::start(&desk.checkpoint(), &["--max-upload", "0.015625", "--max-image", "0.0625"]);
    assert!(server.predict(&good).body == expected);
    let before = server.memory();

    let any = "application/octet-stream";
    server.post("/predict", "text/html", &good).refuses(415, "text/html is not supported");
    server.post("/predict?probabilities=yes", any, &good).refuses(400, "0 or 1");
    server.post("/predict?probability=1", any, &good).refuses(400, "probability");
    server.predict(b"").refuses(422, "is empty");
    server.predict(&[7; 4000]).refuses(422, "image.nii: is not a NIfTI file");
    server.predict(&good[..100]).refuses(422, "image.nii: ends within the NIfTI header");
    server.predict(&good[..good.len() / 2]).refuses(422, "image.nii: is truncated");
    server.predict(&claiming(&good, [i16::MAX; 3])).refuses(422, "is truncated: its header declares");
    let mut damaged = gzip(&good);
    let end = damaged.len() - 6;
    damaged[end] ^= 1;
    server.predict(&damaged).refuses(422, "image.nii is damaged");
    server.predict(&gzip(&good)[..500]).refuses(422, "image.nii is damaged");
    server.predict(&[0x1f, 0x8b, 9, 9]).refuses(422, "image.nii is damaged");
    let mut nan = volume.clone();
    nan.data[[0, 1, 2, 3]] = f32::NAN;
    server.predict(&desk.file("nan", &nan)).refuses(422, "image.nii: NaN or infinite in 1 voxels");
    let two = Volume { data: Array4::zeros((2, 18, 18, 18)), geometry: Geometry::default() };
    server.predict(&desk.file("two", &two)).refuses(422, "has 2 channels, the networks take 1");

    // A few voxels of 20 cm become billions at the network's spacing.
    let coarse = Volume { geometry: Geometry { spacing: [200.0; 3], ..Geometry::default() }, ..volume.clone() };
    server.predict(&desk.file("coarse", &coarse)).refuses(413, "at the networks' spacing takes");
    // Eight bits per voxel in the file, 32 in memory.
    let mut bytes = claiming(&good[..352], [400, 300, 200]);
    bytes[70..74].copy_from_slice(&[2, 0, 8, 0]);
    bytes.resize(352 + 400 * 300 * 200, 0);
    server.predict(&gzip(&bytes)).refuses(413, "takes 91 MiB, over the limit of 64 MiB");
    let bomb = gzip(&vec![0; 1 << 28]);
    assert!(bomb.len() < 16 << 20);
    server.predict(&bomb).refuses(413, "decompressed image files are larger than 64 MiB");
    server.predict(&[good.as_slice(), &vec![0; 17 << 20]].concat()).refuses(413, "larger than 16 MiB");
    // The same amount of data, without a declared length.
    let chunk = [b"100000\r\n".as_slice(), &[0; 1 << 20], b"\r\n"].concat();
    let chunked = format!("POST /predict HTTP/1.1\r\nContent-Type: {any}\r\nTransfer-Encoding: chunked\r\n");
    server.send(&chunked, &chunk.repeat(17)).refuses(413, "larger than 16 MiB");

    assert!(server.predict(&good).body == expected, "still serves as before");
    let grown = server.memory().saturating_sub(before) >> 20;
    assert!(grown < 150, "{grown} MiB more than before");
    server.wait_for_empty_spool();
}

/// Sends a request's head and a part of its body.
fn begin(server: &Server, image: &[u8], bytes: usize) -> TcpStream {
    let mut stream = server.connect();
    let head = head("/predict", "application/octet-stream", image.len());
    write!(stream, "{head}Host: test\r\nConnection: close\r\n\r\n").unwrap();
    stream.write_all(&image[..bytes]).unwrap();
    stream
}

#[test]
fn a_full_queue_refuses_and_empties_again() {
    let desk = Desk::new(|_, _| {});
    let image = desk.file("a_0000", &image([18, 20, 19], 1, Geometry::default()));
    let server = Server::start(&desk.checkpoint(), &["--queue", "2"]);
    let mut waiting = [begin(&server, &image, 1000), begin(&server, &image, 2000)];
    server.wait_for("nnunet_queue_depth", 2.0);
    let refused = server.predict(&image);
    refused.refuses(503, "the queue of the server is full");
    assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    server.get("/readyz").refuses(503, "the queue of the server is full");
    assert_eq!(server.get("/healthz").status, 200);

    waiting[0].write_all(&image[1000..]).unwrap();
    let [first, second] = waiting;
    assert_eq!(Response::read(first).status, 200);
    // One client closes its connection early.
    second.shutdown(Shutdown::Both).unwrap();
    server.wait_for("nnunet_queue_depth", 0.0);
    assert_eq!(server.get("/readyz").status, 200);
    assert_eq!(server.predict(&image).status, 200);
}

#[test]
fn clients_that_stall_or_disconnect_block_nothing() {
    let desk = Desk::new(|_, _| {});
    let image = desk.file("a_0000", &image([18, 20, 19], 1, Geometry::default()));
    let server = Server::start(&desk.checkpoint(), &["--queue", "4", "--upload-timeout", "2"]);
    // None of these sends its last byte.
    for round in 0..5 {
        let left: Vec<_> = (0..4).map(|client| begin(&server, &image, 1000 * (round + client))).collect();
        server.wait_for("nnunet_queue_depth", 4.0);
        drop(left);
        server.wait_for("nnunet_queue_depth", 0.0);
    }
    let slow = begin(&server, &image, image.len() - 1);
    Response::read(slow).refuses(408, "within 2 s");
    // This one has sent everything, but does not read the response.
    drop(begin(&server, &image, image.len()));
    server.wait_for("nnunet_queue_depth", 0.0);
    assert_eq!(server.predict(&image).status, 200);
    // Some close before they get the response that their image is incomplete.
    let left = ["aborted", "400"].map(|code| server.metric(&format!("nnunet_requests_total{{code=\"{code}\"}}")));
    assert!(left.iter().sum::<f64>() >= 20.0, "{left:?}");
    server.wait_for_empty_spool();
}

#[test]
fn sigterm_lets_what_runs_finish() {
    let desk = Desk::new(|_, _| {});
    // Some seconds of work.
    let large = desk.file("a_0000", &image([110, 100, 100], 0, Geometry::default()));
    let expected = desk.predicted(&["a_0000"]);
    let mut server = Server::start(&desk.checkpoint(), &["--queue", "8"]);
    // Meanwhile the first is predicted, the second preprocessed, and the third waits.
    let mut clients = Vec::new();
    for number in 1..3 {
        clients.push(begin(&server, &large, large.len()));
        server.wait_for("nnunet_images_in_progress", f64::from(number));
    }
    clients.push(begin(&server, &large, large.len()));
    server.wait_for("nnunet_queue_depth", 3.0);
    let half = begin(&server, &large, large.len() / 2);
    server.wait_for("nnunet_queue_depth", 4.0);
    let idle = server.connect();
    server.terminate();
    Response::read(half).refuses(503, "shutting down");
    let mut responses: Vec<_> = clients.into_iter().map(Response::read).collect();
    responses.pop().unwrap().refuses(503, "shutting down");
    for response in responses {
        assert_eq!(response.status, 200, "{}", response.text());
        assert!(response.body == expected);
    }
    let mut status = None;
    wait_until("the end", || {
        status = server.is_over();
        status.is_some()
    });
    drop(idle);
    assert_eq!(status.unwrap().code(), Some(0));
    assert!(TcpStream::connect(server.address).is_err());
    server.wait_for_empty_spool();
}

#[test]
fn an_address_that_is_taken_is_named() {
    let desk = Desk::new(|_, _| {});
    let server = Server::start(&desk.checkpoint(), &[]);
    let listen = server.address.to_string();
    let run = |checkpoint: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nnunet-dist"));
        command.args(["serve", "--listen", &listen, "-r"]).arg(checkpoint).output().unwrap()
    };
    for (output, part) in [(run(&desk.checkpoint()), listen.as_str()), (run(Path::new("/nowhere")), "/nowhere")] {
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(3) && error.contains(part), "{error}");
    }
}

#[test]
fn the_example_gets_the_same_answer() {
    let desk = Desk::new(|_, _| {});
    let server = Server::start(&desk.checkpoint(), &[]);
    let file = desk.file("case_0000", &image([20, 24, 20], 2, oblique()));
    let labels = client::predict(&server.address.to_string(), &file).unwrap();
    assert_eq!(labels, server.predict(&file).body);
    let error = client::predict(&server.address.to_string(), b"not an image").unwrap_err().to_string();
    assert!(error.starts_with("422: "), "{error}");
}
