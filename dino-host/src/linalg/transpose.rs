//! Transposed matrices: y (cols, rows) = x (rows, cols)^T, a copy that accesses every cache line once.
//!
//! It packs the factors of matmuls, and runs before `sgemm`, whose own packing of a matrix in the wrong order takes its elements one by
//! one: 0.4 ns an element here, and far more where they are not in the cache. Eight rows at a time by shuffles take 0.07 ns, by
//! plain code 0.18; AVX-512, sixteen rows at a time, was no quicker than AVX2.

/// How far apart rows of `len` elements are in a transposed copy: an odd number of cache lines, so that a column's neighbors share no
/// set of the cache.
pub const fn row_of(len: usize) -> usize {
    (len.div_ceil(16) | 1) * 16
}

/// y (cols; `ld` apart, `rows` each) = the transpose of x (rows; `stride` apart, `cols` each). What is between y's rows stays.
pub fn transpose(y: &mut [f32], ld: usize, x: &[f32], stride: usize, [rows, cols]: [usize; 2]) {
    if rows == 0 || cols == 0 {
        return;
    }
    let (read, written) = ((rows - 1) * stride + cols, (cols - 1) * ld + rows);
    assert!(cols <= stride && rows <= ld, "rows that overlap: {rows} x {cols}, {stride} and {ld} apart");
    assert!(read <= x.len() && written <= y.len(), "{rows} x {cols} do not fit");
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the instructions are there, and the asserts above bound every element of both.
        return unsafe { avx2::transpose(y, ld, x, stride, [rows, cols]) };
    }
    plain(y, ld, x, stride, [rows, cols]);
}

/// Eight rows at a time, so that a cache line of y is written at once.
fn plain(y: &mut [f32], ld: usize, x: &[f32], stride: usize, [rows, cols]: [usize; 2]) {
    let in_blocks = rows / 8 * 8;
    for i in (0..in_blocks).step_by(8) {
        let eight: [&[f32]; 8] = std::array::from_fn(|r| &x[(i + r) * stride..][..cols]);
        for j in 0..cols {
            y[j * ld + i..][..8].copy_from_slice(&eight.map(|row| row[j]));
        }
    }
    one_by_one(y, ld, x, stride, in_blocks..rows, 0..cols);
}

