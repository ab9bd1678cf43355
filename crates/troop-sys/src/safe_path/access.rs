//! Who can change a file or directory.

use std::ffi::{CStr, c_char};
use std::fs::Metadata;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::MetadataExt as _;
use std::ptr;

use rustix::fs::getxattr;
use rustix::io::Errno;

/// Maximum number of bytes of a user's or a group's entry.
const MAX_ENTRY: usize = 1 << 20;
/// Maximum number of bytes of an access control list that is read.
const MAX_ACL: usize = 4096;

/// Returns who can change a file or directory besides the trusted users, in words such as `owned by
/// user 1000, group 1000, mode 755`; `None` if nobody can. The descriptor may be one of `O_PATH`.
#[must_use]
pub fn who_can_change(file: impl AsFd, found: &Metadata) -> Option<String> {
    let own = rustix::process::geteuid().as_raw();
    let (uid, gid, mode) = (found.uid(), found.gid(), found.mode());
    let words = |more: &str| {
        Some(format!("owned by user {uid}, group {gid}, mode {:o}{more}", mode & 0o7777))
    };
    if (uid != 0 && uid != own) || mode & 0o002 != 0 {
        return words("");
    }
    // With an access control list, these bits are the maximum of what its entries grant.
    if mode & 0o020 == 0 {
        return None;
    }
    // A user's own group has the user's number (`USERGROUPS_ENAB` of `login.defs(5)`). Processes of
    // other users may have the group of root.
    if own == 0 || gid != own {
        return words("");
    }
    if !is_private(gid, own) {
        return words(", and other users are or may be members of that group");
    }
    if grants_others(file.as_fd(), gid, own) {
        return words(
            ", with an access control list that lets others write (`setfacl -b` removes it)",
        );
    }
    None
}

/// Whether a user is the only member of a group, by the user database. Of users of a directory
/// service, only those that the group's entry lists are known.
fn is_private(gid: u32, uid: u32) -> bool {
    let (Some(name), Some(members)) = (user_name(uid), group_members(gid)) else { return false };
    let Ok(users) = std::fs::read("/etc/passwd") else { return false };
    has_no_other_member(gid, uid, &name, &members, &users)
}

/// The same, of the members in a group's entry and the text of `passwd(5)`.
pub(super) fn has_no_other_member(
    gid: u32,
    uid: u32,
    name: &[u8],
    members: &[Vec<u8>],
    users: &[u8],
) -> bool {
    let number = |field: Option<&[u8]>| str::from_utf8(field?).ok()?.parse::<u32>().ok();
    let is_others = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b':').skip(2);
        let (user, group) = (number(fields.next()), number(fields.next()));
        group == Some(gid) && user != Some(uid)
    };
    members.iter().all(|member| member == name)
        && !users.split(|byte| *byte == b'\n').any(is_others)
}

/// Returns the name of a user, if the user database has it.
fn user_name(uid: u32) -> Option<Vec<u8>> {
    look_up(|buffer, len| {
        let mut entry = MaybeUninit::<libc::passwd>::uninit();
        let mut found = ptr::null_mut();
        // SAFETY: all pointers are valid for the call, and `len` is the length of `buffer`.
        let e = unsafe { libc::getpwuid_r(uid, entry.as_mut_ptr(), buffer, len, &raw mut found) };
        // SAFETY: without an error, `found` is null or points to an entry whose name is a string in
        // `buffer`.
        let name = || unsafe { (!found.is_null()).then(|| text((*found).pw_name)) };
        if e == 0 { Ok(name()) } else { Err(e) }
    })
}

/// Returns the members that are listed in a group's entry, if the user database has it.
fn group_members(gid: u32) -> Option<Vec<Vec<u8>>> {
    look_up(|buffer, len| {
        let mut entry = MaybeUninit::<libc::group>::uninit();
        let mut found = ptr::null_mut();
        // SAFETY: all pointers are valid for the call, and `len` is the length of `buffer`.
        let e = unsafe { libc::getgrgid_r(gid, entry.as_mut_ptr(), buffer, len, &raw mut found) };
        if e != 0 {
            return Err(e);
        }
        if found.is_null() {
            return Ok(None);
        }
        let mut members = Vec::new();
        // SAFETY: `found` points to an entry whose members are an array of strings in `buffer`, with
        // a null pointer at its end.
        unsafe {
            let mut at = (*found).gr_mem;
            while !(*at).is_null() {
                members.push(text(*at));
                at = at.add(1);
            }
        }
        Ok(Some(members))
    })
}

/// # Safety
/// The pointer must be one to a string that ends with NUL.
unsafe fn text(string: *const c_char) -> Vec<u8> {
    // SAFETY: the caller promises it.
    unsafe { CStr::from_ptr(string) }.to_bytes().to_vec()
}

/// Looks up an entry with a larger buffer each time that it does not fit.
fn look_up<T>(mut get: impl FnMut(*mut c_char, usize) -> Result<Option<T>, i32>) -> Option<T> {
    let mut buffer: Vec<c_char> = vec![0; 4096];
    loop {
        match get(buffer.as_mut_ptr(), buffer.len()) {
            Ok(found) => return found,
            Err(libc::ERANGE) if buffer.len() < MAX_ENTRY => buffer.resize(buffer.len() * 2, 0),
            Err(libc::EINTR) => {}
            Err(_) => return None,
        }
    }
}

/// Whether the access control list of a file, if it has one, lets others than this user write, or
/// cannot be read.
fn grants_others(file: impl AsFd, gid: u32, own: u32) -> bool {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let mut list = [0u8; MAX_ACL];
    match getxattr(path, "system.posix_acl_access", &mut list) {
        Ok(len) => list.get(..len).is_none_or(|list| lets_others_write(list, gid, own)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => false,
        Err(_) => true,
    }
}

/// Whether an access control list, as `linux/posix_acl_xattr.h` has it, lets others write.
pub(super) fn lets_others_write(list: &[u8], gid: u32, own: u32) -> bool {
    const WRITE: u16 = 2;
    const VERSION: [u8; 4] = 2u32.to_le_bytes();
    let Some(entries) = list.strip_prefix(&VERSION) else { return true };
    let (entries, rest) = entries.as_chunks::<8>();
    !rest.is_empty()
        || entries.iter().any(|[t0, t1, p0, p1, i0, i1, i2, i3]| {
            let (tag, rights) = (u16::from_le_bytes([*t0, *t1]), u16::from_le_bytes([*p0, *p1]));
            let id = u32::from_le_bytes([*i0, *i1, *i2, *i3]);
            let is_others = match tag {
                // The owner, the owning group, and the mask.
                0x01 | 0x04 | 0x10 => false,
                // A user and a group.
                0x02 => id != 0 && id != own,
                0x08 => id != gid,
                // All others, and what is unknown.
                _ => true,
            };
            is_others && rights & WRITE != 0
        })
}
