// Keys of the prefix cache: one SHA-256 per whole page of a prompt, chained.
//
//   key[-1] = SHA-256("jewel prefix 1" · salt)
//   key[i]  = SHA-256(key[i - 1] · the page's kPageTokens ids, int32 little endian
//                     · for each image that overlaps the page: content digest, budget, its position relative
//                       to the page, its count, int32 little endian each)
//
// Equal keys mean equal ids, images and salt from position 0 to the page's end, up to a collision of
// SHA-256. Pure functions; any thread.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "engine/request.h"

namespace jewel {

Digest prefix_root(std::string_view salt);
// The key of the page that holds `tokens` (kPageTokens of them) from `position` on.
Digest page_key(const Digest& parent, std::span<const TokenId> tokens, std::span<const PromptImage> images,
                int position);
// Of every whole page of the prompt.
std::vector<Digest> prefix_keys(std::string_view salt, std::span<const TokenId> prompt,
                                std::span<const PromptImage> images);

Digest sha256(std::span<const std::byte> bytes);

}  // namespace jewel
