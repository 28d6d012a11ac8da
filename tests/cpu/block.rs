//! Memory of exactly so many bytes, beside which every access is noticed.
//!
//! Where there is `mmap`, a block ends where a page begins that nobody may access, or begins where
//! one ends: an access there ends the test with SIGSEGV. AddressSanitizer says more about blocks of
//! the heap, whose both ends it watches: with `XATTN_BLOCKS=heap`, as `scripts/sanitize` has it,
//! they come from there.

use std::alloc::{Layout, alloc, dealloc};
use std::cell::Cell;
use std::ptr::NonNull;

/// A block's initial bytes: NaN in every real dtype, and far beyond any index.
pub const UNWRITTEN: u8 = 0xff;

/// Where blocks begin that begin anywhere: all dtypes, and workspaces.
const ALIGNMENT: usize = 64;

/// Exclusively owned memory.
pub struct Block {
    at: NonNull<u8>,
    bytes: usize,
    home: Home,
}

enum Home {
    Heap(Layout),
    #[cfg(unix)]
    Pages(#[allow(dead_code, reason = "unmapped when it is dropped")] pages::Pages),
}

// SAFETY: the memory is owned like that of a `Vec<u8>`.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    /// A block of [`UNWRITTEN`] bytes that begins at a multiple of `alignment` (at most 64), which
    /// its size is a multiple of. The guards of neighbours alternate: behind one block, in front of
    /// the next.
    pub fn new(bytes: usize, alignment: usize) -> Self {
        assert!(ALIGNMENT.is_multiple_of(alignment) && bytes.is_multiple_of(alignment), "{bytes} bytes, {alignment}");
        #[cfg(unix)]
        if std::env::var_os("XATTN_BLOCKS").is_none_or(|kind| kind != "heap") {
            thread_local!(static BEHIND: Cell<bool> = const { Cell::new(false) });
            BEHIND.set(!BEHIND.get());
            return Block::in_pages(bytes, BEHIND.get());
        }
        let layout = Layout::from_size_align(bytes.max(1), alignment).unwrap();
        // SAFETY: the size is not 0.
        let at = NonNull::new(unsafe { alloc(layout) }).expect("memory");
        Block::filled(Block { at, bytes, home: Home::Heap(layout) })
    }

    /// Beside the page behind it, or beside the one in front of it.
    #[cfg(unix)]
    pub fn in_pages(bytes: usize, behind: bool) -> Self {
        let pages = pages::Pages::new(bytes);
        let at = if behind { pages.end(bytes) } else { pages.start() };
        Block::filled(Block { at, bytes, home: Home::Pages(pages) })
    }

    fn filled(block: Block) -> Self {
        // SAFETY: the block holds so many bytes.
        unsafe { block.at.write_bytes(UNWRITTEN, block.bytes) };
        block
    }

    pub fn address(&self) -> *mut u8 {
        self.at.as_ptr()
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the block holds so many bytes, all written by `filled`.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.bytes) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`, exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.bytes) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        match &self.home {
            // SAFETY: allocated with this layout.
            Home::Heap(layout) => unsafe { dealloc(self.at.as_ptr(), *layout) },
            #[cfg(unix)]
            Home::Pages(_) => {}
        }
    }
}

#[cfg(unix)]
mod pages {
    use std::ffi::{c_int, c_long, c_void};
    use std::ptr::{NonNull, null_mut};

    // The C library that the standard library links.
    unsafe extern "C" {
        fn mmap(at: *mut c_void, len: usize, access: c_int, flags: c_int, file: c_int, offset: c_long) -> *mut c_void;
        fn mprotect(at: *mut c_void, len: usize, access: c_int) -> c_int;
        fn munmap(at: *mut c_void, len: usize) -> c_int;
    }

    const NO_ACCESS: c_int = 0;
    const READ_WRITE: c_int = 3;
    const PRIVATE: c_int = 2;
    const ANONYMOUS: c_int = if cfg!(target_os = "linux") { 0x20 } else { 0x1000 };

    /// A multiple of every page size.
    const PAGE: usize = 64 << 10;

    /// Pages between two that nobody may access.
    pub struct Pages {
        map: NonNull<u8>,
        inner: usize,
    }

    impl Pages {
        pub fn new(bytes: usize) -> Self {
            let inner = bytes.max(1).next_multiple_of(PAGE);
            // SAFETY: new memory of the system's choice.
            let map = unsafe { mmap(null_mut(), inner + 2 * PAGE, NO_ACCESS, PRIVATE | ANONYMOUS, -1, 0) };
            assert_ne!(map as isize, -1, "mmap of {} bytes", inner + 2 * PAGE);
            let pages = Pages { map: NonNull::new(map.cast()).expect("mmap"), inner };
            // SAFETY: the pages between the guards, which were mapped just now.
            assert_eq!(unsafe { mprotect(pages.start().as_ptr().cast(), inner, READ_WRITE) }, 0, "mprotect");
            pages
        }

        pub fn start(&self) -> NonNull<u8> {
            // SAFETY: inside the map.
            unsafe { self.map.add(PAGE) }
        }

        /// Where the last `bytes` of the inner pages begin.
        pub fn end(&self, bytes: usize) -> NonNull<u8> {
            // SAFETY: inside the map: `bytes` are at most `inner`.
            unsafe { self.map.add(PAGE + self.inner - bytes) }
        }
    }

    impl Drop for Pages {
        fn drop(&mut self) {
            // SAFETY: mapped in `new` with this length, and its owner lends nothing any more.
            unsafe { munmap(self.map.as_ptr().cast(), self.inner + 2 * PAGE) };
        }
    }
}
