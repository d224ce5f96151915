//! TCP sockets: making them, their options, and addresses as the kernel has them.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// How many connections the kernel completes before they are accepted. A daemon that restarts meets all its hosts at once.
const BACKLOG: i32 = 4096;

/// A socket address with the length of its kind.
pub(super) struct RawAddress {
    pub(super) storage: libc::sockaddr_storage,
    pub(super) length: libc::socklen_t,
}

impl RawAddress {
    /// Room for the kernel to write an address into.
    pub(super) fn empty() -> Self {
        // SAFETY: all-zero is a valid value of this plain structure.
        let storage = unsafe { std::mem::zeroed() };
        Self { storage, length: size_of::<libc::sockaddr_storage>() as libc::socklen_t }
    }

    pub(super) fn pointer(&mut self) -> *mut libc::sockaddr {
        (&raw mut self.storage).cast()
    }
}

impl From<SocketAddr> for RawAddress {
    fn from(address: SocketAddr) -> Self {
        let mut raw = Self::empty();
        let length = match address {
            SocketAddr::V4(address) => {
                let value = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
                    sin_zero: [0; 8],
                };
                // SAFETY: the storage is large and aligned enough for every kind of address.
                unsafe { raw.pointer().cast::<libc::sockaddr_in>().write(value) };
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(address) => {
                let value = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: address.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                    sin6_scope_id: address.scope_id(),
                };
                // SAFETY: as above.
                unsafe { raw.pointer().cast::<libc::sockaddr_in6>().write(value) };
                size_of::<libc::sockaddr_in6>()
            }
        };
        raw.length = length as libc::socklen_t;
        raw
    }
}

impl TryFrom<&RawAddress> for SocketAddr {
    type Error = io::Error;

    fn try_from(raw: &RawAddress) -> io::Result<Self> {
        match i32::from(raw.storage.ss_family) {
            libc::AF_INET => {
                // SAFETY: the family says that the storage holds this kind; it is large and aligned enough.
                let value = unsafe { (&raw const raw.storage).cast::<libc::sockaddr_in>().read() };
                let ip = Ipv4Addr::from(u32::from_be(value.sin_addr.s_addr));
                Ok(SocketAddrV4::new(ip, u16::from_be(value.sin_port)).into())
            }
            libc::AF_INET6 => {
                // SAFETY: as above.
                let value = unsafe { (&raw const raw.storage).cast::<libc::sockaddr_in6>().read() };
                let ip = Ipv6Addr::from(value.sin6_addr.s6_addr);
                let port = u16::from_be(value.sin6_port);
                Ok(SocketAddrV6::new(ip, port, value.sin6_flowinfo, value.sin6_scope_id).into())
            }
            // The peer has gone between its connect and our accept.
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

/// Binds and listens, at once after a restart too.
pub(super) fn listen(address: SocketAddr, congestion: Option<&str>) -> io::Result<(OwnedFd, SocketAddr)> {
    let explain = |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"));
    let socket = stream_socket(address).map_err(explain)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).map_err(explain)?;
    // Accepted sockets inherit it.
    set_congestion(&socket, congestion).map_err(explain)?;
    let mut raw = RawAddress::from(address);
    // SAFETY: pointer and length describe an address that lives through the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), raw.pointer(), raw.length) }).map_err(explain)?;
    // SAFETY: no memory is passed.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) }).map_err(explain)?;
    let mut bound = RawAddress::empty();
    // SAFETY: pointer and length describe room for an address that lives through the call.
    check(unsafe { libc::getsockname(socket.as_raw_fd(), bound.pointer(), &mut bound.length) }).map_err(explain)?;
    let bound = SocketAddr::try_from(&bound)?;
    Ok((socket, bound))
}

/// A socket ready to connect to `address`.
pub(super) fn to_connect(address: SocketAddr, congestion: Option<&str>) -> io::Result<OwnedFd> {
    let socket = stream_socket(address)?;
    set_congestion(&socket, congestion)?;
    send_at_once(&socket)?;
    Ok(socket)
}

/// Turns Nagle's algorithm off: what a turn has to send goes out together anyway.
pub(super) fn send_at_once(socket: &OwnedFd) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)
}

/// Ends the sending direction. No error if the peer has gone already.
pub(super) fn end_sending(socket: &OwnedFd) {
    // SAFETY: no memory is passed.
    unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_WR) };
}

/// Ends listening now: the address is free also while an accept in flight still keeps the descriptor open.
pub(super) fn end_listening(socket: &OwnedFd) {
    // SAFETY: no memory is passed.
    unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RDWR) };
}

fn stream_socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // Blocking for everyone but io_uring, which would report "try again" instead of waiting on others.
    // SAFETY: no memory is passed.
    let socket = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    check(socket)?;
    // SAFETY: just made, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

fn set_option(socket: &OwnedFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    let (pointer, length) = ((&raw const value).cast(), size_of::<i32>() as libc::socklen_t);
    // SAFETY: pointer and length describe an int that lives through the call.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, pointer, length) })
}

fn set_congestion(socket: &OwnedFd, algorithm: Option<&str>) -> io::Result<()> {
    let Some(name) = algorithm else { return Ok(()) };
    // The kernel knows at most 16 bytes, and says so itself for longer names.
    let (level, option, length) = (libc::IPPROTO_TCP, libc::TCP_CONGESTION, name.len() as libc::socklen_t);
    // SAFETY: pointer and length describe a string that lives through the call.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, name.as_ptr().cast(), length) })
        .map_err(|error| io::Error::new(error.kind(), format!("congestion control {name:?} cannot be set: {error}")))
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_through_the_kernels_form() {
        for text in ["127.0.0.1:4420", "[::1]:8009", "[fe80::1%3]:1"] {
            let address: SocketAddr = text.parse().expect("a good address");
            assert_eq!(SocketAddr::try_from(&RawAddress::from(address)).expect("the same"), address);
        }
        assert!(SocketAddr::try_from(&RawAddress::empty()).is_err());
    }
}
