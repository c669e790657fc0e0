//! Crops are made in buffers that are used again: once they have grown, no crop takes memory.

use dino_host::image::Image;
use dino_host::image::augment::{Augment, Scratch};
use dino_kernel::rng::{Kind, Rng};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, counting the calls of each thread.
struct Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn crops_take_no_memory_once_their_buffers_have_grown() {
    let recipe = Augment { global_size: 64, local_size: 32, ..Augment::default() };
    let (width, height) = (120, 90);
    let pixels = (0..width * height * 3).map(|i| (i * 7919 % 251) as u8).collect();
    let image = Image { width, height, channels: 3, pixels };
    let (mut scratch, mut out) = (Scratch::default(), vec![0.0; 3 * 64 * 64]);
    let mut all = || {
        let before = CALLS.get();
        for number in 0..200 {
            for view in 0..10 {
                let side = if view < 2 { 64 } else { 32 };
                let mut rng = Rng::new(0, 0, number, view, Kind::Augment, 0);
                recipe.crop_with(&mut scratch, &image, view as usize, &mut rng, &mut out[..3 * side * side]);
            }
        }
        CALLS.get() - before
    };
    let first = all();
    assert!(first > 0, "nothing is counted");
    assert_eq!(all(), 0, "allocations, after {first} in the first round");
}
