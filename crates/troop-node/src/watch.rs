//! Waits for a descriptor in the event loop of JavaScript's thread, by libuv's
//! [`uv_poll_t`](https://docs.libuv.org/en/v1.x/poll.html), which Node-API does not cover. Node
//! exports the functions of libuv to addons.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::fmt;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use napi::bindgen_prelude::{ArrayBuffer, FnArgs, FunctionRef};
use napi::{Env, Error, JsValue as _, Result, Status, sys};

/// `uv_poll_t`, and as the pointers that are wanted, `uv_handle_t` and `uv_loop_t`.
type Raw = c_void;

/// `UV_POLL` and `UV_READABLE`: https://github.com/libuv/libuv/blob/v1.x/include/uv.h.
const POLL: c_int = 8;
const READABLE: c_int = 1;

/// Size of the read buffer that is kept.
const MAX_KEPT_BUFFER: usize = 64 * 1024;

unsafe extern "C" {
    fn uv_handle_size(kind: c_int) -> usize;
    fn uv_poll_init(of: *mut Raw, handle: *mut Raw, fd: c_int) -> c_int;
    fn uv_poll_start(
        handle: *mut Raw,
        events: c_int,
        callback: unsafe extern "C" fn(*mut Raw, c_int, c_int),
    ) -> c_int;
    fn uv_poll_stop(handle: *mut Raw) -> c_int;
    fn uv_unref(handle: *mut Raw);
    fn uv_close(handle: *mut Raw, callback: unsafe extern "C" fn(*mut Raw));
    fn uv_handle_set_data(handle: *mut Raw, data: *mut c_void);
    fn uv_handle_get_data(handle: *const Raw) -> *mut c_void;
}

