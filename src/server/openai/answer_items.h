// AnswerItems: an answer as a row of items (thoughts, text, calls), in the order in which the model said
// them, for the APIs whose answers are such rows. What is streamed and what is sent whole come from the same
// items. One answer, one thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "jewel/output.h"

namespace jewel {

struct AnswerItem {
  enum class Kind : uint8_t { kReasoning, kText, kCall };
  Kind kind = Kind::kText;
  std::string text;  // a call: its arguments' JSON
  std::string name;  // of the function
  int call = 0;      // index of the call, from 0
  bool open = true;
  bool cut_off = false;             // the answer ended inside of it
  std::vector<OutputToken> tokens;  // of a text, when logprobs were asked for
};

struct ItemChange {
  enum class What : uint8_t { kOpened, kGrew, kClosed };
  What what = What::kOpened;
  size_t item = 0;
  std::string text;        // what it grew by
  size_t first_token = 0;  // of AnswerItem::tokens, those from here on came with it
};

// The answer ended before the model was done with it.
bool is_cut_off(EndReason reason);

class AnswerItems {
 public:
  // What the update changes, in order. The update with `finish` closes the last item.
  std::vector<ItemChange> take(const Update& update);
  const std::vector<AnswerItem>& items() const { return items_; }

 private:
  void open(AnswerItem::Kind kind, std::vector<ItemChange>& changes);
  void close(std::vector<ItemChange>& changes);
  void grow(const std::string& text, std::vector<ItemChange>& changes);
  void take_piece(const OutputPiece& piece, std::vector<ItemChange>& changes);
  AnswerItem* open_item();

  std::vector<AnswerItem> items_;
  std::vector<OutputToken> tokens_;  // of content that has not been seen yet
};

}  // namespace jewel
