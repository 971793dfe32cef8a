// Singular values of matrices in shared memory: Householder's QR, twice, and one-sided Jacobi.
//
// Jacobi rotates pairs of columns until all are orthogonal; then their norms are the singular values. All
// pairs of a round are independent of each other, and so are the columns in a step of QR. A few threads
// (lanes) work on each column or pair and add up by shuffles, and one barrier ends a round or a step. The
// loops are unrolled by two: more would need more registers per thread than four full blocks leave.
//
// Jacobi is applied after two QRs: A = Q1 R1, R1' = Q2 R2, and Jacobi works on R2'. Every QR moves the matrix
// towards a diagonal with descending entries, and costs less than a sweep: 29 sweeps become 6
// where singular values fall from 1 to 1e-20, 14 become 8 for Jacobians of networks (140 columns). (Drmac and
// Veselic, "New fast and accurate Jacobi SVD algorithm", SIAM J. Matrix Anal. Appl. 29 (2008).)
//
// Numbers are negligible relative to the largest singular value. Matrices are scaled first, so that it is at
// least 1.
#pragma once

#include "common/cuda/kernel.cuh"
#include "svdvals.h"

namespace llr::cuda {

// A sum of squares below this comes from numbers that are negligible relative to 1 and too small to be
// squared accurately.
constexpr double negligible_square = 1e-290;
// Two columns, the longer one of length a, count as orthogonal if their product is at most this times a
// max(a, 1). Some matrices never get below half an eps; all matrices that were tried reached one eps, which
// is half of this constant.
constexpr double orthogonal = 0x1p-51;
// A sweep whose angles and products are all below this is the last: the remaining products are of second
// order.
constexpr double nearly_orthogonal = 0x1p-30;

// The threads that work on one matrix.
struct Team {
  int threads;    // a power of two
  int rank;       // of this thread
  int lanes;      // threads that work on one column, a power of two up to 32
  double* slots;  // of the block: one per warp, or per team in it

  LLR_DEVICE int lane() const { return rank & (lanes - 1); }
  LLR_DEVICE int group() const { return rank / lanes; }
  LLR_DEVICE int groups() const { return threads / lanes; }
};

LLR_DEVICE double larger(double a, double b) { return b > a || b != b ? b : a; }

LLR_DEVICE double sum_of_lanes(double x, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) {
    x += __shfl_xor_sync(0xffffffff, x, step);
  }
  return x;
}

// The largest x of a team, NaN if there is one. All threads of the block take part. A barrier is needed
// between two calls.
LLR_DEVICE double largest_of(const Team& team, double x) {
  const int width = team.threads < 32 ? team.threads : 32;
  for (int step = width / 2; step > 0; step /= 2) {
    const double other = __shfl_xor_sync(0xffffffff, x, step);
    x = larger(x, other);
  }
  const int first = (static_cast<int>(threadIdx.x) - team.rank) / width;
  if ((team.rank & (width - 1)) == 0) team.slots[first + team.rank / width] = x;
  __syncthreads();
  x = team.slots[first];
  for (int slot = 1; slot < team.threads / width; ++slot) x = larger(x, team.slots[first + slot]);
  return x;
}

// f(i, j) for rows [0, rows) and all columns; neighbouring threads get neighbours in memory.
template <typename F>
LLR_DEVICE void visit(const Matrices& from, int rows, const Team& team, const F& f) {
  const int columns = static_cast<int>(from.columns);
  const bool across = from.column_stride <= from.row_stride;
  const int inner = across ? columns : rows, outer = across ? rows : columns;
  const int step_inner = team.threads % inner, step_outer = team.threads / inner;
  int a = team.rank % inner, b = team.rank / inner;
  while (b < outer) {
    f(across ? b : a, across ? a : b);
    a += step_inner;
    b += step_outer;
    if (a >= inner) {
      a -= inner;
      ++b;
    }
  }
}

LLR_DEVICE double number(const Matrices& from, int64_t at) {
  return from.single ? static_cast<double>(static_cast<const float*>(from.data)[at])
                     : static_cast<const double*>(from.data)[at];
}

// The largest entry is in [1, 2) 2^exponent; not finite: there is a NaN or an infinity, or no matrix.
struct Scale {
  int exponent;
  bool finite;
};

