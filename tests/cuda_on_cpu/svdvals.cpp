// torch.linalg's part of svdvals on the emulated device: one LAPACK routine replaces all of cuSOLVER's
// drivers, and each driver can be made to fail.
#include <ATen/ops/linalg_svdvals.h>
#include <torch/library.h>

#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace {

std::vector<std::string> failing, not_finite, asked;

}  // namespace

namespace llr::cuda {

at::Tensor svdvals_of_torch(const at::Tensor& A, std::optional<std::string_view> driver) {
  asked.emplace_back(driver.value_or("cpu"));
  TORCH_CHECK(A.scalar_type() == at::kDouble && A.dim() == 2 && A.size(0) >= A.size(1), "expected float64 (m, n) with m >= n");
  const auto listed = [&](const std::vector<std::string>& names) {
    return std::find(names.begin(), names.end(), asked.back()) != names.end();
  };
  TORCH_CHECK_LINALG(!listed(failing), asked.back(), " does not converge");
  const at::Tensor values = at::linalg_svdvals(A);
  return listed(not_finite) ? values.fill_(std::numeric_limits<double>::quiet_NaN()) : values;
}

}  // namespace llr::cuda

namespace {

// The drivers that fail from now on, and those that return NaN.
void fail(std::vector<std::string> throwing, std::vector<std::string> returning_nan) {
  failing = std::move(throwing);
  not_finite = std::move(returning_nan);
  asked.clear();
}

std::vector<std::string> drivers_asked() { return asked; }

}  // namespace

TORCH_LIBRARY_FRAGMENT(llr_emulated, m) {
  m.def("fail_drivers(str[] throwing, str[] returning_nan) -> ()", &fail);
  m.def("drivers_asked() -> str[]", &drivers_asked);
}
