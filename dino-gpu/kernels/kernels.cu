// Every kernel, one translation unit: what does not depend on the activation type once, the rest for f32 and for bf16.
#include "common.cuh"
#include "scalars.cuh"
#include "clip.cu"
#include "adamw.cu"
#include "sgd.cu"
#include "lars.cu"
#include "ema.cu"
#include "center.cu"
#include "column_lse.cu"
#include "sum.cu"

#define act float
#define KERNEL(name) name##_f32
#include "gelu.cu"
#include "relu.cu"
#include "residual.cu"
#include "layernorm.cu"
#include "embed.cu"
#include "position.cu"
#include "norm.cu"
#include "attention.cu"
#include "loss.cu"
#include "mse.cu"
#include "conv.cu"
#include "batchnorm.cu"
#include "pool.cu"
#undef act
#undef KERNEL

#include "linear.cu"
#include "conv_f32.cu"

#define act bf16
#define KERNEL(name) name##_bf16
#include "gelu.cu"
#include "relu.cu"
#include "residual.cu"
#include "layernorm.cu"
#include "embed.cu"
#include "position.cu"
#include "norm.cu"
#include "attention.cu"
#include "loss.cu"
#include "mse.cu"
#include "conv.cu"
#include "batchnorm.cu"
#include "pool.cu"
#undef act
#undef KERNEL

#include "gemm_bf16.cuh"
#include "attention_bf16.cu"
#include "conv_bf16.cu"
