//! Positions of the windows.

/// Returns the first voxels of the windows along each axis (nnU-Net v2, `compute_steps_for_sliding_window`).
///
/// Windows are evenly spaced, at most `step` of a window size apart, `0 < step <= 1`. The first starts at the image's
/// start and the last ends at its end. A window of one slice, that of a 2D network, covers every slice once.
///
/// # Panics
/// If the window is larger than the image or `step` is out of range.
pub fn window_steps(image: [usize; 3], window: [usize; 3], step: f64) -> [Vec<usize>; 3] {
    assert!(step > 0.0 && step <= 1.0, "a step of {step} windows");
    std::array::from_fn(|axis| {
        assert!(window[axis] <= image[axis], "a window of {window:?} in an image of {image:?}");
        let room = image[axis] - window[axis];
        if window[axis] == 1 {
            return (0..=room).collect();
        }
        let count = (room as f64 / (window[axis] as f64 * step)).ceil() as usize + 1;
        let distance = room as f64 / (count - 1).max(1) as f64;
        (0..count).map(|index| (distance * index as f64).round_ties_even() as usize).collect()
    })
}
