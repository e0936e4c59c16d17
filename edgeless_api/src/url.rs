//! The addresses that daemons bind and announce: `http://<host>:<port>`.

use std::fmt;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An address is not usable; the message says why and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Not of the form `http://<host>:<port>`.
    #[error("'{0}' is not a URL of the form http://<host>:<port>")]
    Malformed(String),
    /// A scheme that is not served.
    #[error("'{url}' wants {scheme}, which is not available: use http")]
    Scheme {
        /// The whole text.
        url: String,
        /// Its scheme.
        scheme: String,
    },
    /// A server can only listen on an IP address of this machine.
    #[error("'{0}' cannot be listened on: write an IP address such as 127.0.0.1 or 0.0.0.0 instead of a name")]
    NotAnIp(String),
}

/// Where a service is, or shall be.
///
/// Port 0 asks the system for a free one when it is bound.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Url {
    host: String,
    port: u16,
}

impl Url {
    /// The URL of an address that is bound.
    pub fn of(addr: SocketAddr) -> Self {
        let host = match addr.ip() {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        Self { host, port: addr.port() }
    }

    /// The host: an IP address or a name.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address to listen on.
    ///
    /// # Errors
    /// The host is a name.
    pub fn bind_addr(&self) -> Result<SocketAddr, UrlError> {
        format!("{}:{}", self.host, self.port).parse().map_err(|_| UrlError::NotAnIp(self.to_string()))
    }

    /// What to tell others when this address is bound and nothing else is configured: the address
    /// itself, or this machine's first address towards others if it is bound on all of them.
    pub fn announced(&self) -> Self {
        match self.bind_addr() {
            Ok(addr) if addr.ip().is_unspecified() => Self::of(SocketAddr::new(own_ip(), self.port)),
            _ => self.clone(),
        }
    }
}

/// The address from which this machine would speak to others; loopback if it has no route.
/// Asking the routing table with an unsent datagram needs no list of interfaces.
fn own_ip() -> IpAddr {
    let ask = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect("192.0.2.1:9")?;
        Ok(socket.local_addr()?.ip())
    };
    ask().unwrap_or(IpAddr::from([127, 0, 0, 1]))
}

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let shown = || text.chars().take(200).collect::<String>();
        let malformed = || UrlError::Malformed(shown());
        let (scheme, rest) = text.split_once("://").ok_or_else(malformed)?;
        if scheme != "http" {
            return Err(UrlError::Scheme { url: shown(), scheme: scheme.to_string() });
        }
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (host, port) = authority.rsplit_once(':').ok_or_else(malformed)?;
        let port = port.parse().map_err(|_| malformed())?;
        let is_ipv6 = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == '@') || (host.contains(':') && !is_ipv6)
        {
            return Err(malformed());
        }
        Ok(Self { host: host.to_string(), port })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Url {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Url {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Reads a URL that may be left empty, which means that it is not set.
///
/// # Errors
/// The text is neither empty nor a URL.
pub fn optional<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Url>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(serde::de::Error::custom) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_parsed_or_refused_with_a_reason() {
        for good in ["http://127.0.0.1:7001", "http://[::1]:80", "http://con.example:7001/"] {
            assert!(good.parse::<Url>().is_ok(), "{good}");
        }
        for (bad, part) in [
            ("127.0.0.1:7001", "http://<host>:<port>"),
            ("http://127.0.0.1", "http://<host>:<port>"),
            ("http://:7001", "http://<host>:<port>"),
            ("http://a:99999", "http://<host>:<port>"),
            ("https://a:1", "https, which is not available"),
            ("coap://a:1", "coap, which is not available"),
        ] {
            let error = bad.parse::<Url>().unwrap_err().to_string();
            assert!(error.contains(part), "{bad}: {error}");
        }
    }

    #[test]
    fn only_an_ip_can_be_bound() {
        assert_eq!("http://[::1]:80".parse::<Url>().unwrap().bind_addr().unwrap(), "[::1]:80".parse().unwrap());
        assert!("http://localhost:80".parse::<Url>().unwrap().bind_addr().is_err());
    }

    #[test]
    fn an_address_on_all_interfaces_is_never_announced() {
        let bound: Url = "http://0.0.0.0:7005".parse().unwrap();
        assert_ne!(bound.announced().host(), "0.0.0.0");
        assert_eq!(bound.announced().port(), 7005);
    }
}
