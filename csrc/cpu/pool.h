// A thread-safe cache of large memory blocks. Fresh pages cost more than the arithmetic done on them, so scratch and
// output tensors are taken from here and given back instead of going through malloc.
#pragma once

#include <cstddef>

namespace mct {

// At least `bytes` bytes, aligned to 64 bytes (to 2 MiB and on huge pages where the system has them, from 2 MiB on).
// The contents are undefined. Throws std::bad_alloc. bytes = 0 is allowed.
void* pool_acquire(std::size_t bytes);

// Gives a block back; null is ignored. The block is kept for reuse while the kept bytes stay under the limit.
void pool_release(void* block) noexcept;

// Frees every block that is kept and not in use.
void pool_trim() noexcept;

// Upper bound of the bytes kept for reuse (default: a quarter of the machine's memory, at least 1 GiB). Lowering it frees
// what is above.
void pool_set_limit(std::size_t bytes) noexcept;

// Bytes kept for reuse, and bytes handed out, right now.
std::size_t pool_kept_bytes() noexcept;
std::size_t pool_used_bytes() noexcept;

// A block for the length of a scope.
class Scratch {
 public:
  explicit Scratch(std::size_t bytes) : block_(pool_acquire(bytes)) {}
  ~Scratch() { pool_release(block_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* floats() const { return static_cast<float*>(block_); }
  void* data() const { return block_; }

 private:
  void* block_;
};

}  // namespace mct
