// The scheduler behind emulation.h: fibers, barriers, shared memory, and the checks.
#include "emulation.h"

#include <cstdarg>
#include <mutex>
#include <numeric>

#include "fiber.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace llr::emulation {
namespace {

constexpr int max_threads = 1024;
constexpr int max_parts = 64;
constexpr int64_t red_zone = 64;
constexpr int64_t most_shared = 227 * 1024;  // the maximum of all devices
#if defined(__SANITIZE_THREAD__)
constexpr int teams = 2;
#else
constexpr int teams = 1;
#endif

// ---- the state of the running block

enum class State : char { running, at_block_barrier, at_warp_operation, finished };

struct Thread {
  Fiber fiber;
  State state;
  Site site;        // where it waits
  unsigned mask;    // of a warp operation
  unsigned source;  // of a shuffle
  uint64_t value;   // given to a shuffle
  uint64_t result;  // and got
};

// The threads of a block. Under ThreadSanitizer two teams run blocks in turn. Operations that order memory
// within one team must not order it with the other, so each team has its own barriers and shared memory.
struct Team {
  Thread threads[max_threads];
  int made;                  // how many of them have a fiber
  unsigned arrived[32];      // per warp: lanes that wait at a warp operation
  unsigned warp_passed[32];  // per warp: finished warp operations
  unsigned passed;           // finished barriers
  unsigned blocks;           // started blocks
  // Addresses that represent barriers to ThreadSanitizer, two in turn. A thread that has passed a barrier may
  // reach the next one before others have left the first; what it did in between must not appear ordered
  // before them.
  char warp_order[32][2], block_order[2], end_order[2];
  alignas(128) char shared[most_shared + (max_parts + 1) * red_zone];
};

struct Part {
  char* address;
  int64_t count, size, end;
};

struct Block {
  const Launch* launch;  // null if nothing runs
  Team* team;
  int64_t index;
  int thread;  // the running thread
  int finished;
  int waiting, first;  // at the barrier of the block: how many, and who came first
  Votes votes, result;
  int parts;
  Part part[max_parts];
};

Team team_of[teams];
Block now;
Fiber host;
char launch_order;
Settings settings_now;
uint64_t random_state;
Statistics counts;
struct {
  char file[100];
  int line;
  int64_t passed;
} removed;
std::mutex one_launch;

LLR_UNSEEN void release([[maybe_unused]] char* order) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(order);
#endif
}
LLR_UNSEEN void acquire([[maybe_unused]] char* order) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(order);
#endif
}

// ---- reports

// A kernel is compiled in one unit, so the same place has the same string addresses.
LLR_UNSEEN bool same(const Site& a, const Site& b) {
  return a.line == b.line && a.file == b.file && a.what == b.what;
}

// Whether a test has removed it.
LLR_UNSEEN bool is_removed(const Site& site) {
  if (site.line != removed.line) return false;
  const size_t all = strlen(site.file), end = strlen(removed.file);
  if (all < end || strcmp(site.file + (all - end), removed.file) != 0) return false;
  ++removed.passed;
  return true;
}

LLR_UNSEEN void report_threads(int first, int last) {
  const Thread& t = now.team->threads[first];
  fprintf(stderr, first == last ? "  thread %d " : "  threads %d to %d ", first, last);
  if (t.state == State::finished) {
    fprintf(stderr, "finished\n");
  } else {
    fprintf(stderr, "in %s at %s:%d\n", t.site.what, t.site.file, t.site.line);
  }
}

[[noreturn]] LLR_UNSEEN void deadlock() {
  fprintf(stderr, "emulated CUDA: deadlock: no thread of the block can go on\n");
  const Thread* const t = now.team->threads;
  const int count = static_cast<int>(now.launch->block);
  int first = 0;
  for (int i = 1; i <= count; ++i) {
    if (i < count && t[i].state == t[first].state &&
        (t[i].state == State::finished || same(t[i].site, t[first].site))) {
      continue;
    }
    report_threads(first, i - 1);
    first = i;
  }
  violation(nullptr, "a barrier or warp operation that not all of its threads reach");
}

// ---- scheduling

// A ring of the threads that can run; each is in it at most once.
int16_t ring[max_threads];
unsigned ring_begin, ring_size;

LLR_UNSEEN uint64_t random_below(uint64_t bound) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return (random_state >> 11) % bound;
}

LLR_UNSEEN void enqueue(int thread) {
  now.team->threads[thread].state = State::running;
  ring[(ring_begin + ring_size++) % max_threads] = static_cast<int16_t>(thread);
}

// Those of [first, first + count) whose bit is in the mask (of 32, repeated).
LLR_UNSEEN void enqueue(int first, int count, unsigned mask) {
  for (int i = 0; i < count; ++i) {
    const int thread = first + (settings_now.order == Order::reverse ? count - 1 - i : i);
    if (mask >> thread % 32 & 1) enqueue(thread);
  }
}

