#include "server/openai/answer_feed.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace jewel {
namespace {

constexpr size_t kMaxUnreadBytes = size_t{64} << 20;

template <typename T>
void append(std::vector<T>& to, std::vector<T>&& from) {
  if (to.empty())
    to = std::move(from);
  else
    to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}

bool is_one_piece(const OutputPiece& a, const OutputPiece& b) {
  using enum OutputPiece::Kind;
  return a.kind == b.kind && a.call == b.call && a.kind != kCallStart && a.kind != kCallEnd;
}

// About what it takes in memory.
size_t bytes_of(const Update& update) {
  size_t bytes = 0;
  for (const OutputPiece& piece : update.pieces) bytes += sizeof(piece) + piece.text.size();
  const auto tokens = [&](const std::vector<OutputToken>& list) {
    for (const OutputToken& token : list) bytes += sizeof(token) + token.top.size() * sizeof(TokenChance);
  };
  tokens(update.tokens);
  tokens(update.prompt_logprobs);
  return bytes;
}

}  // namespace

void join_updates(Update& before, Update&& after) {
  if (after.prompt) before.prompt = std::move(after.prompt);
  if (after.finish) before.finish = std::move(after.finish);
  append(before.tokens, std::move(after.tokens));
  append(before.prompt_logprobs, std::move(after.prompt_logprobs));
  for (OutputPiece& piece : after.pieces) {
    if (!before.pieces.empty() && is_one_piece(before.pieces.back(), piece))
      before.pieces.back().text += piece.text;
    else
      before.pieces.push_back(std::move(piece));
  }
}

void AnswerFeed::set_wake(std::function<void()> wake) {
  const std::scoped_lock lock(mutex_);
  wake_ = std::move(wake);
}

void AnswerFeed::add(size_t answer, Update&& update) {
  std::function<void()> wake;
  {
    const std::scoped_lock lock(mutex_);
    Slot& slot = slots_[answer];
    slot.valid = slot.valid || update.prompt.has_value();
    slot.finished = slot.finished || update.finish.has_value();
    failed_ = failed_ || (update.finish && update.finish->error);
    unread_bytes_ += bytes_of(update);
    if (slot.any)
      join_updates(slot.update, std::move(update));
    else
      slot.update = std::move(update);
    slot.any = true;
    const bool all = std::ranges::all_of(slots_, [](const Slot& s) { return s.finished; });
    if (each_ || failed_ || all || unread_bytes_ > kMaxUnreadBytes) wake = wake_;
  }
  if (wake) wake();
}

std::vector<AnswerFeed::Slot> AnswerFeed::take() {
  const std::scoped_lock lock(mutex_);
  std::vector<Slot> taken;
  taken.reserve(slots_.size());
  for (Slot& slot : slots_) {
    taken.push_back({.update = std::exchange(slot.update, {}),
                     .any = std::exchange(slot.any, false),
                     .valid = slot.valid,
                     .finished = slot.finished});
  }
  unread_bytes_ = 0;
  return taken;
}

AnswerFeed::State AnswerFeed::state() const {
  const std::scoped_lock lock(mutex_);
  State state{.failed = failed_, .overflowed = unread_bytes_ > kMaxUnreadBytes};
  for (const Slot& slot : slots_) {
    state.all_valid = state.all_valid && (slot.valid || slot.finished);
    state.all_finished = state.all_finished && slot.finished;
  }
  return state;
}

}  // namespace jewel
