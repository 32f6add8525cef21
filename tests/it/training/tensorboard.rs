//! TensorBoard output of a training: valid event files with the numbers of the log.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nnunet_dist::work::RunDir;
use serde_json::{Map, Value};

use crate::disk::SmallDisk;
use crate::job;
use crate::work::{Workshop, wait_for_epochs};

/// `SessionLog.SessionStatus.START`.
const START: u64 = 1;

/// An event with at most one kind of content.
#[derive(Debug, Default)]
struct Event {
    wall_time: f64,
    step: u64,
    version: Option<String>,
    is_start: bool,
    scalars: Vec<(String, f32)>,
    images: Vec<(String, Image)>,
}

#[derive(Debug, Default)]
struct Image {
    height: u64,
    width: u64,
    colorspace: u64,
    file: Vec<u8>,
}

/// Steps and values of each tag, as read by a reader that discards the events that a restart repeats.
#[derive(Debug, Default)]
struct Read {
    scalars: BTreeMap<String, Vec<(u64, f32)>>,
    images: Vec<(u64, String, Image)>,
    starts: Vec<u64>,
}

#[test]
fn the_events_have_the_numbers_of_the_log_and_images() {
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    train(&shop, &run, &[]);
    assert_eq!(files(&run).len(), 1);
    let read = read(&run);
    assert_eq!(read.starts, Vec::<u64>::new());

    for tag in ["step/loss", "step/step_s"] {
        let steps: Vec<u64> = read.scalars[tag].iter().map(|(step, _)| *step).collect();
        assert_eq!(steps, (0..12).collect::<Vec<_>>(), "{tag}");
    }
    let losses: Vec<f32> = read.scalars["step/loss"].iter().map(|(_, loss)| *loss).collect();
    let mut expected: BTreeMap<String, Vec<(u64, f32)>> = BTreeMap::new();
    for (epoch, line) in log(&run).into_iter().enumerate() {
        let mean = losses[epoch * 4..][..4].iter().sum::<f32>() / 4.0;
        assert!((f64::from(mean) - line["train_loss"].as_f64().unwrap()).abs() < 1e-5);
        // An epoch is logged at its last step.
        let step = epoch as u64 * 4 + 3;
        let mut expect = |key: String, value: &Value| {
            if let Some(value) = value.as_f64() {
                expected.entry(format!("epoch/{key}")).or_default().push((step, value as f32));
            }
        };
        for (key, value) in &line {
            match value {
                Value::Array(dice) => {
                    let named = ["organ", "core"].into_iter().zip(dice);
                    named.for_each(|(class, dice)| expect(format!("{key}/{class}"), dice));
                }
                value => expect(key.clone(), value),
            }
        }
    }
    assert!(expected.contains_key("epoch/val_loss") && expected.contains_key("epoch/pseudo_dice/organ"));
    let of_epochs: BTreeMap<_, _> = read.scalars.iter().filter(|(tag, _)| tag.starts_with("epoch/")).collect();
    assert_eq!(of_epochs, expected.iter().collect());

    // The first epoch always has one.
    let (step, tag, image) = &read.images[0];
    assert_eq!((*step, tag.as_str(), image.colorspace), (3, "validation", 3));
    let mut decoder = png::Decoder::new(Cursor::new(&image.file));
    decoder.set_transformations(png::Transformations::EXPAND);
    let mut reader = decoder.read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!((u64::from(info.width), u64::from(info.height)), (image.width, image.height));
    // The first class's color, at the border of the truth.
    assert!(pixels.as_chunks::<3>().0.contains(&nnunet_dist::inspect::label_color(1)));
}

#[test]
fn a_run_that_was_killed_has_every_step_once() {
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    let mut command = command(&shop, &run, &["--epochs", "8"]);
    let mut killed = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // The last checkpoint is then that of epoch 2, so the events are ahead of it.
    wait_for_epochs(&run, 3);
    killed.kill().unwrap();
    killed.wait().unwrap();
    train(&shop, &run, &["--epochs", "8", "--resume"]);

    assert_eq!(files(&run).len(), 2);
    let found = read(&run);
    assert!(matches!(found.starts[..], [step] if step >= 8 && step % 4 == 0), "{:?}", found.starts);
    let steps = |tag: &str| found.scalars[tag].iter().map(|(step, _)| *step).collect::<Vec<_>>();
    assert_eq!(steps("step/loss"), (0..32).collect::<Vec<_>>());
    assert_eq!(steps("epoch/train_loss"), (0..8).map(|epoch| epoch * 4 + 3).collect::<Vec<_>>());
    let losses: Vec<f32> = log(&run).iter().map(|line| line["train_loss"].as_f64().unwrap() as f32).collect();
    assert_eq!(found.scalars["epoch/train_loss"].iter().map(|(_, loss)| *loss).collect::<Vec<_>>(), losses);

    // A new run does not keep them.
    train(&shop, &run, &["--epochs", "1", "--overwrite"]);
    assert_eq!((files(&run).len(), read(&run).scalars["step/loss"].len()), (1, 4));
}

#[test]
fn only_the_first_process_writes_under_mpirun() {
    let Some(launcher) = job::launcher() else { return };
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    let command = command(&shop, &run, &["--batch-size", "1"]);
    let job = job::observe(job::in_parallel(launcher, 2, &[], &command));
    assert!(job.status.success(), "{}", job.output);
    assert_eq!(files(&run).len(), 1);
    let read = read(&run);
    assert_eq!((read.scalars["step/loss"].len(), read.images[0].0), (12, 3));
}