LLR_DEVICE Scale scale_of(const Peaks& peaks, int64_t matrix, bool present, const Team& team) {
  double peak = 0.0;
  for (int part = team.rank; present && part < peaks.parts; part += team.threads) {
    peak = larger(peak, peaks.data[matrix * peaks.parts + part]);
  }
  peak = largest_of(team, peak);
  const bool finite = present && peak <= 0x1.fffffffffffffp1023;
  return {finite && peak > 0.0 ? ilogb(peak) : 0, finite};
}

// Householder's QR of A's columns: rows [base, rows) are full, and above them is an upper triangle. Leaves R
// on and above the diagonal; the numbers below it are meaningless afterwards. All threads of the block take
// part, with the same sizes.
//
// Groups of lanes do not exchange data within a step: each group computes the reflection for its columns
// again.
LLR_DEVICE void triangularise(double* A, int stride, int columns, int base, int rows, const Team& team) {
  const int lane = team.lane(), lanes = team.lanes;
  for (int j = 0; j < columns; ++j) {
    const double* const x = A + j * stride;
    const double alpha = x[j];
    double beta = alpha;
    const int first = (j + 1 < base ? base : j + 1) + lane;
    for (int l = j + team.group(); l - team.group() < columns; l += team.groups()) {
      double* const a = A + l * stride;
      const int end = l < columns ? rows : 0;
      double squares = 0.0, product = 0.0, corner = 0.0;
#pragma unroll 2
      for (int i = first; i < end; i += lanes) {
        squares = fma(x[i], x[i], squares);
        product = fma(x[i], a[i], product);
      }
      if (lane == 0 && l < columns) corner = a[j];
      squares = sum_of_lanes(squares, lanes);
      product = sum_of_lanes(product, lanes);
      corner = sum_of_lanes(corner, lanes);
      if (squares < negligible_square) continue;  // nothing to annihilate
      const double norm = -copysign(sqrt(fma(alpha, alpha, squares)), alpha);
      if (l == j) {
        beta = norm;
        continue;
      }
      const double factor = fma(alpha - norm, corner, product) / (norm * (alpha - norm));
#pragma unroll 2
      for (int i = first; i < end; i += lanes) a[i] = fma(factor, x[i], a[i]);
      if (lane == 0 && l < columns) a[j] = fma(alpha - norm, factor, corner);
    }
    __syncthreads();
    if (team.rank == 0) A[j * stride + j] = beta;
  }
  __syncthreads();
}

// Computes R of the rows [first, last) of a matrix, as triangularise leaves it, `layout.rows` rows at a time.
// Zero if `scale` is not finite.
LLR_DEVICE void triangle_of(const Matrices& from, int64_t matrix, int64_t first, int64_t last,
                            const Scale& scale, double* A, const SvdLayout& layout, const Team& team) {
  const int columns = static_cast<int>(from.columns);
  const int exponent = from.scaled ? 0 : -scale.exponent;
  int base = 0;
  while (first < last) {
    const int64_t room = layout.rows - base;
    const int rows = static_cast<int>(last - first < room ? last - first : room);
    const int64_t start = matrix * from.matrix_stride + first * from.row_stride;
    double* const to = A + base;
    visit(from, rows, team, [&](int i, int j) {
      const int64_t at = start + i * from.row_stride + j * from.column_stride;
      to[j * layout.stride + i] = scale.finite ? ldexp(number(from, at), exponent) : 0.0;
    });
    __syncthreads();
    triangularise(A, layout.stride, columns, base, base + rows, team);
    first += rows;
    base = columns;
  }
}

// Replaces R above the diagonal by R' below it.
LLR_DEVICE void transpose(double* A, int stride, int columns, const Team& team) {
  for (int at = team.rank; at < columns * columns; at += team.threads) {
    const int i = at % columns, j = at / columns;
    if (i > j) {
      A[j * stride + i] = A[i * stride + j];
      A[i * stride + j] = 0.0;
    }
  }
  __syncthreads();
}

// A rotation by an angle: its sine, and the tangent of half of it.
struct Rotation {
  double sine, half_tangent;
};

