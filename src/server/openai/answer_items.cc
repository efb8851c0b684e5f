#include "server/openai/answer_items.h"

#include <iterator>
#include <utility>

namespace jewel {

using What = ItemChange::What;

bool is_cut_off(EndReason reason) {
  return reason != EndReason::kStop && reason != EndReason::kToolCalls;
}

AnswerItem* AnswerItems::open_item() {
  return items_.empty() || !items_.back().open ? nullptr : &items_.back();
}

void AnswerItems::open(AnswerItem::Kind kind, std::vector<ItemChange>& changes) {
  close(changes);
  items_.push_back({.kind = kind});
  changes.push_back({.what = What::kOpened, .item = items_.size() - 1});
}

void AnswerItems::close(std::vector<ItemChange>& changes) {
  AnswerItem* item = open_item();
  if (item == nullptr) return;
  if (item->kind == AnswerItem::Kind::kText && !tokens_.empty()) grow("", changes);
  item->open = false;
  changes.push_back({.what = What::kClosed, .item = items_.size() - 1});
}

void AnswerItems::grow(const std::string& text, std::vector<ItemChange>& changes) {
  AnswerItem& item = items_.back();
  const size_t first_token = item.tokens.size();
  item.text += text;
  if (item.kind == AnswerItem::Kind::kText) {
    item.tokens.insert(item.tokens.end(), std::make_move_iterator(tokens_.begin()),
                       std::make_move_iterator(tokens_.end()));
    tokens_.clear();
  }
  changes.push_back(
      {.what = What::kGrew, .item = items_.size() - 1, .text = text, .first_token = first_token});
}

void AnswerItems::take_piece(const OutputPiece& piece, std::vector<ItemChange>& changes) {
  using PieceKind = OutputPiece::Kind;
  switch (piece.kind) {
    case PieceKind::kReasoning:
    case PieceKind::kContent: {
      if (piece.text.empty()) return;
      const auto kind =
          piece.kind == PieceKind::kReasoning ? AnswerItem::Kind::kReasoning : AnswerItem::Kind::kText;
      const AnswerItem* now = open_item();
      if (now == nullptr || now->kind != kind) open(kind, changes);
      return grow(piece.text, changes);
    }
    case PieceKind::kCallStart:
      open(AnswerItem::Kind::kCall, changes);
      items_.back().name = piece.text;
      items_.back().call = piece.call;
      return;
    case PieceKind::kCallArguments:
      return grow(piece.text, changes);
    case PieceKind::kCallEnd:
      items_.back().cut_off = !piece.complete;
      return close(changes);
  }
}

std::vector<ItemChange> AnswerItems::take(const Update& update) {
  std::vector<ItemChange> changes;
  for (const OutputToken& token : update.tokens) {
    if (token.in_content && token.chance) tokens_.push_back(token);
  }
  for (const OutputPiece& piece : update.pieces) take_piece(piece, changes);
  if (update.finish) {
    if (AnswerItem* item = open_item()) item->cut_off = is_cut_off(update.finish->reason);
    close(changes);
  }
  return changes;
}

}  // namespace jewel
