//! Backends: web servers of this node that stand behind its HTTP ingress.
//!
//! Whoever runs such a server [adds](Backends::add) where it listens and which requests are its own;
//! the http-ingress passes those on. What a backend is (a container, a process) is not known here, nor
//! whether it answers. No two have the same host and path, so that there is one for each request; the
//! requests share no lock.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use edgeless_api::Error;
use hyper::http::uri::Authority;

/// A server, and the requests that it wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Whose it is, for errors and logs.
    pub name: String,
    /// The header `Host` that requests must have, in any case of letters; any if not given. Without a
    /// port it matches with every port.
    pub host: Option<String>,
    /// What the path of requests must begin with: whole segments, compared as they were sent. Any path if
    /// not given. The backend is sent the path as it is.
    pub path: Option<String>,
    /// Where it listens.
    pub to: SocketAddr,
}

/// The backends of one node; clones are handles to the same.
#[derive(Clone, Debug, Default)]
pub struct Backends(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// The first that takes a request is the one that gets it.
    entries: ArcSwap<Vec<Arc<Entry>>>,
    /// How many there are: on most nodes none, and then requests look no further.
    count: AtomicUsize,
}

impl Backends {
    /// Adds a backend, until the guard is dropped. Requests that are in hand by then go on.
    ///
    /// # Errors
    /// Another one has the same host and path, or they are none.
    pub fn add(&self, backend: Backend) -> Result<Guard, Error> {
        let entry = Arc::new(Entry::new(backend)?);
        let mut taken_by = None;
        self.0.entries.rcu(|entries| {
            taken_by = entries.iter().find(|other| other.wants_the_same(&entry)).cloned();
            let mut entries = Vec::clone(entries);
            if taken_by.is_none() {
                let place = entries.partition_point(|other| other.precedence() >= entry.precedence());
                entries.insert(place, entry.clone());
            }
            entries
        });
        if let Some(other) = taken_by {
            return Err(Error::rejected(format!(
                "'{}' cannot take requests with {}: '{}' takes them already; choose another host or path",
                entry.name,
                entry.wanted(),
                other.name
            )));
        }
        self.0.count.fetch_add(1, Ordering::Relaxed);
        Ok(Guard { backends: self.clone(), entry })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.count.load(Ordering::Relaxed) == 0
    }

    /// The backend that takes requests with this header `Host` and this path. A host goes before none,
    /// one with a port before one without, then the longest path wins.
    pub(crate) fn find(&self, host: &str, path: &str) -> Option<Arc<Entry>> {
        self.0.entries.load().iter().find(|entry| entry.takes(host, path)).cloned()
    }

    fn remove(&self, entry: &Arc<Entry>) {
        self.0
            .entries
            .rcu(|entries| entries.iter().filter(|other| !Arc::ptr_eq(entry, other)).cloned().collect::<Vec<_>>());
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Keeps a backend in place.
#[must_use = "the backend is removed when this is dropped"]
pub struct Guard {
    backends: Backends,
    entry: Arc<Entry>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Guard").field(&self.entry).finish()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.backends.remove(&self.entry);
    }
}

/// A backend, checked and ready for requests.
#[derive(Debug)]
pub(crate) struct Entry {
    name: String,
    /// In lower case.
    host: Option<String>,
    /// Without a slash at its end, and so empty for all paths.
    path: String,
    authority: Authority,
}

impl Entry {
    fn new(backend: Backend) -> Result<Self, Error> {
        let Backend { name, host, path, to } = backend;
        let rejected = |key: &str, value: &str, what: &str| Error::rejected(format!("the {key} '{value}' {what}"));
        let is_host = |host: &String| !host.contains(['*', '@']) && host.parse::<Authority>().is_ok();
        if let Some(host) = host.as_ref().filter(|host| !is_host(host)) {
            return Err(rejected(
                "host",
                host,
                "is none: write it as in a URL, such as example.com or example.com:8080",
            ));
        }
        let path = path.unwrap_or_default();
        let is_path = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
        if !path.is_empty() && (!is_path || path.contains(['?', '#'])) {
            return Err(rejected("path", &path, "is none: write it as in a URL, from its first slash, such as /shop"));
        }
        Ok(Self {
            name,
            host: host.map(|host| host.to_ascii_lowercase()),
            path: path.trim_end_matches('/').to_string(),
            authority: to.to_string().parse().map_err(Error::bug)?,
        })
    }

    /// Whose it is.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Whether it wants a certain host.
    pub(crate) fn has_host(&self) -> bool {
        self.host.is_some()
    }

    /// Whether it wants certain paths.
    pub(crate) fn has_path(&self) -> bool {
        !self.path.is_empty()
    }

