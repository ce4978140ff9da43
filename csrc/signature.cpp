#include "signature.h"

#include <algorithm>
#include <map>
#include <sstream>

namespace mct::op {

Signature& signature_of(const std::string& op) {
  static std::map<std::string, Signature> all;
  return all[op];
}

void Signature::declare(const std::vector<std::string>& lines) {
  std::vector<std::string> symbols;
  const auto symbol = [&](const std::string& name) {
    const auto at = std::find(symbols.begin(), symbols.end(), name);
    if (at != symbols.end()) return static_cast<int>(at - symbols.begin());
    symbols.push_back(name);
    if (symbols.size() > kSymbols) throw std::length_error("a signature has too many dimensions");
    return static_cast<int>(symbols.size()) - 1;
  };
  specs_.clear();
  if (lines.size() > std::tuple_size_v<decltype(Given::tensors)>) throw std::length_error("a signature has too many tensors");
  for (const std::string& line : lines) {
    std::istringstream words(line);
    std::string lead, together, whole, dtype, word;
    words >> lead >> together >> whole >> dtype;
    if (lead == "lead") lead_ = specs_.size();
    Spec spec{together == "together", whole == "whole", std::nullopt, {}};
    if (dtype == "int64") spec.dtype = Dtype::int64;
    if (dtype == "float32") spec.dtype = Dtype::float32;
    while (words >> word) {
      const size_t mark = word.find_first_of("/+");
      const Derived derived = mark == std::string::npos ? Derived::no
                              : word[mark] == '/'       ? Derived::half_if_pool
                                                        : Derived::one_more;
      if (word.find_first_not_of("0123456789") == std::string::npos) {
        spec.dims.push_back({std::stoll(word), 0, Derived::no});
      } else {
        spec.dims.push_back({-1, symbol(word.substr(0, mark)), derived});
      }
    }
    specs_.push_back(std::move(spec));
  }
}

bool Signature::sized(const Spec& spec, const Tensor& t, bool pool, Sizes& sizes) {
  if (t.dim() != static_cast<int64_t>(spec.dims.size())) return false;
  for (size_t i = 0; i < spec.dims.size(); ++i) {
    const Dim& dim = spec.dims[i];
    const int64_t size = t.size(static_cast<int64_t>(i));
    if (dim.number >= 0) {
      if (size != dim.number) return false;
      continue;
    }
    int64_t& known = sizes[dim.symbol];
    switch (dim.derived) {
      case Derived::half_if_pool:  // the leading tensor came first: its size is known
        if (size < 1 || size != (pool ? known / 2 : known)) return false;
        break;
      case Derived::one_more:
        if (known == 0) known = size - 1;
        if (known < 1 || size != known + 1) return false;
        break;
      case Derived::no:
        if (known == 0) known = size;
        if (size < 1 || size != known) return false;
    }
  }
  return true;
}

bool Signature::contiguous(const Spec& spec, const Tensor& t) {
  int64_t expected = 1;  // within each student; the stride between students is free where not the whole is wanted
  for (int64_t i = t.dim() - 1; i >= (spec.whole ? 0 : 1); --i) {
    if (t.size(i) != 1 && t.stride(i) != expected) return false;
    expected *= t.size(i);
  }
  return true;
}

bool Signature::fits(const Given& given) const {
  if (specs_.empty() || given.count != specs_.size()) return false;
  const Tensor& lead = *given.tensors[lead_];
  if (!lead.plain() || (lead.dtype() != Dtype::float32 && lead.dtype() != Dtype::float64)) return false;
  Sizes sizes{};
  bool some = false, all = true;  // of the arguments that come together
  for (size_t n = 0; n < specs_.size(); ++n) {
    const size_t i = n == 0 ? lead_ : n <= lead_ ? n - 1 : n;  // the leading one first
    const Spec& spec = specs_[i];
    const Tensor* t = given.tensors[i];
    if (spec.together) (t == nullptr ? all : some) = t != nullptr;
    if (t == nullptr) continue;
    if (!t->plain() || t->dtype() != spec.dtype.value_or(lead.dtype())) return false;
    if (!sized(spec, *t, given.pool, sizes) || !contiguous(spec, *t)) return false;
  }
  return all || !some;
}

}  // namespace mct::op
