// EnergyBooks: whose joules the counter's are.
//
// Two things come in: what the engine did, as stretches of time (a step with its rows, or rest), and what the
// counter said at moments when it is known to be exact. Between two such readings the counter's joules are
// split over the stretches (rest by the watts of rest, steps by CostModel), and a step's over its rows (the
// step's price in equal parts, tokens and patches by their own). So all joules go somewhere, and
//
//   image + prefill + decode + idle + unattributed = counter
//
// holds exactly. A request that ends is not kept waiting for the next tick: what no reading covers yet is
// charged to it at the model's prices, and when the reading comes the difference is a residual that the next
// requests take over, each at most a quarter of its own joules. So requests + idle + residual = counter, and
// the residual stays within what a tick or two hold. Only before the model has seen any work does the end
// wait for a reading.
//
// Rest is its own account. What was spent in it since the last request is shared out, beside a request's own
// joules and not in them, among those that are there when it ends.
//
// A counter that cannot be read for ten seconds of work, or for two minutes with rest, is lost: requests of
// that time have no figure, and what it shows when it is back is nobody's. Rest needs few readings: its watts
// are known. Times only grow; one thread.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "energy/cost_model.h"
#include "energy/counter.h"
#include "energy/step_watch.h"

namespace jewel {

struct RequestJoules {
  double image = 0;
  double prefill = 0;
  double decode = 0;
  double reasoning = 0;   // a part of decode
  double idle_share = 0;  // beside them

  double sum() const { return image + prefill + decode; }
};

// Of everything that was settled.
struct EnergyTotals {
  double image_joules = 0;
  double prefill_joules = 0;
  double decode_joules = 0;
  double idle_joules = 0;
  double unattributed_joules = 0;  // the counter was lost meanwhile
  double counter_joules = 0;       // since the first reading; what is not settled yet included
  double residual_joules = 0;      // that requests were charged too little, or too much
  double watts = 0;                // between the last two readings
  double idle_watts = 0;           // of rest; 0: never seen
};

class EnergyBooks {
 public:
  using Time = MeterReading::Clock::time_point;

  explicit EnergyBooks(Time now) : boundary_(now) {}

  // The engine's story, in order.
  void work_begins(Time at);
  void step_done(Time at, std::span<const RowWork> rows);
  void work_ends(Time at);

  // The counter's, in order. The first only says where it begins, and alone may be not `exact`: then what was
  // drawn from its last tick to `at` is in it, too.
  void reading(Time at, double joules, bool exact = true);

  struct Closed {
    enum class State : uint8_t {
      kDone,
      kWait,  // for a reading; nothing has happened
      kNone,  // there is no figure
    };
    State state = State::kDone;
    RequestJoules joules;
  };
  // The request has ended; rows of it that are still to come are charged now. Give up: kNone instead of
  // kWait.
  Closed close(Time now, uint64_t sequence, int rows_in_flight, bool give_up = false);

  bool resting() const { return !working_; }
  bool unsettled() const;  // a step that no reading covers
  const EnergyTotals& totals() const { return totals_; }
  const CostModel& model() const { return model_; }

 private:
  struct Row {
    enum class State : uint8_t { kLive, kCharged, kUnclaimed };
    RowWork work;
    double part_of_step = 0;  // 1 / rows
    State state = State::kLive;
    double charged = 0;  // in advance
    double actual = 0;   // since then
  };
  struct Piece {
    Time begin, end;
    bool work = false;
    double settled = 0;  // of it, 0 to 1
    StepLoad load;
    std::vector<Row> rows;
  };
  struct Reading {
    Time at;
    double joules = 0;
  };
  struct Account {
    RequestJoules joules;
    bool spoiled = false;
  };
  struct Owed {  // rows of an ended request that are in flight
    int rows = 0;
    double charged = 0;  // for each; 0: nothing
  };
  struct Window;

  void add_piece(Time end, std::span<const RowWork> rows, bool work);
  void settle_what_is_covered();
  void settle(const Reading& to);
  Window window_until(Time to);
  double idle_part(const Window& window, double joules) const;
  void share_out(Piece& piece, double part, double joules);
  void give(Row& row, const RequestJoules& parts);
  void learn(const Window& window, double joules);
  void drop_settled(Time to);
  void lose();
  std::optional<double> take_owed(uint64_t sequence);
  std::optional<Time> last_reading() const;
  double unread_work_s(Time now) const;
  RequestJoules price_of(const Row& row, const StepLoad& prices) const;
  void charge_unsettled(uint64_t sequence, Row::State state, RequestJoules* joules);
  void take_residual(RequestJoules& joules);

  bool working_ = false;
  Time boundary_;                    // the end of what is told
  std::optional<Time> unread_work_;  // since then there is work that no reading covers
  std::deque<Piece> pieces_;
  size_t n_rows_ = 0;     // in pieces_
  size_t last_rows_ = 1;  // of the last step
  std::optional<Reading> settled_;
  bool begins_exactly_ = true;    // settled_ does
  std::deque<Reading> readings_;  // behind it, not covered by pieces yet
  bool lost_ = false;

  std::unordered_map<uint64_t, Account> accounts_;
  std::unordered_map<uint64_t, Owed> owed_;
  double idle_to_share_ = 0;
  CostModel model_;
  struct {
    StepLoad load;
    double joules = 0, seconds = 0, idle_joules = 0;
  } stretch_;  // of work, to be learned from
  double idle_watts_ = 0;
  double rest_seen_s_ = 0;
  EnergyTotals totals_;
};

}  // namespace jewel