// The rotation that makes columns with these squares and this product orthogonal. Its angle is computed in
// floats, which leave 1e-7 of the product. But the matrix must be a rotation to full double precision. So it
// is defined by the tangent of the half angle. A sine and a cosine, each rounded, would change the lengths of
// columns: errors of 100 eps instead of 4 were measured at 100 columns.
LLR_DEVICE Rotation rotation(double squares_a, double squares_b, double product) {
  const float across = fabsf(static_cast<float>(2.0 * product));
  const float apart = fabsf(static_cast<float>(squares_a - squares_b));
  const bool slight = apart >= across;  // up to 22.5 degrees
  const float ratio = (slight ? across : apart) / (slight ? apart : across);
  const float root = sqrtf(1.0f + ratio * ratio);
  const float tangent = (slight ? ratio : 1.0f) / ((slight ? 1.0f : ratio) + root);
  const double half = tangent / (1.0f + sqrtf(1.0f + tangent * tangent));
  const double sine = 2.0 * half / fma(half, half, 1.0);
  const bool same_sign = (product >= 0.0) == (squares_a >= squares_b);
  return same_sign ? Rotation{sine, half} : Rotation{-sine, -half};
}

// Makes a pair of columns orthogonal; end = 0: no pair, the lanes only take part in the sums. Returns whether
// the matrix needs another sweep.
LLR_DEVICE bool turn(double* a, double* b, int lane, int end) {
  double squares_a = 0.0, squares_b = 0.0, product = 0.0;
#pragma unroll 2
  for (int i = lane; i < end; i += pair_lanes) {
    squares_a = fma(a[i], a[i], squares_a);
    squares_b = fma(b[i], b[i], squares_b);
    product = fma(a[i], b[i], product);
  }
  squares_a = sum_of_lanes(squares_a, pair_lanes);
  squares_b = sum_of_lanes(squares_b, pair_lanes);
  product = sum_of_lanes(product, pair_lanes);
  const double most = fmax(squares_a, squares_b), unit = most * fmax(most, 1.0);
  if (!(product * product > orthogonal * orthogonal * unit)) return false;
  const Rotation r = rotation(squares_a, squares_b, product);
#pragma unroll 2
  for (int i = lane; i < end; i += pair_lanes) {
    const double u = a[i], v = b[i];
    a[i] = fma(r.sine, fma(-r.half_tangent, u, v), u);
    b[i] = fma(-r.sine, fma(r.half_tangent, v, u), v);
  }
  return fabs(r.sine) > nearly_orthogonal || product * product > nearly_orthogonal * nearly_orthogonal * unit;
}

// One-sided Jacobi on the square A. Returns whether `sweeps` sweeps were enough.
LLR_DEVICE bool orthogonalise(double* A, int stride, int columns, int sweeps, const Team& team) {
  const int pairs = (columns + 1) / 2, rounds = 2 * pairs - 1;
  bool done = false;
  for (int sweep = 0; sweep < sweeps; ++sweep) {
    bool again = false;
    for (int round = 0; round < rounds; ++round) {
      // Every column is paired with every other once, as in a round-robin tournament: the last index stays
      // fixed, the others rotate. With an odd number of columns, the column paired with the last index has no
      // partner.
      for (int k = team.group(); k - team.group() < pairs; k += team.groups()) {
        const int p = round + k < rounds ? round + k : round + k - rounds;
        const int q = k == 0 ? rounds : (k <= round ? round - k : round - k + rounds);
        const bool play = !done && k < pairs && q < columns;
        const bool more = turn(A + p * stride, A + q * stride, team.lane(), play ? columns : 0);
        again = again || more;
      }
      __syncthreads();
    }
    const double more = largest_of(team, again ? 1.0 : 0.0);
    done = done || more == 0.0;
    if (__syncthreads_and(done)) break;
  }
  return done;
}