#[test]
fn a_full_disk_is_reported_once_and_the_run_continues() {
    let shop = Workshop::new();
    let run = shop.run_dir("run");
    fs::create_dir_all(run.root()).unwrap();
    // Space for a few hundred bytes of events.
    let Some(disk) = SmallDisk::mount(run.root().join("tensorboard"), 1 << 16) else { return };
    let output = command(&shop, &run, &["--epochs", "60", "--val-iters", "1"]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    let warnings = errors.lines().filter(|line| line.contains("events are not written")).count();
    assert_eq!(warnings, 1, "{errors}");
    // The existing events are complete, and an event without space left no trace.
    let read = read(&run);
    assert!(!read.scalars["step/loss"].is_empty());
    assert_eq!(log(&run).len(), 60);
    drop(disk);

    // The same if nothing can be written at all.
    let run = shop.run_dir("in_the_way");
    fs::create_dir_all(run.root()).unwrap();
    fs::write(run.root().join("tensorboard"), "in the way").unwrap();
    let output = command(&shop, &run, &["--epochs", "1"]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && errors.contains("TensorBoard output disabled, training continues"), "{errors}");
}

fn command(shop: &Workshop, run: &RunDir, flags: &[&str]) -> Command {
    let mut command = shop.train(run);
    command.arg("--tensorboard").args(flags);
    command
}

#[track_caller]
fn train(shop: &Workshop, run: &RunDir, flags: &[&str]) {
    let output = command(shop, run, flags).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn log(run: &RunDir) -> Vec<Map<String, Value>> {
    fs::read_to_string(run.log()).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The event files of a run, in reading order.
fn files(run: &RunDir) -> Vec<PathBuf> {
    let folder = run.root().join("tensorboard");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let is_events = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("events.out.tfevents.");
    assert!(files.iter().all(is_events), "{files:?}");
    files
}

/// Reads all files of a run as TensorBoard does.
fn read(run: &RunDir) -> Read {
    let mut read = Read::default();
    for path in files(run) {
        let bytes = fs::read(&path).unwrap();
        let events: Vec<Event> = messages(&bytes).into_iter().map(event).collect();
        assert_eq!(events[0].version.as_deref(), Some("brain.Event:2"));
        for event in events {
            assert!(event.wall_time > 1e9, "{event:?}");
            if event.is_start {
                read.starts.push(event.step);
                read.scalars.values_mut().for_each(|values| values.retain(|(step, _)| *step < event.step));
                read.images.retain(|(step, ..)| *step < event.step);
            }
            for (tag, value) in event.scalars {
                read.scalars.entry(tag).or_default().push((event.step, value));
            }
            read.images.extend(event.images.into_iter().map(|(tag, image)| (event.step, tag, image)));
        }
    }
    read
}

/// The messages of a file; all frames must be complete and have valid checksums.
fn messages(mut bytes: &[u8]) -> Vec<&[u8]> {
    let masked = |bytes: &[u8]| {
        let sum = crc32c::crc32c(bytes);
        sum.rotate_right(15).wrapping_add(0xa282_ead8)
    };
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let sum = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(sum(8), masked(&bytes[..8]));
        let message = &bytes[12..12 + length];
        assert_eq!(sum(12 + length), masked(message));
        messages.push(message);
        bytes = &bytes[16 + length..];
    }
    messages
}

/// The content of a field of a message.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    fn number(self) -> u64 {
        let Self::Number(number) = self else { panic!("a number is needed") };
        number
    }

    fn bytes(self) -> &'a [u8] {
        let Self::Bytes(bytes) = self else { panic!("bytes are needed") };
        bytes
    }

    fn text(self) -> String {
        String::from_utf8(self.bytes().to_vec()).unwrap()
    }
}

/// The fields of a protocol buffer message, by their numbers.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let content = match key & 7 {
            0 => Field::Number(varint(&mut bytes)),
            1 => Field::Bytes(bytes.split_off(..8).unwrap()),
            2 => {
                let length = varint(&mut bytes) as usize;
                Field::Bytes(bytes.split_off(..length).unwrap())
            }
            5 => Field::Bytes(bytes.split_off(..4).unwrap()),
            kind => panic!("no such kind of field: {kind}"),
        };
        fields.push((key >> 3, content));
    }
    fields
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.split_off_first().unwrap();
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
    }
    panic!("a number without an end");
}

fn event(bytes: &[u8]) -> Event {
    let mut event = Event::default();
    for (number, field) in fields(bytes) {
        match number {
            1 => event.wall_time = f64::from_le_bytes(field.bytes().try_into().unwrap()),
            2 => event.step = field.number(),
            3 => event.version = Some(field.text()),
            5 => fields(field.bytes()).into_iter().for_each(|(_, value)| summary_value(value.bytes(), &mut event)),
            7 => event.is_start = fields(field.bytes()).into_iter().any(|(n, field)| n == 1 && field.number() == START),
            other => panic!("no field {other} is expected"),
        }
    }
    event
}

fn summary_value(bytes: &[u8], event: &mut Event) {
    let mut tag = String::new();
    for (number, field) in fields(bytes) {
        match number {
            1 => tag = field.text(),
            2 => event.scalars.push((tag.clone(), f32::from_le_bytes(field.bytes().try_into().unwrap()))),
            4 => event.images.push((tag.clone(), image(field.bytes()))),
            other => panic!("no field {other} is expected"),
        }
    }
}

fn image(bytes: &[u8]) -> Image {
    let mut image = Image::default();
    for (number, field) in fields(bytes) {
        match number {
            1 => image.height = field.number(),
            2 => image.width = field.number(),
            3 => image.colorspace = field.number(),
            4 => image.file = field.bytes().to_vec(),
            other => panic!("no field {other} is expected"),
        }
    }
    image
}
