//! Survives reading memory that its owner has taken away.
//!
//! The kernel sends `SIGBUS` to whoever touches a page behind the end of a mapped file. The handler here looks the
//! address up among the guarded ranges and puts a page of zeroes there, after which the read goes on. A fault
//! anywhere else goes to the handler that was there before, as if ours did not exist.

use std::io;
use std::mem;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most ranges guarded at a time; each is one picture of one monitor that somebody still holds.
const MAX_GUARDS: usize = 1024;

/// A start of 0 is a free place, of 1 one that is being filled.
const FREE: usize = 0;
const TAKEN: usize = 1;

static RANGES: [Range; MAX_GUARDS] = [const { Range { start: AtomicUsize::new(FREE), end: AtomicUsize::new(0) } }; _];
static BEFORE: OnceLock<io::Result<libc::sigaction>> = OnceLock::new();

/// Guards a range of memory while it lives.
#[derive(Debug)]
pub(super) struct Guard {
    range: &'static Range,
}

#[derive(Debug)]
struct Range {
    start: AtomicUsize,
    end: AtomicUsize,
}

impl Guard {
    /// Guards `length` bytes from `start` on, which is a page's beginning.
    pub(super) fn new(start: usize, length: usize) -> io::Result<Self> {
        if let Err(error) = BEFORE.get_or_init(install) {
            return Err(io::Error::new(error.kind(), error.to_string()));
        }
        let take =
            |range: &&Range| range.start.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok();
        let range = RANGES.iter().find(take).ok_or_else(|| io::Error::other("too many pictures are mapped"))?;
        range.end.store(start + length, Ordering::Relaxed);
        range.start.store(start, Ordering::Release);
        Ok(Self { range })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.range.start.store(FREE, Ordering::Release);
    }
}

impl Range {
    fn contains(&self, address: usize) -> bool {
        // A range that holds the address of a fault is being read, so it is not changing now.
        let start = self.start.load(Ordering::Acquire);
        start > TAKEN && address >= start && address < self.end.load(Ordering::Relaxed)
    }
}

/// Puts the handler in place and returns the one that was there.
fn install() -> io::Result<libc::sigaction> {
    // SAFETY: an all-zero `sigaction` is a valid value, and both pointers are to values that live here. The handler
    // calls only what a signal handler may (mmap(2), sigaction(2)) and leaves `errno` as it was.
    unsafe {
        let mut before: libc::sigaction = mem::zeroed();
        let mut ours: libc::sigaction = mem::zeroed();
        ours.sa_sigaction = handle as *const () as usize;
        // On the alternative stack, since the handler before (Rust's own) must find a thread's overflown stack there.
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut ours.sa_mask);
        if libc::sigaction(libc::SIGBUS, &raw const ours, &raw mut before) == 0 {
            Ok(before)
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `info`; `si_addr` belongs to SIGBUS. `errno` is this thread's own.
    unsafe {
        let errno = *libc::__errno_location();
        let address = (*info).si_addr().addr();
        if !(RANGES.iter().any(|range| range.contains(address)) && put_zeroes(address)) {
            hand_on(signal, info, context);
        }
        *libc::__errno_location() = errno;
    }
}

/// Puts a page of zeroes over the page of `address`.
///
/// # Safety
///
/// The page belongs to a guarded mapping.
unsafe fn put_zeroes(address: usize) -> bool {
    // SAFETY: the page belongs to a mapping that only `Mapping` knows, which hands out no references into it.
    unsafe {
        let Ok(page) = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)) else { return false };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let at = ptr::without_provenance_mut(address & !(page - 1));
        libc::mmap(at, page, libc::PROT_READ, flags, -1, 0) != libc::MAP_FAILED
    }
}

/// Lets the handler before ours have the signal.
///
/// # Safety
///
/// The arguments are the ones the kernel passed.
unsafe fn hand_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: `before` is what the kernel returned as the handler, of the kind its flags say.
    unsafe {
        let before = BEFORE.get().and_then(|before| before.as_ref().ok());
        match before {
            Some(before) if before.sa_sigaction != libc::SIG_DFL && before.sa_sigaction != libc::SIG_IGN => {
                if before.sa_flags & libc::SA_SIGINFO != 0 {
                    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                        mem::transmute(before.sa_sigaction);
                    handler(signal, info, context);
                } else {
                    let handler: extern "C" fn(libc::c_int) = mem::transmute(before.sa_sigaction);
                    handler(signal);
                }
            }
            _ => {
                // The access is repeated on return, and then has its usual end.
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}
