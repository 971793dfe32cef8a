// A correct kernel with bugs that can be enabled one at a time; test_planted.py lists how each must be
// detected.
//
//   planted BUG ORDER   runs it (BUG may be none; ORDER is 0 forward, 1 reverse, 2 random) and prints whether
//                       the results are right; the exit status is 0 if they are
//   planted             lists the bugs
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "common/cuda/kernel.cuh"

#define BUGS(X)                                                                                              \
  X(none)                                                                                                    \
  X(missing_block_barrier) X(missing_second_block_barrier) X(missing_warp_barrier)                           \
  X(missing_second_warp_barrier) X(shuffle_for_barrier) X(atomic_for_barrier) X(race_without_barriers)       \
  X(block_reads_next) X(block_reads_next_but_one) X(blocks_write_same)                                       \
  X(shared_read_past) X(shared_write_past) X(shared_write_before) X(global_read_past) X(global_write_past)   \
  X(global_write_before) X(misaligned_scalar) X(integer_overflow) X(endless_recursion)                       \
  X(barriers_at_two_lines) X(barrier_in_half_the_block) X(return_before_barrier) X(barrier_against_shuffle)  \
  X(lane_not_in_its_mask) X(lane_never_comes) X(lanes_with_two_masks) X(part_of_a_warp)                      \
  X(shuffle_from_outside) X(misaligned_vector) X(part_too_large) X(parts_differ) X(uninitialised_shared)     \
  X(no_attribute) X(more_than_device_has) X(empty_grid) X(huge_grid) X(odd_block) X(huge_block)              \
  X(wrong_stream)

#define NAME(bug) bug,
enum Bug : int { BUGS(NAME) };
#undef NAME
#define NAME(bug) #bug,
const char* const names[] = {BUGS(NAME)};

constexpr unsigned all = 0xffffffffu;
constexpr int threads = 64;
constexpr int blocks = 5;
constexpr int count = threads * blocks;

using llr::cuda::Shared;

LLR_DEVICE int recurse(int depth) {
  volatile char room[1000];
  room[depth % 1000] = 1;
  return depth < 0 ? 0 : recurse(depth + 1) + room[depth % 7];
}

// Per block of two warps: y[t] = the sum of the 16 x whose places differ from t in bits 0, 1, 4 and 5 only;
// the total of the block's y, and how many are above 1. `done` counts blocks.
LLR_KERNEL(threads, 1) planted(const double* x, double* y, double* totals, int* above, int* done, Bug bug) {
  const int t = threadIdx.x, lane = t % 32, warp = t / 32, i = blockIdx.x * blockDim.x + t;
  Shared shared;
  double* const numbers = shared.part<double>(bug == parts_differ ? threads - t % 2 : threads);
  double* const sums = shared.part<double>(threads / 32 * (bug == part_too_large ? 100 : 1));

  if (bug == race_without_barriers) {
    if (blockIdx.x >= 3) totals[blockIdx.x] = t;
    return;
  }
  if (bug == return_before_barrier && t == 40) return;
  double v = x[i + (bug == global_read_past ? 1 : 0)];
  if (bug == endless_recursion) v += recurse(t);

  // Through shared memory, from warp to warp.
  for (int step = 32; step >= 16; step -= 16) {
    if (bug != uninitialised_shared || t != 7) numbers[t] = v;
    if (bug == shuffle_for_barrier) __shfl_sync(all, 0, 0);
    if (bug == atomic_for_barrier) atomicAdd(done, 0);
    if (bug == barrier_against_shuffle && t < 16) __shfl_sync(all, 0, 0);
    if (bug == barriers_at_two_lines && warp == 1) {
      __syncthreads();
    } else if (bug != missing_block_barrier && bug != shuffle_for_barrier && bug != atomic_for_barrier &&
               !(bug == barrier_in_half_the_block && warp == 1)) {
      __syncthreads();
    }
    const double other = numbers[t ^ step];
    if (bug != missing_second_block_barrier || step == 16) __syncthreads();
    v += other;
  }

  // Through shared memory, from lane to lane.
  for (int step = 1; step <= 2; ++step) {
    numbers[t] = v;
    if (bug != missing_warp_barrier) __syncwarp();
    const double other = numbers[t ^ step];
    if (bug != missing_second_warp_barrier) __syncwarp();
    v += other;
  }
  if (bug == shared_read_past) v += 1e-300 * numbers[threads + t];
  if (bug == shared_write_past && t == 3) numbers[threads] = v;
  if (bug == shared_write_before && t == 3) numbers[-1] = v;

  // Pairs of lanes make a vector.
  const double theirs = __shfl_xor_sync(all, v, 1);
  if (lane % 2 == 0) {
    double* const p = y + i;
    if (bug == misaligned_vector && t == 2) {
      llr::cuda::store_vector(p + 1, {v, theirs});
    } else {
      llr::cuda::store_vector(p, {v, theirs});
    }
  }
  if (bug == global_write_past && i == count - 1) llr::cuda::store_scalar(y + count, v);
  if (bug == global_write_before && i == 0) y[-1] = v;
  if (bug == misaligned_scalar && t == 0) *reinterpret_cast<double*>(reinterpret_cast<char*>(y + i) + 4) += 0;
  if (bug == integer_overflow) v += 2147483647 + lane;
  if (bug == block_reads_next && t == 0 && i + threads < count) v += 1e-300 * y[i + threads];
  if (bug == block_reads_next_but_one && t == 0 && i + 2 * threads < count) v += 1e-300 * y[i + 2 * threads];
  if (bug == blocks_write_same && t == 0) totals[0] = 0;

  // The sum of a warp, by shuffles; of the block, by its first thread.
  unsigned mask = all;
  if (bug == lane_not_in_its_mask) mask = all - 1;
  if (bug == part_of_a_warp) __syncwarp(0xffff);
  if (bug == lanes_with_two_masks) __shfl_xor_sync(lane < 16 ? 0xffff : all, v, 1);
  if (bug == shuffle_from_outside) mask = 0xffff;
  double sum = v;
  if (bug == lane_never_comes && lane == 31) mask = 0;
  if (bug == shuffle_from_outside && lane >= 16) mask = 0;
  if (mask != 0) sum += __shfl_down_sync(mask, sum, 16);
  for (int d = 8; d > 0; d /= 2) sum += __shfl_down_sync(all, sum, d);
  if (lane == 0) sums[warp] = sum;
  const int large = __syncthreads_count(v > 1);
  if (__syncthreads_or(t == 5) != 1 || __syncthreads_and(t == 5) != 0) return;
  if (t == 0) {
    llr::cuda::store_scalar(totals + blockIdx.x, sums[0] + sums[1]);
    above[blockIdx.x] = large;
    atomicAdd(done, 1);
  }
}

