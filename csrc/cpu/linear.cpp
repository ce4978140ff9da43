// The linear layer with cross-entropy or binary cross-entropy, and its tangent: logits and loss by rows, then the
// products by tiles.

#include <cmath>

#include "kernels.h"
#include "parallel.h"
#include "pool.h"
#include "units.h"

namespace mct {
namespace {

// The units' sizes; no sum is split between units, so the bits do not depend on them.
constexpr int64_t kRows = 128, kColumns = 128;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Turns logits l (K) into log softmax, in place.
template <class T>
void log_softmax(int64_t K, T* l) {
  T top = l[0];
  for (int64_t k = 1; k < K; ++k) top = l[k] > top ? l[k] : top;
  double total = 0;
  for (int64_t k = 0; k < K; ++k) total += std::exp(l[k] - top);
  const T shift = top + static_cast<T>(std::log(total));
  for (int64_t k = 0; k < K; ++k) l[k] -= shift;
}

// Runs fn(student, first row, rows) over blocks of rows of (S, B, ...).
template <class Fn>
void for_rows(const LinearShape& s, const Fn& fn) {
  const int64_t size = s.B < 128 ? 4 : 32;
  const int64_t blocks = ceil_div(s.B, size);
  parallel_for(s.S * blocks, product_cost(2 * size * s.F * s.K), [&](int64_t unit, int) {
    const int64_t r = unit % blocks * size;
    fn(unit / blocks, r, least(size, s.B - r));
  });
}

// gh (B, F) = g w [+ g2 w2] and gw (K, F) = g^T h [+ g2^T h2] of every student, in one loop; null outputs are skipped.
template <class T>
struct Product {
  const T *g, *g2;           // (S, B, K)
  Param<T> w, w2;            // right factors of gh
  const T *h, *h2;           // right factors of gw, (S, B, F)
  T *gh, *gw;
};

template <class T>
void products(const LinearShape& s, const Product<T>* all, int count) {
  const Units<T>& u = units<T>();
  const int64_t columns = ceil_div(s.F, kColumns), gh_rows = ceil_div(s.B, kRows), gw_rows = ceil_div(s.K, kRows);
  const int64_t each = (gh_rows + gw_rows) * columns;
  parallel_for(s.S * count * each, product_cost(2 * least(kRows, s.B) * kColumns * s.K), [&](int64_t unit, int) {
    const Product<T>& p = all[unit / each % count];
    const int64_t student = unit / each / count, f = unit % columns * kColumns, n = least(kColumns, s.F - f);
    int64_t row = unit % each / columns;
    const T* g = p.g + student * s.B * s.K;
    const T* g2 = p.g2 == nullptr ? nullptr : p.g2 + student * s.B * s.K;
    if (row < gh_rows) {
      if (p.gh == nullptr) return;
      row *= kRows;
      const Factors<T> x{g + row * s.K, p.w.of(student) + f, g2 == nullptr ? nullptr : g2 + row * s.K,
                         g2 == nullptr ? nullptr : p.w2.of(student) + f};
      u.products_nn(least(kRows, s.B - row), n, s.K, x, s.K, 1, s.F, p.gh + (student * s.B + row) * s.F + f, s.F);
    } else {
      if (p.gw == nullptr) return;
      row = (row - gh_rows) * kRows;
      const int64_t at = student * s.B * s.F + f;
      const Factors<T> x{g + row, p.h + at, g2 == nullptr ? nullptr : g2 + row, g2 == nullptr ? nullptr : p.h2 + at};
      u.products_nn(least(kRows, s.K - row), n, s.B, x, 1, s.K, s.F, p.gw + (student * s.K + row) * s.F + f, s.F);
    }
  });
}

// gb (S, K) = sum over B of g (S, B, K)
template <class T>
void add_rows(const LinearShape& s, const T* g, T* gb) {
  for (int64_t student = 0; student < s.S; ++student) {
    for (int64_t k = 0; k < s.K; ++k) {
      double total = 0;
      for (int64_t b = 0; b < s.B; ++b) total += g[(student * s.B + b) * s.K + k];
      gb[student * s.K + k] = static_cast<T>(total);
    }
  }
}

// loss (S) = mean over B of terms (S, B)
template <class T>
void mean_rows(const LinearShape& s, const double* terms, T* loss) {
  for (int64_t student = 0; student < s.S; ++student) {
    double total = 0;
    for (int64_t b = 0; b < s.B; ++b) total += terms[student * s.B + b];
    loss[student] = static_cast<T>(total / static_cast<double>(s.B));
  }
}

// A loss of one row. `gradient` turns logits l (K) into dloss/dl and returns the loss; `tangent` turns l and its tangent
// ld into dloss/dl and its tangent, fills gy with the tangent of dloss/dy and returns the tangent of the loss. Both divide
// what they leave in the arrays by the number of rows B: the loss of a student is the mean over its rows.

template <class T>
struct CrossEntropy {
  int64_t K, B;

