// Launchers of the kernels that compute singular values, and how they lay matrices out.
#pragma once

#include <cstdint>

#if defined(LLR_EMULATE)
#include "emulation.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace llr::cuda {

// Matrices with at least as many rows as columns, floats or doubles, anywhere in memory.
struct Matrices {
  const void* data;
  bool single;  // floats
  bool scaled;  // multiplied already by the power of two that brings the largest entry near 1
  int64_t rows;
  int64_t columns;
  int64_t matrix_stride;
  int64_t row_stride;
  int64_t column_stride;
};

// The largest absolute values in each of `parts` pieces of the rows of every matrix: (matrices, parts); NaN
// where there is one.
struct Peaks {
  const double* data;
  int parts;
};

// How a block holds matrices in shared memory, by columns.
struct SvdLayout {
  int rows;     // that it holds at a time; 0 where they do not fit
  int stride;   // from column to column
  int threads;  // per matrix, a power of two
  int matrices;
  int64_t bytes;
};

constexpr int svd_block = 256;      // the most threads of a block
constexpr int least_svd_block = 64;  // small matrices share a block up to this size
constexpr int pair_lanes = 4;       // threads that work on a pair of columns

// Rows of a piece in a QR: short pieces have small rounding errors, and are independent of each other.
constexpr int64_t piece_rows(int64_t columns) { return columns < 64 ? 256 : 4 * columns; }

// Number of blocks that find the peaks of one matrix.
int64_t peak_parts(int64_t rows, int64_t columns);

// The layout for the singular values of matrices with `rows` rows, on a device where a block may use
// `shared_limit` bytes of shared memory.
SvdLayout values_layout(int64_t rows, int64_t columns, int64_t shared_limit);

// The layout for triangles of pieces with `rows` rows.
SvdLayout triangles_layout(int64_t rows, int64_t columns, int64_t shared_limit);

// Bytes of shared memory that a block may have on the current device.
cudaError_t find_shared_limit(int64_t* bytes);

// peaks: (count, parts)
cudaError_t find_peaks(const Matrices& from, int64_t count, int parts, double* peaks, cudaStream_t stream);

// R of A = QR for each of `pieces` pieces of the rows of every matrix, scaled: (count, pieces, columns,
// columns)
cudaError_t find_triangles(const Matrices& from, int64_t count, int64_t pieces, const Peaks& peaks,
                           const SvdLayout& layout, double* triangles, cudaStream_t stream);

// values: (count, columns), descending, NaN for a matrix that is not finite; failed: (count), 1 where
// `sweeps` sweeps were too few.
cudaError_t find_values(const Matrices& from, int64_t count, const Peaks& peaks, const SvdLayout& layout,
                        int sweeps, double* values, int* failed, cudaStream_t stream);

}  // namespace llr::cuda
