#include "lm_arguments.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "common/mlp_arguments.h"
#include "finite/cpu/finite.h"
#include "common/cpu/interrupt.h"

namespace llr {
namespace {

constexpr const char* op = "lm_solve";
constexpr int64_t most_parameters = int64_t(1) << 40;
constexpr double most_numbers = 1e15;  // of all Jacobians in a vector's lanes

int64_t product(int64_t a, int64_t b) {
  TORCH_CHECK(a <= most_parameters / b, op, ": a model of more than 2^40 parameters or neurons");
  return a * b;
}

void check_sizes(at::IntArrayRef sizes, size_t count, const char* names) {
  TORCH_CHECK(sizes.size() == count, op, ": sizes has ", sizes.size(), " entries; expected ", names);
}

void check_no_biases(const c10::List<bool>& biases, std::string_view kind) {
  TORCH_CHECK(biases.empty(), op, ": biases has ", biases.size(), " entries; expected none for ", kind);
}

void read_mlp(LmModel& model, at::IntArrayRef sizes, const c10::List<bool>& biases) {
  const size_t layers = sizes.size() - 1;
  TORCH_CHECK(sizes.size() >= 2, op, ": sizes has ", sizes.size(), " entries; expected the widths d, ..., q of an MLP");
  TORCH_CHECK(biases.size() == layers, op, ": biases has ", biases.size(), " entries; expected ", layers,
              ", one per layer");
  MlpLayout& layout = model.layout;
  layout.widths = sizes.vec();
  for (size_t l = 0; l < layers; ++l) {
    layout.weight_column.push_back(layout.columns);
    layout.columns += product(sizes[l], sizes[l + 1]);
    const bool bias = biases.get(l);
    layout.bias_column.push_back(bias ? layout.columns : not_a_column);
    layout.columns += bias ? sizes[l + 1] : 0;
    TORCH_CHECK(layout.columns <= most_parameters, op, ": a model of more than 2^40 parameters or neurons");
    if (l + 1 < layers) {
      model.hidden += sizes[l + 1];
      model.widest = std::max(model.widest, sizes[l + 1]);
    }
  }
  model.parameters = layout.columns;
  model.inputs = sizes.front();
  model.outputs = sizes.back();
}

void read_convolution(LmModel& model, at::IntArrayRef sizes) {
  check_sizes(sizes, 3, "(d, kernel size, channels)");
  model.d = sizes[0];
  model.kernel = sizes[1];
  model.channels = sizes[2];
  TORCH_CHECK(model.kernel <= model.d, op, ": sizes are ", sizes, "; expected a kernel no longer than d");
  model.hidden = model.widest = product(model.channels, model.positions());
  const int64_t kernels = model.kind == LmModel::Kind::conv1d ? model.channels : model.hidden;
  model.parameters = product(kernels, model.kernel) + model.hidden;
  model.inputs = model.d;
  model.outputs = 1;
}

void read_factorization(LmModel& model, at::IntArrayRef sizes) {
  check_sizes(sizes, 3, "(rows, rank, columns)");
  model.rows = sizes[0];
  model.rank = sizes[1];
  model.columns = sizes[2];
  model.parameters = product(model.rows, model.rank) + product(model.rank, model.columns);
  model.inputs = 2;
  model.outputs = 1;
}

LmModel read_model(std::string_view kind, at::IntArrayRef sizes, std::string_view activation,
                   const c10::List<bool>& biases) {
  LmModel model;
  model.activation = activation_named(op, activation);
  for (const int64_t size : sizes) {
    TORCH_CHECK(size >= 1, op, ": sizes are ", sizes, "; expected positive ones");
  }
  if (kind == "mlp") {
    model.kind = LmModel::Kind::mlp;
    read_mlp(model, sizes, biases);
    return model;
  }
  check_no_biases(biases, kind);
  if (kind == "conv1d" || kind == "local1d") {
    model.kind = kind == "conv1d" ? LmModel::Kind::conv1d : LmModel::Kind::local1d;
    read_convolution(model, sizes);
  } else {
    TORCH_CHECK(kind == "factorization", op, ": unknown kind '", kind,
                "'; expected one of mlp, conv1d, local1d, factorization");
    TORCH_CHECK(model.activation == Activation::identity, op, ": activation is '", activation,
                "'; expected identity, as a factorization has none");
    model.kind = LmModel::Kind::factorization;
    read_factorization(model, sizes);
  }
  return model;
}

void check_tensor(const at::Tensor& t, const char* name, at::ScalarType dtype, int64_t dims,
                  const std::string& shape) {
  TORCH_CHECK(t.scalar_type() == dtype, op, ": ", name, " is ", t.scalar_type(), "; expected ", dtype);
  TORCH_CHECK(t.dim() == dims, op, ": ", name, " has shape ", t.sizes(), "; expected ", shape);
}

void check_finite(const at::Tensor& t, const char* name) {
  TORCH_CHECK(all_finite(t), op, ": ", name, " has a NaN or an infinity; expected finite numbers");
}

void check_damping(const LmDamping& damping) {
  const auto positive = [](double value, const char* name) {
    TORCH_CHECK(std::isfinite(value) && value > 0.0, op, ": ", name, " is ", value, "; expected a positive number");
  };
  positive(damping.start, "damping");
  positive(damping.down, "down");
  positive(damping.up, "up");
  TORCH_CHECK(damping.down <= 1.0 && damping.up > 1.0, op, ": down is ", damping.down, " and up is ", damping.up,
              "; expected down <= 1 < up");
  TORCH_CHECK(damping.progress >= 0.0 && damping.progress < 1.0, op, ": progress is ", damping.progress,
              "; expected 0 <= progress < 1");
  TORCH_CHECK(damping.tol >= 0.0 && std::isfinite(damping.tol), op, ": tol is ", damping.tol,
              "; expected a number >= 0");
  TORCH_CHECK(damping.stall >= 1, op, ": stall is ", damping.stall, "; expected at least 1");
  TORCH_CHECK(damping.iterations >= 0, op, ": iterations is ", damping.iterations, "; expected at least 0");
}

// Convergence is measured by the sum of squares of the targets.
void check_squares(const at::Tensor& y) {
  const int64_t count = y.size(1) * y.size(2);
  const double* p = y.const_data_ptr<double>();
  for (int64_t set = 0; set < y.size(0); ++set, p += count) {
    interruption_point(count);
    double squares = 0.0, largest = 0.0;
    for (int64_t i = 0; i < count; ++i) {
      squares += p[i] * p[i];
      largest = std::max(largest, std::abs(p[i]));
    }
    TORCH_CHECK(std::isfinite(squares) && (squares > 0.0 || largest == 0.0), op, ": y of data set ", set,
                " has a sum of squares of ", squares, "; expected targets of a size that can be squared");
  }
}

void check_indices(const LmModel& model, const at::Tensor& x) {
  const double* p = x.const_data_ptr<double>();
  for (int64_t i = 0; i < x.numel(); ++i) {
    const int64_t most = i % 2 == 0 ? model.rows : model.columns;
    TORCH_CHECK(p[i] >= 0.0 && p[i] < static_cast<double>(most) && p[i] == std::floor(p[i]), op,
                ": x contains the ", i % 2 == 0 ? "row " : "column ", p[i], "; expected an integer from 0 to ",
                most - 1);
  }
}

}  // namespace

LmArguments read_lm_arguments(const at::Tensor& theta, const at::Tensor& x, const at::Tensor& y,
                              const at::Tensor& which, std::string_view kind, at::IntArrayRef sizes,
                              std::string_view activation, const c10::List<bool>& biases,
                              const LmDamping& damping) {
  LmArguments args{read_model(kind, sizes, activation, biases), {}, {}, {}, {}};
  const LmModel& model = args.model;
  check_damping(damping);
  check_tensor(theta, "theta", at::kDouble, 2, "(S, P)");
  check_tensor(x, "x", at::kDouble, 3, "(B, n, inputs)");
  check_tensor(y, "y", at::kDouble, 3, "(B, n, outputs)");
  check_tensor(which, "which", at::kLong, 1, "(S)");
  for (const at::Tensor* t : {&x, &y, &which}) {
    TORCH_CHECK(t->device() == theta.device(), op, ": theta is on ", theta.device(), " but another argument on ",
                t->device(), "; expected one device");
  }
  TORCH_CHECK(theta.size(1) == model.parameters, op, ": theta has shape ", theta.sizes(), "; expected (S, ",
              model.parameters, ") for the parameters of this model");
  TORCH_CHECK(x.size(2) == model.inputs && x.size(1) >= 1, op, ": x has shape ", x.sizes(), "; expected (B, n, ",
              model.inputs, ") with n >= 1");
  TORCH_CHECK(y.size(0) == x.size(0) && y.size(1) == x.size(1) && y.size(2) == model.outputs, op,
              ": y has shape ", y.sizes(), "; expected (", x.size(0), ", ", x.size(1), ", ", model.outputs,
              ") to go with x of shape ", x.sizes());
  TORCH_CHECK(which.size(0) == theta.size(0), op, ": which has shape ", which.sizes(), "; expected (", theta.size(0),
              "), a data set for each row of theta");
  const double numbers = static_cast<double>(y.size(1)) * static_cast<double>(model.outputs) *
                         static_cast<double>(model.parameters + model.hidden + 1);
  TORCH_CHECK(numbers < most_numbers, op, ": Jacobians of ", numbers, " numbers do not fit into any memory");

  args.theta = readable(op, "theta", theta);
  args.x = readable(op, "x", x);
  args.y = readable(op, "y", y);
  args.which = readable(op, "which", which);
  check_finite(args.theta, "theta");
  check_finite(args.x, "x");
  check_finite(args.y, "y");
  check_squares(args.y);
  if (model.kind == LmModel::Kind::factorization) check_indices(model, args.x);
  const int64_t* set = args.which.const_data_ptr<int64_t>();
  for (int64_t s = 0; s < args.which.numel(); ++s) {
    TORCH_CHECK(set[s] >= 0 && set[s] < x.size(0), op, ": which[", s, "] is ", set[s],
                "; expected a data set from 0 to ", x.size(0) - 1);
  }
  return args;
}

}  // namespace llr
