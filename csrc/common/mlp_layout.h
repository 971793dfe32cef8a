// Where each layer's weight and bias lie in a parameter row.
//
// A row holds, for one sample and one output, the derivatives with respect to every parameter that is a
// column. By default that is W_1, b_1, W_2, b_2, ..., each flattened row-major; a model may register its
// layers in another order, or freeze some, so each tensor has a first column of its own, or none.
#pragma once

#include <cstdint>
#include <vector>

namespace llr {

constexpr int64_t not_a_column = -1;

// Neurons [first, last) of one layer's weight or bias: consecutive columns of the row.
struct Strip {
  int layer;
  bool bias;
  int64_t first;
  int64_t last;
  int64_t columns;
};

struct MlpLayout {
  std::vector<int64_t> widths;         // d, h_1, ..., q
  std::vector<int64_t> weight_column;  // per layer, not_a_column if left out
  std::vector<int64_t> bias_column;    // per layer, not_a_column if left out or absent
  int64_t columns = 0;                 // P

  int layers() const { return static_cast<int>(widths.size()) - 1; }
  int64_t in(int layer) const { return widths[layer]; }
  int64_t out(int layer) const { return widths[layer + 1]; }
};

// The row as strips of at most about `target` columns, in column order.
std::vector<Strip> strips_of(const MlpLayout& layout, int64_t target);

}  // namespace llr
