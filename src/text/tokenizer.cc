#include "text/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "text/text_file.h"
#include "text/textkit_call.h"
#include "text/utf8.h"

namespace jewel {
namespace {

constexpr size_t kMaxFileBytes = size_t{256} << 20;  // Gemma 4's file has 32 MB

}  // namespace

void Tokenizer::Close::operator()(tk_tokenizer* handle) const {
  tk_tokenizer_free(handle);
}

Result<Tokenizer> Tokenizer::load(const std::string& path) {
  JEWEL_ASSIGN(const std::string json, read_text_file(path, kMaxFileBytes));
  auto tokenizer = from_json(json);
  if (!tokenizer.ok()) {
    Error error = std::move(tokenizer).error();
    error.message = fmt::format("{}: {}", path, error.message);
    return error;
  }
  return tokenizer;
}

Result<Tokenizer> Tokenizer::from_json(std::string_view json) {
  Tokenizer tokenizer;
  TextkitBuffer error;
  tk_tokenizer* handle = nullptr;
  if (const int32_t status = tk_tokenizer_new(textkit_bytes(json), json.size(), &handle, error.out());
      status != TK_OK)
    return textkit_error(status, error);
  tokenizer.handle_.reset(handle);
  JEWEL_TRY(tokenizer.read_table());
  return tokenizer;
}

Result<void> Tokenizer::read_table() {
  TextkitBuffer pieces, ends, kinds, error;
  if (const int32_t status =
          tk_tokenizer_table(handle_.get(), pieces.out(), ends.out(), kinds.out(), error.out());
      status != TK_OK)
    return textkit_error(status, error);
  pieces_ = pieces.str();
  kinds_.assign(kinds.data(), kinds.data() + kinds.size());
  ends_.resize(kinds_.size());
  JEWEL_CHECK(ends.size() == ends_.size() * sizeof(uint32_t));
  if (!ends_.empty()) std::memcpy(ends_.data(), ends.data(), ends.size());

  for (int32_t id = 0; id < vocab_size(); ++id) {
    if (!is_special(id) || token_bytes(id).empty()) continue;
    std::string text(token_bytes(id));
    special_by_first_[static_cast<uint8_t>(text[0])].push_back({text, id});
    special_texts_.push_back(std::move(text));
  }
  for (auto& same_first : special_by_first_) {
    std::sort(same_first.begin(), same_first.end(), [](const Special& a, const Special& b) {
      return a.text.size() != b.text.size() ? a.text.size() > b.text.size() : a.id < b.id;
    });
  }
  return Ok{};
}

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && id < vocab_size() && (kinds_[static_cast<size_t>(id)] & TK_TOKEN_SPECIAL) != 0;
}

Tokenizer::Kind Tokenizer::kind(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return Kind::kHole;
  switch (kinds_[static_cast<size_t>(id)] & ~TK_TOKEN_SPECIAL) {
    case TK_TOKEN_TEXT:
      return Kind::kText;
    case TK_TOKEN_BYTE:
      return Kind::kByte;
    default:
      return Kind::kHole;
  }
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  const auto i = static_cast<size_t>(id);
  const uint32_t begin = i == 0 ? 0 : ends_[i - 1];
  return std::string_view(pieces_).substr(begin, ends_[i] - begin);
}

std::optional<int32_t> Tokenizer::id_of(std::string_view token) const {
  const int64_t id = tk_tokenizer_id(handle_.get(), textkit_bytes(token), token.size());
  if (id < 0) return std::nullopt;
  return static_cast<int32_t>(id);
}

std::optional<SpecialMatch> Tokenizer::find_special(std::string_view text, size_t from) const {
  for (size_t i = from; i < text.size(); ++i) {
    for (const Special& special : special_by_first_[static_cast<uint8_t>(text[i])]) {
      if (text.substr(i).starts_with(special.text)) return SpecialMatch{i, special.text.size(), special.id};
    }
  }
  return std::nullopt;
}

Result<std::vector<int32_t>> Tokenizer::encode(std::string_view text, SpecialTokens special) const {
  std::string repaired;
  if (!is_utf8(text)) {
    repaired = replace_invalid_utf8(text);
    text = repaired;
  }
  std::vector<int32_t> ids;
  size_t begin = 0;
  if (special == SpecialTokens::kParse) {
    while (const auto match = find_special(text, begin)) {
      JEWEL_TRY(append_plain(text.substr(begin, match->position - begin), ids));
      ids.push_back(match->id);
      begin = match->position + match->length;
    }
  }
  JEWEL_TRY(append_plain(text.substr(begin), ids));
  return ids;
}

Result<void> Tokenizer::append_plain(std::string_view text, std::vector<int32_t>& ids) const {
  if (text.empty()) return Ok{};
  TextkitBuffer found, error;
  const int32_t status =
      tk_tokenizer_encode(handle_.get(), textkit_bytes(text), text.size(), found.out(), error.out());
  if (status != TK_OK) return textkit_error(status, error);
  const size_t before = ids.size();
  ids.resize(before + found.size() / sizeof(int32_t));
  if (found.size() != 0) std::memcpy(ids.data() + before, found.data(), found.size());
  return Ok{};
}

Result<std::string> Tokenizer::decode(std::span<const int32_t> ids) const {
  // A negative id becomes a huge one, which has no token either.
  const std::vector<uint32_t> unsigned_ids(ids.begin(), ids.end());
  TextkitBuffer text, error;
  const int32_t status = tk_tokenizer_decode(handle_.get(), unsigned_ids.data(), unsigned_ids.size(), 0,
                                             text.out(), error.out());
  if (status != TK_OK) return textkit_error(status, error);
  return text.str();
}

}  // namespace jewel
