#include "gram_arguments.h"

#include <utility>

#include <c10/util/Exception.h>

namespace llr {

std::vector<int64_t> gram_sizes(const MlpArguments& args, bool double_double) {
  std::vector<int64_t> sizes;
  if (double_double) sizes.push_back(2);
  if (args.x_batched || args.weights_batched) sizes.push_back(args.points);
  for (int i = 0; i < 2; ++i) {
    sizes.push_back(args.samples);
    sizes.push_back(args.layout.widths.back());
  }
  return sizes;
}

void check_gram_add(const at::Tensor& K, const at::Tensor& delta, const at::Tensor& a) {
  TORCH_CHECK(K.scalar_type() == at::kDouble, "gram_add_: K is ", K.scalar_type(), "; expected float64");
  TORCH_CHECK((K.dim() == 2 || (K.dim() == 3 && K.size(0) == 2)) && K.size(-1) == K.size(-2),
              "gram_add_: K has shape ", K.sizes(), "; expected (N, N), or (2, N, N) in double-double");
  TORCH_CHECK(delta.defined() && a.defined(), "gram_add_: delta or a is None; expected tensors");
  const int64_t rows = K.size(-1);
  TORCH_CHECK(is_writable(K), "gram_add_: K is not contiguous, is lazily negated, or does not lie at a multiple of 8 bytes; "
              "expected a matrix that can be added to where it is");
  for (const auto& [t, name] : {std::pair<const at::Tensor&, const char*>(delta, "delta"), {a, "a"}}) {
    TORCH_CHECK(t.scalar_type() == at::kDouble && t.device() == K.device() && t.dim() == 3 &&
                    t.size(0) == rows && t.size(1) == delta.size(1),
                "gram_add_: ", name, " is ", t.scalar_type(), " of shape ", t.sizes(), " on ", t.device(),
                "; expected float64 (", rows, ", T, width) on ", K.device());
    check_apart("gram_add_", "K", K, name, t);
  }
}

}  // namespace llr
