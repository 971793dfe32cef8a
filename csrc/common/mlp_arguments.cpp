#include "mlp_arguments.h"

#include <algorithm>
#include <limits>
#include <ostream>
#include <string>
#include <utility>

#include <ATen/MemoryOverlap.h>
#include <c10/util/safe_numerics.h>

#include "memory.h"

namespace llr {
namespace {

constexpr int64_t most_columns = int64_t(1) << 59;
constexpr const char* too_many =
    ": the layers have more than 2^59 parameters; a row of the result has more than 2^63 bytes";

int64_t neurons_times(const char* op, int64_t neurons, int64_t width) {
  TORCH_CHECK(neurons <= most_columns / width, op, too_many);
  return neurons * width;
}

// Sets the first column of every tensor: from `columns` (2 per layer: weight, bias), or in order of the
// layers.
void place_columns(const char* op, MlpLayout& layout, const std::vector<at::Tensor>& biases,
                   at::OptionalIntArrayRef columns) {
  const int layers = layout.layers();
  if (columns.has_value()) {
    TORCH_CHECK(static_cast<int64_t>(columns->size()) == 2 * layers, op, ": columns has ",
                columns->size(), " entries; expected ", 2 * layers,
                " (first column of weight and bias of each of ", layers, " layers, -1 to leave one out)");
  }
  std::vector<std::pair<int64_t, int64_t>> spans;  // first column, count
  for (int l = 0; l < layers; ++l) {
    for (const bool bias : {false, true}) {
      const int64_t count = neurons_times(op, layout.out(l), bias ? 1 : layout.in(l));
      const bool present = !bias || biases[l].defined();
      int64_t at = not_a_column;
      if (columns.has_value()) {
        at = (*columns)[2 * l + (bias ? 1 : 0)];
        TORCH_CHECK(at >= not_a_column, op, ": columns[", 2 * l + (bias ? 1 : 0), "] is ", at,
                    "; expected a column, or -1 to leave the tensor out");
        TORCH_CHECK(present || at == not_a_column, op, ": columns places the bias of layer ", l,
                    ", which has none; expected -1");
      } else if (present) {
        at = layout.columns;
      }
      (bias ? layout.bias_column : layout.weight_column).push_back(at);
      if (at == not_a_column) continue;
      spans.emplace_back(at, count);
      layout.columns += count;
      TORCH_CHECK(layout.columns <= most_columns, op, too_many);
    }
  }
  TORCH_CHECK(!spans.empty(), op, ": every tensor is left out; expected at least one column");
  std::sort(spans.begin(), spans.end());
  int64_t next = 0;
  for (const auto& [at, count] : spans) {
    TORCH_CHECK(at == next, op, ": columns must follow one another without gap or overlap; a tensor of ",
                count, " numbers starts at ", at, ", expected ", next);
    next += count;
  }
}

// An argument that is an item of a list. The text of its name is made only for an error.
struct Item {
  const char* list;
  size_t index;
};

std::ostream& operator<<(std::ostream& out, const Item& item) { return out << item.list << '[' << item.index << ']'; }

void check_same_kind(const char* op, const at::Tensor& t, const at::Tensor& x, Item name) {
  TORCH_CHECK(t.defined(), op, ": ", name, " is undefined");
  TORCH_CHECK(t.layout() == at::kStrided, op, ": ", name, " has the layout ", t.layout(), "; expected a strided tensor");
  TORCH_CHECK(t.scalar_type() == x.scalar_type(), op, ": ", name, " is ", t.scalar_type(),
              " but x is ", x.scalar_type(), "; expected one dtype");
  TORCH_CHECK(t.device() == x.device(), op, ": ", name, " is on ", t.device(), " but x is on ",
              x.device(), "; expected one device");
}

}  // namespace

Activation activation_named(const char* op, std::string_view name) {
  std::string known;
  for (int i = 0; i < activation_count; ++i) {
    if (name == activation_names[i]) return static_cast<Activation>(i);
    known += std::string(i == 0 ? "" : ", ") + activation_names[i];
  }
  TORCH_CHECK(false, op, ": unknown activation '", std::string(name), "'; expected one of ", known);
}

bool is_aligned(const at::Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % t.element_size() == 0;
}

at::Tensor readable(const char* op, const char* name, const at::Tensor& t, int64_t index) {
  if (t.is_contiguous() && !t.is_neg() && is_aligned(t)) return t;
  const double bytes = static_cast<double>(t.numel()) * static_cast<double>(t.element_size());
  TORCH_CHECK(!t.is_cpu() || fits_memory(bytes), op, ": ", name, index < 0 ? "" : "[" + std::to_string(index) + "]",
              " of shape ", t.sizes(), ", whose repeated numbers have to be copied, ", beyond_memory(bytes));
  const at::Tensor dense = t.resolve_neg().contiguous();
  return is_aligned(dense) ? dense : dense.clone();
}

std::vector<int64_t> MlpArguments::result_sizes() const {
  const int64_t outputs = layout.out(layout.layers() - 1);
  if (x_batched || weights_batched) return {points, samples, outputs, layout.columns};
  return {samples, outputs, layout.columns};
}

MlpArguments check_mlp_arguments(const char* op, const at::Tensor& x, at::TensorList weights,
                                 const c10::List<std::optional<at::Tensor>>& biases,
                                 std::string_view activation, at::OptionalIntArrayRef columns) {
  MlpArguments args;
  args.x = x;
  args.activation = activation_named(op, activation);
  TORCH_CHECK(x.scalar_type() == at::kDouble || x.scalar_type() == at::kFloat,
              op, ": x is ", x.scalar_type(), "; expected float32 or float64");
  TORCH_CHECK(x.layout() == at::kStrided, op, ": x has the layout ", x.layout(), "; expected a strided tensor");
  TORCH_CHECK(x.dim() == 2 || x.dim() == 3, op, ": x has shape ", x.sizes(),
              "; expected (n, d), or (B, n, d) with a batch of parameter points");
  TORCH_CHECK(x.size(-1) > 0, op, ": x has shape ", x.sizes(), "; expected at least one input");
  TORCH_CHECK(!weights.empty(), op, ": no weights; expected one per layer");
  TORCH_CHECK(weights.size() == biases.size(), op, ": ", weights.size(), " weights and ",
              biases.size(), " biases; expected one bias, or None, per weight");
  TORCH_CHECK(weights.size() <= 65536, op, ": ", weights.size(), " layers; at most 65536");

  const int64_t batch_dims = weights[0].dim() - 2;
  TORCH_CHECK(batch_dims == 0 || batch_dims == 1, op, ": weights[0] has shape ",
              weights[0].sizes(), "; expected (out, in), or (B, out, in)");
  args.weights_batched = batch_dims == 1;
  args.x_batched = x.dim() == 3;
  args.points = args.weights_batched ? weights[0].size(0) : (args.x_batched ? x.size(0) : 1);
  args.samples = x.size(-2);
  TORCH_CHECK(!args.x_batched || x.size(0) == args.points, op, ": x has shape ", x.sizes(),
              " but there are ", args.points, " parameter points; expected the same leading size");

  args.layout.widths.push_back(x.size(-1));
  for (size_t l = 0; l < weights.size(); ++l) {
    const at::Tensor& w = weights[l];
    const Item name{"weights", l};
    check_same_kind(op, w, x, name);
    TORCH_CHECK(w.dim() == 2 + batch_dims && (batch_dims == 0 || w.size(0) == args.points),
                op, ": ", name, " has shape ", w.sizes(), "; expected ",
                batch_dims == 0 ? "(out, in)" : "(" + std::to_string(args.points) + ", out, in)",
                " as weights[0]");
    TORCH_CHECK(w.size(-1) == args.layout.widths.back(), op, ": ", name, " has shape ",
                w.sizes(), "; expected ", args.layout.widths.back(), " columns, the width of ",
                l == 0 ? std::string("x") : "weights[" + std::to_string(l - 1) + "]");
    TORCH_CHECK(w.size(-2) > 0, op, ": ", name, " has shape ", w.sizes(),
                "; expected at least one neuron");
    args.layout.widths.push_back(w.size(-2));
    args.weights.push_back(w);

    const std::optional<at::Tensor> bias = biases.get(l);
    if (!bias.has_value() || !bias->defined()) {
      args.biases.emplace_back();
      continue;
    }
    const Item bias_name{"biases", l};
    check_same_kind(op, *bias, x, bias_name);
    TORCH_CHECK(bias->dim() == 1 + batch_dims && bias->size(-1) == w.size(-2) &&
                    (batch_dims == 0 || bias->size(0) == args.points),
                op, ": ", bias_name, " has shape ", bias->sizes(), "; expected ",
                batch_dims == 0 ? "(" : "(" + std::to_string(args.points) + ", ", w.size(-2),
                ") to go with ", name, " of shape ", w.sizes());
    args.biases.push_back(*bias);
  }
  place_columns(op, args.layout, args.biases, columns);

  const std::vector<int64_t> sizes = args.result_sizes();
  uint64_t bytes = x.element_size();
  bool overflow = false;
  for (const int64_t size : sizes) {
    overflow |= c10::mul_overflows(bytes, static_cast<uint64_t>(size), &bytes);
  }
  TORCH_CHECK(!overflow && bytes <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()),
              op, ": a result of shape ", at::IntArrayRef(sizes), " has more than 2^63 bytes");

