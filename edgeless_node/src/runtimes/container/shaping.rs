//! Caps the bandwidth of a container and counts its traffic, with a token bucket (TBF) at either end of its
//! veth pair.
//!
//! ```text
//!   container's network namespace          the host's
//!        eth0 [TBF: up] <----- veth pair -----> vethXXXX [TBF: down] --- bridge
//! ```
//! A queueing discipline works on what a device *sends*, so that each direction has its own. The container
//! cannot remove the one at its end, because containers run without `CAP_NET_ADMIN`. What is in force is read
//! back from the kernel and never remembered here: another call, another process or a restart of the node all
//! see the same.
//!
//! The functions block for the time of a few system calls.

use std::fs::File;
use std::io;
use std::os::linux::fs::MetadataExt;

use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_ECHO, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, Nla, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The bandwidth was not set.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The node lacks the privileges.
    #[error("network_bandwidth needs a node that runs as root (CAP_SYS_ADMIN, CAP_NET_ADMIN)")]
    Unprivileged,
    /// The container has ended.
    #[error("the container's process {0} is gone")]
    Gone(u32),
    /// There is nothing to shape, and to shape the host's devices would slow the host.
    #[error("the container uses the host's network, which has no cap: give it a network of its own")]
    HostNetwork,
    /// All devices of the container are of another kind.
    #[error("the container has no veth device to cap: give it a bridge network")]
    NoDevice,
    /// The rate is below what a bucket can do.
    #[error("a bandwidth of {0} bit/s is too low: give at least {LOWEST}")]
    TooLow(u64),
    /// The kernel is made without it.
    #[error("the kernel has no token bucket filter: load or build its module sch_tbf")]
    NoBucket,
    /// The kernel refused.
    #[error("cannot {what}")]
    Kernel {
        /// What it was asked for.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
}

impl Error {
    fn kernel(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Unprivileged,
            _ => Self::Kernel { what, source },
        }
    }

    fn shaping(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.raw_os_error() {
            Some(libc::ENOENT) => Self::NoBucket,
            _ => Self::kernel(what)(source),
        }
    }
}

/// How much a container may send and receive, in bits per second of Ethernet frames. `None`: no cap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bandwidth {
    /// What the container sends.
    pub(super) up: Option<u64>,
    /// What the container receives.
    pub(super) down: Option<u64>,
}

/// A frame takes more than a second below this.
const LOWEST: u64 = 8_000;

/// Caps the container of this process, or removes the caps that are `None`, and returns what the kernel then has:
/// whole bytes per second, or `None` if a device of the container is without a cap.
///
/// Connections live on, and nothing that waits in a queue is lost. On an error one direction may be set and the
/// other not.
pub(super) fn set(pid: u32, wanted: Bandwidth) -> Result<Bandwidth, Error> {
    if let Some(rate) = [wanted.up, wanted.down].into_iter().flatten().find(|rate| *rate < LOWEST) {
        return Err(Error::TooLow(rate));
    }
    let inside = match Netlink::inside(pid) {
        Err(Error::HostNetwork) if wanted == Bandwidth::default() => return Ok(wanted),
        inside => inside?,
    };
    let outside = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
    let pairs = pairs(&inside, &outside)?;
    if pairs.is_empty() && wanted != Bandwidth::default() {
        return Err(Error::NoDevice);
    }
    for pair in &pairs {
        inside.shape(pair.inner, wanted.up).map_err(Error::shaping("cap what the container sends"))?;
        outside.shape(pair.outer, wanted.down).map_err(Error::shaping("cap what the container receives"))?;
    }
    read(&inside, &outside, &pairs)
}

fn read(inside: &Netlink, outside: &Netlink, pairs: &[Pair]) -> Result<Bandwidth, Error> {
    let (mut up, mut down) = (Vec::new(), Vec::new());
    for pair in pairs {
        up.push(inside.rate(pair.inner).map_err(Error::kernel("read what the container may send"))?);
        down.push(outside.rate(pair.outer).map_err(Error::kernel("read what the container may receive"))?);
    }
    Ok(Bandwidth { up: weakest(up), down: weakest(down) })
}

/// What the kernel has for the container of this process.
pub(super) fn get(pid: u32) -> Result<Bandwidth, Error> {
    let inside = Netlink::inside(pid)?;
    let outside = Netlink::open().map_err(Error::kernel("open a netlink socket"))?;
    let pairs = pairs(&inside, &outside)?;
    read(&inside, &outside, &pairs)
}

