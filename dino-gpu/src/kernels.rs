//! The kernels by name, and how one is launched.

use crate::cuda::{self, Card, Stream};
use cust::function::Function;
use dino_host::error::{Error, Result};
use std::ffi::c_void;

/// One kernel.
pub struct Kernel {
    function: Function<'static>,
    /// Bytes of its parameters, where the driver can tell.
    sizes: Option<Vec<usize>>,
    name: String,
    /// Bytes of dynamic shared memory it is launched with.
    shared: u32,
}

/// A kernel's argument: its bits, and how many bytes of them count.
#[derive(Clone, Copy)]
pub struct Argument {
    bits: u64,
    bytes: usize,
}

macro_rules! argument {
    ($($t:ty),*) => {
        $(impl From<$t> for Argument {
            fn from(x: $t) -> Argument {
                let (mut bits, x) = ([0; 8], x.to_ne_bytes());
                bits[..x.len()].copy_from_slice(&x);
                Argument { bits: u64::from_ne_bytes(bits), bytes: x.len() }
            }
        })*
    };
}
argument!(u64, i64, i32, f32);

/// The shape of a launch: blocks, threads of a block.
#[derive(Clone, Copy)]
pub struct Shape {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 2],
}

impl Shape {
    /// Panics where a number of blocks does not fit u32.
    pub fn new(grid: [usize; 3], block: [u32; 2]) -> Shape {
        Shape { grid: grid.map(|g| u32::try_from(g).expect("a grid fits the plan's sizes")), block }
    }

    /// A thread for each of `n` elements.
    pub fn flat(n: usize) -> Shape {
        Shape::new([n.div_ceil(256), 1, 1], [256, 1])
    }

    /// Four elements a thread, for each of `crops` crops of `len`; a block goes on to further crops where there are many.
    pub fn crops(crops: usize, len: usize) -> Shape {
        Shape::new([len.div_ceil(1024), crops.min(65535), 1], [256, 1])
    }

    /// A warp for each of `rows` rows.
    pub fn warps(rows: usize) -> Shape {
        Shape::new([rows.div_ceil(4), 1, 1], [128, 1])
    }

    /// Four columns a thread, as many threads as a row has and at most a warp; a block goes on to further rows where there are many.
    pub fn columns(rows: usize, cols: usize) -> Shape {
        let [across, down] = Shape::across(cols);
        let grid = [cols.div_ceil(4 * across), rows.div_ceil(down).min(65535), 1];
        Shape::new(grid, [across as u32, down as u32])
    }

    /// Threads of such a block along the columns and along the rows.
    pub fn across(cols: usize) -> [usize; 2] {
        let across = cols.div_ceil(4).next_power_of_two().min(32);
        [across, 256 / across]
    }

    /// A block of 256 for each of `n`.
    pub fn blocks(n: usize) -> Shape {
        Shape::new([n, 1, 1], [256, 1])
    }
}

impl Kernel {
    /// `shared`: the bytes of dynamic shared memory it is launched with.
    fn new(card: &'static Card, name: String, shared: u32) -> Result<Kernel> {
        let function = card.function(&name)?;
        if shared > 48 << 10 {
            cuda::allow_shared(&function, shared)?;
        }
        Ok(Kernel { sizes: cuda::parameters(&function), function, name, shared })
    }

    /// Queues it. A launch of nothing is nothing.
    ///
    /// # Errors
    /// The arguments are not the kernel's, the shape is more than the device takes, or the device fails.
    pub fn launch(&self, stream: &Stream, shape: Shape, arguments: &[Argument]) -> Result<()> {
        if shape.grid.contains(&0) {
            return Ok(());
        }
        if let Some(sizes) = &self.sizes {
            let given = arguments.iter().map(|a| a.bytes);
            if !given.clone().eq(sizes.iter().copied()) {
                let given: Vec<usize> = given.collect();
                let message = format!("{} takes arguments of {sizes:?} bytes, given {given:?}", self.name);
                return Err(Error::new(message).hint("the program does not fit its kernels: please report it"));
            }
        }
        let mut list = [std::ptr::null_mut(); 32];
        for (slot, a) in list.iter_mut().zip(arguments) {
            *slot = (&raw const a.bits).cast_mut().cast::<c_void>();
        }
        // SAFETY: number and sizes of the arguments were compared with the kernel's where the driver can tell; the plan keeps every span
        // inside its pool.
        unsafe { stream.launch(&self.function, shape.grid, shape.block, self.shared, &list[..arguments.len()]) }
            .map_err(|e| Error { message: format!("{}: {}", self.name, e.message), ..e })
    }
}

