//! Send an image to a running server and save the label map that it returns.
//!
//! `cargo run --example serve_client -- image.nii.gz labels.nii.gz [127.0.0.1:8080]`
//!
//! Start the server with `nnunet-dist serve -r RUN`; `docs/how-to/serve.md` describes its requests and answers. This is
//! `curl --data-binary @image.nii.gz http://127.0.0.1:8080/predict -o labels.nii.gz` as a program without an HTTP library.

use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [image, labels, rest @ ..] = arguments.as_slice() else {
        println!("usage: serve_client IMAGE LABELS [HOST:PORT]");
        return Ok(());
    };
    let address = rest.first().map_or("127.0.0.1:8080", String::as_str);
    fs::write(labels, predict(address, &fs::read(image)?)?)?;
    println!("wrote {labels}");
    Ok(())
}

/// The label map of an image: both are files in memory, `.nii` or `.nii.gz`.
///
/// # Errors
/// Returns an error if the server cannot be reached, or its reason if it rejects the image.
pub fn predict(address: &str, image: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut stream = TcpStream::connect(address)?;
    let head = format!("POST /predict HTTP/1.0\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n", image.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(image)?;
    // HTTP/1.0: the server closes the connection after the answer.
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").ok_or("the server sent no HTTP response")?;
    let body = answer.split_off(end + 4);
    let head = String::from_utf8_lossy(&answer);
    match head.split(' ').nth(1) {
        Some("200") => Ok(body),
        code => Err(format!("{}: {}", code.unwrap_or("no status"), String::from_utf8_lossy(&body).trim()).into()),
    }
}
