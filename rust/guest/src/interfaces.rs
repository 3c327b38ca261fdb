//! Addresses of the network interfaces (getifaddrs(3)).

use std::ffi::CStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ptr;

use crate::{last_error, Error};

/// One address of one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Interface name.
    pub interface: String,
    /// Whether the interface is the loopback.
    pub loopback: bool,
    /// The address.
    pub address: IpAddr,
    /// Its netmask, where the kernel gives one.
    pub netmask: Option<IpAddr>,
    /// The peer of a point-to-point link.
    pub destination: Option<IpAddr>,
}

/// Frees the list when it goes out of scope.
struct List(*mut libc::ifaddrs);

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: the pointer came from getifaddrs and is freed once.
        unsafe { libc::freeifaddrs(self.0) }
    }
}

/// Every IPv4 and IPv6 address, in the kernel's order.
pub fn addresses() -> Result<Vec<Address>, Error> {
    let mut first: *mut libc::ifaddrs = ptr::null_mut();
    // SAFETY: `first` is a valid place for the result.
    if unsafe { libc::getifaddrs(&mut first) } != 0 {
        return Err(last_error("getifaddrs"));
    }
    let list = List(first);
    let mut out = Vec::new();
    let mut current = list.0;
    while !current.is_null() {
        // SAFETY: the list is alive (`list` owns it) and `current` is one of its nodes.
        let node = unsafe { &*current };
        current = node.ifa_next;
        // SAFETY: the kernel's addresses are null or point to a sockaddr of the family they announce.
        let (address, netmask, peer) =
            unsafe { (ip(node.ifa_addr), ip(node.ifa_netmask), ip(node.ifa_ifu)) };
        let Some(address) = address else { continue };
        // SAFETY: the name is a NUL-terminated string owned by the list.
        let name = unsafe { CStr::from_ptr(node.ifa_name) };
        let point_to_point = node.ifa_flags & libc::IFF_POINTOPOINT as libc::c_uint != 0;
        out.push(Address {
            interface: name.to_string_lossy().into_owned(),
            loopback: node.ifa_flags & libc::IFF_LOOPBACK as libc::c_uint != 0,
            address,
            netmask,
            destination: if point_to_point { peer } else { None },
        });
    }
    Ok(out)
}

/// # Safety
/// `pointer` is null or points to a socket address of the family in its first member.
unsafe fn ip(pointer: *const libc::sockaddr) -> Option<IpAddr> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: the caller's promise; the family decides the concrete type.
    unsafe {
        match libc::c_int::from((*pointer).sa_family) {
            libc::AF_INET => {
                let address = ptr::read_unaligned(pointer.cast::<libc::sockaddr_in>());
                Some(IpAddr::V4(Ipv4Addr::from(u32::from_be(
                    address.sin_addr.s_addr,
                ))))
            }
            libc::AF_INET6 => {
                let address = ptr::read_unaligned(pointer.cast::<libc::sockaddr_in6>());
                Some(IpAddr::V6(Ipv6Addr::from(address.sin6_addr.s6_addr)))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_without_a_fault_and_loopback_is_marked() {
        for address in addresses().unwrap() {
            assert_eq!(
                address.loopback,
                address.address.is_loopback(),
                "{address:?}"
            );
        }
    }
}