  return args;
}

MlpArguments read_mlp_arguments(const char* op, const at::Tensor& x, at::TensorList weights,
                                const c10::List<std::optional<at::Tensor>>& biases,
                                std::string_view activation, at::OptionalIntArrayRef columns) {
  MlpArguments args = check_mlp_arguments(op, x, weights, biases, activation, columns);
  args.x = readable(op, "x", x);
  for (size_t l = 0; l < weights.size(); ++l) {
    at::Tensor &w = args.weights[l], &b = args.biases[l];
    w = readable(op, "weights", w, static_cast<int64_t>(l));
    if (b.defined()) b = readable(op, "biases", b, static_cast<int64_t>(l));
  }
  return args;
}

void check_out(const char* op, const at::Tensor& out, const MlpArguments& args, const at::Tensor& x,
               at::TensorList weights) {
  const std::vector<int64_t> sizes = args.result_sizes();
  TORCH_CHECK(out.sizes() == at::IntArrayRef(sizes), op, ": out has shape ", out.sizes(), "; expected ",
              at::IntArrayRef(sizes));
  TORCH_CHECK(out.scalar_type() == x.scalar_type() && out.device() == x.device(), op, ": out is ",
              out.scalar_type(), " on ", out.device(), "; expected ", x.scalar_type(), " on ", x.device());
  TORCH_CHECK(at::has_internal_overlap(out) != at::MemOverlap::Yes, op, ": out of shape ", out.sizes(), " and strides ",
              out.strides(), " overlaps itself in memory; expected separate memory for each number");
  check_apart(op, "out", out, "x", x);
  for (const at::Tensor& w : weights) check_apart(op, "out", out, "a weight", w);
  for (const at::Tensor& b : args.biases) {
    if (b.defined()) check_apart(op, "out", out, "a bias", b);
  }
}

void check_apart(const char* op, const char* name, const at::Tensor& written, const char* other_name,
                 const at::Tensor& other) {
  const at::MemOverlapStatus status = at::get_overlap_status(written, other);
  TORCH_CHECK(status != at::MemOverlapStatus::Full && status != at::MemOverlapStatus::Partial, op, ": ", name,
              " overlaps ", other_name, " in memory; expected memory of its own, as it is written to");
}

bool is_writable(const at::Tensor& t) { return t.is_contiguous() && !t.is_neg() && is_aligned(t); }

}  // namespace llr
