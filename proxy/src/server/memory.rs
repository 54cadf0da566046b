//! Memory of the process: what the allocator says, and pages that start-up needed and serving does not.

use std::ffi::{CStr, c_void};
use std::ops::Range;
use std::ptr::null_mut;

/// What the allocator says, bytes.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    pub allocated: u64,
    pub heap: u64,
    pub resident: u64,
}

impl Memory {
    /// `None` when the allocator does not answer (it is another one, in tests).
    pub fn now() -> Option<Memory> {
        use tikv_jemalloc_ctl::{epoch, stats};
        epoch::advance().ok()?;
        Some(Memory {
            allocated: stats::allocated::read().ok()? as u64,
            heap: stats::mapped::read().ok()? as u64,
            resident: stats::resident::read().ok()? as u64,
        })
    }
}

/// Has freed pages that are past their time given back to the system. The allocator looks at its clock only when something
/// is allocated, so after a large push, or the end of much traffic, an idle process would keep them.
pub fn give_back() {
    // MALLCTL_ARENAS_ALL of jemalloc.h
    const ALL_ARENAS: &CStr = c"arena.4096.decay";
    // SAFETY: a name that ends in NUL; this call neither reads nor writes a value.
    let code = unsafe { tikv_jemalloc_sys::mallctl(ALL_ARENAS.as_ptr(), null_mut(), null_mut(), null_mut(), 0) };
    if code != 0 {
        tracing::debug!("the allocator does not give memory back: error {code}");
    }
}

/// Unmaps the pages of code and constants that start-up touched: flags, YAML, conversion. They are clean pages of the
/// binary, so nothing is lost: what is needed again comes back from the page cache at a fault of a microsecond. Without
/// this they stay counted as ours for as long as the process lives, and they are half of a small sidecar.
pub fn forget_start_up() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    let Ok(binary) = std::fs::read_link("/proc/self/exe") else { return };
    for range in clean_mappings(&maps, &binary.to_string_lossy()) {
        let length = range.end - range.start;
        // SAFETY: a private, never written file mapping: its pages read the same when they are faulted in again.
        let done =
            unsafe { rustix::mm::madvise(range.start as *mut c_void, length, rustix::mm::Advice::LinuxDontNeed) };
        if let Err(e) = done {
            tracing::debug!("pages of start-up stay mapped: {e}");
        }
    }
}

/// The binary's mappings that nothing ever writes to: the code, and the constants in front of it. The linker's relocated
/// data is read-only too, but was written to while the binary was loaded; it begins at another offset.
fn clean_mappings(maps: &str, binary: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    for line in maps.lines() {
        // proc(5): address range, permissions, offset, device, inode, path
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [addresses, permissions, offset, _, _, path] = fields[..] else { continue };
        let clean = permissions == "r-xp" || (permissions == "r--p" && offset.bytes().all(|b| b == b'0'));
        if path != binary || !clean {
            continue;
        }
        let parse = |text: &str| usize::from_str_radix(text, 16).ok();
        if let Some((Some(start), Some(end))) = addresses.split_once('-').map(|(a, b)| (parse(a), parse(b))) {
            found.push(start..end);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_and_constants_are_forgotten() {
        let maps = "\
55d0-55e0 r--p 00000000 fe:00 1 /bin/outrigger
55e0-55f0 r-xp 00010000 fe:00 1 /bin/outrigger
55f0-5600 r--p 00020000 fe:00 1 /bin/outrigger
5600-5610 rw-p 00030000 fe:00 1 /bin/outrigger
7000-7010 r-xp 00000000 fe:00 2 /lib/libc.so.6
7ffe-7fff rw-p 00000000 00:00 0 [stack]
";
        assert_eq!(clean_mappings(maps, "/bin/outrigger"), [0x55d0..0x55e0, 0x55e0..0x55f0]);
    }

    #[test]
    fn the_process_goes_on_after_forgetting() {
        forget_start_up();
        assert_eq!(format!("{:>3}", 7), "  7");
    }
}
