//! Memory for activations that is used again and again.
//!
//! A training step needs the same hundred large buffers every time. From the system each would come as pages that are
//! zeroed when they are first touched, which takes as long as many of the operations; so buffers go back to a pool when
//! their tensor is dropped, and the next step finds them there. They lie in huge pages where Linux gives them, which
//! spares the processor most of its address translation.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::{Bytes, Shape};
use burn_flex::FlexTensor;
use burn_std::{AllocationController, AllocationProperty};

use super::element::Element;

const HUGE_PAGE: usize = 2 << 20;
/// Sizes of small blocks are multiples of this, so that nearly equal ones can stand in for each other.
const GRANULE: usize = 4 << 10;

/// Of large networks less than a quarter of the memory lies idle.
const MAX_IDLE: usize = 1 << 30;

static POOL: Mutex<Pool> = Mutex::new(Pool { idle: BTreeMap::new(), idle_bytes: 0, live_bytes: 0, peak_bytes: 0 });

/// An uninitialised buffer of `len` values, for kernels that write every element.
pub fn buffer<T: Element>(len: usize) -> Buffer<T> {
    Buffer { block: Some(pool().take(len * size_of::<T>())), len, element: PhantomData }
}

/// A buffer on its way to become a tensor.
pub struct Buffer<T: Element> {
    /// `None` once it has become one.
    block: Option<Block>,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Element> Buffer<T> {
    /// The tensor over the buffer's values, in C order.
    pub fn into_tensor<const D: usize>(mut self, shape: [usize; D]) -> FlexTensor {
        debug_assert_eq!(self.len, shape.iter().product::<usize>());
        let block = self.block.take().expect("it is taken only here, where the buffer ends");
        let controller = Box::new(PooledAllocation(block));
        // SAFETY: the block holds `len` values, and the kernel that asked for them has written all of them.
        let bytes = unsafe { Bytes::from_controller(controller, self.len * size_of::<T>()) };
        FlexTensor::new(bytes, burn_flex::Layout::contiguous(Shape::from(shape.to_vec())), T::DTYPE)
    }

    fn pointer(&self) -> *mut T {
        self.block.as_ref().expect("it is there until `into_tensor`").pointer.as_ptr().cast()
    }
}

impl<T: Element> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the block holds `len` values; every bit pattern is one.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.len) }
    }
}

impl<T: Element> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and the block is this buffer's alone.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(), self.len) }
    }
}

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            pool().give(block);
        }
    }
}

/// A tensor's hold on its block.
struct PooledAllocation(Block);

impl AllocationController for PooledAllocation {
    fn alloc_align(&self) -> usize {
        self.0.layout.align()
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Other
    }

    unsafe fn memory_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: the block is this allocation's alone.
        unsafe { std::slice::from_raw_parts_mut(self.0.pointer.as_ptr().cast(), self.0.layout.size()) }
    }

    fn memory(&self) -> &[MaybeUninit<u8>] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.0.pointer.as_ptr().cast(), self.0.layout.size()) }
    }
}

impl Drop for PooledAllocation {
    fn drop(&mut self) {
        pool().give(Block { ..self.0 });
    }
}

/// Memory from the system. It has no destructor: whoever holds it gives it back to the pool.
struct Block {
    pointer: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a block is plain memory with one holder.
unsafe impl Send for Block {}
unsafe impl Sync for Block {}

struct Pool {
    /// By size.
    idle: BTreeMap<usize, Vec<Block>>,
    idle_bytes: usize,
    live_bytes: usize,
    /// The most bytes that were live at a time.
    peak_bytes: usize,
}

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    fn take(&mut self, bytes: usize) -> Block {
        let layout = layout(bytes);
        let block = self.take_idle(layout.size()).unwrap_or_else(|| {
            self.shrink(layout.size());
            allocate(layout)
        });
        self.live_bytes += block.layout.size();
        self.peak_bytes = self.peak_bytes.max(self.live_bytes);
        block
    }

