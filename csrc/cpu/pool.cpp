#include "pool.h"

#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <unordered_map>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace mct {
namespace {

constexpr std::size_t kHuge = std::size_t{2} << 20;

// Sizes are rounded up in steps of an eighth of their power of two, so that nearly equal requests share blocks.
std::size_t bucket(std::size_t bytes) {
  if (bytes < 4096) bytes = 4096;
  std::size_t power = 4096;
  while (power <= bytes / 2) power *= 2;
  std::size_t step = power / 8;
  if (power >= 8 * kHuge && step % kHuge != 0) step = kHuge;
  return (bytes + step - 1) / step * step;
}

void* allocate(std::size_t size) {
  const std::size_t alignment = size >= kHuge ? kHuge : 64;
  void* block = nullptr;
  if (posix_memalign(&block, alignment, size) != 0) return nullptr;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (size >= kHuge) madvise(block, size, MADV_HUGEPAGE);  // only advice: a failure changes nothing
#endif
  return block;
}

// A quarter of the machine's memory: a step of four experts of 256 images has blocks of half a gigabyte each, and giving
// them back to the system between steps would cost more than what is computed on them.
std::size_t default_limit() {
  constexpr std::size_t least = std::size_t{1} << 30;
#if defined(__linux__)
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  if (pages > 0 && page > 0) {
    const std::size_t quarter = static_cast<std::size_t>(pages) / 4 * static_cast<std::size_t>(page);
    return quarter > least ? quarter : least;
  }
#endif
  return least;
}

struct Pool {
  std::mutex mutex;
  std::map<std::size_t, std::vector<void*>> kept;    // size -> free blocks
  std::unordered_map<void*, std::size_t> used;       // block -> size
  std::size_t kept_bytes = 0, used_bytes = 0, limit = default_limit();

  // Frees kept blocks, largest first, until at most `target` bytes are kept. The mutex is held.
  void shrink(std::size_t target) noexcept {
    while (kept_bytes > target && !kept.empty()) {
      auto last = std::prev(kept.end());
      std::free(last->second.back());
      last->second.pop_back();
      kept_bytes -= last->first;
      if (last->second.empty()) kept.erase(last);
    }
  }
};

// Never destroyed: tensors may be released after the static destructors have run.
Pool& pool() {
  static Pool* instance = new Pool;
  return *instance;
}

}  // namespace

void* pool_acquire(std::size_t bytes) {
  if (bytes > (std::size_t{1} << 62)) throw std::bad_alloc();
  const std::size_t size = bucket(bytes);
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  void* block = nullptr;
  auto found = p.kept.find(size);
  if (found != p.kept.end()) {
    block = found->second.back();
    p.used.emplace(block, size);
    found->second.pop_back();
    if (found->second.empty()) p.kept.erase(found);
    p.kept_bytes -= size;
  } else {
    block = allocate(size);
    if (block == nullptr) {
      p.shrink(0);
      block = allocate(size);
    }
    if (block == nullptr) throw std::bad_alloc();
    try {
      p.used.emplace(block, size);
    } catch (...) {
      std::free(block);
      throw;
    }
  }
  p.used_bytes += size;
  return block;
}

void pool_release(void* block) noexcept {
  if (block == nullptr) return;
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  auto found = p.used.find(block);
  if (found == p.used.end()) return;  // not ours
  const std::size_t size = found->second;
  p.used.erase(found);
  p.used_bytes -= size;
  if (size <= p.limit && p.kept_bytes <= p.limit - size) {
    try {
      std::vector<void*> fresh;
      fresh.reserve(8);  // so that no empty list is left behind when memory is short
      auto& list = p.kept.emplace(size, std::move(fresh)).first->second;
      list.push_back(block);
      p.kept_bytes += size;
      return;
    } catch (...) {
    }
  }
  std::free(block);
}

void pool_trim() noexcept {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  p.shrink(0);
}

void pool_set_limit(std::size_t bytes) noexcept {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  p.limit = bytes;
  p.shrink(bytes);
}

std::size_t pool_kept_bytes() noexcept {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  return p.kept_bytes;
}

std::size_t pool_used_bytes() noexcept {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  return p.used_bytes;
}

}  // namespace mct
