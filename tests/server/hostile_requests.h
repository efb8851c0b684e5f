// Requests that a server on the open Internet gets sooner or later: broken, ambiguous, or made to hurt. The
// same ones in every run, made one at a time, since some are megabytes long.
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace jewel {

struct HostileRequest {
  std::string name;  // what is wrong with it
  std::string bytes;
  // What an answer may be. Requests for text ask for more tokens than there are, at their end: one whose
  // other fault is none ("user": {}) is refused too, once everything in it was read.
  enum class Answer {
    kRefusal,  // 4xx
    kNoCrash,  // 2xx or 4xx: harmless, or a matter of taste
    kRaw,      // no request, or several: 4xx, 501, or a connection that ends
    kOne,      // the same, and what stands behind an unclear body is not taken for a request
    kNoise,    // may by accident be a good request
  };
  Answer answer = Answer::kRefusal;
};

using Visit = std::function<void(const HostileRequest&)>;

void hostile_json(const Visit& visit);    // bodies that are no JSON, or too deep, too large, not UTF-8
void hostile_fields(const Visit& visit);  // wrong values for every field of every body in the API's document
void hostile_values(const Visit& visit);  // grammars, tools, messages and lists made to cost
void hostile_pictures(const Visit& visit);  // bad base64, cut files, bombs
void hostile_http(const Visit& visit);      // heads and framing: floods, smuggling, other protocols, noise

}  // namespace jewel
