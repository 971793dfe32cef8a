// The arguments of the MLP operators, checked and converted to one form, for every backend.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <vector>

#include "activation.h"
#include "mlp_layout.h"

namespace llr {

struct MlpArguments {
  at::Tensor x;                     // (n, d), or (B, n, d) if x_batched
  std::vector<at::Tensor> weights;  // (out, in), or (B, out, in) if weights_batched
  std::vector<at::Tensor> biases;   // (out), or (B, out); undefined where a layer has none
  Activation activation;
  bool x_batched;
  bool weights_batched;
  int64_t points;   // B, 1 without a batch
  int64_t samples;  // n
  MlpLayout layout;

  // (n, q, P), or (B, n, q, P)
  std::vector<int64_t> result_sizes() const;
};

// Throws for an unknown name; the message names the operator and lists the known names.
Activation activation_named(const char* op, std::string_view name);

// Whether the address of its numbers is a multiple of their size.
bool is_aligned(const at::Tensor& t);

// A tensor as a kernel can read it: contiguous, aligned to the size of its numbers (memory from other
// libraries may not be), and not lazily negated. Throws if it needs a copy that does not fit into memory; the
// message names the operator, the argument and its index in a list.
at::Tensor readable(const char* op, const char* name, const at::Tensor& t, int64_t index = -1);

// Throws c10::Error naming the operator, the offending argument and its shape. Returns the tensors as given;
// only their metadata is read.
MlpArguments check_mlp_arguments(const char* op, const at::Tensor& x, at::TensorList weights,
                                 const c10::List<std::optional<at::Tensor>>& biases,
                                 std::string_view activation, at::OptionalIntArrayRef columns);

// The same, with tensors that a kernel can read: each goes through readable().
MlpArguments read_mlp_arguments(const char* op, const at::Tensor& x, at::TensorList weights,
                                const c10::List<std::optional<at::Tensor>>& biases,
                                std::string_view activation, at::OptionalIntArrayRef columns);

// The same check for `out`, which the result is written into: its shape, dtype and device, and that it shares
// no memory with the inputs. `x` and `weights` are those that the caller passed.
void check_out(const char* op, const at::Tensor& out, const MlpArguments& args, const at::Tensor& x,
               at::TensorList weights);

// Throws if a tensor that is written to shares memory with another tensor.
void check_apart(const char* op, const char* name, const at::Tensor& written, const char* other_name,
                 const at::Tensor& other);

// Whether a kernel can write into it: contiguous, aligned to the size of its numbers, not lazily negated.
bool is_writable(const at::Tensor& t);

}  // namespace llr
