//! Wakes the tracing thread out of `waitpid` at a moment.
//!
//! A per-thread timer sends a real-time signal whose handler does nothing, so that a blocked
//! `waitpid` returns `EINTR`. The timer goes off again every few milliseconds until it is set anew,
//! so a signal that comes just before the wait loses nothing.
//!
//! Not here: what is due at that moment.
#![expect(unsafe_code, reason = "timers and signal dispositions are raw system calls")]

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::errno::Errno;

/// How often a due alarm repeats itself.
const REPEAT: Duration = Duration::from_millis(5);

/// A timer of the thread that made it.
#[derive(Debug)]
pub(super) struct Alarm {
    timer: libc::timer_t,
    set_for: Option<Instant>,
    /// The signal goes to the thread that made the timer.
    _of_one_thread: PhantomData<*const ()>,
}

impl Alarm {
    /// A timer for the calling thread, not set.
    pub(super) fn new() -> Result<Self, Errno> {
        static SIGNAL: OnceLock<Result<i32, Errno>> = OnceLock::new();
        let signal = (*SIGNAL.get_or_init(claim_signal))?;
        unblock(signal)?;
        // SAFETY: an all-zero sigevent is a valid one; the fields that matter are set below.
        let mut event = unsafe { MaybeUninit::<libc::sigevent>::zeroed().assume_init() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal;
        // SAFETY: gettid has no preconditions.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer = std::ptr::null_mut();
        // SAFETY: both pointers are to live locals of the types that the call takes.
        let made =
            unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
        Errno::result(made)?;
        Ok(Self { timer, set_for: None, _of_one_thread: PhantomData })
    }

    /// Whether it is set for `moment` or an earlier one. Once due it goes on going off.
    pub(super) fn goes_off_by(&self, moment: Instant) -> bool {
        self.set_for.is_some_and(|set| set <= moment)
    }

    /// Sets the alarm for `moment`, or turns it off. Free if nothing changes.
    pub(super) fn set(&mut self, moment: Option<Instant>) -> Result<(), Errno> {
        if self.set_for == moment {
            return Ok(());
        }
        let (first, repeat) = match moment {
            Some(moment) => {
                let left = moment.saturating_duration_since(Instant::now());
                (left.max(Duration::from_nanos(1)), REPEAT)
            }
            None => (Duration::ZERO, Duration::ZERO),
        };
        let times = libc::itimerspec { it_interval: spec(repeat), it_value: spec(first) };
        // SAFETY: the timer is ours and alive, `times` is a live local, and no old value is asked.
        let set =
            unsafe { libc::timer_settime(self.timer, 0, &raw const times, std::ptr::null_mut()) };
        Errno::result(set)?;
        self.set_for = moment;
        Ok(())
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: the timer was made by `new` and is deleted once.
        unsafe { libc::timer_delete(self.timer) };
    }
}

fn spec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: libc::time_t::try_from(duration.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(duration.subsec_nanos().cast_signed()),
    }
}

/// Takes the first real-time signal that nobody in this process handles.
fn claim_signal() -> Result<i32, Errno> {
    extern "C" fn nothing(_signal: libc::c_int) {}
    for signal in libc::SIGRTMIN() + 2..=libc::SIGRTMAX() {
        // SAFETY: an all-zero sigaction is a valid one (default disposition, empty mask).
        let mut present = unsafe { MaybeUninit::<libc::sigaction>::zeroed().assume_init() };
        // SAFETY: a null new action only asks for the present one, written to a live local.
        let asked = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut present) };
        if Errno::result(asked).is_err() || present.sa_sigaction != libc::SIG_DFL {
            continue;
        }
        let handler: extern "C" fn(libc::c_int) = nothing;
        // No SA_RESTART: the point is that waitpid returns.
        present.sa_flags = 0;
        present.sa_sigaction = handler as libc::sighandler_t;
        // SAFETY: the handler does nothing, so it is safe at any moment; the action is a live
        // local and the old one is not asked for.
        let set = unsafe { libc::sigaction(signal, &raw const present, std::ptr::null_mut()) };
        return Errno::result(set).map(|_| signal);
    }
    Err(Errno::EAGAIN)
}

/// Tells the kernel not to send SIGCHLD for every *stop* of a child, which costs 5 % of each. The
/// signal is sent for ends as before. Does nothing if the process has a handler for it.
pub(super) fn quiet_stops() {
    // SAFETY: an all-zero sigaction is a valid one (default disposition, empty mask).
    let mut action = unsafe { MaybeUninit::<libc::sigaction>::zeroed().assume_init() };
    // SAFETY: a null new action only asks for the present one, written to a live local.
    let asked = unsafe { libc::sigaction(libc::SIGCHLD, std::ptr::null(), &raw mut action) };
    let default = asked == 0 && action.sa_sigaction == libc::SIG_DFL;
    if default && action.sa_flags & libc::SA_NOCLDSTOP == 0 {
        action.sa_flags |= libc::SA_NOCLDSTOP;
        // SAFETY: the disposition stays the default one; the action is a live local.
        unsafe { libc::sigaction(libc::SIGCHLD, &raw const action, std::ptr::null_mut()) };
    }
}

fn unblock(signal: i32) -> Result<(), Errno> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set that the other calls read; the mask changed is that
    // of the calling thread.
    let changed = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut())
    };
    if changed == 0 { Ok(()) } else { Err(Errno::from_raw(changed)) }
}
