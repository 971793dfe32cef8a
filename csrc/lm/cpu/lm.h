// Levenberg-Marquardt for many small problems, one per lane of a vector register.
//
// A lane takes a start from the queue, works on it until it has converged or is given up, and takes the next
// one. What a lane computes does not depend on the other lanes, so the result of a start has the same bits in
// any lane and together with any other starts.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "lm/lm_model.h"

namespace llr {

// Hands out starts in their order, each once. With `first`, starts after a converged start of the same data
// set are not needed any more and not handed out.
class LmQueue {
 public:
  LmQueue(const int64_t* which, int64_t starts, int64_t sets, bool first);

  // The next start that is still needed, -1 if there is none.
  int64_t take();
  void converged(int64_t start);
  bool obsolete(int64_t start) const;

 private:
  const int64_t* const which_;
  const int64_t starts_;
  std::atomic<int64_t> next_{0};
  std::vector<std::atomic<int64_t>> first_;  // for every data set: the first start that has converged so far
};

struct LmWork {
  const LmModel* model;
  LmDamping damping;
  int64_t samples;      // n
  const double* theta;  // (S, P)
  const double* x;      // (B, n, inputs)
  const double* y;      // (B, n, outputs)
  const int64_t* which;  // (S)
  LmQueue* queue;
  // Results, a row or a number for each start.
  double* final_theta;
  double* loss;
  int64_t* iterations;
  int64_t* status;  // an LmStatus
};

struct LmKernels {
  int lanes;
  // Doubles of scratch for `run`.
  int64_t (*scratch)(const LmModel& model, int64_t samples);
  // Works until the queue is empty, on at most `lanes` starts at a time. It begins with `at_first` starts.
  void (*run)(const LmWork& work, int64_t at_first, double* scratch);
};

const LmKernels& lm_kernels();

}  // namespace llr
