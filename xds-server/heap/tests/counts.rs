//! The allocator installed, and held to what is known to be allocated.

use isthmus_heap::{CountingAllocator, Counts};

#[global_allocator]
static HEAP: CountingAllocator = CountingAllocator;

#[test]
fn what_a_thread_does_is_counted_to_the_byte() {
    let before = Counts::of_thread();
    let mut bytes: Vec<u8> = Vec::with_capacity(1000);
    let held = Counts::of_thread() - before;
    assert_eq!((held.allocations, held.live_bytes()), (1, 1000));

    bytes.reserve_exact(3000);
    let grown = Counts::of_thread() - before;
    assert_eq!((grown.allocations, grown.live_bytes()), (2, 3000));

    drop(bytes);
    let after = Counts::of_thread() - before;
    assert_eq!((after.allocations, after.live_bytes()), (2, 0));
}

#[test]
fn the_process_counts_all_threads_those_that_ended_too() {
    // More than have counters of their own, one after the other.
    let threads: u64 = 100;
    let each: usize = 1 << 20;
    let before = Counts::of_process();
    for _ in 0..threads {
        let thread = std::thread::spawn(move || drop(std::hint::black_box(vec![1_u8; each])));
        thread.join().expect("it only allocates");
    }
    let during = Counts::of_process() - before;
    assert!(during.allocations >= threads);
    let bytes = threads * each as u64;
    assert!(during.allocated_bytes >= bytes, "{during:?}");
    assert!(during.freed_bytes >= bytes, "{during:?}");
    // What other tests of this process hold meanwhile is far less.
    assert!(during.live_bytes() < each as u64, "{during:?}");
}
