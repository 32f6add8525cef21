//! Pool of reusable memory blocks for activations.
//!
//! A training step needs the same hundred large buffers every time. Fresh memory from the system is zeroed page by page
//! on first touch, which takes as long as many operations. Therefore a buffer returns to the pool when its tensor is
//! dropped, and the next step reuses it. Large blocks use huge pages if Linux provides them, which avoids most TLB
//! misses.

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

use super::element::ActivationElement;

const HUGE_PAGE: usize = 2 << 20;
/// Sizes of small blocks are rounded up to this, so that buffers of similar size can reuse each other's block.
const GRANULE: usize = 4 << 10;

/// Upper limit on idle bytes; for large networks it is below a quarter of the memory.
const MAX_IDLE: usize = 1 << 30;

static POOL: Mutex<Pool> = Mutex::new(Pool { idle: BTreeMap::new(), idle_bytes: 0, live_bytes: 0, peak_bytes: 0 });

/// Returns an uninitialized buffer of `len` values, for kernels that write every element.
pub fn buffer<T: ActivationElement>(len: usize) -> Buffer<T> {
    Buffer { block: Some(pool().acquire(len * size_of::<T>())), len, element: PhantomData }
}

/// A buffer that is being filled before it becomes a tensor.
pub struct Buffer<T: ActivationElement> {
    /// `None` after `into_tensor`.
    block: Option<Block>,
    len: usize,
    element: PhantomData<T>,
}

impl<T: ActivationElement> Buffer<T> {
    /// Converts the buffer to a tensor in C order.
    pub fn into_tensor<const D: usize>(mut self, shape: [usize; D]) -> FlexTensor {
        debug_assert_eq!(self.len, shape.iter().product::<usize>());
        let block = self.block.take().expect("taken only here, which consumes the buffer");
        let controller = Box::new(PooledAllocation(block));
        // SAFETY: the block holds `len` values, and the kernel that requested the buffer has written all of them.
        let bytes = unsafe { Bytes::from_controller(controller, self.len * size_of::<T>()) };
        FlexTensor::new(bytes, burn_flex::Layout::contiguous(Shape::from(shape.to_vec())), T::DTYPE)
    }

    fn pointer(&self) -> *mut T {
        self.block.as_ref().expect("present until `into_tensor`").pointer.as_ptr().cast()
    }
}

impl<T: ActivationElement> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the block holds `len` values, and every bit pattern is a valid value.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.len) }
    }
}

impl<T: ActivationElement> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; the buffer owns the block exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(), self.len) }
    }
}

impl<T: ActivationElement> Drop for Buffer<T> {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            pool().release(block);
        }
    }
}

/// Returns a tensor's block to the pool when dropped.
struct PooledAllocation(Block);

impl AllocationController for PooledAllocation {
    fn alloc_align(&self) -> usize {
        self.0.layout.align()
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Other
    }

    unsafe fn memory_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: the allocation owns the block exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.0.pointer.as_ptr().cast(), self.0.layout.size()) }
    }

    fn memory(&self) -> &[MaybeUninit<u8>] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.0.pointer.as_ptr().cast(), self.0.layout.size()) }
    }
}

impl Drop for PooledAllocation {
    fn drop(&mut self) {
        pool().release(Block { ..self.0 });
    }
}

/// System memory. It has no destructor; its owner must return it to the pool.
struct Block {
    pointer: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a block is plain memory with a single owner.
unsafe impl Send for Block {}
// SAFETY: as for `Send`.
unsafe impl Sync for Block {}

struct Pool {
    /// Idle blocks by size.
    idle: BTreeMap<usize, Vec<Block>>,
    idle_bytes: usize,
    live_bytes: usize,
    /// Maximum number of live bytes so far.
    peak_bytes: usize,
}

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    fn acquire(&mut self, bytes: usize) -> Block {
        let layout = layout(bytes);
        let block = self.take_idle(layout.size()).unwrap_or_else(|| {
            self.shrink(layout.size());
            allocate(layout)
        });
        self.live_bytes += block.layout.size();
        self.peak_bytes = self.peak_bytes.max(self.live_bytes);
        block
    }

    fn release(&mut self, block: Block) {
        let size = block.layout.size();
        self.live_bytes -= size;
        self.idle_bytes += size;
        self.idle.entry(size).or_default().push(block);
    }

    /// Takes the smallest idle block that is large enough, unless more than an eighth of `size` would be wasted.
    fn take_idle(&mut self, size: usize) -> Option<Block> {
        let (&found, blocks) = self.idle.range_mut(size..=size + size / 8).next()?;
        let block = blocks.pop().expect("empty lists are removed");
        if blocks.is_empty() {
            self.idle.remove(&found);
        }
        self.idle_bytes -= found;
        Some(block)
    }

    /// Makes room for `size` new bytes: frees idle blocks, largest first, until the total is at most [`allowance`]
    /// above the peak of live bytes.
    fn shrink(&mut self, size: usize) {
        let peak = self.peak_bytes.max(self.live_bytes + size);
        while self.live_bytes + self.idle_bytes + size > peak + allowance(peak) {
            let Some(mut largest) = self.idle.last_entry() else { return };
            let block = largest.get_mut().pop().expect("empty lists are removed");
            if largest.get().is_empty() {
                largest.remove();
            }
            self.idle_bytes -= block.layout.size();
            // SAFETY: the block was allocated with this layout and has no owner.
            unsafe { dealloc(block.pointer.as_ptr(), block.layout) };
        }
    }
}

/// Maximum number of idle bytes for a given peak of live bytes. Blocks of sizes needed at the end of a step stay idle
/// in its middle. With an eighth instead of a quarter, a step takes a tenth longer.
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
        // SAFETY: the range is that of the block. If the kernel refuses, pages stay small.
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
    fn reuses_a_block_of_similar_size() {
        let mut pool = empty();
        let block = pool.acquire(3 << 20);
        let address = block.pointer;
        pool.release(block);
        let again = pool.acquire((3 << 20) - 100);
        assert_eq!(again.pointer, address);
        pool.release(again);
    }

    #[test]
    fn frees_idle_blocks_of_other_sizes() {
        let mut pool = empty();
        for size in 1..40 {
            let block = pool.acquire(size * HUGE_PAGE);
            pool.release(block);
            assert!(pool.idle_bytes <= pool.peak_bytes + allowance(pool.peak_bytes), "{} idle", pool.idle_bytes);
        }
        assert_eq!(pool.live_bytes, 0);
    }

    #[test]
    fn a_tensor_holds_the_values_of_its_buffer() {
        let mut values = buffer::<f32>(6);
        values.copy_from_slice(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let tensor = values.into_tensor([2, 3]);
        assert_eq!(tensor.storage::<f32>(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        // A copy-on-write copies out of the pool.
        assert_eq!(tensor.to_contiguous().into_data().to_vec::<f32>().unwrap().len(), 6);
    }
}