fn one_by_one(
    y: &mut [f32],
    ld: usize,
    x: &[f32],
    stride: usize,
    rows: std::ops::Range<usize>,
    cols: std::ops::Range<usize>,
) {
    for i in rows {
        for j in cols.clone() {
            y[j * ld + i] = x[i * stride + j];
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    /// # Safety
    /// AVX2 must be there, x hold `rows` rows of `cols` elements `stride` apart, y `cols` rows of `rows` elements `ld` apart.
    #[target_feature(enable = "avx2")]
    pub unsafe fn transpose(y: &mut [f32], ld: usize, x: &[f32], stride: usize, [rows, cols]: [usize; 2]) {
        let (in_eights, across) = (rows / 8 * 8, cols / 8 * 8);
        for i in (0..in_eights).step_by(8) {
            for j in (0..across).step_by(8) {
                // SAFETY: a block of eight rows and columns within both, as the caller promises.
                unsafe { eight(y.as_mut_ptr().add(j * ld + i), ld, x.as_ptr().add(i * stride + j), stride) };
            }
        }
        // Panels of a matmul have 12 or 6 rows.
        let (fours, in_blocks) = ((rows - in_eights) / 4 * 4, rows / 2 * 2);
        for i in (in_eights..in_eights + fours).step_by(4) {
            for j in (0..across).step_by(8) {
                // SAFETY: a block of four rows and eight columns within both.
                unsafe { four(y.as_mut_ptr().add(j * ld + i), ld, x.as_ptr().add(i * stride + j), stride) };
            }
        }
        for i in (in_eights + fours..in_blocks).step_by(2) {
            for j in (0..across).step_by(4) {
                // SAFETY: a block of two rows and four columns within both.
                unsafe { two(y.as_mut_ptr().add(j * ld + i), ld, x.as_ptr().add(i * stride + j), stride) };
            }
        }
        super::one_by_one(y, ld, x, stride, 0..in_blocks, across..cols);
        super::one_by_one(y, ld, x, stride, in_blocks..rows, 0..cols);
    }

    /// Two rows of four columns.
    ///
    /// # Safety
    /// Two rows of four elements are at x, `stride` apart, and four of two at y, `ld` apart.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn two(y: *mut f32, ld: usize, x: *const f32, stride: usize) {
        // SAFETY: two rows of x.
        let [a, b] = unsafe { [_mm_loadu_ps(x), _mm_loadu_ps(x.add(stride))] };
        for (j, pairs) in [_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b)].into_iter().enumerate() {
            let pairs = _mm_castps_pd(pairs);
            // SAFETY: two elements of rows 2 j and 2 j + 1 of y.
            unsafe {
                _mm_storel_pd(y.add(2 * j * ld).cast(), pairs);
                _mm_storeh_pd(y.add((2 * j + 1) * ld).cast(), pairs);
            }
        }
    }

    /// Four rows of eight columns, columns j and j + 4 in the halves of a register.
    ///
    /// # Safety
    /// Four rows of eight elements are at x, `stride` apart, and eight of four at y, `ld` apart.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn four(y: *mut f32, ld: usize, x: *const f32, stride: usize) {
        let mut rows = [_mm256_setzero_ps(); 4];
        for (r, row) in rows.iter_mut().enumerate() {
            // SAFETY: row r < 4 of x.
            *row = unsafe { _mm256_loadu_ps(x.add(r * stride)) };
        }
        for (j, column) in columns(rows).into_iter().enumerate() {
            // SAFETY: rows j and j + 4 of y, j < 4.
            unsafe {
                _mm_storeu_ps(y.add(j * ld), _mm256_castps256_ps128(column));
                _mm_storeu_ps(y.add((j + 4) * ld), _mm256_extractf128_ps(column, 1));
            }
        }
    }

    /// The four rows of four columns in each half of registers, transposed.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn columns([a, b, c, d]: [__m256; 4]) -> [__m256; 4] {
        let (ab0, ab2) = (_mm256_castps_pd(_mm256_unpacklo_ps(a, b)), _mm256_castps_pd(_mm256_unpackhi_ps(a, b)));
        let (cd0, cd2) = (_mm256_castps_pd(_mm256_unpacklo_ps(c, d)), _mm256_castps_pd(_mm256_unpackhi_ps(c, d)));
        [
            _mm256_castpd_ps(_mm256_unpacklo_pd(ab0, cd0)),
            _mm256_castpd_ps(_mm256_unpackhi_pd(ab0, cd0)),
            _mm256_castpd_ps(_mm256_unpacklo_pd(ab2, cd2)),
            _mm256_castpd_ps(_mm256_unpackhi_pd(ab2, cd2)),
        ]
    }

    /// Eight rows of eight columns: four columns at a time, rows r and r + 4 in the halves of a register.
    ///
    /// # Safety
    /// Eight rows of eight elements are at x, `stride` apart, and at y, `ld` apart.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn eight(y: *mut f32, ld: usize, x: *const f32, stride: usize) {
        for q in [0, 4] {
            let mut rows = [_mm256_setzero_ps(); 4];
            for (r, row) in rows.iter_mut().enumerate() {
                // SAFETY: rows r and r + 4 of x, r < 4, columns q to q + 3.
                let [low, high] =
                    unsafe { [_mm_loadu_ps(x.add(r * stride + q)), _mm_loadu_ps(x.add((r + 4) * stride + q))] };
                *row = _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1);
            }
            for (j, column) in columns(rows).into_iter().enumerate() {
                // SAFETY: row q + j < 8 of y.
                unsafe { _mm256_storeu_ps(y.add((q + j) * ld), column) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_finds_its_place_and_nothing_else_is_touched() {
        for rows in [1, 2, 7, 8, 9, 15, 16, 17, 37, 64] {
            for cols in [1, 3, 7, 8, 9, 16, 31, 65] {
                let (stride, ld) = (cols + rows % 3, rows + cols % 5);
                let x: Vec<f32> = (0..rows * stride).map(|i| i as f32).collect();
                let mut want = vec![-1.0; cols * ld];
                one_by_one(&mut want, ld, &x, stride, 0..rows, 0..cols);
                for way in [transpose, plain] {
                    let mut y = vec![-1.0; cols * ld];
                    way(&mut y, ld, &x, stride, [rows, cols]);
                    assert!(y == want, "{rows} x {cols}");
                }
            }
        }
        transpose(&mut [], 0, &[], 0, [0, 0]);
    }

    #[test]
    #[should_panic(expected = "do not fit")]
    fn more_than_there_is_is_refused() {
        transpose(&mut [0.0; 63], 8, &[0.0; 64], 8, [8, 8]);
    }
}
