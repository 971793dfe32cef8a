#include "jacobian.cuh"

#include <algorithm>

namespace llr::cuda {
namespace {

// The most shared memory of a block that computes whole nets: four such blocks fit a multiprocessor of sm_80
// and later (164 KB; each block takes 1 KB more).
constexpr int64_t net_bytes = 36 << 10;
constexpr int most_group = 64;      // samples
constexpr int worthwhile_group = 4;  // samples for which loading the weights pays
constexpr int blocks_per_multiprocessor = 16;  // of which four run at a time

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Number of blocks that fill the GPU several times.
int64_t wanted_blocks() {
  int device = 0, multiprocessors = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    multiprocessors = 1;
  }
  return static_cast<int64_t>(blocks_per_multiprocessor) * std::max(1, multiprocessors);
}

template <typename T>
int misalignment_of(const T* p) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(p) / sizeof(T) % vector_numbers<T>);
}

int64_t weight_numbers(const int64_t* widths, int layers) {
  int64_t numbers = 0;
  for (int l = 0; l < layers; ++l) numbers += ((widths[l] | 1) + 1) * widths[l + 1];
  return numbers;
}

int64_t signal_numbers(const int64_t* widths, int layers, int64_t samples) {
  int64_t hidden = 0;
  for (int l = 1; l < layers; ++l) hidden += widths[l];
  return 2 + samples * (widths[0] + (2 + widths[layers]) * hidden);
}

// Samples whose signals fit a block's shared memory together with the weights.
int64_t samples_that_fit(const int64_t* widths, int layers) {
  for (int l = 0; l <= layers; ++l) {
    if (widths[l] > net_bytes) return 0;
  }
  const int64_t room = (net_bytes - shared_bytes<double>(weight_numbers(widths, layers))) / 8;
  return (room - 2) / std::max<int64_t>(1, signal_numbers(widths, layers, 1) - 2);
}

// The arrangement of a block's threads for rows of this many vectors.
template <typename T>
Lanes lanes_for(int64_t all, int64_t pitch) {
  const int64_t vectors = ceil_div(all, ceil_div(all, threads)), lanes = threads / vectors;
  const int period = period_of<T>(pitch);
  if (lanes >= period) return {static_cast<int>(lanes - lanes % period), static_cast<int>(vectors)};
  return {lanes == 1 ? 1 : 2, static_cast<int>(vectors)};  // of a period of 2 or 4
}

}  // namespace

template <typename T>
cudaError_t write_rows(Rows<T> rows, const double* signals, int64_t count, cudaStream_t stream) {
  rows.misalignment = misalignment_of(rows.first);
  const int64_t all = vectors_of<T>(rows.columns, rows.pitch, rows.misalignment);
  const Lanes block = lanes_for<T>(all, rows.pitch);
  const int64_t tiles = ceil_div(all, block.vectors);
  const int64_t pass = std::max<int64_t>(block.lanes, period_of<T>(rows.pitch));  // rows that a block writes at a time
  const int64_t groups = std::clamp<int64_t>(wanted_blocks() / tiles, 1, ceil_div(count, pass));
  const int64_t rows_of_block = ceil_div(ceil_div(count, groups), pass) * pass;
  const int64_t used_groups = ceil_div(count, rows_of_block);
  const int64_t tiles_of_block = ceil_div(tiles * used_groups, wanted_blocks());
  const int64_t pieces = ceil_div(tiles, tiles_of_block);
  LLR_LAUNCH((write_kernel<T>), static_cast<unsigned>(pieces * used_groups), threads, 0, stream, rows, signals,
             static_cast<int>(count), static_cast<int>(std::min<int64_t>(rows_of_block, count)),
             static_cast<unsigned>(pieces), tiles_of_block * block.vectors, block);
  return cudaGetLastError();
}

bool fits_a_block(const int64_t* widths, int layers, int segments, int64_t samples) {
  return layers <= most_layers && segments <= most_segments &&
         samples_that_fit(widths, layers) >= std::min<int64_t>(samples, worthwhile_group);
}

template <typename T>
cudaError_t whole_net(Net<T> net, cudaStream_t stream) {
  int64_t widths[most_layers + 1] = {net.layer[0].in};
  for (int l = 0; l < net.layers; ++l) widths[l + 1] = net.layer[l].out;

  // As many samples at once as fit, but no more than keep every multiprocessor busy.
  const int64_t fair = ceil_div(net.points * net.samples, wanted_blocks());
  const int64_t most = std::min<int64_t>(samples_that_fit(widths, net.layers), most_group);
  net.group = static_cast<int>(std::clamp<int64_t>(fair, 1, std::min(most, net.samples)));
  const int64_t groups = ceil_div(net.samples, net.group);
  const int64_t blocks_per_point = std::min(groups, ceil_div(wanted_blocks(), net.points));
  net.groups = static_cast<int>(ceil_div(groups, blocks_per_point));

  int at = 0;
  for (int l = 0; l < net.layers; ++l) {
    net.weight_at[l] = at;
    at += weight_pitch(net.layer[l].in) * net.layer[l].out;
    net.bias_at[l] = at;
    at += net.layer[l].out;
  }
  net.weight_numbers = at;
  at = 2;
  const auto place = [&](int width) {
    const int begin = at;
    at += net.group * width;
    return begin;
  };
  net.inputs_at[0] = place(net.layer[0].in);
  for (int l = 1; l < net.layers; ++l) {
    net.inputs_at[l] = place(net.layer[l].in);
    net.slopes_at[l] = place(net.layer[l].in);
    net.deltas_at[l - 1] = place(net.layer[l].in * net.rows.outputs);
  }
  net.signal_numbers = at;
  for (int g = 0; g < net.rows.segments; ++g) {
    const int l = net.layer_of[g];
    Segment& s = net.rows.segment[g];
    s.a = net.bias[g] ? 0 : net.inputs_at[l];
    s.delta = l + 1 < net.layers ? net.deltas_at[l] : 0;
  }

  net.rows.misalignment = misalignment_of(net.rows.first);
  const int64_t all = vectors_of<T>(net.rows.columns, net.rows.pitch, net.rows.misalignment);
  const int64_t used = ceil_div(groups, net.groups);
  const int64_t bytes = shared_bytes<double>(net.weight_numbers) + shared_bytes<double>(net.signal_numbers);
  LLR_LAUNCH((net_kernel<T>), static_cast<unsigned>(net.points * used), threads, static_cast<size_t>(bytes), stream,
             net, static_cast<unsigned>(used), all, lanes_for<T>(all, net.rows.pitch));
  return cudaGetLastError();
}

template cudaError_t write_rows(Rows<float>, const double*, int64_t, cudaStream_t);
template cudaError_t write_rows(Rows<double>, const double*, int64_t, cudaStream_t);
template cudaError_t whole_net(Net<float>, cudaStream_t);
template cudaError_t whole_net(Net<double>, cudaStream_t);

}  // namespace llr::cuda
