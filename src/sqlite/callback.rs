//! What SQLite calls back: while it waits for a lock, after each commit, and during long work.
//!
//! In: a connection. Out: [`Wired`], the connection with what the functions share with the store.
//! Not here: what follows from it. rusqlite's own hooks need `sqlite3_set_clientdata`, which
//! engines before 3.44 have not.
#![expect(unsafe_code, reason = "callbacks of SQLite are C functions with a pointer")]

use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ffi};

use crate::sqlite::backoff::Backoff;
use crate::sqlite::control::Control;

/// How many virtual machine instructions SQLite runs between two looks at the deadline.
const INSTRUCTIONS_A_LOOK: c_int = 10_000;

/// What the callbacks of one connection share with it.
#[derive(Debug)]
struct Shared {
    patience_ns: AtomicU64,
    log_pages: AtomicU32,
    wait: Mutex<Option<Backoff>>,
    until: Mutex<Option<Instant>>,
    stopped: AtomicBool,
}

/// A connection and, once they are installed, its callbacks.
#[derive(Debug)]
pub(crate) struct Wired {
    // The order matters: what is declared first is dropped first.
    control: Option<Control>,
    conn: Connection,
    callbacks: Option<Callbacks>,
}

impl Wired {
    /// The connection, without callbacks yet.
    pub(crate) fn new(conn: Connection) -> Self {
        Self { control: None, conn, callbacks: None }
    }

    /// Installs the callbacks, and what begins and ends a write: locks are waited for `patience`
    /// long.
    pub(crate) fn install(&mut self, patience: Duration) -> rusqlite::Result<()> {
        self.control = Some(Control::new(&self.conn)?);
        let callbacks = Callbacks::new(patience);
        let pointer = callbacks.0.as_ptr().cast::<c_void>();
        // SAFETY: the handle is open; the functions match what SQLite asks for, and the pointer
        // stays valid until after the close: both are owned here, and the connection goes first.
        unsafe {
            let handle = self.conn.handle();
            ffi::sqlite3_busy_handler(handle, Some(busy), pointer);
            ffi::sqlite3_wal_hook(handle, Some(committed), pointer);
        }
        self.callbacks = Some(callbacks);
        Ok(())
    }

    pub(crate) fn conn(&self) -> &Connection {
        &self.conn
    }

    /// What begins and ends a write, once it is installed.
    pub(crate) fn control(&self) -> Option<&Control> {
        self.control.as_ref()
    }

    /// The callbacks, if they are installed.
    pub(crate) fn callbacks(&self) -> Option<&Callbacks> {
        self.callbacks.as_ref()
    }

    /// Runs `work`, which SQLite interrupts after `budget`. Gives also whether it was.
    pub(crate) fn within<T>(
        &self,
        budget: Duration,
        work: impl FnOnce(&Connection) -> T,
    ) -> (T, bool) {
        let Some(callbacks) = &self.callbacks else { return (work(&self.conn), false) };
        let shared = callbacks.shared();
        *lock(&shared.until) = Instant::now().checked_add(budget);
        shared.stopped.store(false, Ordering::Relaxed);
        let pointer = callbacks.0.as_ptr().cast::<c_void>();
        // SAFETY: as in `install`.
        unsafe {
            let handle = self.conn.handle();
            ffi::sqlite3_progress_handler(handle, INSTRUCTIONS_A_LOOK, Some(look), pointer);
        }
        let value = work(&self.conn);
        // SAFETY: as in `install`; no function is left behind.
        unsafe { ffi::sqlite3_progress_handler(self.conn.handle(), 0, None, ptr::null_mut()) };
        (value, shared.stopped.load(Ordering::Relaxed))
    }

    /// Closes the connection; the callbacks go after it.
    pub(crate) fn close(self) -> rusqlite::Result<()> {
        let Self { control, conn, callbacks } = self;
        drop(control);
        let closed = conn.close().map_err(|(_, error)| error);
        drop(callbacks);
        closed
    }

    /// Leaves the connection open for ever: for a process that only inherited it.
    pub(crate) fn forget(self) {
        std::mem::forget(self);
    }
}

/// What the callbacks of one connection share with it: an allocation of its own, since SQLite has
/// its address.
#[derive(Debug)]
pub(crate) struct Callbacks(ptr::NonNull<Shared>);

// SAFETY: all of `Shared` can be used from any thread, and the pointer is the only owner.
unsafe impl Send for Callbacks {}

impl Callbacks {
    fn new(patience: Duration) -> Self {
        Self(ptr::NonNull::from(Box::leak(Box::new(Shared {
            patience_ns: AtomicU64::new(nanoseconds(patience)),
            log_pages: AtomicU32::new(0),
            wait: Mutex::new(None),
            until: Mutex::new(None),
            stopped: AtomicBool::new(false),
        }))))
    }

    fn shared(&self) -> &Shared {
        // SAFETY: allocated by `new`, freed by `drop` alone.
        unsafe { self.0.as_ref() }
    }

    /// Pages in the log after the last commit of this connection.
    pub(crate) fn log_pages(&self) -> u32 {
        self.shared().log_pages.load(Ordering::Relaxed)
    }

    /// Nothing is known of the log's length until the next commit.
    pub(crate) fn forget_log(&self) {
        self.shared().log_pages.store(0, Ordering::Relaxed);
    }

    /// How long a lock is waited for from now on; gives what it was.
    pub(crate) fn set_patience(&self, patience: Duration) -> Duration {
        let before = self.shared().patience_ns.swap(nanoseconds(patience), Ordering::Relaxed);
        Duration::from_nanos(before)
    }

    pub(crate) fn patience(&self) -> Duration {
        Duration::from_nanos(self.shared().patience_ns.load(Ordering::Relaxed))
    }
}

impl Drop for Callbacks {
    fn drop(&mut self) {
        // SAFETY: allocated as a box by `new`; `Wired` has closed the connection by now.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

unsafe extern "C" fn busy(pointer: *mut c_void, tries: c_int) -> c_int {
    // SAFETY: what `Wired::install` gave, which lives as long as the connection.
    let shared = unsafe { &*pointer.cast::<Shared>() };
    let mut wait = lock(&shared.wait);
    if tries == 0 {
        let patience = Duration::from_nanos(shared.patience_ns.load(Ordering::Relaxed));
        *wait = Some(Backoff::new(Instant::now(), patience));
    }
    c_int::from(wait.as_mut().is_some_and(Backoff::pause))
}

unsafe extern "C" fn committed(
    pointer: *mut c_void,
    _: *mut ffi::sqlite3,
    _: *const c_char,
    pages: c_int,
) -> c_int {
    // SAFETY: as in `busy`.
    let shared = unsafe { &*pointer.cast::<Shared>() };
    shared.log_pages.store(u32::try_from(pages).unwrap_or(0), Ordering::Relaxed);
    ffi::SQLITE_OK
}

unsafe extern "C" fn look(pointer: *mut c_void) -> c_int {
    // SAFETY: as in `busy`.
    let shared = unsafe { &*pointer.cast::<Shared>() };
    let late = lock(&shared.until).is_some_and(|until| Instant::now() >= until);
    if late {
        shared.stopped.store(true, Ordering::Relaxed);
    }
    c_int::from(late)
}