macro_rules! kernels {
    (common: $($common:ident),*; typed: $($typed:ident),*; tensor: $($tensor:ident = $shared:expr),*;) => {
        /// All of them, for one activation type.
        pub struct Kernels {
            $(
                /// Of no activation type.
                pub $common: Kernel,
            )*
            $(
                /// Of this activation type.
                pub $typed: Kernel,
            )*
            $(
                /// On the tensor cores, bf16.
                pub $tensor: Kernel,
            )*
        }

        impl Kernels {
            /// `suffix`: "_f32" or "_bf16".
            ///
            /// # Errors
            /// The device's code lacks one of them.
            pub fn new(card: &'static Card, suffix: &str) -> Result<Kernels> {
                // One call in a loop: written out for each of them, it was a function of 160 KB, half of this crate's compile time.
                const NAMED: &[(&str, bool, u32)] = &[
                    $((stringify!($common), false, 0),)*
                    $((stringify!($typed), true, 0),)*
                    $((stringify!($tensor), false, $shared),)*
                ];
                let mut loaded = Vec::with_capacity(NAMED.len());
                for &(name, typed, shared) in NAMED {
                    let suffix = if typed { suffix } else { "" };
                    loaded.push(Kernel::new(card, format!("{name}{suffix}"), shared)?);
                }
                let Ok([$($common,)* $($typed,)* $($tensor,)*]) = <[Kernel; NAMED.len()]>::try_from(loaded) else {
                    unreachable!("as many as there are names");
                };
                Ok(Kernels { $($common,)* $($typed,)* $($tensor,)* })
            }
        }
    };
}

// What does not depend on the activation type, what is compiled for either, and what runs on the tensor cores, with its shared memory.
kernels! {
    common: adamw, add_by_halves, batch_gradient_sums, batch_statistics, center_norm, clip_apply, clip_factors, clip_norm, clip_squares,
        column_running, commit_center, commit_running, conv_f32, conv_weight_f32, ema, filter_sum, gemm_f32, lars, lars_factors,
        lars_squares, loss_running, loss_targets, mse_inner, prototype_scale, running_statistics, sgd, shard_moments, shadow_weights, split_sum,
        sum_stat, weight_norm_backward;
    typed: add, add_scaled, attend, attend_dkv, attend_dq, attention_rows, average_pool, average_pool_backward, batch_gradient,
        batch_gradient_strips, batch_moments, batch_normalize, column_sums, embed, embed_backward, from_f32, gather_class, gelu,
        gelu_backward, l2_normalise, l2_normalise_backward, layernorm, layernorm_backward, loss_gradient, max_pool,
        max_pool_backward, mse_gradient, pack_filter, patchify, relu, relu_backward, resize_positions, resize_positions_backward,
        scale_columns, scatter_class_acc, sum_rows;
    tensor: gemm_nt_bf16 = 30720, gemm_nt_bf16_128 = 61440, gemm_nn_bf16 = 29184, gemm_nn_bf16_128 = 56832, gemm_tn_bf16 = 27648,
        gemm_tn_bf16_128 = 52224, conv_bf16_64 = 30720, conv_bf16_128 = 61440, conv_weight_bf16_64 = 27648,
        conv_weight_bf16_128 = 52224, attention_delta_bf16 = 0,
        attention_fwd_bf16_32 = 25600, attention_dq_bf16_32 = 30720, attention_dkv_bf16_32 = 31744,
        attention_fwd_bf16_64 = 46080, attention_dq_bf16_64 = 55296, attention_dkv_bf16_64 = 37376,
        attention_fwd_bf16_96 = 39936, attention_dq_bf16_96 = 53248, attention_dkv_bf16_96 = 53760,
        attention_fwd_bf16_128 = 52224, attention_dq_bf16_128 = 69632, attention_dkv_bf16_128 = 70144;
}

impl Kernels {
    /// Attention on the tensor cores, [forward, dq, dk and dv], for the least width that holds a head; a head is at most 128 wide.
    pub fn flash(&self, head_dim: usize) -> [&Kernel; 3] {
        match head_dim {
            ..=32 => [&self.attention_fwd_bf16_32, &self.attention_dq_bf16_32, &self.attention_dkv_bf16_32],
            33..=64 => [&self.attention_fwd_bf16_64, &self.attention_dq_bf16_64, &self.attention_dkv_bf16_64],
            65..=96 => [&self.attention_fwd_bf16_96, &self.attention_dq_bf16_96, &self.attention_dkv_bf16_96],
            _ => [&self.attention_fwd_bf16_128, &self.attention_dq_bf16_128, &self.attention_dkv_bf16_128],
        }
    }
}
