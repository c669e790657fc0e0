//! Values of patches as values of pixels.

/// One value a patch to one a pixel of `size` = (height, width), every patch a square of side `patch`. Surplus pixels at the right and
/// bottom, which no patch sees, get `rest`.
pub fn enlarge<T: Copy>(cells: &[T], grid: [usize; 2], patch: usize, size: [usize; 2], rest: T) -> Vec<T> {
    let [height, width] = size;
    let mut pixels = vec![rest; height * width];
    for (y, row) in pixels.chunks_mut(width).enumerate().take(grid[0] * patch) {
        for (x, pixel) in row.iter_mut().enumerate().take(grid[1] * patch) {
            *pixel = cells[y / patch * grid[1] + x / patch];
        }
    }
    pixels
}
