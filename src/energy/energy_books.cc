#include "energy/energy_books.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace jewel {
namespace {

using std::chrono::seconds;

// Work without a reading for so long: what is charged now would not be measured.
constexpr double kStaleSeconds = 3;
constexpr double kLostSeconds = 10;            // and nothing is kept for a reading that may come
constexpr seconds kLostWithRest{120};          // nor here, though there was no work
constexpr size_t kMostRows = size_t{1} << 18;  // 15 MB of them
constexpr double kMostResidual = 0.25;         // of a request's joules
constexpr double kIdleMemorySeconds = 5;
constexpr double kLeastStretchSeconds = 0.05;  // half of NVML's tick
// How far watts of rest and prices may be off; of the difference between a reading and what was expected,
// each side takes a part by their squares.
constexpr double kIdleDoubt = 0.05;
constexpr double kIdleDoubtSeconds = 1;  // of so much rest at most: the mean of more is known better
constexpr double kWorkDoubt = 0.3;
constexpr double kReadingDoubt = 0.1;  // of a stretch of work: where its ends lie within a tick

double in_seconds(MeterReading::Clock::duration time) {
  return std::chrono::duration<double>(time).count();
}

StepLoad load_of(std::span<const RowWork> rows) {
  StepLoad load{.steps = 1};
  for (const RowWork& row : rows) {
    load.prefill_tokens += row.prefill_tokens;
    load.decode_tokens += row.decode_tokens;
    load.image_patches += row.image_patches;
  }
  return load;
}

void add(RequestJoules& sum, const RequestJoules& more, double times) {
  sum.image += more.image * times;
  sum.prefill += more.prefill * times;
  sum.decode += more.decode * times;
  sum.reasoning += more.reasoning * times;
}

}  // namespace

// What lies between two readings.
struct EnergyBooks::Window {
  double idle_s = 0, work_s = 0;
  StepLoad load;
  struct Part {
    Piece* piece;
    double part;    // of the piece
    double weight;  // among the work's
  };
  std::vector<Part> work;
  double weights = 0;
};

// ---- the engine's story

void EnergyBooks::work_begins(Time at) {
  add_piece(at, {}, false);
  working_ = true;
  if (!unread_work_) unread_work_ = at;
}

void EnergyBooks::step_done(Time at, std::span<const RowWork> rows) {
  add_piece(at, rows, !rows.empty());
  if (!rows.empty()) last_rows_ = rows.size();
  settle_what_is_covered();
}

void EnergyBooks::work_ends(Time at) {
  add_piece(at, {}, false);
  working_ = false;
  settle_what_is_covered();
}

void EnergyBooks::add_piece(Time end, std::span<const RowWork> rows, bool work) {
  end = std::max(end, boundary_);
  if (!work && end == boundary_) return;
  if (work && !unread_work_) unread_work_ = boundary_;
  if (lost_) {
    boundary_ = end;
    for (const RowWork& row : rows) {
      if (!take_owed(row.sequence)) accounts_[row.sequence].spoiled = true;
    }
    return;
  }
  Piece piece{.begin = std::exchange(boundary_, end), .end = end, .work = work};
  if (work) piece.load = load_of(rows);
  piece.rows.reserve(rows.size());
  for (const RowWork& work_of_row : rows) {
    Row row{.work = work_of_row, .part_of_step = 1.0 / static_cast<double>(rows.size())};
    if (const auto owed = take_owed(work_of_row.sequence)) {
      row.state = *owed > 0 ? Row::State::kCharged : Row::State::kUnclaimed;
      row.charged = *owed;
    } else {
      accounts_.try_emplace(work_of_row.sequence);
    }
    piece.rows.push_back(row);
  }
  n_rows_ += piece.rows.size();
  pieces_.push_back(std::move(piece));
  const Time read = last_reading().value_or(pieces_.front().begin);
  if (n_rows_ > kMostRows || unread_work_s(end) > kLostSeconds || end - read > kLostWithRest) lose();
}

// A row of an ended request has come; what it was charged for it, 0: nothing.
std::optional<double> EnergyBooks::take_owed(uint64_t sequence) {
  const auto found = owed_.find(sequence);
  if (found == owed_.end()) return std::nullopt;
  const double charged = found->second.charged;
  if (--found->second.rows == 0) owed_.erase(found);
  return charged;
}

std::optional<EnergyBooks::Time> EnergyBooks::last_reading() const {
  if (!readings_.empty()) return readings_.back().at;
  if (settled_) return settled_->at;
  return std::nullopt;
}

double EnergyBooks::unread_work_s(Time now) const {
  return unread_work_ ? in_seconds(now - *unread_work_) : 0;
}

// Whoever is under way has spent what nobody will know.
void EnergyBooks::lose() {
  pieces_.clear();
  readings_.clear();
  n_rows_ = 0;
  stretch_ = {};
  lost_ = true;
  for (auto& [sequence, account] : accounts_) account.spoiled = true;
}

// ---- the counter's