// Switches from the running fiber to the next one, if that is different; to the host's fiber if the block is
// done.
LLR_UNSEEN void next(Fiber& self) {
  Fiber* to = &host;
  if (ring_size > 0) {
    int16_t& head = ring[ring_begin];
    if (settings_now.order == Order::random) {
      int16_t& drawn = ring[(ring_begin + random_below(ring_size)) % max_threads];
      const int16_t thread = drawn;
      drawn = head;
      head = thread;
    }
    now.thread = head;
    ring_begin = (ring_begin + 1) % max_threads;
    --ring_size;
    to = &now.team->threads[now.thread].fiber;
  } else if (now.finished < now.launch->block) {
    deadlock();
  }
  if (to != &self) self.go_to(*to);
}

// The endless body of a fiber: runs one thread after the other.
LLR_UNSEEN void live() {
  Team* const team = now.team;
  Thread& self = team->threads[now.thread];
  self.fiber.arrived();
  for (;;) {
    acquire(&launch_order);
    acquire(&team->end_order[(team->blocks - 1) % 2]);
    now.launch->thread(*now.launch);
    release(&team->end_order[team->blocks % 2]);
    self.state = State::finished;
    ++now.finished;
    next(self.fiber);
  }
}

// ---- a block

// Volatile, because the sanitizers would see a call of memset.
LLR_UNSEEN void fill_shared(Team& team, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 8) *reinterpret_cast<volatile int64_t*>(team.shared + i) = -1;
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(team.shared, sizeof team.shared);
#endif
}

LLR_UNSEEN void run_block(const Launch& launch, int64_t index, Team& team) {
  const int count = static_cast<int>(launch.block);
  while (team.made < count) {
    team.threads[team.made].fiber.make(&live, team.made);
    ++team.made;
  }
  ++team.blocks;
  fill_shared(team, launch.shared_bytes + max_parts * red_zone);
  now.launch = &launch;
  now.team = &team;
  now.index = index;
  now.finished = now.waiting = now.parts = 0;
  now.votes = {0, 0};
  enqueue(0, count, ~0u);
  next(host);
}

// ---- warps

// Waits until all lanes of the mask are in this operation; the last lane to arrive does it for all.
LLR_UNSEEN void warp_operation(Site site, unsigned mask, unsigned source, uint64_t value) {
  Thread* const warp = now.team->threads + now.thread / 32 * 32;
  const unsigned lane = now.thread % 32;
  if (!(mask >> lane & 1)) violation(&site, "lane %u is not in the mask 0x%08x that it gives", lane, mask);
  if (!(mask >> source & 1)) violation(&site, "lane %u reads lane %u, outside 0x%08x", lane, source, mask);
  Thread& self = warp[lane];
  self.state = State::at_warp_operation;
  self.site = site;
  self.mask = mask;
  self.source = source;
  self.value = value;
  unsigned& arrived = now.team->arrived[now.thread / 32];
  arrived |= 1u << lane;
  if ((arrived & mask) == mask) {
    for (unsigned i = 0; i < 32; ++i) {
      if (!(mask >> i & 1)) continue;
      if (!same(warp[i].site, site) || warp[i].mask != mask) {
        violation(&site, "lane %u waits with mask 0x%08x, lane %u with 0x%08x in %s at %s:%d", lane, mask, i,
                  warp[i].mask, warp[i].site.what, warp[i].site.file, warp[i].site.line);
      }
      warp[i].result = warp[warp[i].source].value;
    }
    arrived &= ~mask;
    ++now.team->warp_passed[now.thread / 32];
    enqueue(now.thread / 32 * 32, 32, mask);
  }
  next(self.fiber);
}

}  // namespace

LLR_UNSEEN void violation(const Site* site, const char* format, ...) {
  fprintf(stderr, "emulated CUDA: ");
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fprintf(stderr, "\n");
  if (site) fprintf(stderr, "  in %s at %s:%d\n", site->what, site->file, site->line);
  if (now.launch) {
    fprintf(stderr, "  kernel %s, block %lld of %lld", now.launch->kernel, (long long)now.index,
            (long long)now.launch->grid);
    fprintf(stderr, ", thread %d of %lld\n", now.thread, (long long)now.launch->block);
  }
  fflush(stderr);
  abort();
}

// ---- called from kernels

LLR_UNSEEN Index thread_index() { return {static_cast<unsigned>(now.thread)}; }
LLR_UNSEEN Index block_index() { return {static_cast<unsigned>(now.index)}; }
LLR_UNSEEN Index block_size() { return {static_cast<unsigned>(now.launch->block)}; }
LLR_UNSEEN Index grid_size() { return {static_cast<unsigned>(now.launch->grid)}; }

