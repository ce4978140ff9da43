// Shapes and parameters of the operators.
#pragma once

#include <cstdint>

namespace mct {

struct BlockShape {
  int64_t S, B, H, W, C;  // z is (S, B, H, W, C)
  bool pool;
};

// A parameter (S)[n...]: its data and the distance from one student to the next. Null stands for an absent argument.
template <class T>
struct Param {
  const T* data;
  int64_t stride_s;
  const T* of(int64_t s) const { return data == nullptr ? nullptr : data + s * stride_s; }
};

}  // namespace mct