// Writes the norms of A's columns times 2^exponent, in descending order; NaN unless `finite`. Overwrites A.
LLR_DEVICE void write_norms(double* A, int stride, int columns, const Scale& scale, double* values,
                            bool present, const Team& team) {
  for (int j = team.group(); j - team.group() < columns; j += team.groups()) {
    double* const a = A + j * stride;
    const int end = j < columns ? columns : 0;
    double squares = 0.0;
    for (int i = team.lane(); i < end; i += team.lanes) squares = fma(a[i], a[i], squares);
    squares = sum_of_lanes(squares, team.lanes);
    if (team.lane() == 0 && j < columns) a[0] = sqrt(squares);  // no other thread reads this entry
  }
  __syncthreads();
  for (int j = team.rank; present && j < columns; j += team.threads) {
    const double norm = A[j * stride];
    int place = 0;
    for (int i = 0; i < columns; ++i) {
      const double other = A[i * stride];
      place += other > norm || (other == norm && i < j) ? 1 : 0;
    }
    store_scalar(values + place, scale.finite ? ldexp(norm, scale.exponent) : nan(""));
  }
}

LLR_KERNEL(svd_block, 4) peaks_kernel(LLR_PARAMETER Matrices from, int parts, double* peaks) {
  Shared shared;
  double* const slots = shared.part<double>(svd_block / 32);
  const Team team{svd_block, static_cast<int>(threadIdx.x), 1, slots};
  const int64_t matrix = blockIdx.x / parts, part = blockIdx.x % parts;
  const int64_t first = from.rows * part / parts, last = from.rows * (part + 1) / parts;
  const int64_t start = matrix * from.matrix_stride + first * from.row_stride;
  double peak = 0.0;
  visit(from, static_cast<int>(last - first), team, [&](int i, int j) {
    peak = larger(peak, fabs(number(from, start + i * from.row_stride + j * from.column_stride)));
  });
  peak = largest_of(team, peak);
  if (team.rank == 0) store_scalar(peaks + blockIdx.x, peak);
}

LLR_KERNEL(svd_block, 4)
triangles_kernel(LLR_PARAMETER Matrices from, unsigned pieces, LLR_PARAMETER Peaks peaks,
                 LLR_PARAMETER SvdLayout layout, double* triangles) {
  const int columns = static_cast<int>(from.columns);
  Shared shared;
  double* const slots = shared.part<double>(svd_block / 32);
  double* const A = shared.part<double>(layout.stride * columns);
  int lanes = 32;
  while (lanes > pair_lanes && lanes * columns > svd_block) lanes /= 2;
  const Team team{svd_block, static_cast<int>(threadIdx.x), lanes, slots};
  const int64_t matrix = blockIdx.x / pieces, piece = blockIdx.x % pieces;
  const Scale scale = scale_of(peaks, matrix, true, team);
  const int64_t first = from.rows * piece / pieces, last = from.rows * (piece + 1) / pieces;
  triangle_of(from, matrix, first, last, scale, A, layout, team);
  double* const to = triangles + blockIdx.x * from.columns * from.columns;
  for (int at = team.rank; at < columns * columns; at += team.threads) {
    const int i = at / columns, j = at % columns;
    store_scalar(to + at, i <= j ? A[j * layout.stride + i] : 0.0);
  }
}

LLR_KERNEL(svd_block, 4)
values_kernel(LLR_PARAMETER Matrices from, int64_t count, LLR_PARAMETER Peaks peaks,
              LLR_PARAMETER SvdLayout layout, int sweeps, double* values, int* failed) {
  const int columns = static_cast<int>(from.columns);
  const int place = static_cast<int>(threadIdx.x) / layout.threads;
  Shared shared;
  double* const slots = shared.part<double>(svd_block / pair_lanes);
  const int each = layout.stride * columns;
  double* const A = shared.part<double>(layout.matrices * each) + place * each;
  const Team team{layout.threads, static_cast<int>(threadIdx.x) & (layout.threads - 1), pair_lanes, slots};
  const int64_t matrix = static_cast<int64_t>(blockIdx.x) * layout.matrices + place;
  const bool present = matrix < count;

  triangle_of(from, matrix, 0, from.rows, scale_of(peaks, matrix, present, team), A, layout, team);
  transpose(A, layout.stride, columns, team);
  triangularise(A, layout.stride, columns, 0, columns, team);
  transpose(A, layout.stride, columns, team);
  const bool enough = orthogonalise(A, layout.stride, columns, sweeps, team);
  const Scale scale = scale_of(peaks, matrix, present, team);  // computed again, to save registers until here
  write_norms(A, layout.stride, columns, scale, values + matrix * columns, present, team);
  if (present && team.rank == 0) store_scalar(failed + matrix, enough ? 0 : 1);
}

}  // namespace llr::cuda
