//! Memory that outlives the process: a file without a name, mapped, of which others may have the
//! descriptor.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, compiler_fence};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};

/// Memory that whoever has its descriptor can read, also after the end of this process.
#[derive(Debug)]
pub struct SharedMemory {
    file: OwnedFd,
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is this value's own, and is used through borrows of it alone.
unsafe impl Send for SharedMemory {}

/// Nobody may change the size: reading or writing beyond it would end the process.
fn size_seals() -> SealFlags {
    SealFlags::SHRINK | SealFlags::GROW
}

impl SharedMemory {
    /// Returns memory of this size, all zeroes.
    ///
    /// # Errors
    /// When out of descriptors or memory.
    pub fn new(len: usize) -> io::Result<SharedMemory> {
        let file = memfd_create("troop-journal", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let file = File::from(file);
        file.set_len(len as u64)?;
        fcntl_add_seals(&file, size_seals())?;
        SharedMemory::of(file.into())
    }

    /// Maps the memory that another process has made.
    ///
    /// # Errors
    /// If it is none; when out of memory.
    pub fn of(file: OwnedFd) -> io::Result<SharedMemory> {
        if !fcntl_get_seals(&file)?.contains(size_seals()) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its size may change"));
        }
        let len = usize::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
        // SAFETY: a new mapping at an address that the kernel chooses. It fails for a length of 0.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(at.cast::<u8>()) {
            Some(at) if at.as_ptr().cast() != libc::MAP_FAILED => {
                Ok(SharedMemory { file, at, len })
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The memory.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has this length as long as this value lives, and its file keeps its size.
        // No other process writes to it while this one has it.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }

    /// The memory, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and this is the only borrow.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }

    /// Everything that was written before is there for other processes before what is written after.
    pub fn fence(&self) {
        // Whoever reads it does so after the end of this process.
        compiler_fence(Ordering::SeqCst);
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing borrows it any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_there_for_who_has_the_descriptor() {
        let mut one = SharedMemory::new(10_000).unwrap();
        one.bytes_mut()[9_999] = 7;
        let mut other = SharedMemory::of(one.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!((other.bytes().len(), other.bytes()[9_999]), (10_000, 7));
        drop(one);
        other.bytes_mut()[0] = 8;
        assert_eq!(other.bytes()[0], 8);
        let growing = memfd_create("growing", MemfdFlags::ALLOW_SEALING).unwrap();
        assert!(SharedMemory::of(growing).is_err());
    }
}
