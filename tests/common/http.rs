//! A server process of the program on a loopback port, and HTTP written byte by byte, so that tests can break it.
#![allow(dead_code)]

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Time limit: an operation that takes longer hangs.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A running `nnunet-dist serve`, killed when it is dropped.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    /// The folder for images that are being processed.
    pub spool: TempDir,
}

impl Server {
    pub fn start(checkpoint: &Path, flags: &[&str]) -> Self {
        let spool = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_nnunet-dist"));
        command.env_remove("RUST_LOG").args(["serve", "--no-tta", "--listen", "127.0.0.1:0", "-r"]).arg(checkpoint);
        command.arg("--spool").arg(spool.path()).args(flags).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://").expect(&line).parse().unwrap();
        Self { child, address, spool }
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    pub fn get(&self, path: &str) -> Response {
        self.send(&format!("GET {path} HTTP/1.1\r\n"), b"")
    }

    /// Posts an image file as the body.
    pub fn predict(&self, image: &[u8]) -> Response {
        self.post("/predict", "application/octet-stream", image)
    }

    pub fn post(&self, path: &str, content_type: &str, body: &[u8]) -> Response {
        self.send(&head(path, content_type, body.len()), body)
    }

    /// Sends the lines of a head, without the empty line, and a body.
    pub fn send(&self, head: &str, body: &[u8]) -> Response {
        let mut stream = self.connect();
        stream.write_all(format!("{head}Host: test\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
        // A server that refuses an image may not read all of it.
        let _ = stream.write_all(body);
        Response::read(stream)
    }

    /// The value of a metric.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or("0").parse().unwrap()
    }

    /// Waits until a metric has this value.
    pub fn wait_for(&self, name: &str, value: f64) {
        wait_until(&format!("{name} {value}"), || self.metric(name) == value);
    }

    /// Waits until the spool folder is empty.
    pub fn wait_for_empty_spool(&self) {
        wait_until("empty spool", || std::fs::read_dir(self.spool.path()).unwrap().next().is_none());
    }

    /// Resident memory of the process in bytes.
    pub fn memory(&self) -> u64 {
        let status = File::open(format!("/proc/{}/status", self.child.id())).unwrap();
        let lines = BufReader::new(status).lines().map(Result::unwrap);
        let line = lines.filter_map(|line| Some(line.strip_prefix("VmRSS:")?.trim().to_owned())).next().unwrap();
        line.split(' ').next().unwrap().parse::<u64>().unwrap() << 10
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        // SAFETY: the process has not been waited for, so its id is still valid.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
    }

    pub fn is_over(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "timed out: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The lines of a prediction request's head.
pub fn head(path: &str, content_type: &str, length: usize) -> String {
    format!("POST {path} HTTP/1.1\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n")
}

/// Parts of a `multipart/form-data` body with the boundary `b`.
pub fn multipart(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, bytes) in parts {
        let head = format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"x.nii\"\r\n\r\n");
        body.extend([head.as_bytes(), bytes, b"\r\n"].concat());
    }
    body.extend(b"--b--\r\n");
    body
}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Header fields; names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// Reads until the connection closes.
    pub fn read(stream: TcpStream) -> Self {
        Self::try_read(stream).expect("a whole response")
    }

    pub fn try_read(stream: TcpStream) -> io::Result<Self> {
        let mut stream = BufReader::new(stream);
        let line = |stream: &mut BufReader<TcpStream>| {
            let mut line = String::new();
            stream.read_line(&mut line).map(|_| line.trim_end().to_owned())
        };
        let status = line(&mut stream)?.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut headers = Vec::new();
        while let Some((name, value)) = line(&mut stream)?.split_once(": ") {
            headers.push((name.to_lowercase(), value.to_owned()));
        }
        let length =
            headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, value)| value.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        stream.read_exact(&mut body)?;
        Ok(Self { status, headers, body })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Asserts that the response is an error of one line.
    #[track_caller]
    pub fn refuses(&self, status: u16, part: &str) {
        let text = self.text();
        assert!(self.status == status && text.contains(part), "{part:?} is not in {}: {text}", self.status);
        assert!(text.ends_with('\n') && text.lines().count() == 1, "{text:?}");
    }
}
