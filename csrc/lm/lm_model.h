// The models that Levenberg-Marquardt fits, and its settings, for every backend.
#pragma once

#include <cstdint>
#include <vector>

#include "common/activation.h"
#include "common/mlp_layout.h"

namespace llr {

struct LmModel {
  // mlp: an MLP. conv1d: the same kernel at every position, then a layer of output weights. local1d: the same
  // with a separate kernel at each position. factorization: entries of a product of two factors.
  enum class Kind { mlp, conv1d, local1d, factorization };

  Kind kind;
  Activation activation;
  MlpLayout layout;  // of an MLP
  int64_t d = 0, kernel = 0, channels = 0;         // of convolutions
  int64_t rows = 0, rank = 0, columns = 0;         // of a factorization: A is (rows, rank), B (rank, columns)
  int64_t inputs = 0;      // numbers in a sample
  int64_t outputs = 0;     // q
  int64_t hidden = 0;      // neurons, of all hidden layers together
  int64_t widest = 0;      // hidden layer
  int64_t parameters = 0;  // P

  int64_t positions() const { return d + 1 - kernel; }
};

// The damping term added to the diagonal of the normal matrix, and when to give up.
struct LmDamping {
  double start;        // the first damping
  double down;         // the factor after a step that lowers the loss
  double up;           // the factor after any other step
  double progress;     // an iteration is stalled unless it lowers the loss by this fraction
  int64_t stall;       // stalled iterations in a row, after which a start is given up
  int64_t iterations;  // the most iterations of a start
  double tol;          // converged: sum of squared residuals <= tol * sum of squared targets
};

// The order is the one of llr.recovery.lm.STATUS.
enum class LmStatus : int64_t { converged, stalled, limit, failed, skipped };

}  // namespace llr