  double gradient(const T* y, T* l) const {
    log_softmax(K, l);
    double term = 0;
    T weight = 0;
    for (int64_t k = 0; k < K; ++k) {
      weight += y[k];
      // a target of 0 asks nothing of a logit of minus infinity
      if (y[k] != T(0)) term -= static_cast<double>(y[k]) * l[k];
    }
    for (int64_t k = 0; k < K; ++k) l[k] = (std::exp(l[k]) * weight - y[k]) / static_cast<T>(B);
    return term;
  }

  double tangent(const T* y, T* l, T* ld, T* gy) const {
    log_softmax(K, l);
    double mean = 0, term = 0;
    T weight = 0;
    for (int64_t k = 0; k < K; ++k) {
      l[k] = std::exp(l[k]);  // p
      weight += y[k];
      mean += static_cast<double>(l[k]) * ld[k];
    }
    for (int64_t k = 0; k < K; ++k) {
      const T logp_dot = ld[k] - static_cast<T>(mean);
      term -= static_cast<double>(y[k]) * logp_dot;
      gy[k] = -logp_dot / static_cast<T>(B);
      ld[k] = l[k] * logp_dot * weight / static_cast<T>(B);
      l[k] = (l[k] * weight - y[k]) / static_cast<T>(B);
    }
    return term;
  }
};

// sum over k of pos_k y_k softplus(-l_k) + neg_k (1 - y_k) softplus(l_k)
template <class T>
struct BinaryCrossEntropy {
  int64_t K, B;
  const T *pos, *neg;

  // sigma(l) and sigma(-l), each without cancellation, and softplus(-|l|)
  struct Sigmoid {
    T on, off, tail;
    explicit Sigmoid(T l) {
      const T e = std::exp(-std::abs(l)), big = 1 / (1 + e), small = e / (1 + e);
      on = l >= 0 ? big : small;
      off = l >= 0 ? small : big;
      tail = std::log1p(e);
    }
  };

  double gradient(const T* y, T* l) const {
    double term = 0;
    for (int64_t k = 0; k < K; ++k) {
      const T a = pos[k] * y[k], b = neg[k] * (1 - y[k]);
      const Sigmoid s(l[k]);
      term += static_cast<double>(a) * (s.tail + (l[k] < 0 ? -l[k] : T(0))) +
              static_cast<double>(b) * (s.tail + (l[k] > 0 ? l[k] : T(0)));
      l[k] = (b * s.on - a * s.off) / static_cast<T>(B);
    }
    return term;
  }