    fn give(&mut self, block: Block) {
        let size = block.layout.size();
        self.live_bytes -= size;
        self.idle_bytes += size;
        self.idle.entry(size).or_default().push(block);
    }

    /// The smallest idle block that is large enough, unless an eighth of it would be wasted.
    fn take_idle(&mut self, size: usize) -> Option<Block> {
        let (&found, blocks) = self.idle.range_mut(size..=size + size / 8).next()?;
        let block = blocks.pop().expect("empty lists are removed");
        if blocks.is_empty() {
            self.idle.remove(&found);
        }
        self.idle_bytes -= found;
        Some(block)
    }

    /// Makes room for `size` new bytes: what lies idle in sizes that nobody asks for any more goes back to the system,
    /// until the whole is at most the [`allowance`] above what was ever in use.
    fn shrink(&mut self, size: usize) {
        let peak = self.peak_bytes.max(self.live_bytes + size);
        while self.live_bytes + self.idle_bytes + size > peak + allowance(peak) {
            let Some(mut largest) = self.idle.last_entry() else { return };
            let block = largest.get_mut().pop().expect("empty lists are removed");
            if largest.get().is_empty() {
                largest.remove();
            }
            self.idle_bytes -= block.layout.size();
            // SAFETY: it was allocated with this layout and nobody holds it.
            unsafe { dealloc(block.pointer.as_ptr(), block.layout) };
        }
    }
}

/// Bytes that may lie idle when `peak` were in use at most: the sizes that the end of a step needs wait while its middle
/// runs. With an eighth instead of a quarter a step takes a tenth longer.
fn allowance(peak: usize) -> usize {
    (peak / 4).min(MAX_IDLE)
}

fn layout(bytes: usize) -> Layout {
    let (granule, alignment) = if bytes >= HUGE_PAGE { (HUGE_PAGE, HUGE_PAGE) } else { (GRANULE, 64) };
    let size = bytes.max(1).next_multiple_of(granule);
    Layout::from_size_align(size, alignment).expect("a tensor is smaller than the address space")
}

fn allocate(layout: Layout) -> Block {
    // SAFETY: the size is not zero.
    let Some(pointer) = NonNull::new(unsafe { alloc(layout) }) else { handle_alloc_error(layout) };
    #[cfg(target_os = "linux")]
    if layout.align() == HUGE_PAGE {
        // SAFETY: the range is that of the block. Where the kernel refuses, pages stay small.
        unsafe { libc::madvise(pointer.as_ptr().cast(), layout.size(), libc::MADV_HUGEPAGE) };
    }
    Block { pointer, layout }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Pool {
        Pool { idle: BTreeMap::new(), idle_bytes: 0, live_bytes: 0, peak_bytes: 0 }
    }

    #[test]
    fn a_block_of_the_same_size_is_used_again() {
        let mut pool = empty();
        let block = pool.take(3 << 20);
        let address = block.pointer;
        pool.give(block);
        let again = pool.take((3 << 20) - 100);
        assert_eq!(again.pointer, address);
        pool.give(again);
    }

    #[test]
    fn idle_blocks_of_other_sizes_do_not_pile_up() {
        let mut pool = empty();
        for size in 1..40 {
            let block = pool.take(size * HUGE_PAGE);
            pool.give(block);
            assert!(pool.idle_bytes <= pool.peak_bytes + allowance(pool.peak_bytes), "{} idle", pool.idle_bytes);
        }
        assert_eq!(pool.live_bytes, 0);
    }

    #[test]
    fn a_tensor_gives_its_buffer_back() {
        let mut values = buffer::<f32>(6);
        values.copy_from_slice(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let tensor = values.into_tensor([2, 3]);
        assert_eq!(tensor.storage::<f32>(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        // A copy on write leaves the pool.
        assert_eq!(tensor.to_contiguous().into_data().to_vec::<f32>().unwrap().len(), 6);
    }
}