void EnergyBooks::reading(Time at, double joules, bool exact) {
  const Reading& last = !readings_.empty() ? readings_.back() : settled_ ? *settled_ : Reading{at, joules};
  const double gone = in_seconds(at - last.at);
  if (gone > 0) totals_.watts = (joules - last.joules) / gone;
  totals_.counter_joules += joules - last.joules;
  if (unread_work_) unread_work_ = std::max(at, *unread_work_);
  if (!settled_ || lost_) {
    if (settled_) totals_.unattributed_joules += joules - settled_->joules;
    if (!pieces_.empty()) lose();  // work from before the first reading
    lost_ = false;
    settled_ = Reading{at, joules};
    begins_exactly_ = exact;
    boundary_ = std::max(boundary_, at);
    if (!working_) unread_work_.reset();
    return;
  }
  readings_.push_back({at, joules});
  settle_what_is_covered();
}

void EnergyBooks::settle_what_is_covered() {
  while (!readings_.empty()) {
    const Reading to = readings_.front();
    if (to.at > boundary_) {
      if (working_) return;
      add_piece(to.at, {}, false);
      if (readings_.empty()) return;  // lost
    }
    readings_.pop_front();
    settle(to);
  }
  if (!working_ && !unsettled()) unread_work_.reset();
}

void EnergyBooks::settle(const Reading& to) {
  const double joules = to.joules - settled_->joules;
  Window window = window_until(to.at);
  const double idle = idle_part(window, joules);
  totals_.idle_joules += idle;
  idle_to_share_ += idle;
  for (const Window::Part& part : window.work)
    share_out(*part.piece, part.part, (joules - idle) * part.weight / window.weights);
  if (begins_exactly_) learn(window, joules);
  begins_exactly_ = true;
  drop_settled(to.at);
  settled_ = to;
}

EnergyBooks::Window EnergyBooks::window_until(Time to) {
  Window window;
  for (Piece& piece : pieces_) {
    if (piece.begin >= to && piece.end > to) break;
    const double length = in_seconds(piece.end - piece.begin);
    const double until = piece.end <= to ? 1 : in_seconds(to - piece.begin) / length;
    const double part = std::max(0.0, until - piece.settled);
    if (!piece.work) {
      window.idle_s += part * length;
      continue;
    }
    window.work_s += part * length;
    window.load += piece.load.scaled(part);
    const double weight = part * (model_.fitted() ? model_.cost(piece.load) : length);
    window.work.push_back({.piece = &piece, .part = part, .weight = weight});
    window.weights += weight;
  }
  // Steps that cost nothing by a model that has seen none of their kind, or that no clock saw pass.
  if (window.weights > 0) return window;
  for (Window::Part& part : window.work) {
    part.weight = part.part > 0 ? part.part : 1e-9;
    window.weights += part.weight;
  }
  return window;
}

double EnergyBooks::idle_part(const Window& window, double joules) const {
  if (window.work.empty()) return joules;
  if (window.idle_s <= 0) return 0;
  if (idle_watts_ <= 0) return joules * window.idle_s / (window.idle_s + window.work_s);
  const double expected = idle_watts_ * window.idle_s;
  const double unsure = idle_watts_ * std::min(window.idle_s, kIdleDoubtSeconds);
  if (!model_.fitted()) return std::min(joules, expected);
  const double work = window.weights;
  const double doubt_idle = std::pow(kIdleDoubt * unsure, 2), doubt_work = std::pow(kWorkDoubt * work, 2);
  const double surplus = joules - expected - work;
  return std::clamp(expected + surplus * doubt_idle / (doubt_idle + doubt_work), 0.0, joules);
}

RequestJoules EnergyBooks::price_of(const Row& row, const StepLoad& prices) const {
  const RowWork& work = row.work;
  const bool prompt = work.prefill_tokens > 0;
  const double step = row.part_of_step * prices.steps;
  RequestJoules joules;
  joules.image = work.image_patches * prices.image_patches;
  joules.prefill = work.prefill_tokens * prices.prefill_tokens + (prompt ? step : 0);
  joules.decode = work.decode_tokens * prices.decode_tokens + (prompt ? 0 : step);
  if (work.reasoning) joules.reasoning = joules.decode;
  return joules;
}

void EnergyBooks::share_out(Piece& piece, double part, double joules) {
  piece.settled += part;
  StepLoad prices = model_.prices();
  double all = model_.cost(piece.load);
  if (!(all > 0)) {
    prices = CostModel().prices();
    all = CostModel().cost(piece.load);
  }
  for (Row& row : piece.rows) {
    RequestJoules own;
    add(own, price_of(row, prices), joules / all);
    give(row, own);
  }
}

void EnergyBooks::give(Row& row, const RequestJoules& parts) {
  totals_.image_joules += parts.image;
  totals_.prefill_joules += parts.prefill;
  totals_.decode_joules += parts.decode;
  if (row.state == Row::State::kCharged) row.actual += parts.sum();
  if (row.state == Row::State::kLive) add(accounts_[row.work.sequence].joules, parts, 1);
}

