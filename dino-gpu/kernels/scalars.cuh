// The numbers of a step that kernels read from and write to the state pool, slot by slot, and the optimizer's view of the parameters.
//
// The lists are those of dino-kernel/src/scalars.rs, in the same order: tests/tests/plans.rs compares them.
#pragma once

// `hyper`: this step's derived numbers. GROUPS is where the blocks of the parameter groups begin.
enum { TEACHER_RATE, CENTER_RATE, INV_TEACHER_ROWS, INV_STUDENT_TEMP, INV_TEACHER_TEMP, LOSS_SCALE, CLIP, GROUPS };
// A group's block: at most NUMBERS numbers of the update rule, which names them in its own file, then whether the group is withheld.
enum { NUMBERS = 7, WITHHELD = NUMBERS, BLOCK };
// `monitor`: what a step reports.
enum { LOSS, ENTROPY, FINITE, GRAD_NORM, CENTER_NORM, HALTED };

// A chunk of one tensor: elements at .. at + len, and the tensor's parameter group, -1 if it is frozen. The table is made once;
// chunks are in the tensors' order.
struct Chunk { long long at; int len, tensor, group, pad; };

// The block of numbers that a chunk is updated with; null if the step is not finite, or the chunk is frozen or withheld.
__device__ __forceinline__ const float* block_of(const Chunk& c, const float* __restrict__ monitor, const float* __restrict__ hyper) {
  if (monitor[FINITE] != 1.f || c.group < 0) return nullptr;
  const float* block = hyper + GROUPS + c.group * BLOCK;
  return block[WITHHELD] != 0 ? nullptr : block;
}
