//! TCP heartbeat connections from all ranks to a server on rank 0.
//!
//! A connection starts with a secret token known only to the job. Each following line is either a heartbeat of a rank
//! as JSON, answered with an empty line, or an empty line, answered with the state of all ranks as JSON.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use rand::TryRngCore;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};

use super::rank_health::{OwnHealth, RankHealth};
use nnunet_core::host::host_name;

/// Time between two heartbeats.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Timeout for connecting and for an answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Size of the serialized endpoint message, the same on all ranks.
pub(in crate::distributed) const ENDPOINT_BYTES: usize = 4096;

/// Maximum length of a line read from a connection, in bytes.
const MAX_LINE_BYTES: u64 = 1 << 24;

/// Address and token of the heartbeat server on rank 0.
#[derive(Serialize, Deserialize)]
struct HeartbeatEndpoint {
    token: String,
    host: String,
    addresses: Vec<SocketAddr>,
}

/// Heartbeat server of rank 0, with the last known state of the other ranks.
pub(super) struct HeartbeatServer {
    token: String,
    own: Weak<OwnHealth>,
    seen: Mutex<HashMap<usize, (RankHealth, Instant)>>,
}

impl HeartbeatServer {
    /// Starts listening for the other ranks. Returns the server and its serialized endpoint. `own` is the state of rank
    /// 0.
    pub(super) fn open(own: &Arc<OwnHealth>) -> io::Result<(Arc<Self>, Vec<u8>)> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let port = listener.local_addr()?.port();
        let mut token = [0; 16];
        OsRng.try_fill_bytes(&mut token).map_err(io::Error::other)?;
        let token = format!("{:032x}", u128::from_le_bytes(token));
        let addresses = own_addresses().into_iter().map(|address| SocketAddr::new(address, port)).collect();
        let endpoint = HeartbeatEndpoint { token: token.clone(), host: host_name(), addresses };
        let endpoint = serde_json::to_vec(&endpoint).map_err(io::Error::other)?;
        if endpoint.len() > ENDPOINT_BYTES {
            return Err(io::Error::other("this host has too many network addresses"));
        }
        let server = Arc::new(Self { token, own: Arc::downgrade(own), seen: Mutex::default() });
        let shared = server.clone();
        spawn("heartbeats", move || {
            for connection in listener.incoming().flatten() {
                let server = shared.clone();
                // If no thread can be started, the connection is closed and its rank tries again.
                let _ = spawn("heartbeat of a rank", move || {
                    let _ = server.serve(&connection);
                });
            }
        })?;
        Ok((server, endpoint))
    }

    /// Serves one connection until it is closed.
    fn serve(&self, connection: &TcpStream) -> io::Result<()> {
        connection.set_nodelay(true)?;
        connection.set_write_timeout(Some(TIMEOUT))?;
        let mut lines = BufReader::new(connection);
        if read_line(&mut lines)? != self.token {
            return Ok(());
        }
        loop {
            let line = read_line(&mut lines)?;
            let mut answer = Vec::new();
            if line.is_empty() {
                answer = serde_json::to_vec(&self.ranks())?;
            } else {
                let health: RankHealth = serde_json::from_str(&line)?;
                self.seen().insert(health.rank, (health, Instant::now()));
            }
            answer.push(b'\n');
            (&*connection).write_all(&answer)?;
        }
    }

    /// Returns the state of all ranks that have ever connected, sorted by rank.
    pub(super) fn ranks(&self) -> Vec<RankHealth> {
        let own = self.own.upgrade().map(|own| own.report());
        let seen = self.seen();
        let others = seen.values().map(|(health, at)| {
            let silent_ms = at.elapsed().as_millis() as u64;
            RankHealth { silent_ms, idle_ms: health.idle_ms + silent_ms, ..health.clone() }
        });
        let mut ranks: Vec<_> = own.into_iter().chain(others).collect();
        ranks.sort_by_key(|health| health.rank);
        ranks
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<usize, (RankHealth, Instant)>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Heartbeat client: the connection to the server on rank 0.
pub(super) struct HeartbeatClient {
    endpoint: HeartbeatEndpoint,
    /// Server address that is reachable from this host.
    address: SocketAddr,
    /// Time of the last answer from rank 0.
    answered: Mutex<Instant>,
}

impl HeartbeatClient {
    /// Connects to the server and starts sending heartbeats. Returns `None`, with a warning, if it cannot be reached.
    pub(super) fn open(own: &Arc<OwnHealth>, endpoint: &[u8]) -> Option<Arc<Self>> {
        // The message is empty if rank 0 could not listen; it has logged a warning in that case.
        let endpoint = endpoint.split(|&byte| byte == 0).next().filter(|text| !text.is_empty())?;
        let endpoint: HeartbeatEndpoint = serde_json::from_slice(endpoint).ok()?;
        let Some((address, stream)) = endpoint.addresses.iter().find_map(|&address| {
            let stream = connect(address, &endpoint.token).ok()?;
            Some((address, stream))
        }) else {
            tracing::warn!(
                "heartbeat disabled: none of the addresses {:?} of {} is reachable from {}; a lost rank cannot be named",
                endpoint.addresses,
                endpoint.host,
                host_name()
            );
            return None;
        };
        let client = Arc::new(Self { endpoint, address, answered: Mutex::new(Instant::now()) });
        let (shared, own) = (client.clone(), Arc::downgrade(own));
        spawn("heartbeat", move || shared.beat(&own, Some(stream))).ok()?;
        Some(client)
    }

    /// Sends a heartbeat once per [`HEARTBEAT_INTERVAL`] as long as the owner exists.
    fn beat(&self, own: &Weak<OwnHealth>, mut stream: Option<TcpStream>) {
        while let Some(own) = own.upgrade() {
            if stream.is_none() {
                stream = connect(self.address, &self.endpoint.token).ok();
            }
            let sent = stream.as_ref().map(|stream| {
                let mut line = serde_json::to_vec(&own.report())?;
                line.push(b'\n');
                let mut writer = stream;
                writer.write_all(&line)?;
                read_line(&mut BufReader::new(stream))
            });
            drop(own);
            match sent {
                Some(Ok(_)) => *self.answered.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now(),
                _ => stream = None,
            }
            thread::sleep(HEARTBEAT_INTERVAL);
        }
    }

    /// Requests the state of all ranks from rank 0.
    ///
    /// # Errors
    /// Returns the failure reason if rank 0 does not answer.
    pub(super) fn request_ranks(&self) -> Result<Vec<RankHealth>, String> {
        let answer = connect(self.address, &self.endpoint.token).and_then(|mut stream| {
            stream.write_all(b"\n")?;
            let line = read_line(&mut BufReader::new(&stream))?;
            Ok(serde_json::from_str(&line)?)
        });
        answer.map_err(|error| {
            let since = self.answered.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
            format!(
                "no heartbeat from rank 0 on {} for {:.1} s: the process is frozen or dead, or its host or a network \
                 link is down ({})",
                self.endpoint.host,
                since.as_secs_f64(),
                match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => "no answer".into(),
                    _ => error.to_string(),
                }
            )
        })
    }
}

