// Request sets from JSONL files: one request a line, either an OpenAI chat body ({"messages": …}) or the
// short form {"prompt": "…", "image": "cat.jpg", "max_tokens": 64} ("images" for several, "system" for a
// system message). Pictures that are not data: or http(s): addresses are files, relative to the JSONL's
// directory, and are read in.
#pragma once

#include <boost/json/object.hpp>
#include <string>
#include <vector>

#include "base/result.h"

namespace jewel {

// Chat bodies without `model`, `stream` and `stream_options`, which are the benchmark's to say. Empty lines
// are passed over. Errors name file and line.
Result<std::vector<boost::json::object>> read_set_file(const std::string& path);

}  // namespace jewel