/// Of several devices the one that lets most through, so that nobody is told of a cap that can be walked round.
fn weakest(rates: Vec<Option<u64>>) -> Option<u64> {
    rates.into_iter().collect::<Option<Vec<u64>>>()?.into_iter().max()
}

/// The bytes that the container of this process has received and sent, on all devices but the loopback.
pub(super) fn traffic(pid: u32) -> Result<(u64, u64), Error> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).map_err(|source| match source.kind() {
        // A process that has ended and is not yet waited for has a file that cannot be read.
        io::ErrorKind::NotFound | io::ErrorKind::InvalidInput => Error::Gone(pid),
        _ => Error::kernel("read the container's traffic")(source),
    })?;
    Ok(count(&text))
}

/// Sums up a `/proc/net/dev`: two lines of headings, then `name: received-bytes …7 more… sent-bytes …`.
fn count(text: &str) -> (u64, u64) {
    let (mut received, mut sent) = (0_u64, 0_u64);
    for (name, numbers) in text.lines().filter_map(|line| line.split_once(':')) {
        if name.trim() == "lo" {
            continue;
        }
        let number = |column: usize| numbers.split_whitespace().nth(column).and_then(|text| text.parse::<u64>().ok());
        received = received.saturating_add(number(0).unwrap_or(0));
        sent = sent.saturating_add(number(8).unwrap_or(0));
    }
    (received, sent)
}

/// The two ends of a veth pair, by index.
#[derive(Debug)]
struct Pair {
    inner: u32,
    outer: u32,
}

fn pairs(inside: &Netlink, outside: &Netlink) -> Result<Vec<Pair>, Error> {
    let links = inside.links().map_err(Error::kernel("list the container's network devices"))?;
    let mut pairs = Vec::new();
    for link in links.iter().filter(|link| is_veth(link) && !link.header.flags.contains(LinkFlags::Loopback)) {
        let Some(outer) = peer(link) else { continue };
        let inner = link.header.index;
        match outside.link(outer) {
            // An index alone says little, the peer may be in a third namespace: the two must name each other.
            Ok(found) if found.iter().any(|link| is_veth(link) && peer(link) == Some(inner)) => {
                pairs.push(Pair { inner, outer });
            }
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => return Err(Error::kernel("find the host's end of the container's network device")(error)),
        }
    }
    Ok(pairs)
}

fn is_veth(link: &LinkMessage) -> bool {
    let is_veth = |info: &LinkInfo| matches!(info, LinkInfo::Kind(InfoKind::Veth));
    link.attributes
        .iter()
        .any(|attribute| matches!(attribute, LinkAttribute::LinkInfo(info) if info.iter().any(is_veth)))
}

/// The index of a veth's other end, in the namespace of that.
fn peer(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    })
}

/// A netlink socket, which belongs to a network namespace for all its life.
struct Netlink(Socket);