// Rest tells its watts, work its prices. Where both lie between two readings, the work's joules are what the
// rest's watts leave over, and trusted less.
void EnergyBooks::learn(const Window& window, double joules) {
  if (window.work.empty()) {
    if (window.idle_s <= 0) return;
    // The mean of what was seen, and once that is more than the memory, of the last of it.
    rest_seen_s_ += window.idle_s;
    const double fresh =
        std::max(window.idle_s / rest_seen_s_, 1 - std::exp(-window.idle_s / kIdleMemorySeconds));
    idle_watts_ += fresh * (joules / window.idle_s - idle_watts_);
    totals_.idle_watts = idle_watts_;
    return;
  }
  const double by_time = joules * window.idle_s / (window.idle_s + window.work_s + 1e-9);
  const double idle = idle_watts_ > 0 ? idle_watts_ * window.idle_s : by_time;
  stretch_.load += window.load;
  stretch_.seconds += window.work_s;
  stretch_.idle_joules +=
      idle * std::min(1.0, kIdleDoubtSeconds / std::max(window.idle_s, kIdleDoubtSeconds));
  stretch_.joules += joules - idle;
  if (stretch_.seconds < kLeastStretchSeconds) return;
  const double sure = std::pow(kReadingDoubt * std::max(stretch_.joules, 0.0), 2);
  const double unsure = std::pow(kIdleDoubt * stretch_.idle_joules, 2);
  if (sure > 0 || unsure == 0)
    model_.add(stretch_.load, stretch_.joules, sure > 0 ? sure / (sure + unsure) : 1);
  stretch_ = {};
}

void EnergyBooks::drop_settled(Time to) {
  while (!pieces_.empty() && pieces_.front().end <= to) {
    for (const Row& row : pieces_.front().rows) {
      if (row.state == Row::State::kCharged) totals_.residual_joules += row.actual - row.charged;
    }
    n_rows_ -= pieces_.front().rows.size();
    pieces_.pop_front();
  }
}

// ---- ends of requests

bool EnergyBooks::unsettled() const {
  return std::ranges::any_of(pieces_, &Piece::work);
}

EnergyBooks::Closed EnergyBooks::close(Time now, uint64_t sequence, int rows_in_flight, bool give_up) {
  using State = Closed::State;
  const auto found = accounts_.find(sequence);
  if (found == accounts_.end() && rows_in_flight == 0) return {};
  const auto of_it = [&](const Piece& piece) {
    return std::ranges::any_of(piece.rows, [&](const Row& row) { return row.work.sequence == sequence; });
  };
  const bool open = rows_in_flight > 0 || std::ranges::any_of(pieces_, of_it);
  const bool stale = lost_ || !settled_ || unread_work_s(now) > kStaleSeconds;
  const bool spoiled = found != accounts_.end() && found->second.spoiled;
  if (open && !stale && !spoiled && !model_.fitted() && !give_up) return {.state = State::kWait};
  Closed closed;
  if (spoiled || (open && (stale || !model_.fitted()))) {
    closed.state = State::kNone;
    charge_unsettled(sequence, Row::State::kUnclaimed, nullptr);
    if (rows_in_flight > 0) owed_[sequence] = {.rows = rows_in_flight, .charged = 0};
  } else {
    if (found != accounts_.end()) closed.joules = found->second.joules;
    charge_unsettled(sequence, Row::State::kCharged, &closed.joules);
    if (rows_in_flight > 0) {
      const StepLoad prices = model_.prices();
      const double each = prices.steps / static_cast<double>(last_rows_) + prices.decode_tokens;
      closed.joules.decode += each * rows_in_flight;
      owed_[sequence] = {.rows = rows_in_flight, .charged = each};
    }
    take_residual(closed.joules);
    closed.joules.idle_share = idle_to_share_ / static_cast<double>(std::max<size_t>(accounts_.size(), 1));
    idle_to_share_ -= closed.joules.idle_share;
  }
  accounts_.erase(sequence);
  return closed;
}

// Rows of the sequence that no reading covers become `state`; what they cost by the model goes to `joules`.
void EnergyBooks::charge_unsettled(uint64_t sequence, Row::State state, RequestJoules* joules) {
  const StepLoad prices = model_.prices();
  for (Piece& piece : pieces_) {
    for (Row& row : piece.rows) {
      if (row.work.sequence != sequence || row.state != Row::State::kLive) continue;
      row.state = state;
      if (joules == nullptr) continue;
      RequestJoules own;
      add(own, price_of(row, prices), 1 - piece.settled);
      row.charged = own.sum();
      add(*joules, own, 1);
    }
  }
}

void EnergyBooks::take_residual(RequestJoules& joules) {
  const double sum = joules.sum();
  if (!(sum > 0)) return;
  const double taken = std::clamp(totals_.residual_joules, -kMostResidual * sum, kMostResidual * sum);
  totals_.residual_joules -= taken;
  RequestJoules scaled;
  add(scaled, joules, 1 + taken / sum);
  joules = scaled;
}

}  // namespace jewel
