//! What a worker can do to the listening sockets that it was given.

/// Calls this with every listening socket of this process.
fn with_listeners(mut act: impl FnMut(std::os::fd::BorrowedFd<'_>)) {
    for number in 3..100 {
        #[expect(unsafe_code, reason = "only numbers tell which descriptors the library has")]
        // SAFETY: used at once, for calls that fail if it is not open or no socket.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
        if rustix::net::sockopt::socket_acceptconn(fd) == Ok(true) {
            act(fd);
        }
    }
}

/// Shuts them down.
pub fn shut() {
    with_listeners(|fd| {
        let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Both);
    });
}

/// Tries to install another program for the group, reports the result, and takes the group's
/// program away.
pub fn steer() -> String {
    let mut outcome = String::new();
    with_listeners(|fd| {
        let program =
            [troop_sys::group::Instruction { code: 6, jump_true: 0, jump_false: 0, operand: 2 }];
        outcome = troop_sys::group::steer(fd, &program)
            .map_or_else(|e| e.to_string(), |()| "it worked".into());
        option(fd, libc::SOL_SOCKET, libc::SO_DETACH_REUSEPORT_BPF, 0);
    });
    outcome
}

/// Sets an option that no library has.
fn option(
    fd: std::os::fd::BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) {
    use std::os::fd::AsRawFd;
    let size = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or_default();
    #[expect(unsafe_code, reason = "rustix does not have these options")]
    // SAFETY: the kernel reads an int of that size, which outlives the call.
    unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), size)
    };
}

/// Leaves handshakes unfinished until the client has said something, for a minute.
pub fn defer() {
    with_listeners(|fd| option(fd, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 60));
}