impl Netlink {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// A socket in the network namespace of a process.
    ///
    /// Only a thread can enter a namespace, and it must not be one that serves others later: it makes the
    /// socket, which stays where it was made, and ends.
    fn inside(pid: u32) -> Result<Self, Error> {
        let own = File::open("/proc/self/ns/net").map_err(Error::kernel("open the node's network namespace"))?;
        let namespace = File::open(format!("/proc/{pid}/ns/net")).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::Gone(pid),
            _ => Error::kernel("open the container's network namespace")(source),
        })?;
        let inode = |file: &File| file.metadata().map(|metadata| (metadata.st_dev(), metadata.st_ino()));
        let same = inode(&own).and_then(|own| Ok(inode(&namespace)? == own));
        if same.map_err(Error::kernel("compare two network namespaces"))? {
            return Err(Error::HostNetwork);
        }
        let enter = move || {
            use std::os::fd::AsFd;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            Self::open()
        };
        let thread = std::thread::Builder::new().name("netns".to_string()).spawn(enter);
        let thread = thread.map_err(Error::kernel("start a thread"))?;
        let socket = thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")));
        socket.map_err(Error::kernel("enter the container's network namespace"))
    }

    fn links(&self) -> io::Result<Vec<LinkMessage>> {
        self.ask_for_links(LinkMessage::default(), NLM_F_DUMP)
    }

    fn link(&self, index: u32) -> io::Result<Vec<LinkMessage>> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.ask_for_links(message, NLM_F_ACK)
    }

    fn ask_for_links(&self, message: LinkMessage, flags: u16) -> io::Result<Vec<LinkMessage>> {
        let answers = self.ask(RouteNetlinkMessage::GetLink(message), flags)?;
        let link = |answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        };
        Ok(answers.into_iter().filter_map(link).collect())
    }

    /// Makes `rate` the cap of what a device sends.
    fn shape(&self, device: u32, rate: Option<u64>) -> io::Result<()> {
        match rate {
            Some(rate) => {
                let mut message = root(device)?;
                message.header.handle = OURS;
                let options = Bucket::of(rate / 8).attributes();
                message.attributes.push(TcAttribute::Kind(TBF.to_string()));
                message.attributes.push(TcAttribute::Options(options.into_iter().map(TcOption::Other).collect()));
                let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
                self.ask(RouteNetlinkMessage::NewQueueDiscipline(message), flags)?;
            }
            // What somebody else has put there stays.
            None if self.root_of(device)?.is_some_and(|found| found.header.handle == OURS) => {
                self.ask(RouteNetlinkMessage::DelQueueDiscipline(root(device)?), NLM_F_ACK)?;
            }
            None => {}
        }
        Ok(())
    }

    /// The cap of what a device sends, whoever has set it.
    fn rate(&self, device: u32) -> io::Result<Option<u64>> {
        let Some(found) = self.root_of(device)? else { return Ok(None) };
        if !found.attributes.iter().any(|attribute| matches!(attribute, TcAttribute::Kind(kind) if kind == TBF)) {
            return Ok(None);
        }
        // The whole of the options is one attribute to the decoder, which does not know this discipline.
        let options = found.attributes.iter().find_map(|attribute| match attribute {
            TcAttribute::Options(options) => match options.as_slice() {
                [TcOption::Other(options)] => Some(options),
                _ => None,
            },
            _ => None,
        });
        let Some(options) = options else { return Ok(None) };
        let mut bytes = vec![0; options.value_len()];
        options.emit_value(&mut bytes);
        Ok(rate_of(&bytes).map(|rate| rate.saturating_mul(8)))
    }

    fn root_of(&self, device: u32) -> io::Result<Option<TcMessage>> {
        // Without the echo it is told to those who listen for changes, and not to us.
        match self.ask(RouteNetlinkMessage::GetQueueDiscipline(root(device)?), NLM_F_ACK | NLM_F_ECHO) {
            Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
                RouteNetlinkMessage::NewQueueDiscipline(found) => Some(found),
                _ => None,
            })),
            // A device without a queueing discipline, or with one that the kernel keeps to itself.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a request and gathers the answers, up to the acknowledgement or the end of the dump.
    fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.0.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (bytes, _) = self.0.recv_from_full()?;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Error(_) => return Ok(answers),
                    _ => {}
                }
                let length = usize::try_from(answer.header.length).unwrap_or(usize::MAX).next_multiple_of(4).max(4);
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }
}

const TBF: &str = "tbf";
/// By this the node knows the queueing disciplines that it has made.
const OURS: TcHandle = TcHandle { major: 0xed9e, minor: 0 };

/// A message about the root queueing discipline of a device.
fn root(device: u32) -> io::Result<TcMessage> {
    let mut message = TcMessage::with_index(i32::try_from(device).map_err(io::Error::other)?);
    message.header.parent = TcHandle::ROOT;
    Ok(message)
}

/// The numbers of a token bucket, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bucket {
    /// Per second.
    rate: u64,
    /// What may leave at once after a silence.
    burst: u32,
    /// What may wait. More is dropped, which is how TCP learns of the cap.
    limit: u32,
}

/// What TCP hands down as one packet, to be cut by the device (GSO): 64 KiB of payload and the headers of each
/// segment, which the bucket counts too.
const SUPER_PACKET: u64 = 72 << 10;
/// Two Ethernet frames of the usual size.
const TWO_FRAMES: u64 = 2 * 1518;

