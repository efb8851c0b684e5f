#include "api/word_mask.h"

#include <algorithm>
#include <utility>

namespace jewel {

WordMask::WordMask(std::unique_ptr<TokenMask> inner, const std::vector<TokenId>* allowed,
                   std::vector<std::vector<TokenId>> phrases, int vocab_size)
    : inner_(std::move(inner)),
      phrases_(std::move(phrases)),
      base_((static_cast<size_t>(vocab_size) + 31) / 32, allowed == nullptr ? ~uint32_t{0} : 0) {
  if (allowed != nullptr) {
    for (const TokenId id : *allowed) base_[static_cast<size_t>(id) / 32] |= uint32_t{1} << (id % 32);
  }
  for (const auto& phrase : phrases_) longest_ = std::max(longest_, phrase.size() - 1);
}

Result<std::span<const uint32_t>> WordMask::allowed() {
  words_ = base_;
  if (inner_ != nullptr) {
    JEWEL_ASSIGN(const std::span<const uint32_t> inner, inner_->allowed());
    for (size_t i = 0; i < inner.size(); ++i) words_[i] &= inner[i];
  }
  for (const auto& phrase : phrases_) {
    const size_t before = phrase.size() - 1;
    if (said_.size() < before) continue;
    if (!std::equal(phrase.begin(), phrase.end() - 1, said_.end() - static_cast<ptrdiff_t>(before))) continue;
    words_[static_cast<size_t>(phrase.back()) / 32] &= ~(uint32_t{1} << (phrase.back() % 32));
  }
  return std::span<const uint32_t>(words_);
}

Result<void> WordMask::accept(TokenId id) {
  said_.push_back(id);
  if (said_.size() > 2 * longest_ + 64)  // cut now and then, so that the cost of cutting does not count
    said_.erase(said_.begin(), said_.end() - static_cast<ptrdiff_t>(longest_));
  return inner_ != nullptr ? inner_->accept(id) : Result<void>();
}

}  // namespace jewel
