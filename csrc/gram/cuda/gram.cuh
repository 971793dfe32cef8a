// K = J J' without J, by tiles of K on and below the diagonal, one block each.
//
// A layer whose derivatives are outer products delta a' contributes (delta . delta) (a . a): two small matrix
// products, staged through shared memory. Rows that are outputs of one sample share their a, and its products
// are computed once for them. Each layer is one launch that adds to K in memory. This saves registers, whose
// number decides how many blocks a multiprocessor holds.
#pragma once

#include "double_double.cuh"
#include "gram.h"
#include "common/cuda/kernel.cuh"

namespace llr::cuda {

constexpr int tile = 32;         // rows and columns that a block computes
constexpr int tile_stride = 33;  // odd: a column's numbers lie in different banks

struct GramShared {
  double *rows, *columns;  // (tile, Arithmetic::across): terms of a product
  double *high, *low;      // (tile, tile): products of a, and at the end a part of K to be transposed
};

template <typename Arithmetic>
constexpr int64_t gram_shared_bytes() {
  return 2 * shared_bytes<double>(tile * (Arithmetic::across + 1)) +
         Arithmetic::parts * shared_bytes<double>(tile * tile_stride);
}

// A thread's entries of a tile, and where they are.
template <typename Arithmetic>
struct Entries {
  static constexpr int across = Arithmetic::across, down = Arithmetic::threads / across;
  static constexpr int in_row = tile / across, count = in_row * (tile / down);

  typename Arithmetic::Number value[count];
};

// Where a thread's entries are in their tile.
template <typename Arithmetic>
class Places {
 public:
  LLR_DEVICE Places() : thread_(thread_read_anew()) {}
  LLR_DEVICE int row(int e) const { return thread_ / E::across + E::down * (e / E::in_row); }
  LLR_DEVICE int column(int e) const { return thread_ % E::across + E::across * (e % E::in_row); }