impl Bucket {
    fn of(rate: u64) -> Self {
        let ms = |time: u64| rate.saturating_mul(time) / 1000;
        // - A bucket shorter than the gap between two wake-ups of its timer overflows and the rate is never
        //   reached: 10 ms stand a busy machine.
        // - A super-packet that does not fit is cut in software, which costs CPU, so that one always fits; but not
        //   where it is more than 50 ms worth, because a slow link would then begin with seconds for nothing.
        // - A frame must fit, or nothing ever leaves.
        let burst = ms(10).max(SUPER_PACKET.min(ms(50))).max(TWO_FRAMES);
        // 100 ms hold the window that a TCP of the same round-trip time needs to fill the link after a loss; a
        // longer queue is a longer delay for all that share it. Two bursts, because a queue that is
        // full after one super-packet drops the next whole.
        let limit = burst.saturating_mul(2).saturating_add(ms(100));
        Self { rate, burst: u32::try_from(burst).unwrap_or(u32::MAX), limit: u32::try_from(limit).unwrap_or(u32::MAX) }
    }

    /// The options as `linux/pkt_sched.h` has them: `struct tc_tbf_qopt`, and beside it the rate if 32 bits do not
    /// hold it, and the burst in bytes.
    ///
    /// The tables of transmission times that `tc` sends are left out: since 3.8 the kernel reads in them no more
    /// than the kind of link, which is named here instead.
    fn attributes(self) -> Vec<DefaultNla> {
        const ETHERNET: u8 = 1;
        /// Of the scheduler's clock, in nanoseconds.
        const TICK: u128 = 64;
        let ticks = u128::from(self.burst) * 1_000_000_000 / u128::from(self.rate.max(1)) / TICK;
        let mut parameters = Vec::with_capacity(36);
        // rate: cell_log, linklayer, overhead (u16), cell_align (i16), mpu (u16), rate
        parameters.extend([0, ETHERNET, 0, 0, 0, 0, 0, 0]);
        parameters.extend(u32::try_from(self.rate).unwrap_or(u32::MAX).to_ne_bytes());
        // peakrate: none
        parameters.extend([0; 12]);
        parameters.extend(self.limit.to_ne_bytes());
        parameters.extend(u32::try_from(ticks).unwrap_or(u32::MAX).to_ne_bytes());
        // mtu: of the peak rate
        parameters.extend([0; 4]);
        let mut attributes = vec![DefaultNla::new(TCA_TBF_PARMS, parameters)];
        if self.rate > u64::from(u32::MAX) {
            attributes.push(DefaultNla::new(TCA_TBF_RATE64, self.rate.to_ne_bytes().to_vec()));
        }
        attributes.push(DefaultNla::new(TCA_TBF_BURST, self.burst.to_ne_bytes().to_vec()));
        attributes
    }
}

const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;

