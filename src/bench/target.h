// Target: something that answers chat requests, to be measured: an engine in this process, or a server. Both
// take the same bodies and tell when each token came.
//
// Requests are made ready before a run begins (add()), so that a run measures the target and not us. start()
// may be called by one thread at a time; `on_end` is called on a thread of the target's and must not block.
#pragma once

#include <boost/json/object.hpp>
#include <functional>
#include <memory>
#include <string>

#include "base/result.h"
#include "client/chat_answer.h"
#include "client/openai_client.h"
#include "jewel/engine.h"

namespace jewel {

// What a step of a model reads and computes at least. Zeros: not known.
struct ModelWork {
  double decode_bytes = 0;  // weights that every decode step reads, whatever its rows
  double decode_flop = 0;   // of a decoded token, without attention
  double prefill_flop = 0;  // of a prompt token, without attention: layers that own K and V, no head
  bool known() const { return decode_bytes > 0; }
};

struct TargetInfo {
  std::string name;    // as the person gave it: a directory, an address
  std::string served;  // the model's name there
  std::string where;   // "cpu (avx512-bf16, 2 threads)", "http://…"
  bool in_process = false;
  bool on_this_machine = true;
  bool has_images = true;  // as far as we know
  ModelWork work;
  boost::json::object settings;
};

// What the machine under a target can do, as measured; 0: not measured.
struct Rates {
  double bytes_per_s = 0;
  double flop_per_s = 0;
  double prompt_flop_per_s =
      0;  // where prompts are multiplied in another type (FP8 activations); 0: the same
  std::string how;
  double prompt_rate() const { return prompt_flop_per_s > 0 ? prompt_flop_per_s : flop_per_s; }
  bool known() const { return bytes_per_s > 0 && flop_per_s > 0; }
};

class Target {
 public:
  Target() = default;
  virtual ~Target() = default;
  Target(const Target&) = delete;
  Target& operator=(const Target&) = delete;

  virtual const TargetInfo& info() const = 0;

  // Makes a request ready; its number is how many were ready before. clear() forgets all.
  virtual Result<void> add(const boost::json::object& body) = 0;
  virtual void clear() = 0;

  using OnEnd = std::function<void(Result<ChatAnswer>)>;
  virtual void start(size_t number, OnEnd on_end) = 0;

  // Of the device, while nothing is under way; blocks for a second or two. Unknown for servers.
  virtual Rates measure_rates() { return {}; }
};

// One request, to its end; forgets the requests that were ready.
Result<ChatAnswer> ask(Target& target, const boost::json::object& body);

// Two models that stay loaded, as A B B A needs it: how far the first, and then the second, may fill the
// share of a card's memory that was given (--gpu-memory-utilization counts what others hold).
inline constexpr double kMemoryOfTwo[2] = {0.45, 0.9};

// `name`: what it is called in tables; empty: its directory.
Result<std::unique_ptr<Target>> make_local_target(const std::string& directory, const EngineOptions& options,
                                                  const std::string& name = {});
Result<std::unique_ptr<Target>> make_server_target(const ClientOptions& options);

// "http://…", "https://…" or "unix:…": a server, not a directory.
bool is_server_address(const std::string& text);

}  // namespace jewel