  double tangent(const T* y, T* l, T* ld, T* gy) const {
    double term = 0;
    for (int64_t k = 0; k < K; ++k) {
      const T a = pos[k] * y[k], b = neg[k] * (1 - y[k]);
      const Sigmoid s(l[k]);
      const T g = b * s.on - a * s.off, ldot = ld[k];
      term += static_cast<double>(g) * ldot;
      gy[k] = -(pos[k] * s.off + neg[k] * s.on) * ldot / static_cast<T>(B);
      ld[k] = (a + b) * s.on * s.off * ldot / static_cast<T>(B);
      l[k] = g / static_cast<T>(B);
    }
    return term;
  }
};

template <class T, class Loss>
void gradient(const LinearShape& s, const Loss& of_row, const T* h, Param<T> w, Param<T> b, const T* y, T* loss, T* gh,
              T* gw, T* gb) {
  const Units<T>& u = units<T>();
  const Scratch terms_block(s.S * s.B * sizeof(double)), g_block(s.S * s.B * s.K * sizeof(T));
  double* terms = static_cast<double*>(terms_block.data());
  T* g = static_cast<T*>(g_block.data());
  for_rows(s, [&](int64_t student, int64_t row, int64_t rows) {
    const int64_t at = student * s.B + row;
    T* l = g + at * s.K;
    u.products_nt(rows, s.K, s.F, {h + at * s.F, w.of(student), nullptr, nullptr}, s.F, s.F, l, s.K);
    const T* bias = b.of(student);
    for (int64_t r = 0; r < rows; ++r, l += s.K) {
      for (int64_t k = 0; k < s.K; ++k) l[k] += bias[k];
      terms[at + r] = of_row.gradient(y + (at + r) * s.K, l);
    }
  });
  const Product<T> p{g, nullptr, w, {nullptr, 0}, h, nullptr, gh, gw};
  products(s, &p, 1);
  add_rows(s, g, gb);
  mean_rows(s, terms, loss);
}

template <class T, class Loss>
void tangent(const LinearShape& s, const Loss& of_row, const T* h, const T* hdot, Param<T> w, Param<T> wdot, Param<T> b,
             Param<T> bdot, const T* y, T* loss_dot, T* gh, T* ghdot, T* gwdot, T* gbdot, T* gydot) {
  const Units<T>& u = units<T>();
  const Scratch terms_block(s.S * s.B * sizeof(double)), g_block(2 * s.S * s.B * s.K * sizeof(T));
  double* terms = static_cast<double*>(terms_block.data());
  T* g = static_cast<T*>(g_block.data());
  T* gdot = g + s.S * s.B * s.K;
  for_rows(s, [&](int64_t student, int64_t row, int64_t rows) {
    const int64_t at = student * s.B + row;
    const T *hr = h + at * s.F, *hd = hdot + at * s.F;
    T *l = g + at * s.K, *ld = gdot + at * s.K;
    u.products_nt(rows, s.K, s.F, {hr, w.of(student), nullptr, nullptr}, s.F, s.F, l, s.K);
    u.products_nt(rows, s.K, s.F, {hd, w.of(student), hr, wdot.of(student)}, s.F, s.F, ld, s.K);
    const T *bias = b.of(student), *bias_dot = bdot.of(student);
    for (int64_t r = 0; r < rows; ++r, l += s.K, ld += s.K) {
      for (int64_t k = 0; k < s.K; ++k) {
        l[k] += bias[k];
        ld[k] += bias_dot[k];
      }
      terms[at + r] = of_row.tangent(y + (at + r) * s.K, l, ld, gydot + (at + r) * s.K);
    }
  });
  const Product<T> p[2] = {{g, nullptr, w, {nullptr, 0}, nullptr, nullptr, gh, nullptr},
                           {gdot, g, w, wdot, h, hdot, ghdot, gwdot}};
  products(s, p, 2);
  add_rows(s, gdot, gbdot);
  mean_rows(s, terms, loss_dot);
}

}  // namespace

template <class T>
void linear_ce(const LinearShape& s, const T* h, Param<T> w, Param<T> b, const T* y, T* loss, T* gh, T* gw, T* gb) {
  gradient(s, CrossEntropy<T>{s.K, s.B}, h, w, b, y, loss, gh, gw, gb);
}

template <class T>
void linear_ce_tangent(const LinearShape& s, const T* h, const T* hdot, Param<T> w, Param<T> wdot, Param<T> b,
                       Param<T> bdot, const T* y, T* loss_dot, T* gh, T* ghdot, T* gwdot, T* gbdot, T* gydot) {
  tangent(s, CrossEntropy<T>{s.K, s.B}, h, hdot, w, wdot, b, bdot, y, loss_dot, gh, ghdot, gwdot, gbdot, gydot);
}

template <class T>
void linear_bce(const LinearShape& s, const T* h, Param<T> w, Param<T> b, const T* y, const T* pos, const T* neg, T* loss,
                T* gh, T* gw, T* gb) {
  gradient(s, BinaryCrossEntropy<T>{s.K, s.B, pos, neg}, h, w, b, y, loss, gh, gw, gb);
}

template <class T>
void linear_bce_tangent(const LinearShape& s, const T* h, const T* hdot, Param<T> w, Param<T> wdot, Param<T> b,
                        Param<T> bdot, const T* y, const T* pos, const T* neg, T* loss_dot, T* gh, T* ghdot, T* gwdot,
                        T* gbdot, T* gydot) {
  tangent(s, BinaryCrossEntropy<T>{s.K, s.B, pos, neg}, h, hdot, w, wdot, b, bdot, y, loss_dot, gh, ghdot, gwdot, gbdot,
          gydot);
}

#define MCT_INSTANTIATE(T)                                                                                           \
  template void linear_ce(const LinearShape&, const T*, Param<T>, Param<T>, const T*, T*, T*, T*, T*);               \
  template void linear_ce_tangent(const LinearShape&, const T*, const T*, Param<T>, Param<T>, Param<T>, Param<T>,    \
                                  const T*, T*, T*, T*, T*, T*, T*);                                                 \
  template void linear_bce(const LinearShape&, const T*, Param<T>, Param<T>, const T*, const T*, const T*, T*, T*,   \
                           T*, T*);                                                                                  \
  template void linear_bce_tangent(const LinearShape&, const T*, const T*, Param<T>, Param<T>, Param<T>, Param<T>,   \
                                   const T*, const T*, const T*, T*, T*, T*, T*, T*, T*);
MCT_INSTANTIATE(float)
MCT_INSTANTIATE(double)

}  // namespace mct