/// The rate in the options of a token bucket, in bytes per second.
fn rate_of(options: &[u8]) -> Option<u64> {
    let (mut narrow, mut wide) = (None, None);
    for attribute in NlasIterator::new(options).flatten() {
        let value = attribute.value();
        match attribute.kind() {
            TCA_TBF_PARMS => narrow = value.get(8..12).and_then(|rate| rate.try_into().ok()).map(u32::from_ne_bytes),
            TCA_TBF_RATE64 => wide = value.get(..8).and_then(|rate| rate.try_into().ok()).map(u64::from_ne_bytes),
            _ => {}
        }
    }
    wide.or(narrow.map(u64::from))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use netlink_packet_core::Emitable;

    use super::super::live::{Engine, wait_for};
    use super::*;

    /// The numbers decide whether a cap is met: see the comments where they are made.
    #[test]
    fn a_bucket_suits_its_rate() {
        let table = [
            // bits per second, burst, limit
            (8_000, 3036, 6172),
            (1_000_000, 6250, 25_000),
            (20_000_000, 73_728, 397_456),
            (100_000_000, 125_000, 1_500_000),
            (400_000_000, 500_000, 6_000_000),
            (100_000_000_000, 125_000_000, 1_500_000_000),
            (u64::MAX, u32::MAX, u32::MAX),
        ];
        for (bits, burst, limit) in table {
            assert_eq!(Bucket::of(bits / 8), Bucket { rate: bits / 8, burst, limit }, "at {bits} bit/s");
        }
    }

    #[test]
    fn options_are_what_the_kernel_reads() {
        for rate in [1000, 2_500_000, u64::from(u32::MAX), 12_500_000_000] {
            let attributes = Bucket::of(rate).attributes();
            let kinds: Vec<u16> = attributes.iter().map(Nla::kind).collect();
            let wide = rate > u64::from(u32::MAX);
            assert_eq!(kinds, if wide { vec![1, 4, 6] } else { vec![1, 6] });
            assert_eq!(attributes[0].value_len(), 36, "struct tc_tbf_qopt");
            let mut bytes = vec![0; attributes.as_slice().buffer_len()];
            attributes.as_slice().emit(&mut bytes);
            assert_eq!(rate_of(&bytes), Some(rate));
        }
        assert_eq!(rate_of(&[]), None);
        assert_eq!(rate_of(&[8, 0, 1, 0, 1, 2, 3, 4]), None, "cut off");
    }

    #[test]
    fn one_device_without_a_cap_is_no_cap() {
        assert_eq!(weakest(vec![]), None);
        assert_eq!(weakest(vec![Some(1), Some(2)]), Some(2));
        assert_eq!(weakest(vec![Some(1), None]), None);
    }

    #[test]
    fn traffic_is_of_all_devices_but_the_loopback() {
        let text = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:    5000      50    0    0    0     0          0         0     5000      50    0    0    0     0       0          0
  eth0:    1200      12    0    0    0     0          0         0      300       3    0    0    0     0       0          0
  eth1:34 1 0 0 0 0 0 0 40 1 0 0 0 0 0 0
";
        assert_eq!(count(text), (1234, 340));
        assert_eq!(count(""), (0, 0));
        assert_eq!(count("eth0: 1 2"), (1, 0));
    }

    #[test]
    fn what_cannot_be_capped_is_refused() {
        let wanted = Bandwidth { up: Some(1_000_000), down: None };
        let low = Bandwidth { down: Some(7_999), ..wanted };
        assert!(matches!(set(std::process::id(), low), Err(Error::TooLow(7_999))));
        assert!(matches!(set(std::process::id(), wanted), Err(Error::HostNetwork)));
        assert_eq!(set(std::process::id(), Bandwidth::default()).unwrap(), Bandwidth::default());
        assert!(matches!(set(u32::MAX, wanted), Err(Error::Gone(u32::MAX))));
        assert!(matches!(traffic(u32::MAX), Err(Error::Gone(u32::MAX))));
    }

    #[test]
    fn the_kernel_has_the_cap_until_it_is_removed() {
        let Some(engine) = Engine::find() else { return };
        let container = engine.run(&["--cap-drop", "ALL"], &["sleep", "1000"]);
        let pid = container.pid();
        let caps = [
            (None, None),
            (Some(20_000_000), Some(50_000_000)),
            (Some(400_000_000), Some(8_000)),
            (None, Some(100_000_000_000)),
            (Some(1_000_000), None),
            (None, None),
        ];
        for (up, down) in caps {
            let wanted = Bandwidth { up, down };
            assert_eq!(set(pid, wanted).unwrap(), wanted);
            assert_eq!(set(pid, wanted).unwrap(), wanted, "once more");
        }
        drop(container);
        assert!(matches!(set(pid, Bandwidth::default()), Err(Error::Gone(_))));
    }

    #[test]
    fn a_container_without_a_device_has_no_cap() {
        let Some(engine) = Engine::find() else { return };
        let container = engine.run(&["--network", "none"], &["sleep", "1000"]);
        let wanted = Bandwidth { up: Some(1_000_000), down: None };
        assert!(matches!(set(container.pid(), wanted), Err(Error::NoDevice)));
        assert_eq!(set(container.pid(), Bandwidth::default()).unwrap(), Bandwidth::default());
        assert_eq!(traffic(container.pid()).unwrap(), (0, 0));
    }

    #[test]
    fn traffic_goes_both_ways() {
        let Some(engine) = Engine::find() else { return };
        let container = engine.run(&["--cap-drop", "ALL"], &["httpd", "-f", "-p", "8080", "-h", "/"]);
        let address = format!("{}:8080", container.address());
        let mut connection = wait_for("the container listens", || TcpStream::connect(&address).ok());
        let (received, sent) = traffic(container.pid()).unwrap();
        connection.write_all(b"GET /busybox HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).unwrap();
        assert!(answer.len() > 100_000, "{} bytes", answer.len());
        let (received_then, sent_then) = traffic(container.pid()).unwrap();
        assert!(sent_then - sent >= answer.len() as u64, "{sent} {sent_then}");
        assert!(received_then > received && received_then - received < sent_then - sent, "{received} {received_then}");
    }
}