/// What JavaScript gets to read.
pub(crate) type Deliver = FunctionRef<FnArgs<(ArrayBuffer<'static>,)>, ()>;

/// Reads available data and appends it. Returns false to stop until the next start.
pub(crate) type Read = Box<dyn Fn(&mut Vec<u8>) -> bool>;

/// The data of the handle; lives until libuv has closed the handle.
struct Inner {
    /// Size of the handle, in bytes.
    words: usize,
    _fd: OwnedFd,
    env: Env,
    read: Read,
    /// Taken when the handle closes.
    deliver: RefCell<Option<Deliver>>,
    buffer: RefCell<Vec<u8>>,
}

/// Reads a descriptor when it is readable, and passes the data to JavaScript. Does not keep the
/// event loop alive. Belongs to the thread that created it.
pub(crate) struct Watch {
    /// Its data is an [`Inner`].
    handle: *mut Raw,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl Watch {
    /// To be started.
    pub(crate) fn new(env: &Env, fd: OwnedFd, read: Read, deliver: Deliver) -> Result<Watch> {
        let of: *mut Raw = env.get_uv_event_loop()?.cast();
        // SAFETY: only reads a table of libuv's.
        let words = unsafe { uv_handle_size(POLL) }.div_ceil(size_of::<u128>());
        let handle: *mut Raw = Box::into_raw(vec![0u128; words].into_boxed_slice()).cast();
        // SAFETY: the loop is this thread's, as we are called by JavaScript; the room is as large
        // as libuv says and aligned for anything in it.
        let status = unsafe { uv_poll_init(of, handle, fd.as_raw_fd()) };
        if status != 0 {
            // SAFETY: libuv did not take it.
            unsafe { free(handle, words) };
            return Err(Error::new(
                Status::GenericFailure,
                format!("libuv cannot wait for a channel: error {status}"),
            ));
        }
        let inner = Inner {
            words,
            _fd: fd,
            env: *env,
            read,
            deliver: RefCell::new(Some(deliver)),
            buffer: RefCell::default(),
        };
        // SAFETY: the handle was initialised above.
        unsafe {
            uv_handle_set_data(handle, Box::into_raw(Box::new(inner)).cast());
            uv_unref(handle);
        }
        Ok(Watch { handle })
    }

    /// Starts to wait, or continues.
    pub(crate) fn start(&self) {
        // SAFETY: the handle is open, as only `drop` closes it, and this is its loop's thread, as
        // `Watch` is not `Send`. It fails only if it was closed.
        unsafe { uv_poll_start(self.handle, READABLE, called) };
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // SAFETY: the handle is open until it is closed here, once, as `Watch` is dropped once; its
        // data lives until then. The function is not borrowed: `deliver` borrows it only while
        // nothing else runs.
        unsafe {
            let inner: &Inner = &*uv_handle_get_data(self.handle).cast();
            drop(inner.deliver.take());
            uv_close(self.handle, closed);
        }
    }
}

/// # Safety
/// To be called once, with what `Watch::new` has made, when libuv does not use it.
unsafe fn free(handle: *mut Raw, words: usize) {
    // SAFETY: as the caller promises, it came from a box of so many words.
    drop(unsafe {
        Box::from_raw(std::ptr::slice_from_raw_parts_mut(handle.cast::<u128>(), words))
    });
}

unsafe extern "C" fn called(handle: *mut Raw, status: c_int, _events: c_int) {
    // SAFETY: libuv calls this with a handle that was started, whose data is an `Inner` that lives
    // until the loop, which is here now, has closed the handle. It is not borrowed mutably by
    // anybody.
    let inner: &Inner = unsafe { &*uv_handle_get_data(handle).cast() };
    let mut bytes = inner.buffer.take();
    // A panic must not get into libuv.
    let goes_on = catch_unwind(AssertUnwindSafe(|| (inner.read)(&mut bytes))).unwrap_or(false);
    // What has ended is found out by reading, also by the engine.
    if status != 0 || !goes_on {
        // SAFETY: the handle is open: what is called above does not drop a `Watch`.
        unsafe { uv_poll_stop(handle) };
    }
    if !bytes.is_empty() {
        let _ = inner.env.run_in_scope(|| deliver(inner, &bytes));
    }
    bytes.clear();
    bytes.shrink_to(MAX_KEPT_BUFFER);
    inner.buffer.replace(bytes);
}

/// Calls JavaScript, and runs its ticks and promises afterwards, as Node does for its own I/O.
fn deliver(inner: &Inner, bytes: &[u8]) -> Result<()> {
    let env = &inner.env;
    let (function, global) = {
        let deliver = inner.deliver.borrow();
        let Some(function) = deliver.as_ref() else { return Ok(()) };
        (function.borrow_back(env)?.raw(), env.get_global()?.raw())
    };
    let chunk = [ArrayBuffer::copy_from(env, bytes)?.raw()];
    let mut result = std::ptr::null_mut();
    // SAFETY: the values were made above, in the scope that is open. Without a context of ours
    // there is the default one; JavaScript enters the right one itself.
    let status = unsafe {
        sys::napi_make_callback(
            env.raw(),
            std::ptr::null_mut(),
            global,
            function,
            chunk.len(),
            chunk.as_ptr(),
            &mut result,
        )
    };
    if status == sys::Status::napi_pending_exception {
        let mut exception = std::ptr::null_mut();
        // SAFETY: the status says that an exception is pending, and no other code handles it: this
        // makes an `uncaughtException` of it.
        unsafe {
            sys::napi_get_and_clear_last_exception(env.raw(), &mut exception);
            sys::napi_fatal_exception(env.raw(), exception);
        }
    }
    Ok(())
}

unsafe extern "C" fn closed(handle: *mut Raw) {
    // SAFETY: the data came from `Box::into_raw` and nothing uses it any more: the `Watch` is
    // dropped, and libuv has let go of the handle.
    unsafe {
        let inner = Box::from_raw(uv_handle_get_data(handle).cast::<Inner>());
        free(handle, inner.words);
    }
}
