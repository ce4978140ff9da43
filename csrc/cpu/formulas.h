// What norm -> ReLU -> pool, its derivatives and the matching loss do to one value: V is a number or a vector of numbers, T a
// number. No include guard, because each instruction set has its own copy (see simd.h).
//
// xhat = (z - mean) rstd, u = gamma xhat + beta, a = relu(u), p = pool(a); a trailing dot is a tangent, a leading g a
// cotangent; `share` is what each pixel of a pool's window gets of its cotangent, `count` the pixels of a plane. Derivations
// stand in mct_fast/ops.

namespace mct::MCT_ISA {

template <class V>
MCT_INLINE V normalised(V z, V mean, V rstd) {
  return (z - mean) * rstd;
}

template <class V>
MCT_INLINE V scaled(V xhat, V gamma, V beta) {
  return gamma * xhat + beta;
}

// v where u is positive or NaN, else 0: a NaN goes through, as in PyTorch
template <class V>
MCT_INLINE V masked(V u, V v) {
  return u <= V{} ? V{} : v;
}

// xhatdot = rstd (zdot - mean zdot - xhat mean(xhat zdot)), with rm1 = rstd mean zdot and rm2 = rstd mean(xhat zdot)
template <class V>
MCT_INLINE V normalised_dot(V zdot, V xhat, V rstd, V rm1, V rm2) {
  return rstd * zdot - rm1 - xhat * rm2;
}

// udot = gammadot xhat + gamma xhatdot + betadot, gathered by zdot, by xhat, and the rest
template <class V>
MCT_INLINE void tangent_terms(V gamma, V gammadot, V betadot, V rstd, V m1, V m2, V& by_zdot, V& by_xhat, V& rest) {
  by_zdot = gamma * rstd;
  by_xhat = gammadot - by_zdot * m2;
  rest = betadot - by_zdot * m1;
}

template <class V>
MCT_INLINE V scaled_dot(V zdot, V xhat, V by_zdot, V by_xhat, V rest) {
  return by_zdot * zdot + by_xhat * xhat + rest;
}

// gz = rstd (gamma gu - mean q - xhat mean(q xhat)) = a gu - b - xhat c, with gu not yet shared out
template <class V, class T>
MCT_INLINE void cotangent_terms(V gamma, V rstd, T share, T count, V sum_g, V sum_gx, V& a, V& b, V& c) {
  a = rstd * gamma * share;
  b = a * sum_g / count;
  c = a * sum_gx / count;
}

template <class V>
MCT_INLINE V cotangent(V gu, V xhat, V a, V b, V c) {
  return a * gu - b - xhat * c;
}

// With q = gamma gu, qdot = gamma gudot + gammadot gu, rdot = -rstd^2 mean(xhat zdot):
// gzdot = rdot / rstd gz + rstd (qdot - mean qdot - xhatdot mean(q xhat) - xhat mean(qdot xhat + q xhatdot))
//       = a gudot + d gu - e - xhatdot c - xhat h - rm2 gz
template <class V, class T>
MCT_INLINE void cotangent_dot_terms(V gammadot, V rstd, T share, T count, V a, V sum_g, V sum_gx, V sum_gd, V sum_mixed,
                                     V& d, V& e, V& h) {
  d = rstd * gammadot * share;
  e = (a * sum_gd + d * sum_g) / count;
  h = (a * sum_mixed + d * sum_gx) / count;
}

template <class V>
MCT_INLINE V cotangent_dot(V gz, V gu, V gudot, V xhat, V xhatdot, V a, V c, V d, V e, V h, V rm2) {
  return a * gudot + d * gu - e - xhatdot * c - xhat * h - rm2 * gz;
}

// theta - ((1 - f) origin + f end), with rest = 1 - f; exact at both ends
template <class V>
MCT_INLINE V miss(V theta, V origin, V end, V rest, V f) {
  return theta - (rest * origin + f * end);
}

}  // namespace mct::MCT_ISA
