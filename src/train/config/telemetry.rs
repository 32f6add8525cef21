//! Optional monitoring of a run, in addition to the files that it always writes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Monitoring outputs that are enabled on request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TelemetryConfig {
    /// Listen address for Prometheus, see [`TelemetryConfig::metrics_address`]; empty to disable.
    pub metrics_addr: String,
    /// Write event files for TensorBoard.
    pub tensorboard: bool,
}

impl TelemetryConfig {
    /// Parses the address for the first rank of each host. Other ranks add their local rank to the port.
    ///
    /// `9400`, `:9400` and `localhost:9400` mean the loopback interface; other interfaces must be given explicitly.
    ///
    /// # Errors
    /// Returns an error if the text is not an address with a port.
    pub fn metrics_address(&self) -> Result<Option<SocketAddr>, String> {
        let text = self.metrics_addr.as_str();
        if text.is_empty() {
            return Ok(None);
        }
        let on_loopback = |port: &str| Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port.parse().ok()?));
        let port = text.strip_prefix("localhost:").or(text.strip_prefix(':')).unwrap_or(text);
        match on_loopback(port).or_else(|| text.parse().ok()) {
            Some(address) if address.port() > 0 => Ok(Some(address)),
            _ => Err(format!("is {text:?}; it must be ADDRESS:PORT, such as 0.0.0.0:9400, or a port")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_stated_address_is_seen_from_elsewhere() {
        let address = |text: &str| TelemetryConfig { metrics_addr: text.into(), tensorboard: false }.metrics_address();
        for text in ["9400", ":9400", "localhost:9400", "127.0.0.1:9400"] {
            assert_eq!(address(text), Ok(Some("127.0.0.1:9400".parse().unwrap())), "{text}");
        }
        assert_eq!(address("0.0.0.0:9400"), Ok(Some("0.0.0.0:9400".parse().unwrap())));
        assert_eq!(address("[::]:1"), Ok(Some("[::]:1".parse().unwrap())));
        assert_eq!(address(""), Ok(None));
        for text in ["0", "65536", "-1", "node1", "node1:9400", "127.0.0.1", ":", "127.0.0.1:0"] {
            assert!(address(text).unwrap_err().contains("ADDRESS:PORT"), "{text}");
        }
    }
}
