//! `report` makes an HTML page of a run: one file with its numbers and images, without external resources.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nnunet_dist::eval::Summary;
use nnunet_dist::telemetry::read_log;

use crate::skip::skip;
use crate::work::{Workshop, program};
use crate::written_run::{EPOCHS, write_run};

/// A name that would be markup if it were not escaped.
const CASE: &str = "<img src=x onerror='x()'>&\"";
const LABEL: &str = "<script>organ";

#[test]
fn the_page_has_the_numbers_and_images_of_a_run_and_no_external_resources() {
    let shop = Workshop::with(hostile);
    let run = shop.run_dir("run");
    assert!(shop.train(&run).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());

    let page = report(run.root(), &["-w", shop.work.root().to_str().unwrap()]);
    check_form(&page);
    let record = read_log(&run.log()).unwrap().pop().unwrap();
    let summary = Summary::load(&run.validation().join("summary.json")).unwrap();
    let scores = [record.train_loss, record.val_loss.unwrap(), record.ema_pseudo_dice.unwrap(), summary.mean_dice()];
    let cases = summary.metric_per_case.iter().flat_map(|case| case.metrics.values().map(|metrics| metrics.dice));
    for score in scores
        .into_iter()
        .chain(record.pseudo_dice.iter().copied().flatten())
        .chain(cases.filter(|dice| !dice.is_nan()))
    {
        assert!(page.contains(&format!(">{score:.4}<")), "no {score:.4}");
    }
    for words in [
        "3d_fullres, fold 0",
        ">finished<",
        "<b>3 of 3</b>",
        "computing",
        "checkpoint_every = 2",
        "latest",
        "<svg",
        "<polyline",
        "organ, epoch 3: ",
        "core",
    ] {
        assert!(page.contains(words), "no `{words}`");
    }
    assert!(page.contains("&lt;img src=x onerror='x()'&gt;&amp;&quot;") && page.contains("&lt;script&gt;organ"));
    assert!(!page.contains("<img src=x") && !page.contains("<script"));
    assert_eq!(page.matches("<img src=\"data:image/png;base64,").count(), 1, "the one held-out case");

    // Without the raw images the page states why there are none.
    fs::rename(shop.dataset(), shop.path("moved")).unwrap();
    let page = report(run.root(), &["-w", shop.work.root().to_str().unwrap()]);
    check_form(&page);
    assert!(page.contains("No pictures: ") && page.contains("the raw dataset") && !page.contains("<img"));
    assert!(report(run.root(), &["--worst", "0"]).contains("Cases, worst first"));
}

#[test]
fn an_unfinished_run_has_a_page_of_its_partial_results() {
    let folder = tempfile::tempdir().unwrap();
    write_run(folder.path(), 7, "training", 1000);
    let page = report(folder.path(), &[]);
    check_form(&page);
    for words in [
        "no update for 16 min",
        "held-out cases not predicted yet",
        "<b>7 of 40</b>",
        "No checkpoint has been written yet.",
    ] {
        assert!(page.contains(words), "no `{words}`");
    }
    assert!(!page.contains("id=\"validation\""));

    fs::remove_file(folder.path().join("log.jsonl")).unwrap();
    fs::remove_file(folder.path().join("status.json")).unwrap();
    let page = report(folder.path(), &[]);
    check_form(&page);
    assert!(page.contains("not started") && page.contains("No epoch has finished yet."));
}

#[test]
fn a_missing_run_is_named_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    for (run, words) in [("missing", "does not exist"), (".", "is not a run directory")] {
        let output = program().arg("report").arg(folder.path().join(run)).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert!(error.starts_with("error: ") && error.contains(words) && error.lines().count() == 1, "{error}");
    }
}

#[test]
fn a_browser_shows_the_curves() {
    let Some(browser) = browser() else { return skip("there is no chromium in $PATH") };
    let folder = tempfile::tempdir().unwrap();
    let (run, picture) = (folder.path().join("run"), folder.path().join("page.png"));
    write_run(&run, EPOCHS, "finished", 60);
    report(&run, &[]);
    let mut command = Command::new(browser);
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,2000"]);
    command.arg(format!("--user-data-dir={}", folder.path().join("profile").display()));
    command.arg(format!("--screenshot={}", picture.display())).arg(run.join("report.html"));
    let output = command.output().unwrap();
    if !picture.exists() {
        return skip(format_args!("chromium cannot run here: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let mut reader = png::Decoder::new(BufReader::new(File::open(&picture).unwrap())).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    let colours = pixels.chunks_exact(info.color_type.samples()).map(|pixel| [pixel[0], pixel[1], pixel[2]]);
    let colours: Vec<[u8; 3]> = colours.collect();
    // Each curve color of the light or the dark scheme: thin lines, and the areas of the step time.
    for either in [
        [[0x23, 0x60, 0xb8], [0x6e, 0xa8, 0xf5]],
        [[0xc8, 0x48, 0x1a], [0xf5, 0x8a, 0x5c]],
        [[0x14, 0x80, 0x5a], [0x4f, 0xc4, 0x97]],
    ] {
        let count = colours.iter().filter(|colour| either.contains(colour)).count();
        assert!(count > 300, "{either:?}: {count}");
    }
}

/// Writes the page to its default path and reads it.
fn report(run: &Path, flags: &[&str]) -> String {
    let output = program().arg("report").arg(run).args(flags).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let path = run.join("report.html");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), path.display().to_string());
    fs::read_to_string(path).unwrap()
}

/// Renames cases and a label to names with markup.
fn hostile(dataset: &Path) {
    for folder in ["imagesTr", "labelsTr"] {
        for entry in fs::read_dir(dataset.join(folder)).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap().replace("phantom_", CASE);
            fs::rename(entry.path(), dataset.join(folder).join(name)).unwrap();
        }
    }
    let path = dataset.join("dataset.json");
    let json = fs::read_to_string(&path).unwrap();
    fs::write(path, json.replace("\"organ\"", &format!("\"{LABEL}\""))).unwrap();
}

/// Asserts that every element is closed and no external resource is used.
fn check_form(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    for piece in page.split('<').skip(1) {
        let (tag, _) = piece.split_once('>').unwrap_or_else(|| panic!("<{piece} is not closed"));
        let name = tag.split_whitespace().next().unwrap_or_default();
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "<{tag}>"),
            None if ["!DOCTYPE", "meta", "img"].contains(&name) => {}
            // Elements of an SVG may close themselves.
            None if open.contains(&"svg") && tag.ends_with('/') => {}
            None => open.push(name),
        }
        // Split at quotes, which are escaped within values: every second piece is a value.
        let pieces: Vec<&str> = tag.split('"').collect();
        for [attribute, value] in pieces.as_chunks::<2>().0 {
            let is_reference = [" src=", " href=", "xlink:href="].iter().any(|name| attribute.ends_with(name));
            assert!(!is_reference || value.starts_with("data:") || value.starts_with('#'), "<{tag}>");
            assert!(!attribute.trim_start().starts_with("on"), "<{tag}>");
        }
    }
    assert!(open.is_empty(), "{open:?}");
    for foreign in ["://", "url(", "@import", "<link", "<script", "<iframe"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
}

fn browser() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    std::env::split_paths(&folders).flat_map(|folder| names.map(|name| folder.join(name))).find(|path| path.is_file())
}
