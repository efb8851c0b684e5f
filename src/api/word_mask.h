// WordMask: lists of ids that may or may not be sampled, on top of a grammar's mask when there is one.
//
// allowed_token_ids is a mask that never changes. A phrase of several tokens is kept from being said by
// taking its last token away whenever the answer ends with the ones before it. On the engine's thread only.
#pragma once

#include <memory>
#include <vector>

#include "engine/request.h"

namespace jewel {

class WordMask final : public TokenMask {
 public:
  // `inner` and `allowed` may be null: everything. Each phrase has at least two tokens.
  WordMask(std::unique_ptr<TokenMask> inner, const std::vector<TokenId>* allowed,
           std::vector<std::vector<TokenId>> phrases, int vocab_size);

  Result<std::span<const uint32_t>> allowed() override;
  Result<void> accept(TokenId id) override;

 private:
  std::unique_ptr<TokenMask> inner_;
  std::vector<std::vector<TokenId>> phrases_;
  std::vector<uint32_t> base_;
  std::vector<uint32_t> words_;
  std::vector<TokenId> said_;  // as many of the last as the longest phrase needs
  size_t longest_ = 0;
};

}  // namespace jewel
