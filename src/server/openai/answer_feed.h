// AnswerFeed: where the engine's updates wait for the connection that sends them. What came since it last
// looked is put together, so that a client that reads slowly costs its answer's bytes and no more.
//
// add() is called on the engine's output threads, the rest on the connection's.
#pragma once

#include <functional>
#include <mutex>
#include <vector>

#include "jewel/output.h"

namespace jewel {

// Appends what came later to what came before; pieces of one kind become one.
void join_updates(Update& before, Update&& after);

class AnswerFeed {
 public:
  // `each`: wake for every update (a stream); else when all answers have ended, or one has failed.
  AnswerFeed(size_t answers, bool each) : slots_(answers), each_(each) {}

  void set_wake(std::function<void()> wake);
  void add(size_t answer, Update&& update);

  struct Slot {
    Update update;  // since the last take()
    bool any = false;
    bool valid = false;  // the request was found possible
    bool finished = false;
  };
  // Everything that waits; flags are kept, updates are moved out.
  std::vector<Slot> take();

  // Look without taking.
  struct State {
    bool all_valid = true;  // of those that have not finished
    bool all_finished = true;
    bool failed = false;      // one has ended with an error
    bool overflowed = false;  // more waited than a client may leave unread
  };
  State state() const;

 private:
  mutable std::mutex mutex_;
  std::vector<Slot> slots_;
  std::function<void()> wake_;
  const bool each_;
  bool failed_ = false;
  size_t unread_bytes_ = 0;
};

}  // namespace jewel