 private:
  using E = Entries<Arithmetic>;
  const int thread_;
};

// rows (m, terms; `stride` apart) times columns (n, terms; `stride` apart)', zero outside m and n. Every
// thread of the block takes part.
template <typename Arithmetic>
LLR_DEVICE Entries<Arithmetic> product(const GramShared& shared, const double* rows, const double* columns,
                                       int stride, int m, int n, int terms) {
  using E = Entries<Arithmetic>;
  constexpr int depth = E::across, stride_in_shared = depth + 1;  // terms at a time
  const Places<Arithmetic> places;
  E sums;
#pragma unroll
  for (int e = 0; e < E::count; ++e) sums.value[e] = Arithmetic::number(0.0, 0.0);
  const int x = places.column(0), y = places.row(0);
  for (int from = 0; from < terms; from += depth) {
    // Zeros beyond the edges, so that the sums below can run over the whole tile.
#pragma unroll
    for (int e = 0; e < E::count; e += E::in_row) {
      const int r = places.row(e), k = from + x;
      const int64_t at = static_cast<int64_t>(r) * stride + k;
      shared.rows[r * stride_in_shared + x] = r < m && k < terms ? rows[at] : 0.0;
      shared.columns[r * stride_in_shared + x] = r < n && k < terms ? columns[at] : 0.0;
    }
    __syncthreads();
    const int here = y < m && x < n ? (terms - from < depth ? terms - from : depth) : 0;
#pragma unroll 1
    for (int p = 0; p < here; p += 4) {
#pragma unroll
      for (int q = p; q < p + 4; ++q) {
#pragma unroll
        for (int e = 0; e < E::count; ++e) {
          Arithmetic::add_product(sums.value[e], shared.rows[places.row(e) * stride_in_shared + q],
                                  shared.columns[places.column(e) * stride_in_shared + q]);
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int e = 0; e < E::count; ++e) sums.value[e] = Arithmetic::finished(sums.value[e]);
  return sums;
}

template <typename Arithmetic>
LLR_DEVICE void put(const GramShared& shared, int at, typename Arithmetic::Number value) {
  shared.high[at] = high_part(value);
  if constexpr (Arithmetic::parts == 2) shared.low[at] = low_part(value);
}

template <typename Arithmetic>
LLR_DEVICE typename Arithmetic::Number get(const GramShared& shared, int at) {
  if constexpr (Arithmetic::parts == 2) {
    return Arithmetic::number(shared.high[at], shared.low[at]);
  } else {
    return Arithmetic::number(shared.high[at], 0.0);
  }
}

// Where a tile lies in K. Only these numbers are kept, to save registers; the rest is computed when needed.
struct Tile {
  double *high, *low;  // K's two parts; low is null in plain arithmetic
  unsigned point;      // whose K it is
  int rows;            // of K
  int i, j;            // the tile's first row and column

  LLR_DEVICE int m() const { return rows - i < tile ? rows - i : tile; }
  LLR_DEVICE int n() const { return rows - j < tile ? rows - j : tile; }
  LLR_DEVICE int64_t at(int row, int column) const { return place(i + row, j + column); }
  // The place of this entry in the transposed tile, on the other side of the diagonal.
  LLR_DEVICE int64_t turned_at(int row, int column) const { return place(j + row, i + column); }
  LLR_DEVICE int64_t place(int row, int column) const {
    return (static_cast<int64_t>(point) * rows + row) * rows + column;
  }

  // Whether this entry is computed here: it lies in K, and not above its diagonal. (In a tile on the
  // diagonal, entries above and below it would sum over pairs of positions in different orders and differ in
  // their last bits.)
  LLR_DEVICE bool has(int row, int column) const {
    return row < m() && column < n() && (i != j || column <= row);
  }
};

// Adds one pair of positions of a layer to the tile. Without `add` this is the first pair, and overwrites the
// tile.
template <typename Arithmetic>
LLR_DEVICE void add_positions(const GramShared& shared, const Tile& K, const GramLayer& layer, int t, int s,
                              bool add) {
  using E = Entries<Arithmetic>;
  const int first_row = K.i / layer.sharing, first_column = K.j / layer.sharing;
  if (layer.weight) {
    const int stride = layer.positions * layer.inputs;
    const double* const a = layer.a + K.point * layer.a_stride;
    const E products = product<Arithmetic>(
        shared, a + static_cast<int64_t>(first_row) * stride + t * layer.inputs,
        a + static_cast<int64_t>(first_column) * stride + s * layer.inputs, stride,
        (K.i + K.m() - 1) / layer.sharing - first_row + 1,
        (K.j + K.n() - 1) / layer.sharing - first_column + 1, layer.inputs);
    const Places<Arithmetic> places;
#pragma unroll
    for (int e = 0; e < E::count; ++e) {
      put<Arithmetic>(shared, places.row(e) * tile_stride + places.column(e), products.value[e]);
    }
    __syncthreads();
  }
  E deltas;
  if (layer.delta != nullptr) {
    const int stride = layer.positions * layer.outputs;
    const double* const delta = layer.delta + K.point * layer.delta_stride;
    deltas = product<Arithmetic>(shared, delta + static_cast<int64_t>(K.i) * stride + t * layer.outputs,
                                 delta + static_cast<int64_t>(K.j) * stride + s * layer.outputs, stride, K.m(),
                                 K.n(), layer.outputs);
  } else {
    const Places<Arithmetic> places;
#pragma unroll
    for (int e = 0; e < E::count; ++e) {
      const int row = K.i + places.row(e), column = K.j + places.column(e);
      const bool same = row % layer.sharing == column % layer.sharing;
      deltas.value[e] = Arithmetic::number(same ? 1.0 : 0.0, 0.0);
    }
  }
  const Places<Arithmetic> places;
#pragma unroll
  for (int e = 0; e < E::count; ++e) {
    const int row = places.row(e), column = places.column(e);
    if (!K.has(row, column)) continue;
    typename Arithmetic::Number factor = Arithmetic::number(layer.bias ? 1.0 : 0.0, 0.0);
    if (layer.weight) {
      const int from = ((K.i + row) / layer.sharing - first_row) * tile_stride +
                       (K.j + column) / layer.sharing - first_column;
      factor = factor + get<Arithmetic>(shared, from);
    }
    const int64_t at = K.at(row, column);
    typename Arithmetic::Number sum = deltas.value[e] * factor;
    if (add) sum = Arithmetic::number(K.high[at], K.low == nullptr ? 0.0 : K.low[at]) + sum;
    store_scalar(K.high + at, high_part(sum));
    if (K.low != nullptr) store_scalar(K.low + at, low_part(sum));
  }
}

// Copies the transposed tile to the other side of the diagonal, first its high and then its low part.
template <typename Arithmetic>
LLR_DEVICE void mirror(double* turned, const Tile& K, double* part) {
  using E = Entries<Arithmetic>;
  const Places<Arithmetic> places;
#pragma unroll
  for (int e = 0; e < E::count; ++e) {
    const int row = places.row(e), column = places.column(e);
    if (!K.has(row, column)) continue;
    turned[column * tile_stride + row] = part[K.at(row, column)];
  }
  __syncthreads();
#pragma unroll
  for (int e = 0; e < E::count; ++e) {
    const int row = places.row(e), column = places.column(e);
    if (!K.has(column, row)) continue;
    store_scalar(part + K.turned_at(row, column), turned[row * tile_stride + column]);
  }
  __syncthreads();
}

// The row of tiles that holds the tile with this number. Tiles of the lower triangle are numbered row by row.
LLR_DEVICE int64_t band_of(int64_t number) {
  auto band = static_cast<int64_t>((sqrt(8.0 * static_cast<double>(number) + 1.0) - 1.0) * 0.5);
  while (band * (band + 1) / 2 > number) --band;
  while ((band + 1) * (band + 2) / 2 <= number) ++band;
  return band;
}

template <typename Arithmetic>
LLR_KERNEL(Arithmetic::threads, 1024 / Arithmetic::threads)
gram_kernel(double* high, double* low, int rows, unsigned first_point, unsigned tiles, bool add,
            bool last, LLR_PARAMETER GramLayer layer) {
  constexpr bool two_parts = Arithmetic::parts == 2;
  Shared parts;
  GramShared shared;
  shared.rows = parts.part<double>(tile * (Arithmetic::across + 1));
  shared.columns = parts.part<double>(tile * (Arithmetic::across + 1));
  shared.high = parts.part<double>(tile * tile_stride);
  shared.low = two_parts ? parts.part<double>(tile * tile_stride) : nullptr;

  const unsigned point = first_point + blockIdx.x / tiles;
  const int64_t number = blockIdx.x % tiles, band = band_of(number);
  const int i = static_cast<int>(band) * tile, j = static_cast<int>(number - band * (band + 1) / 2) * tile;
  const Tile K{high, two_parts ? low : nullptr, point, rows, i, j};
  for (int t = 0; t < layer.positions; ++t) {
    for (int s = 0; s < layer.positions; ++s) {
      add_positions<Arithmetic>(shared, K, layer, t, s, add);
      add = true;
    }
  }
  if (!last) return;  // the whole block returns
  __syncthreads();
  mirror<Arithmetic>(shared.high, K, K.high);
  if (two_parts) mirror<Arithmetic>(shared.high, K, K.low);
}

}  // namespace llr::cuda