LLR_UNSEEN Votes block_barrier(Site site, bool vote) {
  if (is_removed(site)) return {vote, !vote};
  Team& team = *now.team;
  Thread& self = team.threads[now.thread];
  char* const order = &team.block_order[team.passed % 2];
  release(order);
  self.state = State::at_block_barrier;
  self.site = site;
  ++(vote ? now.votes.yes : now.votes.no);
  if (now.waiting++ == 0) now.first = now.thread;
  const Site& theirs = team.threads[now.first].site;
  if (!same(theirs, site)) {
    violation(&site, "thread %d waits in %s at %s:%d", now.first, theirs.what, theirs.file, theirs.line);
  }
  if (now.waiting == now.launch->block) {
    now.result = now.votes;
    now.votes = {0, 0};
    now.waiting = 0;
    ++team.passed;
    enqueue(0, static_cast<int>(now.launch->block), ~0u);
  }
  next(self.fiber);
  acquire(order);
  return now.result;
}

LLR_UNSEEN void warp_barrier(Site site, unsigned mask) {
  if (is_removed(site)) return;
  if (mask != ~0u) violation(&site, "mask 0x%08x: only barriers of whole warps are emulated", mask);
  const int warp = now.thread / 32;
  char* const order = &now.team->warp_order[warp][now.team->warp_passed[warp] % 2];
  release(order);
  warp_operation(site, mask, now.thread % 32, 0);
  acquire(order);
}

LLR_UNSEEN uint64_t warp_shuffle(Site site, unsigned mask, unsigned source, uint64_t value) {
  const Thread& self = now.team->threads[now.thread];
  warp_operation(site, mask, source, value);
  return self.result;
}

LLR_UNSEEN void* shared_part(int index, int64_t count, int64_t size) {
  if (index == max_parts) violation(nullptr, "more than %d parts of shared memory", max_parts);
  Part& part = now.part[index];
  if (index < now.parts) {
    if (part.count != count || part.size != size) {
      violation(nullptr, "part %d of the shared memory: %lld x %lld bytes, in another thread %lld x %lld",
                index, (long long)count, (long long)size, (long long)part.count, (long long)part.size);
    }
    return part.address;
  }
  const int64_t begin = index == 0 ? 0 : now.part[index - 1].end;
  const int64_t bytes = count * size;
  now.parts = index + 1;
  part = {now.team->shared + begin + (index + 1) * red_zone, count, size, begin + (bytes + 15) / 16 * 16};
  if (count < 0 || part.end > now.launch->shared_bytes) {
    violation(nullptr, "part %d of the shared memory: %lld x %lld bytes from %lld on, launched with %lld",
              index, (long long)count, (long long)size, (long long)begin,
              (long long)now.launch->shared_bytes);
  }
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(part.address, bytes);
#endif
  return part.address;
}

LLR_UNSEEN void count_vector_store(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) {
    violation(nullptr, "store_vector to %p: not a multiple of 16", p);
  }
  ++counts.vector_stores;
}
LLR_UNSEEN void count_scalar_store() { ++counts.scalar_stores; }

// ---- called from the host

void run(const Launch& launch) {
  const std::lock_guard<std::mutex> guard(one_launch);
  check_launch(launch);
  ++counts.launches;
  random_state = (settings_now.seed + 1) * 0x9e3779b97f4a7c15;  // not 0, and with many bits set
  const int64_t grid = launch.grid;
  int64_t start = 0, stride = 1;
  if (settings_now.order == Order::reverse) {
    start = grid - 1;
    stride = grid - 1;
  } else if (settings_now.order == Order::random) {
    start = static_cast<int64_t>(random_below(grid));
    do {
      stride = 1 + static_cast<int64_t>(random_below(grid));
    } while (std::gcd(stride, grid) != 1);
  }
  host.adopt();
  release(&launch_order);
  for (int64_t i = 0; i < grid; ++i) run_block(launch, (start + i * stride) % grid, team_of[i % teams]);
  now.launch = nullptr;
  for (Team& team : team_of) {
    acquire(&team.end_order[0]);
    acquire(&team.end_order[1]);
  }
}

void emulate(const Settings& wanted) {
  if (wanted.shared_limit > most_shared) violation(nullptr, "no device has so much shared memory");
  settings_now = wanted;
}

const Settings& settings() { return settings_now; }

Statistics statistics() { return counts; }
void reset_statistics() { counts = {}; }

void remove_barriers(const char* file, int line) {
  if (strlen(file) >= sizeof removed.file) violation(nullptr, "too long a name: %s", file);
  strcpy(removed.file, file);
  removed.line = line;
  removed.passed = 0;
}
int64_t removed_barriers() { return removed.passed; }

cudaStream_t stream() { return reinterpret_cast<cudaStream_t>(&host); }

}  // namespace llr::emulation