bool near(double a, double b) { return fabs(a - b) <= 1e-12; }  // false for NaN

int main(int argc, char** argv) {
  int bug = -1;
  for (const char* const& name : names) {
    if (argc == 3 && strcmp(name, argv[1]) == 0) bug = static_cast<int>(&name - names);
    if (argc == 1) puts(name);
  }
  if (bug < 0) return 2;
  llr::emulation::Settings settings;
  settings.order = static_cast<llr::emulation::Order>(atoi(argv[2]));
  settings.seed = 3;
  llr::emulation::emulate(settings);

  const auto x = std::make_unique<double[]>(count), y = std::make_unique<double[]>(count);
  const auto totals = std::make_unique<double[]>(blocks);
  const auto above = std::make_unique<int[]>(blocks);
  int done = 0;
  for (int i = 0; i < count; ++i) x[i] = sin(1 + i);

  int64_t grid = blocks, block = threads, bytes = (threads + 2) * sizeof(double);
  if (bug == empty_grid) grid = 0;
  if (bug == huge_grid) grid = int64_t(1) << 31;
  if (bug == odd_block) block = threads + 1;
  if (bug == huge_block) block = 1056;
  if (bug == no_attribute) bytes = 50000;
  if (bug == more_than_device_has) {
    bytes = settings.shared_limit;
    const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
    if (cudaFuncSetAttribute(planted, attribute, bytes) != cudaSuccess) return 3;
    if (cudaFuncSetAttribute(planted, attribute, bytes + 1) != cudaErrorInvalidValue) return 4;
    settings.shared_limit = bytes - 1;  // as on a device with less shared memory
    llr::emulation::emulate(settings);
  }
  const cudaStream_t stream = bug == wrong_stream ? nullptr : llr::emulation::stream();
  LLR_LAUNCH(planted, grid, block, bytes, stream, x.get(), y.get(), totals.get(), above.get(), &done,
             static_cast<Bug>(bug));

  bool right = cudaGetLastError() == cudaSuccess && done == blocks;
  for (int b = 0; b < blocks; ++b) {
    double total = 0;
    int large = 0;
    for (int t = 0; t < threads; ++t) {
      double expected = 0;
      for (int s = 0; s < threads; ++s) expected += ((s ^ t) & 12) == 0 ? x[b * threads + s] : 0;
      right = right && near(y[b * threads + t], expected);
      total += expected;
      large += expected > 1;
    }
    right = right && near(totals[b], total) && above[b] == large;
  }
  const llr::emulation::Statistics s = llr::emulation::statistics();
  right = right && s.vector_stores == count / 2 && s.scalar_stores == blocks && s.launches == 1;
  puts(right ? "right" : "wrong");
  return !right;
}
