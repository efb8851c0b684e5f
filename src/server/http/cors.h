// Cors: which pages of other origins may read this server's answers (the Fetch standard's CORS protocol).
// Off, without a header, unless origins are listed. Made once; any thread.
//
// A list of origins, or of credentials, makes answers depend on who asks, so they say Vary: Origin. "*" with
// credentials is what browsers refuse to read, so then the asking origin is named instead. The wildcard for
// headers would not cover Authorization, so "*" there allows what is asked for, by name.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/http/message.h"

namespace jewel {

struct CorsRules {
  std::vector<std::string> origins;  // "https://a.example", or "*"; empty: off
  std::vector<std::string> methods{"*"};
  std::vector<std::string> headers{"*"};
  bool credentials = false;
};

class Cors {
 public:
  explicit Cors(CorsRules rules);

  // The answer to a browser that asks before it sends (OPTIONS with Access-Control-Request-Method), without
  // the headers of headers_for(); nullopt: this is no such question, or CORS is off. 403: not this origin.
  std::optional<ServerResponse> preflight(const ServerRequest& head) const;

  // For every answer, errors included, or pages could not read what went wrong.
  std::vector<HttpHeader> headers_for(const ServerRequest& head) const;

 private:
  bool on() const { return !rules_.origins.empty(); }
  bool allows(std::string_view origin) const;

  CorsRules rules_;
  bool any_origin_ = false;
};

}  // namespace jewel