    fn takes(&self, host: &str, path: &str) -> bool {
        let rest = path.strip_prefix(&self.path);
        rest.is_some_and(|rest| self.path.is_empty() || rest.is_empty() || rest.starts_with('/'))
            && self
                .host
                .as_ref()
                .is_none_or(|own| own.eq_ignore_ascii_case(host) || own.eq_ignore_ascii_case(without_port(host)))
    }

    fn wants_the_same(&self, other: &Self) -> bool {
        self.host == other.host && self.path == other.path
    }

    /// The greater goes first.
    fn precedence(&self) -> impl Ord {
        let has_port = self.host.as_ref().is_some_and(|host| without_port(host).len() < host.len());
        (self.host.is_some(), has_port, self.path.len())
    }

    fn wanted(&self) -> String {
        let path = if self.path.is_empty() { "any path".to_string() } else { format!("the path '{}'", self.path) };
        match &self.host {
            None => format!("any host and {path}"),
            Some(host) => format!("the host '{host}' and {path}"),
        }
    }
}

/// A host as in a URL without its port: `a:80` is `a`, `[::1]:80` is `[::1]`.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(name: &str, host: &str, path: &str) -> Backend {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_string());
        let to = SocketAddr::from(([127, 0, 0, 1], 80));
        Backend { name: name.into(), host: given(host), path: given(path), to }
    }

    #[test]
    fn the_most_particular_takes_a_request_whatever_the_order_they_came_in() {
        let all = [
            backend("any", "", ""),
            backend("api", "", "/api"),
            backend("api/v2", "", "/api/v2/"),
            backend("a", "a.example", "/"),
            backend("a/api", "A.Example", "/api"),
            backend("a:8080", "a.example:8080", ""),
            backend("six", "[::1]", ""),
            backend("six:80", "[::1]:80", ""),
        ];
        for backwards in [false, true] {
            let backends = Backends::default();
            let mut order = all.to_vec();
            if backwards {
                order.reverse();
            }
            let _guards: Vec<_> = order.into_iter().map(|backend| backends.add(backend).unwrap()).collect();
            for (host, path, name) in [
                ("b.example", "/", "any"),
                ("b.example", "*", "any"),
                ("", "/apis", "any"),
                ("b.example", "/x/api", "any"),
                ("b.example", "/API", "any"),
                ("b.example", "/api", "api"),
                ("b.example", "/api/", "api"),
                ("b.example", "/api/v1", "api"),
                ("b.example", "/api/v2", "api/v2"),
                ("b.example", "/api/v2/x", "api/v2"),
                ("a.example", "/", "a"),
                ("a.example:99", "/apis", "a"),
                ("a.EXAMPLE", "/api/v2", "a/api"),
                ("a.example:8080", "/api", "a:8080"),
                ("xa.example", "/", "any"),
                ("[::1]", "/", "six"),
                ("[::1]:81", "/", "six"),
                ("[::1]:80", "/", "six:80"),
            ] {
                let found = backends.find(host, path).unwrap();
                assert_eq!(found.name(), name, "{host} {path}");
            }
        }
    }

    #[test]
    fn what_nobody_wants_nobody_gets() {
        let backends = Backends::default();
        let _guard = backends.add(backend("a", "a:80", "/x")).unwrap();
        for (host, path) in [("a", "/x"), ("a:8080", "/x"), ("a:80", "/"), ("a:80", "/xy"), ("", "/x")] {
            assert!(backends.find(host, path).is_none(), "{host} {path}");
        }
        assert!(backends.find("A:80", "/x/y").is_some());
    }

    #[test]
    fn a_conflict_is_refused_and_names_who_was_first() {
        let backends = Backends::default();
        let first = backends.add(backend("shop", "A.example", "/api/")).unwrap();
        let error = backends.add(backend("blog", "a.example", "/api")).unwrap_err().to_string();
        for part in ["'blog'", "'shop'", "'a.example'", "'/api'"] {
            assert!(error.contains(part), "{error}");
        }
        let second = backends.add(backend("blog", "a.example", "/api/v2")).unwrap();
        drop(first);
        assert!(backends.find("a.example", "/api").is_none());
        let third = backends.add(backend("third", "a.example", "/api")).unwrap();
        drop((second, third));
        assert!(backends.is_empty());
    }

    #[test]
    fn what_is_no_host_or_path_is_refused() {
        let backends = Backends::default();
        for (host, path) in [
            ("http://a", ""),
            ("a b", ""),
            ("me@a", ""),
            ("*.a", ""),
            ("a/b", ""),
            ("", "api"),
            ("", "/a b"),
            ("", "/a?b"),
            ("", "/a#b"),
            ("", "/\u{e9}"),
        ] {
            let error = backends.add(backend("a", host, path)).unwrap_err().to_string();
            assert!(error.contains(&format!("'{host}{path}'")), "{error}");
        }
        assert!(backends.add(Backend { host: Some(String::new()), ..backend("a", "", "") }).is_err());
        assert!(backends.is_empty());
    }
}
