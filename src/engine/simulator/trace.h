// A trace: which requests come when. One JSON object a line:
//
//   {"arrival_s": 0.25, "id": "a/1", "max_tokens": 128,
//    "prompt": [{"shared": "system", "tokens": 200}, {"image": "cat", "tokens": 256}, {"tokens": 40}]}
//   {"arrival_s": 4.0, "after": "a/1", "id": "a/2", "max_tokens": 128,
//    "prompt": [{"history": "a/1"}, {"tokens": 30}]}
//
// A prompt is a list of parts, in order:
//   {"tokens": n}                  n tokens of its own
//   {"shared": name, "tokens": n}  the first n tokens of what all parts of that name share; a place to resume
//   {"image": name, "tokens": n}   a picture of n soft tokens; equal names are equal pictures
//   {"ids": [...]}                 recorded token ids
//   {"history": id}                the prompt and the answer of an earlier request (a conversation's next
//   turn)
// `arrival_s` counts from the trace's start, or with `after` from that request's end. `max_tokens` is the
// answer's length: the simulated model never stops by itself. Also: "priority" (smaller first), "salt".
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "model/config.h"

namespace jewel {

struct TracePart {
  enum class Kind : uint8_t { kOwn, kShared, kImage, kIds, kHistory };
  Kind kind = Kind::kOwn;
  std::string name;  // of what is shared, the picture, or the earlier request
  int tokens = 0;
  std::vector<TokenId> ids;
};

struct TraceRequest {
  double arrival_s = 0;
  std::string id;
  std::string after;
  std::vector<TracePart> prompt;
  int max_tokens = 1;
  int priority = 0;
  std::string salt;
};

struct Trace {
  std::string name;
  std::vector<TraceRequest> requests;
};

// Errors name file and line: unknown keys, an `after` or `history` that no earlier line has, sizes.
Result<Trace> read_trace(const std::string& path);
Result<void> write_trace(const Trace& trace, const std::string& path);

// Numbers drawn per request: "350" (always), "uniform:100:600", "exp:350" (mean), "lognormal:350:0.6" (median
// and sigma of the logarithm). At least 1, at most 1,000,000.
struct LengthDistribution {
  enum class Kind : uint8_t { kFixed, kUniform, kExponential, kLogNormal };
  Kind kind = Kind::kFixed;
  double a = 0, b = 0;
};
Result<LengthDistribution> parse_lengths(std::string_view flag, std::string_view text);

// Made-up traffic. Conversations arrive at `rate` a second (Poisson), or `concurrency` of them go on at any
// moment; the same options give the same trace on every machine.
struct SyntheticTraffic {
  int requests = 1000;
  double rate = 0;      // conversations a second; 0: by concurrency
  int concurrency = 0;  // clients that each send a conversation after the other
  LengthDistribution prompt_tokens{.a = 350};
  LengthDistribution output_tokens{.a = 128};
  int shared_tokens = 0;   // a system prompt that every request begins with
  double image_share = 0;  // of the conversations that begin with a picture
  int image_tokens = 256;
  int n_images = 0;                    // different pictures; 0: each is new
  int turns = 1;                       // requests of a conversation
  LengthDistribution think_s{.a = 0};  // seconds between two turns
  uint64_t seed = 0;
};
Result<Trace> synthetic_trace(const SyntheticTraffic& traffic);

}  // namespace jewel