/// Connects to the server and sends the token.
fn connect(address: SocketAddr, token: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(format!("{token}\n").as_bytes())?;
    Ok(stream)
}

/// Reads a line and strips its newline.
///
/// # Errors
/// Returns an error if the peer has closed the connection.
fn read_line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    from.take(MAX_LINE_BYTES).read_line(&mut line)?;
    match line.strip_suffix('\n') {
        Some(text) => Ok(text.to_owned()),
        None => Err(ErrorKind::UnexpectedEof.into()),
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.into()).stack_size(256 << 10).spawn(work).map(|_| ())
}

/// Returns the IPv4 addresses of this host, loopback addresses last.
fn own_addresses() -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    let mut list = std::ptr::null_mut();
    // SAFETY: `getifaddrs` sets `list` to a linked list that stays valid until `freeifaddrs`; an address whose family
    // is AF_INET is a `sockaddr_in`.
    unsafe {
        if libc::getifaddrs(&mut list) == 0 {
            let mut entry = list;
            while let Some(interface) = entry.as_ref() {
                if let Some(address) = interface.ifa_addr.as_ref()
                    && i32::from(address.sa_family) == libc::AF_INET
                {
                    let address = &*interface.ifa_addr.cast::<libc::sockaddr_in>();
                    addresses.push(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)));
                }
                entry = interface.ifa_next;
            }
            libc::freeifaddrs(list);
        }
    }
    addresses.sort_by_key(Ipv4Addr::is_loopback);
    addresses.into_iter().map(IpAddr::V4).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates the server of rank 0 and the client of rank 1, with the state of both ranks.
    fn pair() -> ([Arc<OwnHealth>; 2], Arc<HeartbeatServer>, Arc<HeartbeatClient>, Vec<u8>) {
        let ranks = [0, 1].map(OwnHealth::new);
        let (server, endpoint) = HeartbeatServer::open(&ranks[0]).unwrap();
        let client = HeartbeatClient::open(&ranks[1], &endpoint).unwrap();
        (ranks, server, client, endpoint)
    }

    fn eventually(mut holds: impl FnMut() -> bool) {
        let began = Instant::now();
        while !holds() {
            assert!(began.elapsed() < Duration::from_secs(30), "the condition did not become true within 30 s");
            thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn each_rank_learns_the_phase_of_the_other() {
        let ([first, second], server, client, _) = pair();
        first.enter_phase("step 1", false);
        second.enter_phase("step 2", false);
        let phase_of =
            |ranks: &[RankHealth], rank| ranks.iter().find(|health| health.rank == rank).unwrap().phase.clone();
        eventually(|| server.ranks().len() == 2 && phase_of(&server.ranks(), 1) == "step 2");
        assert_eq!(phase_of(&client.request_ranks().unwrap(), 0), "step 1");
    }

    #[test]
    fn a_client_with_a_wrong_token_learns_nothing() {
        let (_ranks, _server, _client, endpoint) = pair();
        let endpoint: HeartbeatEndpoint = serde_json::from_slice(&endpoint).unwrap();
        let client = HeartbeatClient {
            address: *endpoint.addresses.last().unwrap(),
            endpoint: HeartbeatEndpoint { token: "guess".into(), ..endpoint },
            answered: Mutex::new(Instant::now()),
        };
        assert!(client.request_ranks().unwrap_err().starts_with("no heartbeat from rank 0"));
    }
}
