// Intentional bugs: sanitize.sh calls them to check that the sanitizers work.
#include <limits>
#include <vector>

extern "C" int read_past_end(int n) {
  std::vector<int> values(n, 1);
  const int* data = values.data();
  return data[n];
}

extern "C" int overflow_int(int n) { return std::numeric_limits<int>::max() - 2 + n; }
