//! Pools: maps and their rows on all threads.

use crate::linalg::rows;
use dino_kernel::backend::MaxPool;
use dino_kernel::crops::{Group, Ragged};
use rayon::prelude::*;

/// The maps of a pool one by one, with the place of their pixels in the packed rows.
fn each(n: MaxPool) -> Vec<(Group, usize)> {
    let mut from = 0;
    let places = n.maps.groups().iter().flat_map(|&map| std::iter::repeat_n(map, map.count));
    let place = |map: Group| {
        from += map.height * map.width;
        (map, from - map.height * map.width)
    };
    places.map(place).collect()
}

/// y (output pixels, cols), x (pixels, cols).
pub fn max_forward(mut y: &mut [f32], x: &[f32], n: MaxPool) {
    let mut tasks = Vec::new();
    for (map, from) in each(n) {
        let [height, width] = [map.height, map.width].map(|side| n.window.positions(side));
        for row in 0..height {
            let line = y.split_off_mut(..width * n.cols).unwrap_or_default();
            tasks.push((line, map, from, row));
        }
    }
    tasks.into_par_iter().for_each(|(y, map, from, row)| rows::max_pool(y, &x[from * n.cols..], row, map, n));
}

/// dx (pixels, cols) is set; dy (output pixels, cols), x (pixels, cols).
pub fn max_backward(mut dx: &mut [f32], dy: &[f32], x: &[f32], n: MaxPool) {
    let (mut tasks, mut to) = (Vec::new(), 0);
    for (map, from) in each(n) {
        let len = map.height * map.width * n.cols;
        let written = n.window.positions(map.height) * n.window.positions(map.width) * n.cols;
        let dx = dx.split_off_mut(..len).unwrap_or_default();
        tasks.push((dx, &dy[to..to + written], &x[from * n.cols..][..len], map));
        to += written;
    }
    tasks.into_par_iter().for_each(|(dx, dy, x, map)| rows::max_pool_backward(dx, dy, x, map, n));
}

/// y (crops, cols), x (rows, cols).
pub fn average_forward(y: &mut [f32], x: &[f32], n: Ragged, cols: usize) {
    let x = super::crops_of(x, n, cols);
    y.par_chunks_mut(cols).zip(x).for_each(|(y, x)| rows::average_pool(y, x));
}
