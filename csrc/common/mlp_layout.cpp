#include "mlp_layout.h"

#include <algorithm>

namespace llr {

std::vector<Strip> strips_of(const MlpLayout& layout, int64_t target) {
  struct Block {
    int64_t column;
    int layer;
    bool bias;
  };
  std::vector<Block> blocks;
  for (int l = 0; l < layout.layers(); ++l) {
    if (layout.weight_column[l] != not_a_column) blocks.push_back({layout.weight_column[l], l, false});
    if (layout.bias_column[l] != not_a_column) blocks.push_back({layout.bias_column[l], l, true});
  }
  std::sort(blocks.begin(), blocks.end(),
            [](const Block& a, const Block& b) { return a.column < b.column; });

  std::vector<Strip> strips;
  for (const Block& block : blocks) {
    const int64_t neurons = layout.out(block.layer);
    const int64_t width = block.bias ? 1 : layout.in(block.layer);
    const int64_t step = std::max<int64_t>(1, target / width);
    for (int64_t first = 0; first < neurons; first += step) {
      const int64_t last = std::min(first + step, neurons);
      strips.push_back({block.layer, block.bias, first, last, (last - first) * width});
    }
  }
  return strips;
}

}  // namespace llr
