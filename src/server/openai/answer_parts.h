// Pieces of JSON that chat and completion answers share. For the writers of this folder.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "jewel/output.h"
#include "server/openai/answer_writer.h"
#include "server/openai/json_out.h"

namespace jewel {

inline constexpr std::string_view kFingerprint = "jewel-" JEWEL_VERSION;

// The usage of several answers to the same prompts: a prompt is counted once for its n answers.
class UsageSum {
 public:
  UsageSum(size_t answers, int n) : each_(answers), energies_(answers), n_(n) {}
  void see(size_t answer, const Update& update);
  void write(JsonOut& out) const;  // {"prompt_tokens": …}

 private:
  std::optional<Energy> energy() const;  // when all have said theirs

  std::vector<Usage> each_;
  std::vector<std::optional<Energy>> energies_;
  const int n_;
};

// "energy" of an open usage object; nothing where there is no meter.
void write_energy(JsonOut& out, const std::optional<Energy>& energy);
std::string_view finish_reason(EndReason reason);
// "token", "logprob", "bytes" of an open object.
void write_token(JsonOut& out, const TokenChance& chance);
// The stop text or stop token that ended it, else null.
void write_stop_reason(JsonOut& out, const Finish& finish);
void write_timings(JsonOut& out, const Finish& finish);
void write_ids(JsonOut& out, std::string_view name, const std::vector<OutputToken>& tokens);
void write_prompt_ids(JsonOut& out, const Update& update);
// vLLM's: a list with, for each token of the prompt, null or {"id": {logprob, rank, decoded_token}}.
void write_prompt_logprobs(JsonOut& out, const std::vector<OutputToken>& tokens);
// A log-probability that JSON can say: -9999 for minus infinity, as in vLLM.
double finite_logprob(float logprob);

void append_event(std::string& out, std::string_view json);
// With its name in a line of its own, as the newer APIs have it.
void append_event(std::string& out, std::string_view name, std::string_view json);

}  // namespace jewel
